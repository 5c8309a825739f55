"""Data sets of image files in class folders, and what all data sets in folders share.

Images are listed with their labels first, and only the chosen ones are decoded, so a quick look at
a large data set (`train_per_class`) is quick.

Split folders are recognised by their usual names; an ambiguous layout is rejected.  The data set's
notes count everything that was skipped.
"""

from __future__ import annotations

import csv
import errno
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

from nofe_lab.config import InvalidInput, composed, first_line, shown, some_of
from nofe_lab.data.corrections import Corrections
from nofe_lab.data.dataset import (
    TEST_SPLIT_NOTE,
    Dataset,
    ImageFile,
    stratified_sample,
    stratified_test_split,
)
from nofe_lab.data.imagenet import SYNSETS, classes_of_flat
from nofe_lab.data.listing import Encoded, Files, examined
from nofe_lab.data.pictures import ENDINGS, ImageReader
from nofe_lab.data.source import Resident, Source, short_digest, stack_keys
from nofe_lab.data.streaming import Decoder, Pictures, Streaming, is_streamed
from nofe_lab.files import UnreadableFile, read_text, redact_path, sha256, user_path

IMAGE_SIZE = 32
"""Default side, in pixels, to which image files are resized."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
}
"""Usual names of the splits; val becomes the test split if there is no test."""

FILLERS = ("data", "dataset", "folder", "images", "imgs", "seg", "set", "split")
"""Words ignored in the names of split folders, as in ``seg_train`` and ``test_set``."""

SYSTEM_NAMES = (
    *("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information", "#recycle"),
    *("thumbs.db", "desktop.ini"),
)
"""Files and folders made by operating systems, in lower case: ignored like hidden ones."""

BY_FOLDER = "folder"
"""Value of `groups`: each folder inside a class folder holds the pictures of one object."""

NAMES_FILE = "class_names.tsv"
"""Readable class names: lines of id, tab, names separated by ", "; without a header."""

_LAYOUT = (
    "DIR/<class>/<image files>, or DIR/train/<class>/<image files> beside "
    "DIR/test/<class>/<image files>"
)


@dataclass(frozen=True)
class ReadOptions:
    """How to read a folder's images (see `load_dataset`)."""

    image_size: int | None = None
    train_per_class: int | None = None
    seed: int = 0
    skip_unreadable: bool = False
    groups: str | None = None
    corrections: Corrections | None = None
    streaming: bool | None = None
    workers: int | None = None

    def count(self, images: Mapping[str, int], C: int) -> int:
        """How many images are kept, at most, of as many in each split."""
        counts = dict(images)
        if self.train_per_class is not None:
            counts["train"] = min(counts["train"], C * self.train_per_class)
        return sum(counts.values())


@dataclass(frozen=True)
class ImageList:
    """The N images of a split before decoding; ``images[mask]`` selects some of them."""

    encoded: Sequence[Path | bytes | None]
    """Image files or their contents; None if missing."""
    names: Sequence[str]
    """Names of the images in error messages."""
    labels: Tensor
    """int64 [N]."""
    groups: Tensor | None = None
    """int64 [N], see `Source`."""
    rows: Sequence[str] | None = None
    """Where each image is, for images that are no files of their own (see `Dataset.files`)."""
    staying: Encoded | None = None
    """The images if they are streamed; `encoded` is empty then."""

    def __getitem__(self, mask: Tensor) -> ImageList:
        chosen = mask.nonzero().flatten().tolist()
        names = [self.names[i] for i in chosen]
        encoded = self.encoded and [self.encoded[i] for i in chosen]
        staying = self.staying and self.staying.some(chosen)
        groups = None if self.groups is None else self.groups[mask]
        rows = None if self.rows is None else [self.rows[i] for i in chosen]
        return ImageList(encoded, names, self.labels[mask], groups, rows, staying)

    @property
    def places(self) -> list[str]:
        """Where each image is [N], as text that every file can hold: alike on all systems."""
        found = self.rows or [name.replace(os.sep, "/") for name in self.names]
        return [place.encode("utf-8", "backslashreplace").decode() for place in found]

    @property
    def contents(self) -> list[bytes]:
        """A digest of each image file [N]."""
        with ThreadPoolExecutor() as pool:  # reading and hashing release the GIL
            return list(pool.map(_content_digest, self.encoded))

    def keys(self, preparation: str, contents: Sequence[bytes]) -> Tensor:
        """Compute the keys of the images (see `Source`) from paths, contents and preparation."""
        names = (name.replace(os.sep, "/") for name in self.names)
        return stack_keys(
            short_digest(*both, preparation) for both in zip(names, contents, strict=True)
        )

    def sample(self, train_per_class: int | None, seed: int) -> ImageList:
        """Draw at most `train_per_class` images of every class; None keeps them all."""
        if train_per_class is None:
            return self
        return self[stratified_sample(self.labels, train_per_class, seed)]


@dataclass
class Skipped:
    """Files and folders below a folder that are not read."""

    endings: Counter[str] = field(default_factory=Counter)
    """Number of files by extension."""
    outside: list[str] = field(default_factory=list)
    """Images outside the class folders."""
    links: list[str] = field(default_factory=list)
    """Broken links, and links to a folder that contains them."""
    folders: list[str] = field(default_factory=list)
    """Folders beside the splits."""

    @property
    def notes(self) -> list[str]:
        """One sentence for each kind of thing skipped."""
        notes = []
        if self.endings:
            kinds = ", ".join(f"{n} {ending}" for ending, n in self.endings.most_common(8))
            total = self.endings.total()
            notes.append(f"{total} file{'s were' if total > 1 else ' was'} not read: {kinds}.")
        if self.outside:
            total = len(self.outside)
            what = "images lie" if total > 1 else "image lies"
            notes.append(f"{total} {what} in no class folder, not read: {some_of(self.outside)}.")
        if links := list(dict.fromkeys(self.links)):
            notes.append(f"Broken or circular links, not read: {some_of(links)}.")
        if self.folders:
            notes.append(f"Folders beside the splits, not read: {some_of(self.folders)}.")
        return notes


def dataset_folder(name: str, directory: str) -> Path:
    """Find the folder of a data set, with ``~`` and environment variables expanded.

    Raises InvalidInput if a variable is not set or the folder does not exist.
    """
    try:
        folder = user_path(directory)
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    if not os.path.isdir(folder):
        is_secret = "$" in directory or directory.startswith("~")  # as variables may be
        where = f"{directory!r} (seen from {os.getcwd()})" if is_secret else os.path.abspath(folder)
        raise InvalidInput(f"dataset {name!r}: there is no folder {where}.")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or made by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def walk(folder: Path, skipped: Skipped | None = None) -> Iterator[Path]:
    """Yield the visible regular files at any depth, unordered.

    Links are followed, except to a folder that contains them; each folder is visited once.
    skipped: records everything else.  Raises InvalidInput if a folder cannot be read.
    """
    skipped = skipped or Skipped()

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
                    skipped.links.append(os.path.relpath(path, folder.parent))
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
                if error.errno in (errno.ENOENT, errno.ELOOP):  # a broken or circular link
                    skipped.links.append(os.path.relpath(path, folder.parent))
                    continue
                is_regular = True  # opening it will raise the right error
            if is_regular:
                yield Path(path)
            else:
                skipped.endings["pipe or device"] += 1


def files_in(folder: Path, endings: tuple[str, ...], skipped: Skipped | None = None) -> list[Path]:
    """The files of `walk` with one of the lower-case endings, sorted; others are `skipped`."""
    found = []
    for path in walk(folder, skipped):
        if path.name.lower().endswith(endings):
            found.append(path)
        elif skipped is not None:
            skipped.endings[path.suffix.lower() or "without an ending"] += 1
    return sorted(found)


def decode_splits(
    name: str,
    class_names: tuple[str, ...],
    listed: Mapping[str, ImageList],
    options: ReadOptions,
    notes: Sequence[str],
) -> Dataset:
    """Decode the listed images of the splits train, test and, optionally, val.

    notes: added to those about the images.  Raises InvalidInput if an image cannot be decoded, or
    corrections do not fit.
    """
    class_names = tuple(map(composed, class_names))
    files = {
        place: ImageFile(class_names[label])
        for part in listed.values()
        for place, label in zip(part.places, part.labels.tolist(), strict=True)
    }
    few = listed["train"].sample(options.train_per_class, options.seed)
    listed = {**listed, "train": few}
    reader = ImageReader(name, options.image_size, options.skip_unreadable)
    staying = {split: part.staying for split, part in listed.items() if part.staying is not None}
    whole = options.skip_unreadable  # else damage is found when it is too late to leave it out
    seen = {split: examined(each, whole) for split, each in staying.items()}
    contents = {
        split: [image.digest for image in seen[split]] if split in seen else part.contents
        for split, part in listed.items()
    }
    for split, chosen in listed.items():
        for place, content in zip(chosen.places, contents[split], strict=True):
            files[place] = files[place]._replace(checksum=content.hex())
    if options.corrections is not None:
        options.corrections.check(name, class_names, files)
    pixels: dict[str, Tensor] = {}
    about: dict[str, tuple[Tensor, Tensor | None, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    for split in ("train", "val", "test"):  # train first: its images determine the bit depth
        if (part := listed.get(split)) is None:
            continue
        if split in seen:
            decoded = reader.examined(seen[split], part.names)
        else:
            pixels[split], decoded = reader.read(part.encoded, part.names)
        keys = part.keys(f"{options.image_size} {reader.bit_depth}", contents[split])
        for place, key in zip(part.places, keys.numpy(), strict=True):
            files[place] = files[place]._replace(key=key.tobytes())
        groups = None if part.groups is None else part.groups[decoded]
        kept[split], about[split] = decoded, (part.labels[decoded], groups, keys[decoded])
    splits: dict[str, Source] = {split: Resident(pixels[split], *about[split]) for split in pixels}
    if staying:
        splits = _streamed(staying, kept, about, reader, options.workers)
    train, test = splits["train"], splits["test"]
    val = splits.get("val", train[:0])
    notes = (*notes, *_case_notes(class_names), *_duplicate_notes(contents), *reader.notes)
    depth = reader.bit_depth or 16
    return Dataset(name, class_names, train, val, test, notes=notes, bit_depth=depth, files=files)


def _streamed(
    encoded: Mapping[str, Encoded],
    kept: Mapping[str, Tensor],
    about: Mapping[str, tuple[Tensor, Tensor | None, Tensor]],
    reader: ImageReader,
    workers: int | None,
) -> dict[str, Source]:
    """The splits of images that stay where they are.  about: labels, groups and keys of each."""
    depth = reader.bit_depth or 16
    decoder = Decoder(list(encoded.values()), reader.image_shape, reader.image_size, depth)
    pictures = Pictures(decoder, workers)
    splits: dict[str, Source] = {}
    first = 0
    for split, each in encoded.items():
        rows = first + kept[split].nonzero().flatten()
        splits[split] = Streaming(pictures, rows, *about[split])
        first += len(each)
    return splits


def _case_notes(class_names: Sequence[str]) -> list[str]:
    """A note about class names that differ only in case, if there are any."""
    by_case: dict[str, list[str]] = {}
    for class_name in class_names:
        by_case.setdefault(class_name.casefold(), []).append(class_name)
    pairs = [" and ".join(map(repr, names)) for names in by_case.values() if len(names) > 1]
    return [f"Classes whose names differ only in case: {some_of(pairs)}."] if pairs else []


def _duplicate_notes(contents: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Notes about files whose content is in train and in another split."""
    notes = []
    for split in [split for split in ("val", "test") if split in contents]:
        if n := len((set(contents["train"]) & set(contents[split])) - {b""}):
            notes.append(
                f"{n} image file{'s are' if n > 1 else ' is'} in train and in {split}: what is "
                f"measured on {split} looks better than it is."
            )
    return notes


def _content_digest(encoded: Path | bytes | None) -> bytes:
    """Digest the size and the content of an image file; empty if it is missing or unreadable."""
    if not isinstance(encoded, Path):
        return short_digest(str(len(encoded)), encoded) if encoded else b""
    try:
        digest = bytes.fromhex(sha256(encoded, links=True))
        return short_digest(str(encoded.stat().st_size), digest)
    except (OSError, UnreadableFile):
        return b""


def read_image_folder(name: str, directory: str, options: ReadOptions) -> Dataset:
    """Read ``DIR/<class>/<image files>``, or ``DIR/train/<class>/...`` beside ``DIR/test``.

    The sorted names of the class folders are the class names.  Raises InvalidInput if the folders
    have another layout, a class has no images, or an image cannot be decoded.
    """
    layout, listed = _listed_layout(name, directory, options.groups == BY_FOLDER)
    notes = [*layout.notes, *layout.skipped.notes]
    if options.groups is not None:
        listed, group_notes = _with_groups(name, options.groups, layout, listed)
        notes += group_notes
    class_names, train = layout.class_names, listed["train"]
    if "test" not in listed:
        try:
            in_test = stratified_test_split(train.labels, class_names, options.seed, train.groups)
        except InvalidInput as error:  # skipped files may be the missing ones
            raise InvalidInput(" ".join((str(error), *layout.skipped.notes))) from error
        listed["test"], train = train[in_test], train[~in_test]
    listed["train"] = train
    size = options.image_size or IMAGE_SIZE
    count = options.count(
        {split: len(part.labels) for split, part in listed.items()}, len(class_names)
    )
    if is_streamed(name, count, (size, size), options.streaming):
        listed = {
            split: replace(part, encoded=[], staying=Files(layout.root, part.names))
            for split, part in listed.items()
        }
    try:
        names = readable_names(layout.root, class_names)
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    return decode_splits(name, names, listed, replace(options, image_size=size), notes)


def list_image_folder(
    name: str, directory: str
) -> tuple[tuple[str, ...], dict[str, ImageList], tuple[str, ...]]:
    """List the class names, the images of each split there is, and notes, without decoding.

    Layouts and errors are those of `read_image_folder`; without folders of splits, all is train.
    """
    layout, listed = _listed_layout(name, directory, False)
    try:
        names = readable_names(layout.root, layout.class_names)
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    return names, listed, (*layout.notes, *layout.skipped.notes)


def _listed_layout(
    name: str, directory: str, by_folder: bool
) -> tuple[_Layout, dict[str, ImageList]]:
    folder = dataset_folder(name, directory)
    try:
        layout = _Layout(folder, by_folder)
        return layout, layout.listed()
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error


def readable_names(folder: Path, ids: Sequence[str]) -> tuple[str, ...]:
    """Replace ids by the first name of each that no other class has, or by all its names.

    An id that neither `NAMES_FILE` nor ImageNet's own list in the folder names, or whose names are
    all another class's too, stays.
    """
    texts = _names_by_id(folder / SYNSETS, " ") | _names_by_id(folder / NAMES_FILE, "\t")
    full_names = [texts.get(each, each) for each in ids]
    first_names = [texts[each].split(", ")[0] if each in texts else each for each in ids]
    uses_of_first, uses_of_full = Counter(first_names), Counter(full_names)
    return tuple(
        first if uses_of_first[first] == 1 else full if uses_of_full[full] == 1 else each
        for each, first, full in zip(ids, first_names, full_names, strict=True)
    )


def _names_by_id(path: Path, separator: str) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = read_text(path, links=True).removeprefix("\ufeff").split("\n")
    except UnreadableFile as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    texts: dict[str, str] = {}
    between = "tab" if separator == "\t" else "blank"
    for number, line in enumerate(lines, 1):
        each, _, text = (part.strip() for part in line.partition(separator))
        if each and text and text.split(", ")[0].strip() and texts.get(each, text) == text:
            texts[each] = text
        elif line.strip():
            raise InvalidInput(
                f"line {number} of {path.name} must be an id, a {between} and its names, once; got "
                f"{shown(line)}."
            )
    return texts


def split_of(name: str) -> str | None:
    """The split that a folder's or a file's name denotes: train, test, val, or None.

    >>> [split_of(name) for name in ("Training", "seg_test", "dev", "test tube")]
    ['train', 'test', 'val', None]
    """
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in FILLERS]
    if len(words) != 1:
        return None
    bare = re.sub(r"(set|data|images|imgs)$", "", words[0])
    return next((split for split, known in SPLIT_WORDS.items() if bare in known), None)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a circular link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _splits_named(name: str) -> set[str]:
    """The splits that parts of a name denote, as in trainA, train_cats and mnist_test."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {split for part in parts if (split := split_of(part)) is not None}


def _are_splits(names: Sequence[str]) -> bool:
    """Whether every name denotes a split, and together they denote train and another."""
    splits = [_splits_named(name) for name in names]
    return all(splits) and {"train"} < set().union(*splits)


class _Layout:
    """Finds the splits and classes of an image folder.

    Raises InvalidInput if the layout is ambiguous; the message leaves out the data set's name.
    """

    def __init__(self, root: Path, by_folder: bool) -> None:
        self.root = root
        self.by_folder = by_folder
        self.notes: list[str] = []
        self.skipped = Skipped()
        self._inside: dict[Path, tuple[list[str], bool]] = {}
        top = self._unwrapped(root)
        places = self._splits(top)
        self.flat = self._flat(places)
        own = {split: place for split, place in places.items() if split not in self.flat}
        for folder in dict.fromkeys((root, top, *own.values())):
            self.skipped.outside += self._images_in(folder)
        self.folders = {split: self._classes(place) for split, place in own.items()}
        if set(self.folders) == {"train"}:
            self.folders = self._splits_of_classes(self.folders["train"])
        for classes in self.folders.values():
            self._check_inside(classes)
        self.class_names = tuple(sorted(self.folders["train"]))
        self._check_classes(places)
        found = {**self.folders, **self.flat}
        if "test" not in found:
            if "val" in found:
                home = self.flat if "val" in self.flat else self.folders
                home["test"] = home.pop("val")  # type: ignore[assignment]
                called = self._split_label(places.get("val"), "val")
                self.notes.append(f"No test folder: {called} is the test split.")
            else:
                self.notes.append(f"No test folder: {TEST_SPLIT_NOTE}")
        elif "val" in found:
            called = self._split_label(places.get("val"), "val")
            self.notes.append(
                f"{called[0].upper()}{called[1:]} is the val split: val_fraction is not applied."
            )

    def _flat(self, places: dict[str, Path]) -> dict[str, list[Path]]:
        """The images of splits that lie in no class folders: ImageNet's val.

        Such a test split has no labels: it is taken out of `places` if there is a val.
        """
        found = {}
        for split in ("test", "val"):
            place = places.get(split)
            if place is None or self._scan(place)[0] or not self._scan(place)[1]:
                continue
            if split == "test" and "val" in places:
                self.notes.append(
                    f"The folder {self._relative(place)} is not read: its images have no classes."
                )
                del places[split]
            else:
                skipped = Skipped()
                found[split] = files_in(place, ENDINGS, skipped)
                self.skipped.endings.update(skipped.endings)
        return found

    @staticmethod
    def _split_label(place: Path | None, split: str) -> str:
        return f"the folder {place.name}" if place is not None else f"{split} of every class"

    def _scan(self, folder: Path) -> tuple[list[str], bool]:
        """List a folder's visible subfolders, sorted, and whether it holds images itself."""
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
                        self.skipped.links.append(self._relative(Path(entry.path)))
                    else:
                        subfolders.append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    self.skipped.links.append(self._relative(Path(entry.path)))
                elif entry.name.lower().endswith(ENDINGS) and os.path.isfile(entry.path):
                    images = True
            self._inside[folder] = subfolders, images
        return self._inside[folder]

    def _images_in(self, folder: Path) -> list[str]:
        """List the files in a folder itself that are, or may be, images."""
        return [
            self._relative(path)
            for path in sorted(folder.iterdir())
            if not is_hidden(path.name) and _is_picture(path.name) and path.is_file()
        ]

    def _relative(self, path: Path) -> str:
        """A path relative to the data set's folder, for messages."""
        inside = os.path.relpath(path, self.root)
        return "DIR" if inside == "." else inside

    def _unwrapped(self, folder: Path) -> Path:
        """Skip wrapper folders, which unpacking an archive often adds.

        A wrapper holds a single folder, which has the wrapper's name or contains split folders.
        """
        subfolders, images = self._scan(folder)
        if images or len(subfolders) != 1:
            return folder
        inner = folder / subfolders[0]
        alike = inner.name.lower() == folder.name.lower() or (
            split_of(inner.name) is not None and split_of(inner.name) == split_of(folder.name)
        )
        names, inner_images = self._scan(inner)
        if inner_images or not names or not (alike or "train" in map(split_of, names)):
            return folder
        self.notes.append(
            f"The folder {self._relative(inner)} is read: the one around it holds nothing else."
        )
        return self._unwrapped(inner)

    def _splits(self, folder: Path) -> dict[str, Path]:
        """Find the folder of each split; without split folders, the folder itself is train."""
        names, _ = self._scan(folder)
        by_split: dict[str, list[str]] = {}
        for name in names:
            if (split := split_of(name)) is not None:
                by_split.setdefault(split, []).append(name)
        others = [name for name in names if split_of(name) is None]
        called = [name for found in by_split.values() for name in found]
        if not by_split:
            return {"train": folder}
        has_classes = {n: bool(self._scan(folder / n)[0]) for n in called}
        if "train" not in by_split:
            return self._without_train_folder(folder, called, others, has_classes)
        trains = by_split["train"]
        if len(trains) == 1 and not has_classes[trains[0]]:
            # a folder `train` of images beside other classes is a class itself
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

    def _without_train_folder(
        self, folder: Path, called: list[str], others: list[str], has_classes: Mapping[str, bool]
    ) -> dict[str, Path]:
        if not others:
            raise InvalidInput(
                f"{folder} holds {' and '.join(called)} but no folder train; accepted: {_LAYOUT}."
            )
        for name in called:
            inside = {each.casefold() for each in self._scan(folder / name)[0]}
            if has_classes[name] and inside & {each.casefold() for each in others}:
                raise InvalidInput(
                    f"{folder / name} holds the folders of the classes beside it; accepted: "
                    f"{_LAYOUT}."
                )
        return {"train": folder}

    def _check_others(self, folder: Path, train: str, others: list[str], alone: bool) -> None:
        """Reject folders beside train that may be classes; note the others."""
        with_images = [n for n in others if next(_images(folder / n), None) is not None]
        if alone and with_images:
            raise InvalidInput(
                f"{folder} holds the folder {train}, with folders in it, beside "
                f"{some_of(with_images)}: a split or a class?  Accepted: {_LAYOUT}, and "
                f"images of a class {train!r} in the folder itself."
            )
        self.skipped.folders += [self._relative(folder / name) for name in others]

    def _classes(self, folder: Path) -> dict[str, list[Path]]:
        """Map class names to their folders in a split; two folders may share a name."""
        subfolders, _ = self._scan(folder)
        if not subfolders:
            raise InvalidInput(f"{folder} holds no class folders; accepted: {_LAYOUT}.")
        if _are_splits(subfolders):
            raise InvalidInput(
                f"{folder} holds {some_of(subfolders)}, whose names denote splits; accepted: "
                f"{_LAYOUT}."
            )
        if called := [name for name in subfolders if split_of(name) is not None]:
            self.notes.append(f"Taken for classes despite their names: {some_of(called)}.")
        found: dict[str, list[Path]] = {}
        for name in subfolders:
            found.setdefault(composed(name), []).append(folder / name)
        if twice := [name for name, folders in found.items() if len(folders) > 1]:
            self.notes.append(
                f"Folders whose names differ only in how accents are stored are one class: "
                f"{some_of(twice)}."
            )
        if len(found) < 2:
            inner = self._scan(folder / subfolders[0])[0]
            hint = f", or the name of that folder, which holds {some_of(inner)}" if inner else ""
            raise InvalidInput(
                f"{folder} holds the class folder {subfolders[0]!r} alone; at least 2 are needed"
                f"{hint}."
            )
        return found

    def _without_images(self, classes: Mapping[str, list[Path]]) -> dict[Path, list[str]]:
        """Map the class folders that hold only folders to the names of these."""
        looked = {path: self._scan(path) for paths in classes.values() for path in paths}
        return {path: inner for path, (inner, images) in looked.items() if inner and not images}

    def _splits_of_classes(
        self, classes: dict[str, list[Path]]
    ) -> dict[str, dict[str, list[Path]]]:
        """Find the splits if every class folder holds split folders: ``<class>/<split>``."""
        hollow = self._without_images(classes)
        splits = {split_of(name) for inner in hollow.values() for name in inner}
        every = len(hollow) == sum(map(len, classes.values()))
        if not every or "train" not in splits or None in splits or len(splits) < 2:
            return {"train": classes}
        found: dict[str, dict[str, list[Path]]] = {}
        for class_name, paths in classes.items():
            for path in paths:
                for name in self._scan(path)[0]:
                    place = found.setdefault(str(split_of(name)), {})
                    place.setdefault(class_name, []).append(path / name)
        return found

    def _check_inside(self, classes: Mapping[str, list[Path]]) -> None:
        """Reject class folders that hold splits, or the same folders as other class folders.

        It is then unclear whether these or the folders around them are the classes.
        """
        for path in (path for paths in classes.values() for path in paths):
            inner = self._scan(path)[0]
            if len(inner) > 1 and _are_splits(inner):
                raise InvalidInput(
                    f"{path} holds {some_of(inner)}, whose names denote splits, but not all class "
                    f"folders hold the same; accepted: {_LAYOUT}."
                )
        hollow = self._without_images(classes)
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
            f"{one} holds no images, but folders that its neighbours hold too ({some_of(again)}): "
            f"which are the classes?  Accepted: {_LAYOUT}; groups='folder' if each of them holds "
            "pictures of one object."
        )

    def _check_classes(self, places: Mapping[str, Path]) -> None:
        for split, classes in self.folders.items():
            if odd := sorted(set(classes) ^ set(self.class_names)):
                where = split if odd[0] in classes else "train"
                place = places.get(split, self.root)
                where = place.name if odd[0] in classes and split in places else where
                bare = " ".join(odd[0].split()).casefold()
                twin = next((n for n in odd[1:] if " ".join(n.split()).casefold() == bare), None)
                hint = f", and differs from {twin!r} only in blanks or case" if twin else ""
                raise InvalidInput(
                    f"the class folders of {place} must be those of train; {odd[0]!r} is in "
                    f"{where} only{hint}."
                )

    def listed(self) -> dict[str, ImageList]:
        """List the images of all splits."""
        found = {split: self._listed(classes) for split, classes in self.folders.items()}
        self._check_links(found)
        flat = {split: self._listed_flat(files) for split, files in self.flat.items()}
        return found | flat

    def _listed_flat(self, files: list[Path]) -> ImageList:
        """List images that lie in one folder, without those of classes that train does not have."""
        number = {name: c for c, name in enumerate(self.class_names)}
        classes = classes_of_flat(self.root, files[0].parent, files)
        known = [(f, number[c]) for f, c in zip(files, classes, strict=True) if c in number]
        if not known:
            raise InvalidInput(
                f"the images of {files[0].parent} are of other classes than those of train: "
                f"{shown(classes[0])} is not among {some_of(self.class_names)}."
            )
        if other := len(files) - len(known):
            where = self._relative(files[0].parent)
            self.notes.append(f"{other:,} images of {where} are of classes that train lacks.")
        names = [self._relative(file) for file, _ in known]
        return ImageList([file for file, _ in known], names, torch.tensor([c for _, c in known]))

    def _check_links(self, listed: Mapping[str, ImageList]) -> None:
        """Reject links that put a folder or an image into several classes."""
        class_of: dict[str, int] = {}
        for part in listed.values():
            places = [file.parent for file in part.encoded if isinstance(file, Path)]
            for place, label in sorted(set(zip(places, part.labels.tolist(), strict=True))):
                first = class_of.setdefault(os.path.realpath(place), label)
                if first != label:
                    both = (self.class_names[first], self.class_names[label])
                    raise InvalidInput(
                        f"links make the folder {self._relative(place)} part of the classes "
                        f"{both[0]!r} and {both[1]!r}; accepted: a folder of its own for each."
                    )
        for part in listed.values():
            for file, label in zip(part.encoded, part.labels.tolist(), strict=True):
                if isinstance(file, Path) and file.is_symlink():
                    first = class_of.get(os.path.dirname(os.path.realpath(file)), label)
                    if first != label:
                        raise InvalidInput(
                            f"the link {self._relative(file)} makes an image of the class "
                            f"{self.class_names[first]!r} one of {self.class_names[label]!r}; "
                            "accepted: images of one class each."
                        )

    def _listed(self, classes: Mapping[str, list[Path]]) -> ImageList:
        files: list[Path] = []
        counts = []
        for class_name in self.class_names:
            skipped = Skipped()
            of_class = [f for path in classes[class_name] for f in files_in(path, ENDINGS, skipped)]
            self.skipped.endings.update(skipped.endings)
            self.skipped.links += skipped.links
            if not of_class:
                there = f"; it holds {skipped.notes[0]}" if skipped.notes else ""
                raise InvalidInput(
                    f"the class folder {classes[class_name][0]} holds no image files; accepted: "
                    f"files that end in {', '.join(ENDINGS)}{there.rstrip('.')}."
                )
            files += of_class
            counts.append(len(of_class))
        labels = torch.arange(len(self.class_names)).repeat_interleave(torch.tensor(counts))
        return ImageList(files, [str(file.relative_to(self.root)) for file in files], labels)


def _is_picture(name: str) -> bool:
    """Whether a file's name is that of an image, in a supported format or not."""
    kind = mimetypes.guess_type(name)[0] or ""
    return name.lower().endswith((*ENDINGS, ".heic", ".heif", ".tga")) or kind.startswith("image/")


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in walk(folder) if path.name.lower().endswith(ENDINGS))


def _with_groups(
    name: str, groups: str, layout: _Layout, listed: Mapping[str, ImageList]
) -> tuple[dict[str, ImageList], list[str]]:
    """Add groups, which are never split, to the listed images; also returns notes about them."""
    group_of = {} if groups == BY_FOLDER else _read_groups(groups)
    found, keys = {}, {}
    numbers: dict[str, int] = {}
    for split, part in listed.items():
        if groups == BY_FOLDER:
            classes = layout.folders.get(split, {})
            own = [_object_of(file, classes) for file in part.encoded]
        else:
            own = [group_of.get(each.replace(os.sep, "/"), "") for each in part.names]
            if "" in own:
                raise InvalidInput(
                    f"dataset {name!r}: groups {groups!r} names no group for "
                    f"{part.names[own.index('')]!r}; accepted: a CSV of file (seen from DIR) and "
                    "group, with a line for every image."
                )
        keys[split] = set(own)
        ids = [numbers.setdefault(key, len(numbers)) for key in own]
        found[split] = replace(part, groups=torch.tensor(ids))
    notes = [f"Images in {len(numbers)} groups, kept whole when a split is drawn."]
    for split in set(keys) - {"train"}:
        if both := sorted(keys["train"] & keys[split]):
            notes.append(f"Groups in both train and {split}: {some_of(both)}.")
    return found, notes


def _object_of(file: Path | bytes | None, classes: Mapping[str, list[Path]]) -> str:
    """The folder inside its class folder that holds a file; the file itself if there is none."""
    for class_name, paths in classes.items():
        for path in paths:
            if isinstance(file, Path) and file.is_relative_to(path):
                inside = file.relative_to(path).parts
                return f"{class_name}/{inside[0]}"
    return str(file)  # in no class folder


def _read_groups(path: str) -> dict[str, str]:
    try:
        text = read_text(user_path(path), links=True).removeprefix("\ufeff")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (InvalidInput, csv.Error) as error:
        why = redact_path(first_line(error), path)
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
