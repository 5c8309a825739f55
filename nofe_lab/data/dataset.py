"""What a data set is: named classes, three splits of images, and a content fingerprint.

The three splits have three jobs, and mixing them up is how comparisons go wrong.  Weights and the
specialty map are learned from *train* alone.  *val* is carved from it, unless the data came with
one, and guides the eye while a network trains.  *test* is touched only by final reports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nofe_lab.config import (
    MAX_VAL_FRACTION,
    InvalidInput,
    check_distinct,
    check_names,
    composed,
    derive_seed,
    printable,
    real_number,
    whole_number,
)
from nofe_lab.data.source import Source, key_of

SET_ASIDE = "a fifth of every class's images was set aside as test, drawn by data_seed."
"""What is said of `fifth_of_each_class`."""


def draw_of_each_class(labels: Tensor, size_of: Callable[[int], int], seed: int) -> Tensor:
    """A stratified choice, bool [N]: `size_of(n)` of the n images of every class, drawn by `seed`.

    labels: int64 [N].  All of a class's images are chosen where it has no more than was asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        indices = (labels == label).nonzero().flatten()
        order = torch.randperm(len(indices), generator=generator)
        chosen[indices[order[: size_of(len(indices))]]] = True
    return chosen


def share_of_each_class(
    labels: Tensor,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
    needed: str,
    groups: Tensor | None = None,
) -> Tensor:
    """A stratified choice, bool [N], of `fraction` of every class's images, drawn by `seed`.

    Every class keeps at least one image on either side.  groups: int64 [N]; all images of a group
    are on one side, and the share is then met as nearly as they allow.  Raises InvalidInput if a
    class has fewer than two images, or groups, for that; the sentence ends with `needed`, which
    says what for.
    """
    for class_name, count in zip(
        class_names, labels.bincount(minlength=len(class_names)).tolist(), strict=True
    ):
        if count < 2:
            raise InvalidInput(
                f"class {class_name!r} has {count} training image, too few to split; {needed}."
            )
    if groups is not None:
        return _whole_groups(labels, class_names, fraction, seed, needed, groups)
    return draw_of_each_class(labels, lambda n: min(max(round(fraction * n), 1), n - 1), seed)


def _whole_groups(
    labels: Tensor,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
    needed: str,
    groups: Tensor,
) -> Tensor:
    """`share_of_each_class` where groups stay together, by scikit-learn's stratified folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min((len(groups[labels == c].unique()), name) for c, name in enumerate(class_names))
    if fewest[0] < 2:
        raise InvalidInput(
            f"all images of class {fewest[1]!r} are in one group, which cannot be split; {needed}, "
            "in whole groups."
        )
    smaller = min(fraction, 1 - fraction)
    parts = max(min(round(1 / smaller), fewest[0]), 2)
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer images than folds
        drawn = [torch.from_numpy(fold) for _, fold in folds.split(labels, labels, groups)]
    for fold in drawn:
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[fold] = True
        sides = (labels[chosen], labels[~chosen])
        if all(len(side.unique()) == len(class_names) for side in sides):
            return chosen if fraction <= 0.5 else ~chosen
    raise InvalidInput(
        f"no share of about {smaller:.0%} of the images has every class on either side and parts "
        f"no group; {needed}: larger shares, or smaller groups, can be split."
    )


def fifth_of_each_class(
    labels: Tensor, class_names: Sequence[str], seed: int, groups: Tensor | None = None
) -> Tensor:
    """Which images, bool [N], become the test split of data that come without one."""
    needed = "a fifth of every class becomes test where there is no test split"
    drawn = derive_seed(seed, "test")
    return share_of_each_class(labels, class_names, 0.2, drawn, needed, groups)


def few_of_each_class(labels: Tensor, train_per_class: int, seed: int) -> Tensor:
    """A stratified choice, bool [N], of at most `train_per_class` images of every class."""
    return draw_of_each_class(labels, lambda _: train_per_class, derive_seed(seed, "per_class"))


CANDIDATES = (50, 20_000)
"""The most images of a class, and of all, among which its thumbnail is chosen."""


def clearest(split: Source, margins: Callable[[Source], NDArray[np.floating]]) -> Tensor:
    """The image of each class with the largest margin, int64 [C], of at most 50 a class.

    margins: what a classifier makes of images, float [n]: its score for the label of each minus the
    largest other score; above 0 where the answer is right.
    """
    C = int(split.labels.max()) + 1
    each, together = CANDIDATES
    chosen = few_of_each_class(split.labels, max(min(each, together // C), 1), 0)
    asked = chosen.nonzero().flatten()
    few = split[asked]
    order = np.lexsort((-margins(few), few.labels.numpy()))
    first = np.unique(few.labels.numpy()[order], return_index=True)[1]
    return asked[torch.from_numpy(order[first])]


def clearest_by_pixels(split: Source) -> Tensor:
    """`clearest` before any network has been trained: ridge regression of 16 x 16 pixels judges.

    Each image is judged by a fit to the other folds; classes too small to fold judge themselves.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_predict

    def margins(few: Source) -> NDArray[np.floating]:
        pool = torch.nn.functional.adaptive_avg_pool2d
        # in parts: as floats, all of them could fill the memory
        small = torch.cat([pool(part.float() / 255, 16).flatten(1) for part in few.parts(256)])
        pixels = (small - small.mean(dim=1, keepdim=True)).numpy()
        labels = few.labels.numpy()
        ridge = RidgeClassifier(alpha=300)
        folds = min(3, int(np.bincount(labels).min()))
        if folds > 1:
            scores = cross_val_predict(ridge, pixels, labels, cv=folds, method="decision_function")
        else:
            scores = ridge.fit(pixels, labels).decision_function(pixels)
        if scores.ndim == 1:  # of two classes
            scores = np.stack([-scores, scores], axis=1)
        return label_margins(scores, labels)

    return clearest(split, margins)


def label_margins(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.floating]:
    """The score of each image's label minus the largest other one [N]; scores: [N, n]."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return scores[rows, labels] - others.max(axis=1)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named classes and their images in the splits train, val and test.

    Raises InvalidInput if a label is out of range, a class has no training image, names repeat, or
    superclasses do not fit the classes.
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    val: Source
    test: Source
    superclass_names: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    """The superclass of each class, an index into superclass_names; empty if there are none."""
    notes: tuple[str, ...] = ()
    """What was done to the data on the way in, in plain sentences; not part of the fingerprint."""
    bit_depth: int = 16
    """Bits of the values in 16-bit images, as they were scaled to 8 (see `pictures.decode`)."""
    clearest: Tensor | None = None
    """The training image that stands for each class, int64 [C], as a network has chosen it (see
    `evaluation.with_clearest`); None: a linear classifier chooses."""

    def __post_init__(self) -> None:
        if self.C < 2:
            raise InvalidInput(f"{self.name} has {self.C} class; at least 2 are needed.")
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))
        for each in ("class_names", "superclass_names"):
            object.__setattr__(self, each, tuple(map(composed, getattr(self, each))))
        check_names(f"class names of {self.name}", (*self.class_names, *self.superclass_names))
        check_distinct(f"class names of {self.name}", self.class_names)
        for split_name in ("train", "val", "test"):
            split = getattr(self, split_name)
            if split.image_shape != self.image_shape:
                raise InvalidInput(
                    f"all splits of {self.name} must have images of one size; those of train are "
                    f"{list(self.image_shape)}, those of {split_name} {list(split.image_shape)}."
                )
            labels = split.labels
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.C:
                raise InvalidInput(
                    f"labels of the {split_name} split of {self.name} must be 0 to {self.C - 1}; "
                    f"got {int(labels.min())} to {int(labels.max())}."
                )
        counts = self.train.labels.bincount(minlength=self.C)
        if int(counts.min()) == 0:
            empty = self.class_names[int(counts.argmin())]
            raise InvalidInput(f"class {empty!r} of {self.name} has no training image.")
        if self.clearest is not None:
            stand_for = self.train.labels[self.clearest].tolist()
            if stand_for != list(range(self.C)):
                raise InvalidInput(
                    f"clearest must hold a training image of each of the {self.C} classes of "
                    f"{self.name}, in their order; got images of the classes {stand_for}."
                )
        if self.superclass_of and (
            len(self.superclass_of) != self.C
            or not set(self.superclass_of) <= set(range(len(self.superclass_names)))
        ):
            raise InvalidInput(
                f"superclass_of must hold {self.C} indices into the "
                f"{len(self.superclass_names)} superclass names; got {self.superclass_of}."
            )

    @property
    def C(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) in pixels."""
        return self.train.image_shape

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of names, superclasses, and the images and labels of all splits.

        An image is known by its file (path, size, content) and its preparation, so that every form
        of source has the same fingerprint; images that come from no file, by their pixels.
        """
        names = repr((self.class_names, self.superclass_names, self.superclass_of))
        splits = (self.train, self.val, self.test)
        return key_of(names, *(split.fingerprint for split in splits)).hex()[:16]

    @cached_property
    def thumbnails(self) -> Tensor:
        """One training image for each class, uint8 [C, channels, height, width].

        The clearest that was classified correctly: of a class whose images all fool the classifier,
        the one that fools it least.
        """
        chosen = clearest_by_pixels(self.train) if self.clearest is None else self.clearest
        return self.train.sample(chosen)

    def with_val(self, fraction: float, seed: int) -> Dataset:
        """The same data with `fraction` of every class's training images moved to val.

        The choice is stratified and drawn by `seed`; every class keeps at least one image on either
        side.  A fraction of 0 leaves val empty.  Raises InvalidInput if the data set has val images
        already, if the fraction is not in [0, 0.9], or if a class has a single training image.
        """
        real_number("val_fraction", fraction, 0, MAX_VAL_FRACTION)
        if fraction == 0:
            return self
        if len(self.val):
            raise InvalidInput(f"{self.name} has {len(self.val)} val images already.")
        in_val = share_of_each_class(
            self.train.labels,
            self.class_names,
            fraction,
            derive_seed(seed, "val"),
            "val_fraction > 0 needs at least 2 of every class, val_fraction=0 takes any",
            self.train.groups,
        )
        return replace(self, train=self.train[~in_val], val=self.train[in_val], clearest=None)

    def with_few(self, train_per_class: int, seed: int) -> Dataset:
        """The same data with at most `train_per_class` training images of a class, drawn by `seed`.

        val and test stay whole.  Raises InvalidInput if `train_per_class` is no whole number of at
        least 1.
        """
        whole_number("train_per_class", train_per_class, 1)
        note = (
            f"At most {train_per_class} training images of every class are used "
            f"(train_per_class={train_per_class}), drawn by data_seed; test is whole."
        )
        kept = few_of_each_class(self.train.labels, train_per_class, seed)
        return replace(self, train=self.train[kept], notes=(*self.notes, note), clearest=None)

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        groups = f", {len(self.superclass_names)} superclasses" if self.superclass_names else ""
        line = (
            f"<{printable(self.name)}: {self.C} classes{groups}, {len(self.train):,} train + "
            f"{len(self.val):,} val + {len(self.test):,} test images of {channels} x {height} x "
            f"{width}>"
        )
        return "\n  ".join((line, *self.notes))


def superclass_of(fine: np.ndarray, coarse: np.ndarray, C: int) -> tuple[int, ...]:
    """The one superclass of each class, from the labels int [N] of both; empty if they disagree."""
    table = np.zeros((C, int(coarse.max()) + 1), dtype=np.int64)
    np.add.at(table, (fine, coarse), 1)
    if ((table > 0).sum(axis=1) != 1).any():
        return ()
    return tuple(int(k) for k in table.argmax(axis=1))
