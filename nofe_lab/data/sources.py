"""Where data sets come from: one `load_dataset(name)` for everything."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nofe_lab.compat import import_torchvision
from nofe_lab.config import (
    MAX_VAL_FRACTION,
    InvalidInput,
    data_folder,
    one_of,
    real_number,
    whole_number,
)
from nofe_lab.data.dataset import Dataset, Split

ACCEPTED = "'glyphs', 'glyphs:N' (N training images a class), 'cifar100' or 'parquet:DIR'"
GLYPHS_PER_CLASS = 160


def load_dataset(
    name: str = "glyphs",
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    download_dir: Path | str | None = None,
) -> Dataset:
    """Load a data set by name and carve its val split from its train split.

    name: ``glyphs``, the embedded default: 100 classes of printed characters, 160 training and 40
    test images each (``glyphs:N``: N and N / 4); ``cifar100``, downloaded by torchvision into
    `download_dir` (default ``data/raw``); ``parquet:DIR``, a folder in the Hugging Face
    Hub's parquet layout, where environment variables in DIR are expanded.
    val_fraction: share of every class's training images that becomes val; 0 leaves val empty.
    seed: of the choice of the val images, and of the pixels of glyphs.

    >>> load_dataset("glyphs:20").train
    1,800 images

    Raises InvalidInput if the name is unknown, the data cannot be had, or a class has too few
    images to split.
    """
    real_number("val_fraction", val_fraction, 0, MAX_VAL_FRACTION)
    whole_number("data_seed", seed, 0)
    source, _, argument = str(name).partition(":")
    if source == "parquet" and argument:
        dataset = _parquet(name, argument)
    elif source == "glyphs" and (argument or name == "glyphs"):
        dataset = _glyphs(name, argument, seed)
    elif name == "cifar100":
        dataset = _cifar100(Path(download_dir or data_folder() / "raw").expanduser())
    else:
        one_of("dataset", name, ("glyphs", "cifar100"), also="'glyphs:N' or 'parquet:DIR'")
        raise AssertionError("unreachable: one_of refuses every other name")
    return dataset.with_val(val_fraction, seed)


def _split(images: np.ndarray | torch.Tensor, labels: Sequence[int] | np.ndarray) -> Split:
    return Split(torch.as_tensor(images), torch.from_numpy(np.array(labels, dtype=np.int64)))


def _empty(like: Split) -> Split:
    return like[:0]


def _glyphs(name: str, argument: str, seed: int) -> Dataset:
    from nofe_lab.data import glyphs  # its fonts take a moment that other sources need not spend

    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise InvalidInput(f"dataset {name!r} names no number of images; accepted: {ACCEPTED}.")
    per_class = int(argument) if argument else GLYPHS_PER_CLASS
    train = _split(*glyphs.render_glyphs(per_class, seed, "train"))
    test = _split(*glyphs.render_glyphs(max(per_class // 4, 1), seed, "test"))
    return Dataset(
        name,
        glyphs.CLASS_NAMES,
        train,
        _empty(train),
        test,
        glyphs.SUPERCLASS_NAMES,
        glyphs.SUPERCLASS_OF,
    )


def _cifar100(folder: Path) -> Dataset:
    import_torchvision()
    from torchvision.datasets import CIFAR100

    try:
        train_set, test_set = (CIFAR100(folder, train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"cifar100 could not be downloaded into {folder} ({reason}): put an unpacked "
            "cifar-100-python folder there, or use a local copy in the Hub's layout "
            "(dataset='parquet:DIR'), or the embedded data set (dataset='glyphs')."
        ) from error
    splits = [
        _split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), part.targets)
        for part in (train_set, test_set)
    ]
    coarse_names, coarse = _cifar100_superclasses(folder)
    return Dataset(
        "cifar100",
        tuple(train_set.classes),
        splits[0],
        _empty(splits[0]),
        splits[1],
        coarse_names,
        _superclass_of(splits[0].labels.numpy(), coarse, len(train_set.classes)),
    )


def _cifar100_superclasses(folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    # torchvision leaves the coarse labels out; it has just checked these files' md5
    import pickle

    def unpickle(file: str) -> dict[str, Any]:
        path = folder / "cifar-100-python" / file
        content: dict[str, Any] = pickle.loads(path.read_bytes(), encoding="latin1")
        return content

    return tuple(unpickle("meta")["coarse_label_names"]), np.array(
        unpickle("train")["coarse_labels"]
    )


def _superclass_of(fine: np.ndarray, coarse: np.ndarray, C: int) -> tuple[int, ...]:
    """The one superclass of each class; empty if a class's images disagree about it."""
    table = np.zeros((C, int(coarse.max()) + 1), dtype=np.int64)
    np.add.at(table, (fine, coarse), 1)
    if ((table > 0).sum(axis=1) != 1).any():
        return ()
    return tuple(int(k) for k in table.argmax(axis=1))


# The Hub's parquet layout: data/<split>-0000i-of-0000n.parquet, images as struct{bytes, path},
# labels as integers, the names of the labels in the schema's metadata.

_SHARD = re.compile(r"(?P<split>[A-Za-z_]+)-\d+-of-\d+.*\.parquet$")


def _parquet(name: str, directory: str) -> Dataset:
    expanded = os.path.expanduser(os.path.expandvars(directory))
    folder = Path(expanded)
    if "$" in expanded:
        raise InvalidInput(
            f"dataset {name!r} names an environment variable that is not set; set it to the folder "
            "that holds the data, or write the path."
        )
    if not folder.is_dir():
        raise InvalidInput(f"dataset {name!r}: there is no folder {folder}.")
    shards: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        if match := _SHARD.match(path.name):
            shards.setdefault(match["split"], []).append(path)
    test_name = next((s for s in ("test", "valid", "validation", "val") if s in shards), None)
    if "train" not in shards or test_name is None:
        raise InvalidInput(
            f"dataset {name!r}: {folder} must hold train-*.parquet and test-*.parquet (or valid-*, "
            f"validation-*) in the Hub's layout; found the splits {sorted(shards)}."
        )
    tables = {split: _read_shards(name, shards[split]) for split in ("train", test_name)}
    class_names, superclass_names, label, superclass, image = _columns(name, tables["train"])
    for split, table in tables.items():
        if missing := {image, label, superclass or label} - set(table.column_names):
            raise InvalidInput(
                f"dataset {name!r}: the split {split!r} has no column {sorted(missing)[0]!r}; "
                f"found {table.column_names}."
            )
    train, test = (
        _split(_decode(name, table[image]), table[label].to_numpy()) for table in tables.values()
    )
    dataset = Dataset(name, class_names, train, _empty(train), test)
    if superclass:
        coarse = tables["train"][superclass].to_numpy()
        superclass_of = _superclass_of(train.labels.numpy(), coarse, len(class_names))
        if superclass_of:
            return replace(dataset, superclass_names=superclass_names, superclass_of=superclass_of)
    return dataset


def _read_shards(name: str, paths: list[Path]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pa.concat_tables([pq.read_table(path) for path in paths])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"dataset {name!r}: {paths[0].parent} holds a parquet file that cannot be read "
            f"({reason})."
        ) from error


def _columns(
    name: str, table: Any
) -> tuple[tuple[str, ...], tuple[str, ...], str, str | None, str]:
    try:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    labels = {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    images = [
        column
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    fine = next((c for c in ("fine_label", "label") if c in labels), next(iter(labels), None))
    if fine is None or not images:
        raise InvalidInput(
            f"dataset {name!r}: its 'huggingface' metadata must name an Image column and a "
            f"ClassLabel column; found {sorted(features) or 'none'}."
        )
    coarse = "coarse_label" if "coarse_label" in labels and fine != "coarse_label" else None
    return labels[fine], labels.get(coarse or "", ()), fine, coarse, images[0]


def _decode(name: str, column: Any) -> torch.Tensor:
    encoded = column.combine_chunks().field("bytes").to_pylist()
    if not encoded:
        raise InvalidInput(f"dataset {name!r}: a split holds no images.")

    def decode(index: int) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(encoded[index])) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"dataset {name!r}: image {index} cannot be decoded ({error})."
            ) from error

    first = decode(0)
    pixels = np.empty((len(encoded), *first.shape), dtype=np.uint8)

    def place(start: int) -> None:
        for index in range(start, min(start + 1024, len(encoded))):
            image = decode(index)
            if image.shape != first.shape:
                (height, width), (rows, columns) = first.shape[:2], image.shape[:2]
                raise InvalidInput(
                    f"dataset {name!r}: all images must have one size; image 0 has {width} x "
                    f"{height} pixels, image {index} has {columns} x {rows}."
                )
            pixels[index] = image

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        list(pool.map(place, range(0, len(encoded), 1024)))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
