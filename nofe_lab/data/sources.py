"""Loads every data set by name: `load_dataset`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nofe_lab.compat import import_torchvision
from nofe_lab.config import (
    InvalidInput,
    data_folder,
    first_line,
    one_of,
)
from nofe_lab.data.corrections import Corrections
from nofe_lab.data.dataset import TEST_SPLIT_NOTE, Dataset, stratified_test_split, superclass_of
from nofe_lab.data.folders import (
    BY_FOLDER,
    NAMES_FILE,
    ReadOptions,
    dataset_folder,
    files_in,
    read_image_folder,
)
from nofe_lab.data.hub import read_hub
from nofe_lab.data.imagenet import META, SOLUTION, SYNSETS, TRUTH
from nofe_lab.data.parquet import read_parquet
from nofe_lab.data.pictures import ENDINGS
from nofe_lab.data.source import Resident
from nofe_lab.files import read_text, redact_path, user_path
from nofe_lab.knobs import KNOBS
from nofe_lab.specialties import class_number

READY_MADE = ("glyphs", "lookalikes", "cifar100", "cifar10", "digits")
"""Built-in data sets; their images are 32 x 32."""

ACCEPTED = (
    "'glyphs', 'glyphs:N' (N training images a class), 'glyphs:N:CHARACTERS' (two or more of its "
    "characters), 'lookalikes', 'cifar100', 'cifar10', 'digits', 'folder:DIR', 'parquet:DIR' or "
    "'hub:NAME'"
)
FROM_FILES = "'folder:DIR', 'parquet:DIR' and 'hub:NAME'"
GLYPHS_PER_CLASS = 160

LOOKALIKES = "60:OQ0Θ58SBaáäå"
"""The data set of that name, as glyphs: four characters of each of three families."""

MAX_GLYPHS = 10_000
"""Most training images per class: a million in all, which take three gigabytes."""

_READERS = {"folder": read_image_folder, "parquet": read_parquet, "hub": read_hub}
_FILE_ENDINGS = {
    "folder": (*ENDINGS, NAMES_FILE, SYNSETS, SOLUTION, TRUTH, META),
    "parquet": (".parquet", NAMES_FILE),
    "hub": (".parquet", ".arrow"),
}
_CIFAR_FOLDERS = {"cifar100": "cifar-100-python", "cifar10": "cifar-10-batches-py"}


def without_folders(path: str) -> str:
    """A path, or the name of a data set of files, without the folders that it lies in.

    >>> without_folders("folder:~/jane/flowers")
    'folder:flowers'
    """
    kind, colon, place = path.partition(":")
    source = kind.strip().lower()
    if colon and source in READY_MADE:  # characters of glyphs may be slashes
        return path
    if source == "hub" and not os.path.exists(os.path.expanduser(place.strip())):
        return path
    if colon and source in _READERS:
        return f"{kind.strip()}:{Path(place.strip()).name or 'data'}"
    return Path(path).name if "/" in path or "\\" in path else path


def load_dataset(
    name: str | Path = "glyphs",
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    train_per_class: int | None = None,
    skip_unreadable: bool = False,
    groups: str | None = None,
    corrections: str | None = None,
    streaming: bool | None = None,
    loader_workers: int | None = None,
    download_dir: Path | str | None = None,
) -> Dataset:
    """Load a data set by name and carve its val split from train.

    name: one of

    * ``glyphs``, the built-in default: 100 classes of printed characters, 160 training and 40 test
      images each (``glyphs:N``: N and N / 4; ``glyphs:N:OQ0``: these characters alone);
    * ``lookalikes``, twelve of these classes, with 60 training and 15 test images each;
    * ``cifar100`` and ``cifar10``, downloaded by torchvision into `download_dir` (default
      ``data/raw``);
    * ``digits``, scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8; a fifth is test;
    * ``folder:DIR``, image files in ``DIR/<class>/`` (a fifth becomes test), or in
      ``DIR/train/<class>/``, ``DIR/test/<class>/`` and optionally ``DIR/val/<class>/``, which
      overrides `val_fraction`;
    * ``parquet:DIR``, a folder in the Hugging Face Hub's parquet layout;
    * ``hub:NAME``, a data set of the Hugging Face Hub (or ``hub:NAME:CONFIGURATION``), which the
      package datasets downloads.

    ``~`` and environment variables in DIR are expanded.  Images are uint8 [N, 3, height, width];
    the data set's `notes` say how they were converted.

    val_fraction: share of every class's training images that becomes val; 0 leaves val empty.
    seed: draws val, a missing test split, `train_per_class`, and the pixels of glyphs.
    image_size: side in pixels, at most 1024, of the square that images from files are resized to
    (shorter side, then centre crop); None: 32 for a folder; elsewhere as stored, where all images
    must then have one size.
    train_per_class: the most training images of every class, for a quick look at a large data set;
    drawn before val is carved from them.  The test split stays whole.
    skip_unreadable: skip images that cannot be decoded; the notes name them.
    groups: keeps pictures of one object on one side when val or test is drawn from train:
    ``folder`` if each folder inside a class folder of ``folder:DIR`` holds one object's pictures,
    or the path of a CSV with the columns file (relative to DIR) and group.
    corrections: the path of a CSV of decisions about images from files,
    as `nofe_lab.relabel` writes it: applied after all splits are drawn.
    streaming: whether images from files are decoded while networks train
    (see `Streaming`) instead of being kept in memory; None: if they would take more than a third of
    the memory that is available.  Either way networks see the same pixels, and runs are the same.
    loader_workers: processes that decode them, 0 for this one; None: as many as there are cores, at
    most 8.

    >>> load_dataset("glyphs:20").train
    1,800 images

    Raises InvalidInput if the name is unknown, a number is out of range, the data cannot be
    downloaded or read, or a class has too few images to split.
    """
    KNOBS["val_fraction"].kind.check("val_fraction", val_fraction)
    KNOBS["data_seed"].check(seed)
    KNOBS["image_size"].check(image_size)
    KNOBS["train_per_class"].check(train_per_class)
    KNOBS["skip_unreadable"].check(skip_unreadable)
    KNOBS["streaming"].check(streaming)
    KNOBS["loader_workers"].check(loader_workers)
    if isinstance(name, Path):
        name = str(name)
    source, argument = _parse_name(name)
    if source in _READERS and argument:
        decided = None if corrections is None else Corrections.read(corrections)
        chosen = image_size, train_per_class, seed, skip_unreadable, groups, decided
        options = ReadOptions(*chosen, streaming, loader_workers)
        with _redacted_errors(argument):
            dataset = _READERS[source](f"{source}:{argument}", argument, options)
        dataset = prepared(dataset, val_fraction, seed, train_per_class)
        return dataset if decided is None else decided.applied(dataset)
    if groups is not None:
        raise InvalidInput(
            f"groups is for 'folder:DIR', where images are files; got {groups!r} for dataset "
            f"{name!r}."
        )
    if corrections is not None:
        raise InvalidInput(
            f"corrections is for {FROM_FILES}, where images come from files; got "
            f"{str(corrections)!r} for dataset {name!r}."
        )
    if not (source == "glyphs" and argument):
        _check_ready_made(name)
    for what, value in {"streaming": streaming or None, "loader_workers": loader_workers}.items():
        if value is not None:
            raise InvalidInput(
                f"{what} is for {FROM_FILES}, where images come from files; got {what}={value} for "
                f"dataset {name!r}, which is kept in memory."
            )
    if image_size is not None:
        raise InvalidInput(
            f"image_size is for {FROM_FILES}; got image_size={image_size} "
            f"for dataset {name!r}, whose images are 32 x 32."
        )
    dataset = _ready_made(name, argument, seed, download_dir)
    return prepared(dataset, val_fraction, seed, train_per_class)


def prepared(
    dataset: Dataset, val_fraction: float, seed: int, train_per_class: int | None = None
) -> Dataset:
    """Apply `train_per_class`, and carve val from train unless the data set has its own.

    Arguments are those of `load_dataset`.
    """
    if train_per_class is not None:
        dataset = dataset.with_train_per_class(train_per_class, seed)
    return dataset if len(dataset.val) else dataset.with_val(val_fraction, seed)


def _parse_name(name: object) -> tuple[str, str]:
    """Split a name into (source, argument), ignoring case and surrounding blanks and quotes."""
    source, _, argument = str(name).strip().partition(":")
    argument = argument.strip()
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        argument = argument[1:-1]
    known = source.strip().lower()
    return (known, argument) if known in _READERS else (source, argument)


def _check_ready_made(name: object) -> None:
    """Raise InvalidInput unless `name` is a built-in data set; a path gets a hint."""
    if name not in READY_MADE and (os.sep in str(name) or os.path.isdir(str(name).strip() or "?")):
        raise InvalidInput(
            f"dataset {name!r} is a path; a folder of class folders is written as 'folder:{name}', "
            f"one of parquet files as 'parquet:{name}'."
        )
    one_of(
        "dataset", name, READY_MADE, also="'glyphs:N', 'folder:DIR', 'parquet:DIR' or 'hub:NAME'"
    )


@contextmanager
def _redacted_errors(directory: str) -> Iterator[None]:
    """Hide the values of environment variables in error messages: they may be secret."""
    try:
        yield
    except InvalidInput as error:
        if "$" not in directory:
            raise
        raise InvalidInput(redact_path(str(error), directory)) from None
    except OSError as error:  # files changed meanwhile, or may not be read
        why = f"{error.strerror or error}: {error.filename}"
        raise InvalidInput(
            f"the folder {directory!r} cannot be read ({redact_path(why, directory)})."
        ) from error


def source_state(name: str, groups: str | None = None, corrections: str | None = None) -> str:
    """A short digest that changes with a data set's files.

    It covers the files' relative paths, sizes and modification times, and the contents of the files
    `groups` and `corrections`; "" for other data sets and missing folders.  Never raises.
    """
    source, argument = _parse_name(name)
    if source not in _FILE_ENDINGS or not argument:
        return ""
    digest = hashlib.sha256()
    try:
        folder = dataset_folder(name, argument)
        files = files_in(folder, _FILE_ENDINGS[source])
        for beside in (groups, corrections):
            if beside is not None and beside != BY_FOLDER:
                digest.update(read_text(user_path(beside), links=True).encode())
    except (InvalidInput, OSError):
        return ""
    for path in files:
        try:
            status = path.stat()
        except OSError:  # deleted meanwhile, or a broken link
            continue
        digest.update(os.fsencode(path.relative_to(folder)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _ready_made(name: str, argument: str, seed: int, download_dir: Path | str | None) -> Dataset:
    if name == "digits":
        return _digits(seed)
    if name in _CIFAR_FOLDERS:
        return _cifar(name, user_path(download_dir or data_folder() / "raw"))
    return _glyphs(name, LOOKALIKES if name == "lookalikes" else argument, seed)


def _split(images: np.ndarray | torch.Tensor, labels: Sequence[int] | np.ndarray) -> Resident:
    return Resident(torch.as_tensor(images), torch.from_numpy(np.array(labels, dtype=np.int64)))


def _glyphs(name: str, argument: str, seed: int) -> Dataset:
    from nofe_lab.data import glyphs  # slow to import

    per_class, (argument, colon, characters) = GLYPHS_PER_CLASS, argument.partition(":")
    if argument or colon:
        digits = argument if argument.isascii() and argument.isdecimal() else "0"
        per_class = int(digits[:9]) if len(digits) < 10 else MAX_GLYPHS + 1
        if not 1 <= per_class <= MAX_GLYPHS:
            raise InvalidInput(
                f"dataset {name!r} names no number of images from 1 to {MAX_GLYPHS}; accepted: "
                f"{ACCEPTED}."
            )
    kept = [class_number(character, glyphs.CLASS_NAMES) for character in characters]
    if colon and not 1 < len(kept) == len(set(kept)):
        raise InvalidInput(
            f"dataset {name!r} must name two or more different characters; got {characters!r}."
        )
    train = _split(*glyphs.render_glyphs(per_class, seed, "train"))
    test = _split(*glyphs.render_glyphs(max(per_class // 4, 1), seed, "test"))
    whole = Dataset(
        name,
        glyphs.CLASS_NAMES,
        train,
        train[:0],
        test,
        glyphs.SUPERCLASS_NAMES,
        glyphs.SUPERCLASS_OF,
    )
    return whole.with_classes(kept) if kept else whole


def _cifar(name: str, folder: Path) -> Dataset:
    import_torchvision()
    from torchvision import datasets

    source = getattr(datasets, name.upper())
    try:
        train_set, test_set = (source(folder, train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise InvalidInput(
            f"{name} could not be downloaded into {folder} ({first_line(error)}): put an unpacked "
            f"{_CIFAR_FOLDERS[name]} folder there, or use a local copy in the Hub's layout "
            "(dataset='parquet:DIR'), or the embedded data set (dataset='glyphs')."
        ) from error
    train, test = (
        _split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), part.targets)
        for part in (train_set, test_set)
    )
    dataset = Dataset(name, tuple(train_set.classes), train, train[:0], test)
    if name == "cifar10":
        return dataset
    coarse_names, coarse = _cifar100_superclasses(folder)
    of = superclass_of(train.labels.numpy(), coarse, dataset.C)
    return replace(dataset, superclass_names=coarse_names, superclass_of=of)


def _cifar100_superclasses(folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    # torchvision ignores the coarse labels, but has just checked the MD5 of these files
    import pickle

    def unpickle(file: str) -> dict[str, Any]:
        path = folder / "cifar-100-python" / file
        content: dict[str, Any] = pickle.loads(path.read_bytes(), encoding="latin1")
        return content

    return tuple(unpickle("meta")["coarse_label_names"]), np.array(
        unpickle("train")["coarse_labels"]
    )


def _digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    bilinear = Image.Resampling.BILINEAR
    enlarged = [np.asarray(Image.fromarray(image).resize((32, 32), bilinear)) for image in pixels]
    images = np.stack(enlarged)[:, None].repeat(3, axis=1)
    digits, names = _split(images, found.target), tuple("0123456789")
    in_test = stratified_test_split(digits.labels, names, seed)
    train, test = digits[~in_test], digits[in_test]
    notes = (
        f"No official split: {TEST_SPLIT_NOTE}",
        "The 8 x 8 grey images were enlarged to 32 x 32 and repeated in three channels.",
    )
    return Dataset("digits", names, train, train[:0], test, notes=notes)
