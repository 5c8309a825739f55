"""From networks to figures: predictions, accuracy, confusion, and what specialties make of them.

Plain arrays and tables go in and out; nothing here draws or trains.  scikit-learn and scipy are
imported where they are needed: that takes longer than the import of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from nofe_lab.config import derive_seed
from nofe_lab.data import Dataset, Split
from nofe_lab.data.dataset import clearest, label_margins
from nofe_lab.specialties import Specialties

EVALUATION_PIXELS = 1000 * 32 * 32
"""Pixels of the images that are evaluated at once."""

CALIBRATION_BINS = 15
"""Bins of equal width between confidence 0 and 1."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says about the images of a split.

    logits: float32 [N, n].  labels: int64 [N], the right outputs, from 0 to n - 1.
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
        """The most probable output of each image [N]."""
        return self.logits.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable output is right."""
        return float((self.predicted == self.labels).mean())

    @property
    def class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have an image, each class weighted alike."""
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
        """Expected calibration error, 0 to 1: |accuracy - confidence|, in 15 bins of confidence.

        After C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        """
        confidence = self.probabilities.max(axis=1)
        bins = np.ceil(confidence * CALIBRATION_BINS).astype(int).clip(1) - 1
        right = (self.predicted == self.labels).astype(np.float64)
        gaps = np.bincount(bins, right - confidence, minlength=CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / len(confidence))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [n, n]: row = label, column = prediction."""
        from sklearn.metrics import confusion_matrix

        n = self.logits.shape[1]
        counts: NDArray[np.int64] = confusion_matrix(
            self.labels, self.predicted, labels=np.arange(n)
        )
        return counts


def predict(
    model: nn.Module, split: Split, target_of_class: torch.Tensor | None = None
) -> Predictions:
    """Run a network over a split, in evaluation mode, without augmentation.

    model: raw images uint8 [B, c, h, w] -> logits [B, n], on any device.
    target_of_class: int64 [C], the output that stands for each class; None: the class itself.
    """
    logits = torch.cat([output for output, _ in _outputs(model, split)])
    labels = split.labels if target_of_class is None else target_of_class.cpu()[split.labels]
    return Predictions(logits.numpy(), labels.numpy())


def with_clearest(
    dataset: Dataset, model: nn.Module, target_of_class: torch.Tensor | None = None
) -> Dataset:
    """The same data set, with thumbnails chosen by a trained network.

    Of up to 50 training images a class, the one that `model` answers correctly with the largest
    margin between the logit of its label and the next; arguments are those of `predict`.
    """

    def margins(few: Split) -> NDArray[np.floating]:
        found = predict(model, few, target_of_class)
        return label_margins(found.logits, found.labels)

    return replace(dataset, clearest=clearest(dataset.train, margins))


def _outputs(model: nn.Module, split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What a network gives for a split's images, and their labels, some thousand at a time."""
    device = next(model.parameters()).device
    model.eval()
    height, width = split.images.shape[2:]
    size = max(EVALUATION_PIXELS // (height * width), 1)
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        with torch.inference_mode():
            yield model(images.to(device)).float().cpu(), labels


def class_means(model: nn.Module, split: Split, C: int) -> NDArray[np.float64]:
    """The mean over each class of what a network gives for its images, flattened: [C, d].

    model: raw images uint8 [B, c, h, w] -> features [B, ...].  A class without images has zeros.
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
    """One row a class: images, accuracy, and the class it is most often mistaken for."""
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
    """One row a specialty with a class, from counts [C, C].

    accuracy: share of its images that are classified right.  inside: share of its errors that stay
    inside the specialty, NaN where there are none.  inside by chance: that share if errors fell on
    all other classes alike, which a large specialty keeps more of.  right specialty: share of its
    images that are given a class of the specialty, right or wrong.
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


def specialties_of_networks(
    confusions: Mapping[str, NDArray[np.int64]],
    specialties: Specialties,
    generalist: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """How networks do on each specialty, long: one row a network and specialty with a class.

    confusions: network -> counts [C, C].  generalist: counts [K, K] of its own answers.
    specialty: its number, from 0.  accuracy: share of its images answered right.  inside, leaking:
    mistakes with an answer from the specialty, and from others (NaN for the generalist).
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
    """Counts [K, K] of specialties given for specialties, from counts [C, C] of classes."""
    member = np.eye(specialties.K, dtype=np.int64)[list(specialties.of)]
    return member.T @ confusion @ member


@dataclass(frozen=True)
class Oracle:
    """What a network's errors are made of, seen through specialties."""

    within_specialty: float
    """Accuracy if the right specialty were known: the most probable of its classes counts."""
    right_specialty: float
    """Share of images whose right specialty has the most probability, all its classes together."""
    crossing: float
    """Of all errors, the share that crosses from one specialty to another; NaN without errors."""


def oracle(found: Predictions, specialties: Specialties) -> Oracle:
    """Split a network's answers [N, C] into the choice of a specialty and the choice within it."""
    of = np.array(specialties.of)
    right = of[found.labels]
    masked = np.where(of[None, :] == right[:, None], found.logits, -np.inf)
    mass = found.probabilities @ np.eye(specialties.K)[of]
    wrong = found.predicted != found.labels
    crosses = of[found.predicted] != right
    return Oracle(
        float((masked.argmax(axis=1) == found.labels).mean()),
        float((mass.argmax(axis=1) == right).mean()),
        float(crosses[wrong].mean()) if wrong.any() else np.nan,
    )


def conditional(found: Predictions, gate: Predictions, specialties: Specialties) -> pd.DataFrame:
    """What `NofE.predict` answers with few experts, one row a number of them.

    found: what all experts together say of some images [N, C].  gate: what the gate says of them.
    experts: 1 to all.  top1, top5, nll: of the answers.  found: share of images whose own specialty
    is among those run.  shares: of the images, those for which each expert is run.
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
        experts, guessed = (
            logsumexp(np.where(ran, logits, -np.inf), axis=1, keepdims=True)
            for logits in (found.logits, gate.logits)
        )
        logits = np.where(ran, found.logits, gate.logits + experts - guessed).astype(np.float32)
        answers = Predictions(logits, found.labels)
        rows.append(
            {
                "experts": m,
                "top1": answers.accuracy,
                "top5": answers.top5,
                "nll": answers.loss,
                "found": float(runs[np.arange(len(runs)), expert_of[found.labels]].mean()),
                "shares": tuple(runs.mean(axis=0)),
            }
        )
    return pd.DataFrame(rows)


def over_seeds(
    table: pd.DataFrame, value: str = "test_accuracy", by: str = "network"
) -> pd.DataFrame:
    """Mean and 95 % interval (Student t over seeds) of a figure, one row a network.

    table: long, with the columns `by`, seed and `value`.  low and high are NaN for one seed.
    """
    groups = table.groupby(by, sort=False)[value]
    result = groups.agg(seeds="count", mean="mean").reset_index()
    intervals = [_interval(groups.get_group(name).to_numpy()) for name in result[by]]
    return result.assign(low=[low for low, _ in intervals], high=[high for _, high in intervals])


def paired_differences(
    table: pd.DataFrame, reference: str, value: str = "test_accuracy", by: str = "network"
) -> pd.DataFrame:
    """Each network minus `reference` over their common seeds, with 95 % intervals.

    detectable: the smallest true difference that so many seeds, scattered as these are, would have
    shown with a probability of 80 % (see `detectable`).  Below it, no difference that was seen is
    no difference that was shown not to be there.
    """
    wide = table.pivot(index="seed", columns=by, values=value)
    differences = wide.sub(wide[reference], axis=0).drop(columns=reference)
    order = [name for name in table[by].unique() if name != reference]
    long = differences[order].melt(ignore_index=False, value_name="difference").reset_index()
    result = over_seeds(long.dropna(), "difference", by)
    return result.assign(
        detectable=[detectable(differences[name].dropna().to_numpy()) for name in result[by]]
    )


def detectable(differences: NDArray[np.float64], power: float = 0.8) -> float:
    """The smallest mean difference that a paired t test at 5 % finds with probability `power`.

    differences: one a seed, whose standard deviation is taken to be the true one.  By scipy's
    noncentral t distribution, for the right sign; NaN for fewer than two seeds.
    """
    from scipy import optimize, stats

    n = len(differences)
    if n < 2:
        return np.nan
    critical = stats.t.ppf(0.975, n - 1)

    def missing(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - power

    shift = optimize.brentq(missing, 0.0, 4 * critical)
    return float(shift * differences.std(ddof=1) / np.sqrt(n))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    from scipy import stats

    if len(values) < 2:
        return np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(len(values))
    if error == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return float(low), float(high)


def inside_by_chance(sizes: Sequence[int]) -> float:
    """The share of the confusions that random partitions of these sizes hold in the mean.

    Of the pairs of different classes, those in one specialty: sum n (n - 1) / (C (C - 1)).
    """
    C = sum(sizes)
    return sum(n * (n - 1) for n in sizes) / max(C * (C - 1), 1)


@dataclass(frozen=True)
class InsideShare:
    """How many of the confusions stay inside a specialty, against random partitions."""

    share: float
    """Of all confusions (errors), those inside a specialty; NaN if there are no errors."""
    random_mean: float
    """Mean share over random partitions of the same sizes."""
    random_low: float
    """Their 2.5th percentile."""
    random_high: float
    """Their 97.5th percentile."""
    draws: int
    """How many random partitions were drawn."""


def inside_share(
    confusion: NDArray[np.int64], specialties: Specialties, draws: int = 1000, seed: int = 0
) -> InsideShare:
    """Share of the confusions inside specialties, from counts [C, C] (row = label).

    Random partitions are permutations of the classes, so their sizes are the same.
    """
    errors = (confusion - np.diag(np.diag(confusion))).astype(np.float64)
    total = errors.sum()

    def share(of: NDArray[np.int64]) -> float:
        return float(errors[of[:, None] == of[None, :]].sum() / total) if total else np.nan

    of = np.array(specialties.of)
    rng = np.random.default_rng(derive_seed(seed, "inside share"))
    random_shares = [share(rng.permutation(of)) for _ in range(draws)]
    low, high = np.quantile(random_shares, [0.025, 0.975])
    return InsideShare(share(of), float(np.mean(random_shares)), float(low), float(high), draws)
