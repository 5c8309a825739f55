"""Data sets: named classes, three splits of images, and a fingerprint of the content.

Weights and the specialty map are learned from *train* alone.  *val*, carved from train unless the
data have their own, shows how training proceeds.  Only final reports use *test*.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

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
from nofe_lab.data.source import Source, short_digest

TEST_SPLIT_NOTE = "a fifth of every class's images was set aside as test, drawn by data_seed."
"""How notes describe `stratified_test_split`."""


def stratified_draw(labels: Tensor, size_of: Callable[[int], int], seed: int) -> Tensor:
    """Choose `size_of(n)` of the n images of every class, or all if there are fewer: bool [N].

    labels: int64 [N].
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for indices in labels.argsort(stable=True).split(labels.bincount().tolist()):
        order = torch.randperm(len(indices), generator=generator)
        chosen[indices[order[: size_of(len(indices))]]] = True
    return chosen


def stratified_fraction(
    labels: Tensor,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
    needed: str,
    groups: Tensor | None = None,
) -> Tensor:
    """Choose `fraction` of every class's images, bool [N], drawn by `seed`.

    Every class has at least one image on either side.  groups: int64 [N]; all images of a group
    are on one side, so `fraction` is met only approximately.  Raises InvalidInput if a class has
    fewer than two images or groups; the message ends with `needed`, the reason for the split.
    """
    for class_name, count in zip(
        class_names, labels.bincount(minlength=len(class_names)).tolist(), strict=True
    ):
        if count < 2:
            raise InvalidInput(
                f"class {class_name!r} has {count} training image, too few to split; {needed}."
            )
    if groups is not None:
        return _stratified_groups(labels, class_names, fraction, seed, needed, groups)
    return stratified_draw(labels, lambda n: min(max(round(fraction * n), 1), n - 1), seed)


def _stratified_groups(
    labels: Tensor,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
    needed: str,
    groups: Tensor,
) -> Tensor:
    """`stratified_fraction` of whole groups, with scikit-learn's StratifiedGroupKFold."""
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
        warnings.simplefilter("ignore")  # about classes with fewer images than folds
        drawn = [torch.from_numpy(fold) for _, fold in folds.split(labels, labels, groups)]
    for fold in drawn:
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[fold] = True
        sides = (labels[chosen], labels[~chosen])
        if all(len(side.unique()) == len(class_names) for side in sides):
            return chosen if fraction <= 0.5 else ~chosen
    raise InvalidInput(
        f"about {smaller:.0%} of the images cannot be split off with every class on either side "
        f"and whole groups; {needed}: use a larger share or smaller groups."
    )


def stratified_test_split(
    labels: Tensor, class_names: Sequence[str], seed: int, groups: Tensor | None = None
) -> Tensor:
    """Choose a fifth of every class, bool [N], as the test split of data that have none."""
    needed = "a fifth of every class becomes test where there is no test split"
    drawn = derive_seed(seed, "test")
    return stratified_fraction(labels, class_names, 0.2, drawn, needed, groups)


def stratified_sample(labels: Tensor, train_per_class: int, seed: int) -> Tensor:
    """Choose at most `train_per_class` images of every class, bool [N]."""
    return stratified_draw(labels, lambda _: train_per_class, derive_seed(seed, "per_class"))


MAX_CANDIDATES = (50, 20_000)
"""The most images, per class and in all, from which thumbnails are chosen."""


def clearest(
    split: Source,
    margins: Callable[[Source], NDArray[np.floating]],
    n: int = 1,
    candidates: int = MAX_CANDIDATES[0],
) -> Tensor:
    """Find the n images of each class with the largest margins, int64 [C, n].

    Of a class with fewer images the last is repeated.  candidates: the most images of a class that
    are looked at.
    margins: gives the margins of images, float [n]: a classifier's score for the label minus its
    largest other score, positive if the image is classified correctly.
    """
    C = int(split.labels.max()) + 1
    in_all = MAX_CANDIDATES[1]
    chosen = stratified_sample(split.labels, max(min(candidates, in_all // C), 1), 0)
    indices = chosen.nonzero().flatten()
    images = split[indices]
    order = np.lexsort((-margins(images), images.labels.numpy()))
    _, first, counts = np.unique(
        images.labels.numpy()[order], return_index=True, return_counts=True
    )
    places = first[:, None] + np.minimum(np.arange(n), counts[:, None] - 1)
    return indices[torch.from_numpy(order[places])]


def clearest_by_pixels(split: Source) -> Tensor:
    """`clearest` without a trained network, by ridge regression on 16 x 16 pixels.

    Margins are cross-validated unless a class has a single image.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_predict

    def margins(images: Source) -> NDArray[np.floating]:
        pool = torch.nn.functional.adaptive_avg_pool2d
        # in parts: all images as floats might not fit into memory
        small = torch.cat([pool(part.float() / 255, 16).flatten(1) for part in images.parts(256)])
        pixels = (small - small.mean(dim=1, keepdim=True)).numpy()
        labels = images.labels.numpy()
        ridge = RidgeClassifier(alpha=300)
        folds = min(3, int(np.bincount(labels).min()))
        if folds > 1:
            scores = cross_val_predict(ridge, pixels, labels, cv=folds, method="decision_function")
        else:
            scores = ridge.fit(pixels, labels).decision_function(pixels)
        if scores.ndim == 1:  # two classes
            scores = np.stack([-scores, scores], axis=1)
        return label_margins(scores, labels)

    return clearest(split, margins)[:, 0]


def label_margins(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.floating]:
    """Subtract the largest other score from that of each image's label: scores [N, n] -> [N]."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return scores[rows, labels] - others.max(axis=1)


class ImageFile(NamedTuple):
    """An image that was read from a file."""

    label: str
    """The name of its class, before any correction."""
    checksum: str = ""
    """Of its content; "" if it was listed and not chosen."""
    key: bytes = b""
    """See `Source`; empty if it was not decoded."""


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
    """What loading changed, in plain sentences; not part of the fingerprint."""
    bit_depth: int = 16
    """Bit depth from which 16-bit images were scaled to 8 bits (see `pictures.decode`)."""
    clearest: Tensor | None = None
    """The training image that represents each class, int64 [C], chosen by a network (see
    `evaluation.with_clearest`); None: a linear classifier chooses."""
    files: Mapping[str, ImageFile] = field(default_factory=dict)
    """Where images were read from files: each by its path seen from the data set's folder, with its
    row in a parquet file."""

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
            if not isinstance(split, Source):
                raise InvalidInput(
                    f"the {split_name} split of {self.name} must be a Source, such as "
                    f"Resident(images, labels); got {type(split).__name__}."
                )
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
            inside = self.clearest[self.clearest < len(self.train)]
            labels_of_clearest = self.train.labels[inside].tolist()
            if labels_of_clearest != list(range(self.C)):
                raise InvalidInput(
                    f"clearest must hold a training image of each of the {self.C} classes of "
                    f"{self.name}, in order; got images of the classes {labels_of_clearest}."
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

        Images from files are identified by path, size, content and preparation, so that every kind
        of source has the same fingerprint; other images by their pixels.
        """
        names = repr((self.class_names, self.superclass_names, self.superclass_of))
        splits = (self.train, self.val, self.test)
        return short_digest(names, *(split.fingerprint for split in splits)).hex()[:16]

    @cached_property
    def thumbnails(self) -> Tensor:
        """The clearest training image of each class, uint8 [C, channels, height, width]."""
        chosen = clearest_by_pixels(self.train) if self.clearest is None else self.clearest
        return self.train.sample(chosen)

    def with_val(self, fraction: float, seed: int) -> Dataset:
        """Move `fraction` of every class's training images, drawn by `seed`, to val.

        Every class keeps at least one training image and gets at least one val image; a fraction
        of 0 leaves val empty.  Raises InvalidInput if the data set has val images already, if the
        fraction is not in [0, 0.9], or if a class has a single training image.
        """
        real_number("val_fraction", fraction, 0, MAX_VAL_FRACTION)
        if fraction == 0:
            return self
        if len(self.val):
            raise InvalidInput(f"{self.name} has {len(self.val)} val images already.")
        in_val = stratified_fraction(
            self.train.labels,
            self.class_names,
            fraction,
            derive_seed(seed, "val"),
            "val_fraction > 0 needs at least 2 of every class, val_fraction=0 takes any",
            self.train.groups,
        )
        return replace(self, train=self.train[~in_val], val=self.train[in_val], clearest=None)

    def with_classes(self, classes: Sequence[int]) -> Dataset:
        """Keep only these classes, by their indices, in this order."""
        number = torch.full((self.C,), -1)
        number[list(classes)] = torch.arange(len(classes))

        def kept(split: Source) -> Source:
            inside = split[number[split.labels] >= 0]
            return inside.with_labels(number[inside.labels])

        of = [self.superclass_of[c] for c in classes] if self.superclass_of else []
        return replace(
            self,
            class_names=tuple(self.class_names[c] for c in classes),
            train=kept(self.train),
            val=kept(self.val),
            test=kept(self.test),
            superclass_names=tuple(self.superclass_names[k] for k in sorted(set(of))),
            superclass_of=tuple(sorted(set(of)).index(k) for k in of),
            clearest=None,
        )

    def with_train_per_class(self, train_per_class: int, seed: int) -> Dataset:
        """Keep at most `train_per_class` training images of a class, drawn by `seed`.

        val and test are unchanged.  Raises InvalidInput unless `train_per_class` is a positive
        whole number.
        """
        whole_number("train_per_class", train_per_class, 1)
        note = (
            f"At most {train_per_class} training images of every class are used "
            f"(train_per_class={train_per_class}), drawn by data_seed; test is whole."
        )
        kept = stratified_sample(self.train.labels, train_per_class, seed)
        return replace(self, train=self.train[kept], notes=(*self.notes, note), clearest=None)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each split."""
        return {name: len(getattr(self, name)) for name in ("train", "val", "test")}

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
    """Find the superclass of each class, given both labels, int [N], of every image.

    Empty if images of one class have different superclasses.
    """
    table = np.zeros((C, int(coarse.max()) + 1), dtype=np.int64)
    np.add.at(table, (fine, coarse), 1)
    if ((table > 0).sum(axis=1) != 1).any():
        return ()
    return tuple(int(k) for k in table.argmax(axis=1))
