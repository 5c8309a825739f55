"""Evaluates networks: predictions, accuracy, confusions, and their split into specialties.

Functions take and return plain arrays and tables.  scikit-learn and scipy are imported late because
they are slow to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from nofe_lab.config import InvalidInput, shown
from nofe_lab.data import Dataset, Source
from nofe_lab.data.dataset import clearest, label_margins
from nofe_lab.data.streaming import dead_workers_said
from nofe_lab.specialties import Specialties

EVALUATION_PIXELS = 1000 * 32 * 32
"""Pixels per batch: larger images make smaller batches."""

CALIBRATION_BINS = 15
"""Number of bins of equal width between confidence 0 and 1."""

LARGEST_TEMPERATURE = 100.0
"""Temperatures are from 1 / this to this."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of a network for the images of a split.

    logits: float32 [N, n].  labels: int64 [N], the index of the correct output, from 0 to n - 1.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits [N, n]."""
        from scipy.special import softmax

        result: NDArray[np.float64] = softmax(self.logits.astype(np.float64), axis=1)
        return result

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable output for each image [N]."""
        return self.logits.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable output is correct."""
        return float((self.predicted == self.labels).mean())

    @property
    def class_accuracy(self) -> float:
        """Mean accuracy of the classes that have images (macro-averaged recall)."""
        from sklearn.metrics import recall_score

        present = np.unique(self.labels)
        return float(recall_score(self.labels, self.predicted, labels=present, average="macro"))

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five most probable outputs."""
        from sklearn.metrics import top_k_accuracy_score

        n = self.logits.shape[1]
        if n <= 5:
            return 1.0
        return float(top_k_accuracy_score(self.labels, self.logits, k=5, labels=np.arange(n)))

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats."""
        from sklearn.metrics import log_loss

        n = self.logits.shape[1]
        return float(log_loss(self.labels, self.probabilities, labels=np.arange(n)))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1: mean |accuracy - confidence| over 15 bins.

        See C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        """
        return calibration_error(reliability(self.probabilities, self.labels))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [n, n]: row = label, column = prediction."""
        return confusion_counts(self.labels, self.predicted, self.logits.shape[1])

    @property
    def temperature(self) -> float:
        """The number that the logits must be divided by for the smallest loss on these images.

        Fitted on val, it mends the confidence of a network (`at_temperature`) and no answer: above
        1, the network was too sure.  As `CalibratedClassifierCV(method="temperature")` of
        scikit-learn, also for two classes and for classes without images.
        See C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        Raises InvalidInput without images.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import logsumexp

        if not len(self.labels):
            raise InvalidInput(
                "a temperature is fitted on val images; there are none (val_fraction sets some "
                "aside)."
            )
        logits = self.logits.astype(np.float64)
        own = logits[np.arange(len(logits)), self.labels]

        def loss(exponent: float) -> float:
            factor = np.exp(exponent)
            return float((logsumexp(factor * logits, axis=1) - factor * own).mean())

        limit = np.log(LARGEST_TEMPERATURE)
        found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
        return float(np.exp(-found.x))

    def at_temperature(self, temperature: float) -> Predictions:
        """The same answers with other probabilities: all logits are divided by `temperature`."""
        return Predictions((self.logits / temperature).astype(np.float32), self.labels)

    def certainty(self, specialties: Specialties) -> pd.DataFrame:
        """One row an image: label, predicted class, its probability, most probable specialty."""
        return pd.DataFrame(
            {
                "label": self.labels,
                "predicted": self.predicted,
                "probability": self.probabilities.max(axis=1),
                "specialty": specialties.sums(self.probabilities).argmax(axis=1),
            }
        )


def confusion_counts(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Count the images of each label and prediction [n, n]: row = label, column = prediction."""
    from sklearn.metrics import confusion_matrix

    counts: NDArray[np.int64] = confusion_matrix(labels, predicted, labels=np.arange(n))
    return counts


def reliability(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> pd.DataFrame:
    """Tabulate accuracy against confidence in `CALIBRATION_BINS` bins of equal width.

    probabilities: [N, n].  labels: [N].  The confidence of an image is its largest probability.
    Columns: low and high, the bin's limits; images; confidence and accuracy, their means, NaN in an
    empty bin.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS) - 1
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, each, minlength=CALIBRATION_BINS) for each in (confidence, right)]
    means = [np.where(images, total / np.maximum(images, 1), np.nan) for total in sums]
    limits = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    return pd.DataFrame(
        {
            "low": limits[:-1],
            "high": limits[1:],
            "images": images,
            "confidence": means[0],
            "accuracy": means[1],
        }
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """The expected calibration error of a table of `reliability`, 0 to 1."""
    gaps = (bins["accuracy"] - bins["confidence"]).abs() * bins["images"]
    return float(gaps.sum() / bins["images"].sum())


def coverage_table(
    certainty: pd.DataFrame, specialties: Specialties, coverages: Sequence[float]
) -> pd.DataFrame:
    """What answering with the class only where it is certain gives, and else with the specialty.

    certainty: see `Predictions.certainty`.  coverages: shares of the images that are answered with
    their class, those that are most certain.  One row a coverage: coverage; threshold, the least
    probability of these; class_right, of the classes answered; specialty_right, of the specialties
    that the others are answered with (NaN if there are none); right, of all answers.
    """
    right = (certainty["label"] == certainty["predicted"]).to_numpy()
    near = np.array(specialties.of)[certainty["label"]] == certainty["specialty"].to_numpy()
    rows = []
    for coverage in coverages:
        threshold = float(np.quantile(certainty["probability"], 1 - coverage))
        sure = (certainty["probability"] >= threshold).to_numpy()
        rows.append(
            {
                "coverage": coverage,
                "threshold": threshold,
                "class_right": right[sure].mean(),
                "specialty_right": near[~sure].mean() if not sure.all() else np.nan,
                "right": np.where(sure, right, near).mean(),
            }
        )
    return pd.DataFrame(rows)


def predict(
    model: nn.Module,
    split: Source,
    target_of_class: torch.Tensor | None = None,
    experts: int | None = None,
) -> Predictions:
    """Run a network on a split in evaluation mode, without augmentation.

    model: raw images uint8 [B, c, h, w] -> logits [B, n], on any device.
    target_of_class: int64 [C], the correct output for each class; None: the class itself.
    experts: how many experts a network of experts with a gate runs for each image; None: all, or
        the usual ones (see `NofE.logits`).
    Raises InvalidInput if `split` is no `Source`.
    """
    if not isinstance(split, Source):
        raise InvalidInput(
            f"predict takes the images of a data set, such as data.val; got {shown(split)}: "
            "model.predict(...) takes files, folders and pictures."
        )
    logits = torch.cat([output for output, _ in _outputs(model, split, experts)])
    labels = split.labels if target_of_class is None else target_of_class.cpu()[split.labels]
    return Predictions(logits.numpy(), labels.numpy())


class Formation(NamedTuple):
    """How specialties came about: what a film is drawn of (see `nofe_lab.views.film.film`)."""

    dataset: Dataset
    """Each class is shown by its clearest image."""
    specialties: Specialties
    map_history: pd.DataFrame
    """Columns update, class, specialty, as in a generalist's run."""
    map_updates: pd.DataFrame
    """Columns update, moved, objective_before, objective_after."""
    objective: str
    """What the objective is, in three short lines."""
    start: str
    """What the first map is, in a few words."""


def with_clearest(
    dataset: Dataset, model: nn.Module, target_of_class: torch.Tensor | None = None
) -> Dataset:
    """Choose a data set's thumbnails with a trained network.

    Of up to 50 training images per class, the one with the largest margin between the logit of its
    label and the largest other logit; arguments are those of `predict`.
    """

    def margins(images: Source) -> NDArray[np.floating]:
        predictions = predict(model, images, target_of_class)
        return label_margins(predictions.logits, predictions.labels)

    return replace(dataset, clearest=clearest(dataset.train, margins)[:, 0])


def images_at_once(image_shape: tuple[int, int, int]) -> int:
    """How many images (channels, height, width) are evaluated in one batch."""
    return max(EVALUATION_PIXELS // (image_shape[1] * image_shape[2]), 1)


def _outputs(
    model: nn.Module, split: Source, experts: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a network's outputs for a split, with the labels, batch by batch."""
    device = next(chain(model.parameters(), model.buffers())).device
    model.eval()
    forward = model if experts is None else partial(cast(Any, model).logits, experts=experts)
    size = images_at_once(split.image_shape)
    for images, labels in zip(split.parts(size), split.labels.split(size), strict=True):
        with dead_workers_said(), torch.inference_mode():
            outputs = forward(images.to(device)).float().cpu()
        yield outputs, labels


def class_means(model: nn.Module, split: Source, C: int) -> NDArray[np.float64]:
    """Compute the mean features of each class [C, d]; zeros for a class without images.

    model: raw images uint8 [B, c, h, w] -> features [B, ...], which are flattened.
    """
    total: torch.Tensor | None = None
    for features, labels in _outputs(model, split):
        flat = features.flatten(1).double()
        total = flat.new_zeros(C, flat.shape[1]) if total is None else total
        total.index_add_(0, labels, flat)
    assert total is not None, "a split has images"
    images = torch.bincount(split.labels, minlength=C).clamp(min=1)
    result: NDArray[np.float64] = (total / images[:, None]).numpy()
    return result


def per_class(confusion: NDArray[np.int64], class_names: tuple[str, ...]) -> pd.DataFrame:
    """Tabulate, for each class: images, accuracy, and the class it is most often mistaken for."""
    errors = confusion - np.diag(np.diag(confusion))
    images = confusion.sum(axis=1)
    rivals = errors.argmax(axis=1)
    mistaken = errors.max(axis=1)
    return pd.DataFrame(
        {
            "class": class_names,
            "images": images,
            "accuracy": np.diag(confusion) / np.maximum(images, 1),
            "mistaken for": [
                class_names[rival] if count else ""
                for rival, count in zip(rivals, mistaken, strict=True)
            ],
            "times": mistaken,
        }
    )


def per_specialty(confusion: NDArray[np.int64], specialties: Specialties) -> pd.DataFrame:
    """Tabulate the specialties that have classes, from counts [C, C].

    accuracy: share of the images that are classified correctly.
    right specialty: share of the images whose predicted class is in the specialty.
    inside: share of the errors whose predicted class is in the specialty; NaN without errors.
    inside by chance: the same if all other classes were predicted equally often.
    """
    blocks = specialty_confusion(confusion, specialties)
    rows = []
    for k in specialties.nonempty:
        members = list(specialties.members(k))
        images = int(confusion[members].sum())
        right = int(confusion[members, members].sum())
        in_block = int(blocks[k, k])
        rows.append(
            {
                "specialty": specialties.names[k],
                "classes": len(members),
                "images": images,
                "accuracy": right / max(images, 1),
                "right specialty": in_block / max(images, 1),
                "inside": (in_block - right) / (images - right) if images > right else np.nan,
                "inside by chance": (len(members) - 1) / (specialties.C - 1),
            }
        )
    return pd.DataFrame(rows)


def best_threshold(scores: NDArray[np.floating], own: NDArray[np.bool_]) -> float:
    """The score that tells a specialty's own images from others best.

    scores: [N].  own: [N].  The mean of two shares is largest: own images at or above the
    threshold, and others below it (Youden's index).  The lowest float32 if that takes all images.
    Raises InvalidInput if none is own.
    """
    if not own.any():
        raise InvalidInput("a threshold needs images of the specialty's classes; got none.")
    best = -np.inf
    if not own.all():
        from sklearn.metrics import roc_curve

        others, found, thresholds = roc_curve(own, scores, drop_intermediate=False)
        best = float(thresholds[1:][(found - others)[1:].argmax()])  # the first is infinite
    below = scores[scores < best]
    # halfway to the next score, so that rounding moves no image across
    return (best + float(below.max())) / 2 if len(below) else float(np.finfo(np.float32).min)


def on_specialty(
    labels: NDArray[np.int64], said: NDArray[np.int64], members: Sequence[int] | NDArray[np.int64]
) -> dict[str, float]:
    """How well the classes of a specialty are found among others.

    labels, said: [N], classes; -1 in `said` is none.  members: the classes of the specialty.
    found: share of its images that are answered with one of its classes; accuracy: with the right
    one.  false_alarms: share of other images that are answered with one of its classes.
    NaN where there are no such images.
    """
    own, taken = np.isin(labels, members), np.isin(said, members)
    shares = {"found": taken[own], "accuracy": (said == labels)[own], "false_alarms": taken[~own]}
    return {name: float(each.mean()) if len(each) else np.nan for name, each in shares.items()}


def specialties_of_networks(
    confusions: Mapping[str, NDArray[np.int64]],
    specialties: Specialties,
    generalist: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Tabulate each network's results on each specialty.

    confusions: network -> counts [C, C].  generalist: counts [K, K] of its predictions.
    Columns: network; specialty, its number from 0, only those with classes; accuracy; inside and
    leaking, the numbers of errors whose predicted class is in the specialty or in another one (NaN
    for the generalist).
    """
    shown = np.array(specialties.nonempty)
    parts = []
    if generalist is not None:
        right = np.diag(generalist) / np.maximum(generalist.sum(axis=1), 1)
        rows = {"network": "generalist", "specialty": shown, "accuracy": right[shown]}
        parts.append(pd.DataFrame(rows))
    for network, confusion in confusions.items():
        found = per_specialty(confusion, specialties)
        within = np.diag(specialty_confusion(confusion, specialties))[shown]
        right = (found["accuracy"] * found["images"]).round()
        rows = {
            "network": network,
            "specialty": shown,
            "accuracy": found["accuracy"],
            "inside": within - right,
            "leaking": found["images"] - within,
        }
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def specialty_confusion(
    confusion: NDArray[np.int64], specialties: Specialties
) -> NDArray[np.int64]:
    """Sum a confusion matrix of classes [C, C] to one of specialties [K, K]."""
    member = np.eye(specialties.K, dtype=np.int64)[list(specialties.of)]
    return member.T @ confusion @ member


@dataclass(frozen=True)
class Oracle:
    """A network's accuracy, split into choosing a specialty and choosing a class within it."""

    within_specialty: float
    """Accuracy if the correct specialty were known and only its classes competed."""
    right_specialty: float
    """Share of images whose specialty has the largest probability, summed over its classes."""
    crossing: float
    """Share of the errors whose predicted class is in another specialty; NaN without errors."""


def oracle(predictions: Predictions, specialties: Specialties) -> Oracle:
    """Evaluate predictions [N, C] as a choice of a specialty and a choice within it."""
    of = np.array(specialties.of)
    right = of[predictions.labels]
    masked = np.where(of[None, :] == right[:, None], predictions.logits, -np.inf)
    mass = predictions.probabilities @ np.eye(specialties.K)[of]
    wrong = predictions.predicted != predictions.labels
    crosses = of[predictions.predicted] != right
    return Oracle(
        float((masked.argmax(axis=1) == predictions.labels).mean()),
        float((mass.argmax(axis=1) == right).mean()),
        float(crosses[wrong].mean()) if wrong.any() else np.nan,
    )


def conditional(
    experts: Predictions,
    gate: Predictions,
    specialties: Specialties,
    watch: Callable[[int, Predictions], object] | None = None,
    together: bool = False,
) -> pd.DataFrame:
    """Evaluate `NofE.logits` with 1, 2, ... and all experts for each image.

    experts: the predictions with all experts [N, C].  gate: those of the gate.
    watch: called with each number of experts and the predictions with so many.
    together: whether gate and experts learned together, so that both answer.
    Returns a row for each number of experts: experts; top1, top5 and nll; found, the share of
    images whose own expert runs; shares, for each expert, the share of images for which it runs.
    """
    from scipy.special import logsumexp

    expert_of = np.searchsorted(specialties.nonempty, specialties.of)
    n = len(specialties.nonempty)
    best = np.stack([gate.logits[:, expert_of == k].max(axis=1) for k in range(n)], axis=1)
    ranks = (-best).argsort(axis=1, kind="stable").argsort(axis=1)
    rows = []
    for m in range(1, n + 1):
        runs = ranks < m
        ran = runs[:, expert_of]
        total, gate_total = (
            logsumexp(np.where(ran, logits, -np.inf), axis=1, keepdims=True)
            for logits in (experts.logits, gate.logits)
        )
        logits = np.where(ran, experts.logits, gate.logits + total - gate_total)
        if together:
            both = (each - logsumexp(each, 1, keepdims=True) for each in (logits, gate.logits))
            logits = sum(both) / 2
        found = Predictions(logits.astype(np.float32), experts.labels)
        if watch is not None:
            watch(m, found)
        rows.append(
            {
                "experts": m,
                "top1": found.accuracy,
                "top5": found.top5,
                "nll": found.loss,
                "found": float(runs[np.arange(len(runs)), expert_of[found.labels]].mean()),
                "shares": tuple(runs.mean(axis=0)),
            }
        )
    return pd.DataFrame(rows)
