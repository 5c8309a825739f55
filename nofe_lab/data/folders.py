"""Image files in class folders, and what all data sets that lie in a folder share.

Images are listed with their labels first; only those that are chosen from the list are decoded, so
that a quick look at a large data set (`train_per_class`) is quick.

What a folder means is recognised by the names that people give to splits, or refused; whatever is
found and not read is counted in the data set's notes.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import mimetypes
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nofe_lab.config import InvalidInput, composed, first_line, shown
from nofe_lab.data.dataset import (
    SET_ASIDE,
    Dataset,
    few_of_each_class,
    fifth_of_each_class,
)
from nofe_lab.data.pictures import ENDINGS, Pictures
from nofe_lab.data.source import Resident, key_of, stacked
from nofe_lab.files import (
    UnreadableFile,
    as_written,
    memory,
    open_regular,
    read_text,
    user_path,
)

IMAGE_SIZE = 32
"""The side in pixels to which image files are resized if no other is asked for."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
}
"""What the splits are called; the val split is the test split where there is no test."""

FILLERS = ("data", "dataset", "folder", "images", "imgs", "seg", "set", "split")
"""Words beside these in the names of split folders, as in ``seg_train`` and ``test_set``."""

SYSTEM_NAMES = (
    *("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information", "#recycle"),
    *("thumbs.db", "desktop.ini"),
)
"""Files and folders that systems make, in lower case: passed over like hidden ones."""

BY_FOLDER = "folder"
"""Value of `groups`: the folders inside the class folders hold the pictures of one object each."""

_LAYOUT = (
    "DIR/<class>/<image files>, or DIR/train/<class>/<image files> beside "
    "DIR/test/<class>/<image files>"
)


@dataclass(frozen=True)
class Reading:
    """How a folder's images are to be read (see `load_dataset`)."""

    image_size: int | None = None
    train_per_class: int | None = None
    seed: int = 0
    skip_unreadable: bool = False
    groups: str | None = None


@dataclass(frozen=True)
class Listed:
    """The N images of a split that are not decoded yet; ``listed[mask]`` gives some of them."""

    encoded: Sequence[Path | bytes | None]
    """Image files, or their contents; None where one is missing."""
    names: Sequence[str]
    """What to call each image in an error."""
    labels: Tensor
    """int64 [N]."""
    groups: Tensor | None = None
    """int64 [N], see `Source`."""

    def __getitem__(self, mask: Tensor) -> Listed:
        places = mask.nonzero().flatten().tolist()
        encoded, names = [self.encoded[i] for i in places], [self.names[i] for i in places]
        groups = None if self.groups is None else self.groups[mask]
        return Listed(encoded, names, self.labels[mask], groups)

    @property
    def contents(self) -> list[bytes]:
        """Size and digest of each image file [N]."""
        with ThreadPoolExecutor() as pool:  # files are read and hashed outside the interpreter lock
            return list(pool.map(_content, self.encoded))

    def keys(self, preparation: str, contents: Sequence[bytes]) -> Tensor:
        """The keys of the images (see `Source`): of paths, contents and preparation."""
        names = (name.replace(os.sep, "/") for name in self.names)
        return stacked(key_of(*both, preparation) for both in zip(names, contents, strict=True))

    def few(self, train_per_class: int | None, seed: int) -> Listed:
        """At most `train_per_class` images of every class, drawn by `seed`; all of them if None."""
        return (
            self
            if train_per_class is None
            else self[few_of_each_class(self.labels, train_per_class, seed)]
        )


@dataclass
class LeftOut:
    """What was found below a folder and is not read."""

    endings: Counter[str] = field(default_factory=Counter)
    """Files by the endings of their names."""
    beside: list[str] = field(default_factory=list)
    """Images that lie in no class folder."""
    links: list[str] = field(default_factory=list)
    """Links that lead nowhere, or back to a folder that they lie in."""
    folders: list[str] = field(default_factory=list)
    """Folders beside the splits."""

    @property
    def notes(self) -> list[str]:
        """Sentences; none if everything is read."""
        said = []
        if self.endings:
            kinds = ", ".join(f"{n} {ending}" for ending, n in self.endings.most_common(8))
            total = self.endings.total()
            said.append(f"{total} file{'s were' if total > 1 else ' was'} not read: {kinds}.")
        if self.beside:
            total = len(self.beside)
            what = "images lie" if total > 1 else "image lies"
            said.append(f"{total} {what} in no class folder, not read: {few(self.beside)}.")
        if links := list(dict.fromkeys(self.links)):
            said.append(
                f"Links that lead nowhere or back to where they lie, not read: {few(links)}."
            )
        if self.folders:
            said.append(f"Folders beside the splits, not read: {few(self.folders)}.")
        return said


def few(names: Sequence[str]) -> str:
    """The first of many names, in words."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def folder_of(name: str, directory: str) -> Path:
    """The folder that a data set's name names, with ``~`` and environment variables expanded.

    Raises InvalidInput if a variable is not set or there is no such folder.
    """
    try:
        folder = user_path(directory)
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    if not os.path.isdir(folder):
        # the value of a variable may be nobody's business
        here = "$" in directory or directory.startswith("~")
        where = f"{directory!r} (seen from {os.getcwd()})" if here else os.path.abspath(folder)
        raise InvalidInput(f"dataset {name!r}: there is no folder {where}.")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: hidden, or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def walk(folder: Path, left: LeftOut | None = None) -> Iterator[Path]:
    """Regular files at any depth that are not hidden, in no order.

    Links are followed, each folder once, but none back to a folder that it lies in.  left: takes
    note of what is passed over.  Raises InvalidInput if a folder cannot be read.
    """
    left = left or LeftOut()

    def refuse(error: OSError) -> None:
        raise InvalidInput(f"the folder {error.filename} cannot be read ({error.strerror}).")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        kept = []
        for inner in sorted(folders):
            path = os.path.join(place, inner)
            if is_hidden(inner):
                continue
            if os.path.islink(path):
                target = os.path.realpath(path)
                if target in seen or os.path.commonpath([target, real]) == target:
                    left.links.append(os.path.relpath(path, folder.parent))
                    continue
            kept.append(inner)
        folders[:] = kept
        for file in files:
            if is_hidden(file):
                continue
            path = os.path.join(place, file)
            try:
                is_regular = stat.S_ISREG(os.stat(path).st_mode)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):  # a link to nowhere, or in circles
                    left.links.append(os.path.relpath(path, folder.parent))
                    continue
                is_regular = True  # whoever opens it says why that cannot be
            if is_regular:
                yield Path(path)
            else:
                left.endings["pipe or device"] += 1


def files_in(folder: Path, endings: tuple[str, ...], left: LeftOut | None = None) -> list[Path]:
    """Those of `walk` whose lower-case names end so, sorted; left: takes note of the others."""
    found = []
    for path in walk(folder, left):
        if path.name.lower().endswith(endings):
            found.append(path)
        elif left is not None:
            left.endings[path.suffix.lower() or "without an ending"] += 1
    return sorted(found)


def decoded(
    name: str,
    class_names: tuple[str, ...],
    listed: Mapping[str, Listed],
    reading: Reading,
    notes: Sequence[str],
) -> Dataset:
    """Decode listed images: a data set of the splits train, test and, if it is listed, val.

    notes: what to say of the data set beside what was done to its images.  Raises InvalidInput if
    an image cannot be decoded.
    """
    pictures = Pictures(name, reading.image_size, reading.skip_unreadable)
    contents = {split: part.contents for split, part in listed.items()}
    splits = {}
    for split in ("train", "val", "test"):  # the training images give the bit depth
        if (part := listed.get(split)) is not None:
            images, kept = pictures.read(part.encoded, part.names)
            groups = None if part.groups is None else part.groups[kept]
            keys = part.keys(f"{reading.image_size} {pictures.bit_depth}", contents[split])[kept]
            splits[split] = Resident(images, part.labels[kept], groups, keys)
    train, test = splits["train"], splits["test"]
    val = splits.get("val", train[:0])
    said = (*notes, *_alike(class_names), *_twice(contents), *pictures.notes)
    depth = pictures.bit_depth or 16
    return Dataset(name, class_names, train, val, test, notes=said, bit_depth=depth)


def _alike(class_names: Sequence[str]) -> list[str]:
    """A note on names that differ in case alone."""
    by_case: dict[str, list[str]] = {}
    for class_name in class_names:
        by_case.setdefault(class_name.casefold(), []).append(class_name)
    pairs = [" and ".join(map(repr, names)) for names in by_case.values() if len(names) > 1]
    return [f"Classes whose names differ in case alone: {few(pairs)}."] if pairs else []


def _twice(contents: Mapping[str, Sequence[bytes]]) -> list[str]:
    """A note on files of one content in train and in another split."""
    said = []
    for split in [split for split in ("val", "test") if split in contents]:
        if n := len((set(contents["train"]) & set(contents[split])) - {b""}):
            said.append(
                f"{n} image file{'s are' if n > 1 else ' is'} in train and in {split}: what is "
                f"measured on {split} looks better than it is."
            )
    return said


def _content(encoded: Path | bytes | None) -> bytes:
    """Size and digest of a file or of its content; empty where it is missing or cannot be read."""
    if not isinstance(encoded, Path):
        return key_of(str(len(encoded)), encoded) if encoded else b""
    try:
        with open_regular(encoded, memory(), links=True) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            return key_of(str(os.fstat(file.fileno()).st_size), digest)
    except (OSError, UnreadableFile):
        return b""


def read_image_folder(name: str, directory: str, reading: Reading) -> Dataset:
    """Read ``DIR/<class>/<image files>``, or ``DIR/train/<class>/...`` beside ``DIR/test``.

    The names of the class folders, sorted, are the class names.  Raises InvalidInput if folders are
    not laid out so, a class has no images, or an image cannot be decoded.
    """
    folder = folder_of(name, directory)
    try:
        layout = _Layout(folder, reading.groups == BY_FOLDER)
        listed = layout.listed()
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    notes = [*layout.notes, *layout.left.notes]
    if reading.groups is not None:
        listed, said = _grouped(name, reading.groups, layout, listed)
        notes += said
    class_names, train = layout.class_names, listed["train"]
    if "test" not in listed:
        try:
            in_test = fifth_of_each_class(train.labels, class_names, reading.seed, train.groups)
        except InvalidInput as error:  # what is not read may be what is missing
            raise InvalidInput(" ".join((str(error), *layout.left.notes))) from error
        listed["test"], train = train[in_test], train[~in_test]
    listed["train"] = train.few(reading.train_per_class, reading.seed)
    size = reading.image_size or IMAGE_SIZE
    return decoded(name, class_names, listed, replace(reading, image_size=size), notes)


def split_of(name: str) -> str | None:
    """The split that a folder's or a file's name speaks of: train, test, val, or None.

    >>> [split_of(name) for name in ("Training", "seg_test", "dev", "test tube")]
    ['train', 'test', 'val', None]
    """
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in FILLERS]
    if len(words) != 1:
        return None
    bare = re.sub(r"(set|data|images|imgs)$", "", words[0])
    return next((split for split, known in SPLIT_WORDS.items() if bare in known), None)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link in circles is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _roles(name: str) -> set[str]:
    """The splits that a name speaks of, as trainA, train_cats and mnist_test do."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {split for part in parts if (split := split_of(part)) is not None}


def _are_splits(names: Sequence[str]) -> bool:
    """Whether all of several names speak of splits, of train and of another."""
    roles = [_roles(name) for name in names]
    return all(roles) and {"train"} < set().union(*roles)


class _Layout:
    """Where the splits and classes of an image folder lie; all that is doubtful is refused.

    Raises InvalidInput, without the data set's name.
    """

    def __init__(self, root: Path, by_folder: bool) -> None:
        self.root = root
        self.by_folder = by_folder
        self.notes: list[str] = []
        self.left = LeftOut()
        self._inside: dict[Path, tuple[list[str], bool]] = {}
        top = self._unwrapped(root)
        places = self._splits(top)
        for folder in dict.fromkeys((root, top, *places.values())):
            self.left.beside += self._images_beside(folder)
        self.folders = {split: self._classes(place) for split, place in places.items()}
        if set(self.folders) == {"train"}:
            self.folders = self._splits_of_classes(self.folders["train"])
        for classes in self.folders.values():
            self._check_inside(classes)
        self.class_names = tuple(sorted(self.folders["train"]))
        self._check_classes(places)
        if "test" not in self.folders:
            if "val" in self.folders:
                self.folders["test"] = self.folders.pop("val")
                called = self._called(places.get("val"), "val")
                self.notes.append(f"No test folder: {called} is the test split.")
            else:
                self.notes.append(f"No test folder: {SET_ASIDE}")
        elif "val" in self.folders:
            called = self._called(places.get("val"), "val")
            self.notes.append(
                f"{called[0].upper()}{called[1:]} is the val split: val_fraction is not applied."
            )

    @staticmethod
    def _called(place: Path | None, split: str) -> str:
        return f"the folder {place.name}" if place is not None else f"{split} of every class"

    def look(self, folder: Path) -> tuple[list[str], bool]:
        """A folder's visible subfolders, sorted, and whether it holds images of its own."""
        if folder not in self._inside:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                raise InvalidInput(
                    f"the folder {folder} cannot be read ({error.strerror or error})."
                ) from error
            subfolders, images = [], False
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    if os.path.commonpath([os.path.realpath(entry), os.path.realpath(folder)]) == (
                        os.path.realpath(entry)
                    ):
                        self.left.links.append(self.shown(Path(entry.path)))
                    else:
                        subfolders.append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    self.left.links.append(self.shown(Path(entry.path)))
                elif entry.name.lower().endswith(ENDINGS) and os.path.isfile(entry.path):
                    images = True
            self._inside[folder] = subfolders, images
        return self._inside[folder]

    def _images_beside(self, folder: Path) -> list[str]:
        """Files in a folder itself that are, or may be, images."""
        return [
            self.shown(path)
            for path in sorted(folder.iterdir())
            if not is_hidden(path.name) and _is_picture(path.name) and path.is_file()
        ]

    def shown(self, path: Path) -> str:
        """A path as messages show it: from the data set's folder on."""
        inside = os.path.relpath(path, self.root)
        return "DIR" if inside == "." else inside

    def _unwrapped(self, folder: Path) -> Path:
        """The folder itself, or the one that a wrapper holds: unpacked archives are often doubled.

        A wrapper holds one folder alone, of its own name, or with split folders in it.
        """
        subfolders, images = self.look(folder)
        if images or len(subfolders) != 1:
            return folder
        inner = folder / subfolders[0]
        alike = inner.name.lower() == folder.name.lower() or (
            split_of(inner.name) is not None and split_of(inner.name) == split_of(folder.name)
        )
        names, inner_images = self.look(inner)
        if inner_images or not names or not (alike or "train" in map(split_of, names)):
            return folder
        self.notes.append(f"The folder {self.shown(inner)}, which is alone in its own, is read.")
        return self._unwrapped(inner)

    def _splits(self, folder: Path) -> dict[str, Path]:
        """Where each split lies; the folder itself as train where there are none."""
        names, _ = self.look(folder)
        by_split: dict[str, list[str]] = {}
        for name in names:
            if (split := split_of(name)) is not None:
                by_split.setdefault(split, []).append(name)
        others = [name for name in names if split_of(name) is None]
        called = [name for found in by_split.values() for name in found]
        if not by_split:
            return {"train": folder}
        has_classes = {n: bool(self.look(folder / n)[0]) for n in called}
        if "train" not in by_split:
            return self._without_train(folder, called, others, has_classes)
        trains = by_split["train"]
        if len(trains) == 1 and not has_classes[trains[0]]:
            # a folder `train` that holds images, beside other classes, is a class like any other
            if called == trains and others:
                return {"train": folder}
            raise InvalidInput(f"{folder / trains[0]} holds no class folders; accepted: {_LAYOUT}.")
        for split, found in by_split.items():
            if len(found) > 1:
                words = f"test and one of {', '.join(SPLIT_WORDS['val'])}"
                accepted = words if split == "val" else f"one folder for {split}"
                raise InvalidInput(
                    f"{folder} holds the folders {', '.join(found)}; accepted: {accepted}."
                )
        self._check_others(folder, trains[0], others, alone=called == trains)
        return {split: self._unwrapped(folder / found[0]) for split, found in by_split.items()}

    def _without_train(
        self, folder: Path, called: list[str], others: list[str], has_classes: Mapping[str, bool]
    ) -> dict[str, Path]:
        if not others:
            raise InvalidInput(
                f"{folder} holds {' and '.join(called)} but no folder train; accepted: {_LAYOUT}."
            )
        for name in called:
            inside = {each.casefold() for each in self.look(folder / name)[0]}
            if has_classes[name] and inside & {each.casefold() for each in others}:
                raise InvalidInput(
                    f"{folder / name} holds the folders of the classes beside it; accepted: "
                    f"{_LAYOUT}."
                )
        return {"train": folder}

    def _check_others(self, folder: Path, train: str, others: list[str], alone: bool) -> None:
        """Folders beside train that are no split: refused if they may be classes, else said."""
        with_images = [n for n in others if next(_images(folder / n), None) is not None]
        if alone and with_images:
            raise InvalidInput(
                f"{folder} holds the folder {train}, with folders in it, beside "
                f"{few(with_images)}: a split or a class?  Accepted: {_LAYOUT}, and images of a "
                f"class {train!r} in the folder itself."
            )
        self.left.folders += [self.shown(folder / name) for name in others]

    def _classes(self, folder: Path) -> dict[str, list[Path]]:
        """The class folders of a split by the classes' names, which two folders may share."""
        subfolders, _ = self.look(folder)
        if not subfolders:
            raise InvalidInput(f"{folder} holds no class folders; accepted: {_LAYOUT}.")
        if _are_splits(subfolders):
            raise InvalidInput(
                f"{folder} holds {few(subfolders)}, whose names speak of splits; accepted: "
                f"{_LAYOUT}."
            )
        if called := [name for name in subfolders if split_of(name) is not None]:
            self.notes.append(f"Taken for classes by their place: {few(called)}.")
        found: dict[str, list[Path]] = {}
        for name in subfolders:
            found.setdefault(composed(name), []).append(folder / name)
        if twice := [name for name, folders in found.items() if len(folders) > 1]:
            self.notes.append(
                f"Folders whose names differ in how their accents are stored alone are one class: "
                f"{few(twice)}."
            )
        if len(found) < 2:
            inner = self.look(folder / subfolders[0])[0]
            hint = f", or the name of that folder, which holds {few(inner)}" if inner else ""
            raise InvalidInput(
                f"{folder} holds the class folder {subfolders[0]!r} alone; at least 2 are needed"
                f"{hint}."
            )
        return found

    def _hollow(self, classes: Mapping[str, list[Path]]) -> dict[Path, list[str]]:
        """The class folders that hold folders alone, and these."""
        looked = {path: self.look(path) for paths in classes.values() for path in paths}
        return {path: inner for path, (inner, images) in looked.items() if inner and not images}

    def _splits_of_classes(
        self, classes: dict[str, list[Path]]
    ) -> dict[str, dict[str, list[Path]]]:
        """The splits where every class folder holds split folders: ``<class>/<split>``."""
        hollow = self._hollow(classes)
        splits = {split_of(name) for inner in hollow.values() for name in inner}
        every = len(hollow) == sum(map(len, classes.values()))
        if not every or "train" not in splits or None in splits or len(splits) < 2:
            return {"train": classes}
        found: dict[str, dict[str, list[Path]]] = {}
        for class_name, paths in classes.items():
            for path in paths:
                for name in self.look(path)[0]:
                    place = found.setdefault(str(split_of(name)), {})
                    place.setdefault(class_name, []).append(path / name)
        return found

    def _check_inside(self, classes: Mapping[str, list[Path]]) -> None:
        """Refuse class folders with splits in them, or whose folders repeat from class to class.

        Nothing says then whether these, or the folders around them, are the classes.
        """
        for path in (path for paths in classes.values() for path in paths):
            inner = self.look(path)[0]
            if len(inner) > 1 and _are_splits(inner):
                raise InvalidInput(
                    f"{path} holds {few(inner)}, whose names speak of splits, which not all class "
                    f"folders have alike; accepted: {_LAYOUT}."
                )
        hollow = self._hollow(classes)
        repeated = Counter(name.lower() for inner in hollow.values() for name in inner)
        again = [name for name, count in repeated.items() if count > 1]
        if not again or (self.by_folder and not any(map(split_of, again))):
            return
        one = next(iter(hollow))
        is_one_each = all(len(inner) == 1 for inner in hollow.values())
        if is_one_each and not any(map(split_of, again)):
            self.notes.append(
                f"The images of class {one.name!r} and others lie in folders {again[0]!r} of their "
                "own."
            )
            return
        raise InvalidInput(
            f"{one} holds no images but folders that its neighbours hold as well ({few(again)}): "
            f"which are the classes?  Accepted: {_LAYOUT}; groups='folder' where each of them "
            "holds pictures of one object."
        )

    def _check_classes(self, places: Mapping[str, Path]) -> None:
        for split, classes in self.folders.items():
            if odd := sorted(set(classes) ^ set(self.class_names)):
                where = split if odd[0] in classes else "train"
                place = places.get(split, self.root)
                where = place.name if odd[0] in classes and split in places else where
                bare = " ".join(odd[0].split()).casefold()
                twin = next((n for n in odd[1:] if " ".join(n.split()).casefold() == bare), None)
                hint = f", and differs from {twin!r} in blanks or case alone" if twin else ""
                raise InvalidInput(
                    f"the class folders of {place} must be those of train; {odd[0]!r} is in "
                    f"{where} alone{hint}."
                )

    def listed(self) -> dict[str, Listed]:
        """The images of all splits."""
        found = {split: self._listed(classes) for split, classes in self.folders.items()}
        self._check_links(found)
        return found

    def _check_links(self, listed: Mapping[str, Listed]) -> None:
        """Refuse folders that links make part of several classes."""
        class_of: dict[str, int] = {}
        for part in listed.values():
            places = [file.parent for file in part.encoded if isinstance(file, Path)]
            for place, label in sorted(set(zip(places, part.labels.tolist(), strict=True))):
                first = class_of.setdefault(os.path.realpath(place), label)
                if first != label:
                    both = (self.class_names[first], self.class_names[label])
                    raise InvalidInput(
                        f"links make the folder {self.shown(place)} part of the classes "
                        f"{both[0]!r} and {both[1]!r}; accepted: a folder of its own for each."
                    )
        for part in listed.values():
            for file, label in zip(part.encoded, part.labels.tolist(), strict=True):
                if isinstance(file, Path) and file.is_symlink():
                    first = class_of.get(os.path.dirname(os.path.realpath(file)), label)
                    if first != label:
                        raise InvalidInput(
                            f"the link {self.shown(file)} makes an image of the class "
                            f"{self.class_names[first]!r} one of {self.class_names[label]!r}; "
                            "accepted: images of one class each."
                        )

    def _listed(self, classes: Mapping[str, list[Path]]) -> Listed:
        files: list[Path] = []
        counts = []
        for class_name in self.class_names:
            left = LeftOut()
            of_class = [f for path in classes[class_name] for f in files_in(path, ENDINGS, left)]
            self.left.endings.update(left.endings)
            self.left.links += left.links
            if not of_class:
                there = f"; it holds {left.notes[0]}" if left.notes else ""
                raise InvalidInput(
                    f"the class folder {classes[class_name][0]} holds no image files; accepted: "
                    f"files that end in {', '.join(ENDINGS)}{there.rstrip('.')}."
                )
            files += of_class
            counts.append(len(of_class))
        labels = torch.arange(len(self.class_names)).repeat_interleave(torch.tensor(counts))
        return Listed(files, [str(file.relative_to(self.root)) for file in files], labels)


def _is_picture(name: str) -> bool:
    """Whether a file's name is that of an image, of a kind that is read or not."""
    kind = mimetypes.guess_type(name)[0] or ""
    return name.lower().endswith((*ENDINGS, ".heic", ".heif", ".tga")) or kind.startswith("image/")


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in walk(folder) if path.name.lower().endswith(ENDINGS))


# --- groups: pictures of one object stay on one side of a split


def _grouped(
    name: str, groups: str, layout: _Layout, listed: Mapping[str, Listed]
) -> tuple[dict[str, Listed], list[str]]:
    """The listed images with their groups, and what is to be said about these."""
    of: Mapping[str, str] = {}
    if groups != BY_FOLDER:
        of = _read_groups(groups)
    found, keys = {}, {}
    numbers: dict[str, int] = {}
    for split, part in listed.items():
        if groups == BY_FOLDER:
            own = [_object_of(file, layout.folders[split]) for file in part.encoded]
        else:
            own = [of.get(each.replace(os.sep, "/"), "") for each in part.names]
            if "" in own:
                raise InvalidInput(
                    f"dataset {name!r}: groups {groups!r} names no group for "
                    f"{part.names[own.index('')]!r}; accepted: a CSV of file (seen from DIR) and "
                    "group, with a line for every image."
                )
        keys[split] = set(own)
        ids = [numbers.setdefault(key, len(numbers)) for key in own]
        found[split] = replace(part, groups=torch.tensor(ids))
    notes = [f"Images in {len(numbers)} groups, which are not parted where a split is drawn."]
    for split in set(keys) - {"train"}:
        if both := sorted(keys["train"] & keys[split]):
            notes.append(f"Groups that are in train and in {split} all the same: {few(both)}.")
    return found, notes


def _object_of(file: Path | bytes | None, classes: Mapping[str, list[Path]]) -> str:
    """The folder inside its class folder that a file lies in; the file itself if it is in none."""
    for class_name, paths in classes.items():
        for path in paths:
            if isinstance(file, Path) and file.is_relative_to(path):
                inside = file.relative_to(path).parts
                return f"{class_name}/{inside[0]}"
    raise AssertionError("a listed file lies in a class folder")


def _read_groups(path: str) -> dict[str, str]:
    try:
        text = read_text(user_path(path), links=True).removeprefix("\ufeff")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (InvalidInput, csv.Error) as error:
        why = as_written(first_line(error), path)
        raise InvalidInput(f"groups {path!r} cannot be read ({why}).") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"file", "group"} <= set(header):
        raise InvalidInput(
            f"groups {path!r} must be 'folder', or a CSV whose first line names the columns file "
            f"and group; got {','.join(header)[:60]!r}."
        )
    file, group = header.index("file"), header.index("group")
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) <= max(file, group) or not row[group].strip():
            raise InvalidInput(f"line {number} of groups {path!r} has no group: {shown(row)}.")
        key = row[file].strip().replace("\\", "/").removeprefix("./")
        if found.setdefault(key, row[group].strip()) != row[group].strip():
            raise InvalidInput(
                f"line {number} of groups {path!r} puts {shown(key)} into another group."
            )
    return found
