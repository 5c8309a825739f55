"""Image files in class folders, and what all data sets that lie in a folder share.

Images are listed with their labels first; only those that are chosen from the list are decoded, so
that a quick look at a large data set (`train_per_class`) is quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nofe_lab.config import InvalidInput
from nofe_lab.data.dataset import (
    SET_ASIDE,
    Dataset,
    Split,
    few_of_each_class,
    fifth_of_each_class,
)
from nofe_lab.data.pictures import ENDINGS, Pictures

IMAGE_SIZE = 32
"""The side in pixels to which image files are resized if no other is asked for."""

VAL_NAMES = ("val", "valid", "validation")
"""What a folder of validation images may be called; it is the test split where there is no test."""

_LAYOUT = (
    "DIR/<class>/<image files>, or DIR/train/<class>/<image files> beside "
    "DIR/test/<class>/<image files>"
)


@dataclass(frozen=True)
class Listed:
    """The N images of a split that are not decoded yet; ``listed[mask]`` gives some of them."""

    encoded: Sequence[Path | bytes | None]
    """Image files, or their contents; None where one is missing."""
    names: Sequence[str]
    """What to call each image in an error."""
    labels: Tensor
    """int64 [N]."""

    def __getitem__(self, mask: Tensor) -> Listed:
        places = mask.nonzero().flatten().tolist()
        encoded, names = [self.encoded[i] for i in places], [self.names[i] for i in places]
        return Listed(encoded, names, self.labels[mask])

    def few(self, train_per_class: int | None, seed: int) -> Listed:
        """At most `train_per_class` images of every class, drawn by `seed`; all of them if None."""
        return (
            self
            if train_per_class is None
            else self[few_of_each_class(self.labels, train_per_class, seed)]
        )


def folder_of(name: str, directory: str) -> Path:
    """The folder that a data set's name names, with ``~`` and environment variables expanded.

    Raises InvalidInput if a variable is not set or there is no such folder.
    """
    expanded = os.path.expanduser(os.path.expandvars(directory))
    if "$" in expanded:
        raise InvalidInput(
            f"dataset {name!r} names an environment variable that is not set; set it to the folder "
            "that holds the data, or write the path."
        )
    if not os.path.isdir(expanded):
        raise InvalidInput(f"dataset {name!r}: there is no folder {expanded}.")
    return Path(expanded)


def files_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files at any depth whose lower-case names end so, sorted; hidden files and folders are not.

    Links to folders are followed, each folder once.
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        is_new = real not in seen
        seen.add(real)
        folders[:] = [name for name in folders if is_new and not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if is_new and not name.startswith(".") and name.lower().endswith(endings)
        ]
    return sorted(found)


def decoded(
    name: str,
    class_names: tuple[str, ...],
    listed: Mapping[str, Listed],
    image_size: int | None,
    notes: Sequence[str],
) -> Dataset:
    """Decode listed images: a data set of the splits train, test and, if it is listed, val.

    image_size: side in pixels, or None (see `Pictures`).  notes: what to say of the data set beside
    what was done to its images.  Raises InvalidInput if an image cannot be decoded.
    """
    pictures = Pictures(name, image_size)
    splits = {
        split: Split(pictures.read(part.encoded, part.names), part.labels)
        for split, part in listed.items()
    }
    train, test = splits["train"], splits["test"]
    val = splits.get("val", train[:0])
    return Dataset(name, class_names, train, val, test, notes=(*notes, *pictures.notes))


def read_image_folder(
    name: str, directory: str, image_size: int | None, train_per_class: int | None, seed: int
) -> Dataset:
    """Read ``DIR/<class>/<image files>``, or ``DIR/train/<class>/...`` beside ``DIR/test``.

    The names of the class folders, sorted, are the class names.  image_size: side in pixels, None
    for 32.  train_per_class: training images of a class to read, None for all.  seed: of that
    choice, and of the fifth that becomes test where there is no test folder.  Raises
    InvalidInput if folders are not laid out so, a class has no images, or an image cannot be
    decoded.
    """
    folder = folder_of(name, directory)
    places, notes = _split_folders(name, folder)
    class_names = tuple(_class_folders(name, places["train"]))
    listed = {
        split: _list_images(name, folder, place, class_names) for split, place in places.items()
    }
    train = listed["train"]
    if "test" not in listed:
        in_test = fifth_of_each_class(train.labels, class_names, seed)
        listed["test"], train = train[in_test], train[~in_test]
    listed["train"] = train.few(train_per_class, seed)
    return decoded(name, class_names, listed, image_size or IMAGE_SIZE, notes)


def _split_folders(name: str, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Where each split lies, and what is to be said about it."""
    train = folder / "train"
    beside = [split for split in ("test", *VAL_NAMES) if (folder / split).is_dir()]
    # a folder `train` that holds images, beside other classes, is a class like any other
    has_splits = train.is_dir() and bool(beside or _subfolders(train))
    if beside and not train.is_dir() and set(beside) == set(_subfolders(folder)):
        raise InvalidInput(
            f"dataset {name!r}: {folder} holds {' and '.join(beside)} but no folder train; "
            f"accepted: {_LAYOUT}."
        )
    if not has_splits or not beside:
        return {"train": train if has_splits else folder}, [f"No test folder: {SET_ASIDE}"]
    if len(set(beside) - {"test"}) > 1:
        raise InvalidInput(
            f"dataset {name!r}: {folder} holds the folders {', '.join(beside)}; accepted: test and "
            f"one of {', '.join(VAL_NAMES)}."
        )
    places = {"train": train, "test": folder / beside[0]}
    if beside == ["test"]:
        return places, []
    if "test" not in beside:
        return places, [f"No test folder: the folder {beside[0]} is the test split."]
    note = f"The folder {beside[1]} is the val split: val_fraction is not applied."
    return {**places, "val": folder / beside[1]}, [note]


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _class_folders(name: str, folder: Path) -> list[str]:
    found = _subfolders(folder)
    if not found:
        raise InvalidInput(
            f"dataset {name!r}: {folder} holds no class folders; accepted: {_LAYOUT}."
        )
    if len(found) < 2:
        raise InvalidInput(
            f"dataset {name!r}: {folder} holds the class folder {found[0]!r} alone; at least 2 "
            "are needed."
        )
    return found


def _list_images(name: str, root: Path, folder: Path, class_names: tuple[str, ...]) -> Listed:
    found = _subfolders(folder)
    if odd := sorted(set(found) ^ set(class_names)):
        where = folder.name if odd[0] in found else "train"
        raise InvalidInput(
            f"dataset {name!r}: the class folders of {folder} must be those of train; {odd[0]!r} "
            f"is in {where} alone."
        )
    files: list[Path] = []
    counts = []
    for class_name in class_names:
        of_class = files_in(folder / class_name, ENDINGS)
        if not of_class:
            raise InvalidInput(
                f"dataset {name!r}: the class folder {folder / class_name} holds no image files; "
                f"accepted: files that end in {', '.join(ENDINGS)}."
            )
        files += of_class
        counts.append(len(of_class))
    labels = torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts))
    return Listed(files, [str(file.relative_to(root)) for file in files], labels)
