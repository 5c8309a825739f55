"""What a classifier confuses, as a value: `look` and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, shown, whole_number
from nofe_lab.data import Dataset, Resident, Source
from nofe_lab.data.thumbnails import Thumbnails
from nofe_lab.diagnosis.networks import find_images, run_module, title_of
from nofe_lab.diagnosis.tables import (
    ACCEPTED,
    ROWS_AT_ONCE,
    CheckedPredictions,
    is_table,
    read_answers,
)
from nofe_lab.evaluation import calibration_error, confusion_counts, reliability
from nofe_lab.files import user_path, writable_path, write_file
from nofe_lab.specialties import (
    Specialties,
    balanced_clusters,
    leaf_order,
    usual_specialties,
)
from nofe_lab.statistics import Ceiling, ceiling

PAIRS, PAIR_IMAGES, SUSPECTS = 12, 8, 24
"""On the page: worst pairs, images of each, and images that may be labelled wrongly."""

GROUPS = (2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
"""Numbers of groups that the page's slider offers, up to half of the classes."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a classifier confuses, from its predictions for N images of C classes.

    The last line of a notebook's cell shows it as a page; `save` writes the page to a file.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N], from 0 to C - 1."""
    predicted: NDArray[np.int64]
    """[N]."""
    probabilities: NDArray[np.floating] | None = None
    """[N, C]; None if only predicted classes are known."""
    images: Source | None = None
    """The N images; None if there are none to show."""
    about: str = ""
    """What was looked at, in words."""
    K: int = 0
    """Number of groups that the page begins with; 0: about the square root of C."""
    dataset: str | None = None
    """Name of the data set, for the line that makes an experiment; None: it has none."""
    notes: tuple[str, ...] = ()
    """What else is to be known, in plain sentences."""

    def __post_init__(self) -> None:
        default = usual_specialties(self.C)
        object.__setattr__(self, "K", whole_number("K", self.K or default, 2, self.C))

    @property
    def C(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def accuracy(self) -> float:
        """Share of images whose predicted class is right."""
        return float((self.predicted == self.labels).mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [C, C]: row = label, column = prediction."""
        return confusion_counts(self.labels, self.predicted, self.C)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The classes [C] in the order that the confusions give them (see `leaf_order`)."""
        return leaf_order(self.confusion)

    @cached_property
    def _partition(self) -> Callable[[int], Specialties]:
        def made(K: int) -> Specialties:
            return balanced_clusters(self.confusion, self.class_names, K, self.order)

        return lru_cache(maxsize=None)(made)

    def specialties(self, K: int | None = None) -> Specialties:
        """K groups of equal size that hold many of the errors (see `balanced_clusters`)."""
        return self._partition(whole_number("K", self.K if K is None else K, 2, self.C))

    def ceiling(self, specialties: Specialties | int | None = None) -> Ceiling:
        """What experts for these groups, or for K groups, could gain at most."""
        if not isinstance(specialties, Specialties):
            specialties = self.specialties(specialties)
        specialties.check_classes(self.class_names)
        return ceiling(self.confusion, specialties)

    def crossed_ceiling(self, K: int | None = None) -> Ceiling:
        """The ceiling of K groups on images that they were not made of.

        Groups made of one half of every class's images are counted on the other half, and the
        reverse; a ceiling that is far below `ceiling` is one of chance finds.
        """
        K = whole_number("K", self.K if K is None else K, 2, self.C)
        found, images = [], []
        for (own, order), (other, _) in (self._halves, self._halves[::-1]):
            if other.sum():
                made = balanced_clusters(own, self.class_names, K, order)
                found.append(astuple(ceiling(other, made)))
                images.append(other.sum())
        return Ceiling(*map(float, np.average(found, axis=0, weights=images)))

    @cached_property
    def _halves(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The counts [C, C] of two halves of every class's images, each with its leaf order."""
        by_class = np.argsort(self.labels, kind="stable")
        parts = [by_class[first::2] for first in (0, 1)]
        counts = [confusion_counts(self.labels[p], self.predicted[p], self.C) for p in parts]
        return [(each, leaf_order(each, optimal=False)) for each in counts]

    def worst_pairs(self, n: int = PAIRS) -> pd.DataFrame:
        """The n pairs of classes with the most errors between them.

        Columns: class and rival, of which the first is mistaken for the other more often; errors,
        in both directions; mistaken, those of the class for its rival; share, of all errors.
        """
        whole_number("n", n, 1)
        counts = self.confusion - np.diag(np.diag(self.confusion))
        firsts, seconds = np.nonzero(np.triu(counts + counts.T))
        errors = counts[firsts, seconds] + counts[seconds, firsts]
        rows = []
        for i in np.argsort(-errors, kind="stable")[:n]:
            a, b = int(firsts[i]), int(seconds[i])
            a, b = (a, b) if counts[a, b] >= counts[b, a] else (b, a)
            rows.append(
                {
                    "class": self.class_names[a],
                    "rival": self.class_names[b],
                    "errors": int(errors[i]),
                    "mistaken": int(counts[a, b]),
                    "share": errors[i] / counts.sum(),
                }
            )
        return pd.DataFrame(rows, columns=["class", "rival", "errors", "mistaken", "share"])

    def mislabelled(self, n: int | None = SUSPECTS) -> pd.DataFrame:
        """The n images that are most likely labelled wrongly, the likeliest first; None: all.

        An image is listed if another class is more probable than the label, and at least as
        probable as it is on average for its own images.  The list is ranked by the probability of
        the label minus that of the other class (*normalised margin*).
        C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset
        Labels", JAIR 2021.  Meaningful only for images that the classifier has not trained on.
        Columns: row, the image's index; label and suggested; p_label and p_suggested, their
        probabilities; file, where it is known.  Raises InvalidInput without probabilities.
        """
        if n is not None:
            whole_number("n", n, 1)
        p = self._needs_probabilities("images that are labelled wrongly")
        own = p[np.arange(len(p)), self.labels].astype(np.float64)
        images = np.bincount(self.labels, minlength=self.C)
        total = np.bincount(self.labels, own, minlength=self.C)
        usual = np.where(images > 0, total / np.maximum(images, 1), np.inf)
        rows, others, margins = [], [], []
        for start in range(0, len(p), ROWS_AT_ONCE):
            part, labels = p[start : start + ROWS_AT_ONCE], self.labels[start:][:ROWS_AT_ONCE]
            other = np.where(part >= usual, part, -1).argmax(axis=1)
            place = np.arange(len(part))
            margin = part[place, labels] - part[place, other]
            is_confident = part[place, other] >= usual[other]
            suspect = np.flatnonzero(is_confident & (other != labels) & (margin < 0))
            rows.append(start + suspect)
            others.append(other[suspect])
            margins.append(margin[suspect])
        ranked = np.argsort(np.concatenate(margins), kind="stable")[:n]
        row, other = np.concatenate(rows)[ranked], np.concatenate(others)[ranked]
        names = np.array(self.class_names, dtype=object)
        table = pd.DataFrame(
            {
                "row": row,
                "label": names[self.labels[row]],
                "suggested": names[other],
                "p_label": own[row],
                "p_suggested": p[row, other].astype(np.float64),
            }
        )
        if isinstance(self.images, Thumbnails):
            table["file"] = [self.images.names[i] for i in row]
        return table

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """Accuracy against confidence (see `evaluation.reliability`).

        Raises InvalidInput without probabilities.
        """
        return reliability(self._needs_probabilities("a reliability diagram"), self.labels)

    def _needs_probabilities(self, what: str) -> NDArray[np.floating]:
        if self.probabilities is None:
            raise InvalidInput(
                f"{what} cannot be told from predicted classes alone: hand over a column of "
                "probabilities for each class."
            )
        return self.probabilities

    def line(self, K: int | None = None) -> str:
        """The line of Python that makes experts for K groups, for a look called `page`.

        Where the data set has no name, it is called `data`: a Dataset, or "folder:DIR".
        """
        K = self.K if K is None else K
        dataset = "data" if self.dataset is None else repr(self.dataset)
        return f"nofe_lab.Experiment({dataset}, K={K}).nofe(page.specialties({K}))"

    def save(self, path: str | Path) -> Path:
        """Write the page to an HTML file that needs nothing else; returns its path.

        Raises InvalidInput if it cannot be written.
        """
        from nofe_lab.views.widgets.look import page_html

        place = writable_path("page", path)
        write_file(place, page_html(self._page()))
        return place

    def __repr__(self) -> str:
        return f"<{self.about or f'{len(self.labels):,} images'}: {self._summary}>"

    @property
    def _summary(self) -> str:
        n = int((self.labels != self.predicted).sum())
        errors = f"{n:,} error{'s' * (n != 1)}"
        return f"{self.C:,} classes, accuracy {self.accuracy:.1%}, {errors}"

    def _ipython_display_(self) -> None:
        from nofe_lab.views.widgets.look import LookPage

        LookPage(self._page())._ipython_display_()

    def _page(self) -> dict[str, Any]:
        """What the page shows, for `nofe_lab.views.widgets.look`."""
        Ks = {K for K in GROUPS if K <= self.C // 2}
        partitions = {K: self.specialties(K) for K in sorted(Ks | {self.K})}
        pairs = [
            (
                pair,
                self.between(*(self.class_names.index(pair[key]) for key in ("class", "rival"))),
            )
            for pair in self.worst_pairs().to_dict("records")
        ]
        known = self.probabilities is not None
        suspects = self.mislabelled(None) if known else None
        return {
            "title": self.about or f"{len(self.labels):,} images",
            "summary": self._summary,
            "notes": self.notes,
            "class_names": self.class_names,
            "confusion": self.confusion,
            "order": self.order,
            "K": self.K,
            "partitions": partitions,
            "sentences": {K: str(self.ceiling(each)) for K, each in partitions.items()},
            "crossed": {K: self.crossed_ceiling(K) for K in partitions},
            "lines": {K: self.line(K) for K in partitions},
            "pairs": pairs,
            "labels": self.labels,
            "predicted": self.predicted,
            "sureness": self.probabilities.max(axis=1) if self.probabilities is not None else None,
            "suspects": suspects.head(SUSPECTS) if suspects is not None else None,
            "n_suspects": len(suspects) if suspects is not None else 0,
            "reliability": self.reliability if known else None,
            "calibration_error": calibration_error(self.reliability) if known else None,
            "images": self.images,
        }

    def between(self, a: int, b: int) -> list[int]:
        """A few images of class a that are mistaken for b, then of b for a: the surest first."""

        def surest(label: int, said: int) -> list[int]:
            rows = np.flatnonzero((self.labels == label) & (self.predicted == said))
            if self.probabilities is not None:
                rows = rows[np.argsort(-self.probabilities[rows, said], kind="stable")]
            return [int(row) for row in rows]

        there, back = surest(a, b), surest(b, a)
        half = max(PAIR_IMAGES - len(back), PAIR_IMAGES // 2)
        return (there[:half] + back)[:PAIR_IMAGES]


def look(
    model_or_predictions: Any,
    images: Any = None,
    *,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    prepare: Callable[[Any], Any] | None = None,
    K: int | None = None,
    split: str | None = None,
    skip_unreadable: bool = False,
) -> Look:
    """Look at what any classifier confuses, on images that it has not trained on.

    >>> nofe_lab.look("predictions.csv").save("page.html")
    >>> nofe_lab.look((labels, model.predict_proba(X)))
    >>> nofe_lab.look(resnet, "folder:~/pictures", prepare=weights.transforms())

    model_or_predictions: one of

    * predictions: a pair (labels, predictions); a mapping with the keys label, file and either
      prediction or probabilities; predictions alone, with `labels`.  Predictions are classes [N] or
      probabilities [N, C] (not logits); classes are names or indices from 0.
    * a table: a DataFrame or the path of a .csv or .parquet file.  It has the column ``label`` and
      either ``prediction`` or one column of probabilities for each class, named as the class;
      the column ``file`` says where each image is, seen from the table's folder.
    * a torch module, which gives logits [B, C]; `images` and `prepare` go with it.

    images: of a module, a Dataset, a Source, the name of a data set or a folder of class folders.
    Of a data set, val is looked at, or test where there is no val; of a folder without splits,
    all images.  With predictions, the images only illustrate them: a Source, a Dataset, or an array
    uint8 [N, channels, height, width] in the order of the rows, or the folder of the column file.
    class_names: the names of the C classes, in the order of indices, columns or a module's outputs;
    by default those of the data set, the columns' names, or what occurs in labels and predictions,
    sorted.
    prepare: makes a module's input [channels, height, width] of an image, for example torchvision's
    ``weights.transforms()``: it is given a PIL image, or a tensor uint8 [3, height, width] if it
    cannot take that.  This library's own networks need none.
    K: the number of groups that the page begins with; None: about the square root of C.
    split: train, val or test of a data set.
    skip_unreadable: go on without images of a module's that cannot be decoded; the page names them.
    Raises InvalidInput, before any work, if values do not fit together.
    """
    if isinstance(model_or_predictions, nn.Module):
        if labels is not None:
            raise InvalidInput("labels are for predictions; a module's come with its images.")
        answers, source, about, dataset = run_module(
            model_or_predictions, images, prepare, class_names, split, skip_unreadable
        )
        about = f"{title_of(model_or_predictions)} on {about}"
        return _looked(answers, source, about, K, dataset)
    if not is_table(model_or_predictions):
        raise InvalidInput(
            f"a look needs {ACCEPTED}; got {shown(type(model_or_predictions).__name__)}."
        )
    if prepare is not None:
        raise InvalidInput("prepare is for modules; predictions need no preparation.")
    dataset = None
    if isinstance(images, Dataset):
        class_names = class_names or images.class_names
        images, _, _, dataset = find_images(None, images, split)
    answers = read_answers(model_or_predictions, labels, class_names)
    is_path = isinstance(model_or_predictions, (str, Path))
    about = f"{len(answers.labels):,} predictions"
    about += f" of {Path(model_or_predictions).name}" if is_path else ""
    return _looked(answers, _illustrations(answers, images), about, K, dataset)


def _looked(
    answers: CheckedPredictions,
    source: Source | None,
    about: str,
    K: int | None,
    dataset: str | None,
) -> Look:
    C = len(answers.class_names)
    K = 0 if K is None else whole_number("K", K, 2, C)
    return Look(
        answers.class_names,
        answers.labels,
        answers.predicted,
        answers.probabilities,
        source,
        about,
        K,
        dataset,
        answers.notes,
    )


def _illustrations(answers: CheckedPredictions, images: Any) -> Source | None:
    """The images of a table of predictions, one for each row."""
    labels = torch.from_numpy(answers.labels)
    N = len(labels)
    if isinstance(images, (np.ndarray, Tensor)):
        if len(images) != N:
            raise InvalidInput(f"there are {N} predictions, but {len(images)} images.")
        return Resident(torch.as_tensor(images), labels)
    if isinstance(images, Source):
        if len(images) != N:
            raise InvalidInput(
                f"there are {N} predictions, but {len(images)} images; split= chooses others of a "
                "data set."
            )
        if not torch.equal(images.labels.cpu(), labels):
            row = int((images.labels.cpu() != labels).int().argmax())
            raise InvalidInput(
                f"the labels in row {row} differ: {answers.labels[row]} in the predictions, "
                f"{int(images.labels[row])} of the image; both must be in one order."
            )
        return images
    if images is not None and not isinstance(images, (str, Path)):
        raise InvalidInput(
            "images of predictions must be a Source, a Dataset, an array uint8 [N, channels, "
            f"height, width], or the folder of the column 'file'; got {type(images).__name__}."
        )
    if answers.files is None:
        if images is not None:
            raise InvalidInput(
                f"images are in {str(images)!r}, but the predictions have no column 'file'."
            )
        return None
    folder = user_path(images) if images is not None else answers.folder or Path()
    files = [folder / file for file in answers.files]
    for row, file in enumerate(files):
        if not file.is_file():
            raise InvalidInput(
                f"the file in row {row}, {answers.files[row]!r}, is not in the folder "
                f"{str(images or folder)!r}."
            )
    return Thumbnails(files, labels, answers.files)
