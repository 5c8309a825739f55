"""The Hugging Face Hub's parquet layout: ``data/<split>-0000i-of-0000n.parquet``.

Images are struct{bytes, path}, labels integers, and the schema's metadata holds the labels' names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nofe_lab.config import InvalidInput, first_line
from nofe_lab.data.dataset import Dataset, superclass_of
from nofe_lab.data.folders import VAL_NAMES, Listed, decoded, files_in, folder_of
from nofe_lab.files import UnreadableFile, check_regular, memory, parse_json, read_text

NAMES_FILE = "class_names.tsv"
"""Readable class names: lines of id, tab, names separated by ", "; without a header."""

_ROWS = 32
"""Rows that are unpacked at once: few, because a small file may unpack to huge ones."""

_SHARD = re.compile(r"(?P<split>[A-Za-z_]+)-\d+-of-\d+.*\.parquet$")


def read_parquet(
    name: str, directory: str, image_size: int | None, train_per_class: int | None, seed: int
) -> Dataset:
    """Read a folder in the Hub's parquet layout.

    image_size: side in pixels that images are resized to; None: as stored, all of one size.
    train_per_class: training images of a class to decode, drawn by `seed`; None for all.  Class
    names that `NAMES_FILE` in the folder lists as ids become readable.  Raises InvalidInput if
    files, columns, labels or images are missing or not as the layout wants them.
    """
    folder = folder_of(name, directory)
    shards, test_name = _shards(name, folder)
    tables = {split: _read_shards(name, shards[split]) for split in ("train", test_name)}
    ids, superclass_names, label, superclass, image = _columns(name, tables["train"])
    for split, table in tables.items():
        if missing := {image, label, superclass or label} - set(table.column_names):
            raise InvalidInput(
                f"dataset {name!r}: the split {split!r} has no column {sorted(missing)[0]!r}; "
                f"found {table.column_names}."
            )
    train, test = (
        _listed(name, split, table[image], _labels(name, split, table, label, len(ids)))
        for split, table in tables.items()
    )
    notes = [] if test_name == "test" else [f"No test split: {test_name} is the test split."]
    listed = {"train": train.few(train_per_class, seed), "test": test}
    dataset = decoded(name, _readable(name, folder, ids), listed, image_size, notes)
    if superclass:
        coarse = _labels(name, "train", tables["train"], superclass, len(superclass_names))
        if of := superclass_of(train.labels.numpy(), coarse, len(ids)):
            return replace(dataset, superclass_names=superclass_names, superclass_of=of)
    return dataset


def _shards(name: str, folder: Path) -> tuple[dict[str, list[Path]], str]:
    """The files of each split, and which split is the test split."""
    shards: dict[str, list[Path]] = {}
    for path in files_in(folder, (".parquet",)):
        if match := _SHARD.match(path.name):
            shards.setdefault(match["split"], []).append(path)
    test_name = next((split for split in ("test", *VAL_NAMES) if split in shards), None)
    if "train" not in shards or test_name is None:
        raise InvalidInput(
            f"dataset {name!r}: {folder} must hold train-*.parquet and test-*.parquet (or valid-*, "
            f"validation-*) in the Hub's layout; found the splits {sorted(shards)}."
        )
    return shards, test_name


def _read_shards(name: str, paths: list[Path]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, unpacked = [], 0
    try:
        for path in paths:
            check_regular(path, memory(), links=True)
            with pq.ParquetFile(path) as file:
                rows = []
                for batch in file.iter_batches(_ROWS):
                    rows.append(batch)
                    unpacked += batch.nbytes
                    _check_memory(name, path, unpacked)
                tables.append(pa.Table.from_batches(rows, file.schema_arrow))
        return pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"dataset {name!r}: {paths[0].parent} holds a parquet file that cannot be read "
            f"({first_line(error)})."
        ) from error


def _check_memory(name: str, path: Path, unpacked: int) -> None:
    """Raise InvalidInput for a small file that unpacks to more than fits into memory."""
    if unpacked > memory():
        raise InvalidInput(
            f"dataset {name!r}: {path} does not fit into memory: it unpacks to more than "
            f"{memory():,} bytes."
        )


def _columns(
    name: str, table: Any
) -> tuple[tuple[str, ...], tuple[str, ...], str, str | None, str]:
    """The names of classes and superclasses; the columns of both labels and of the image."""
    try:
        metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
        features = dict(parse_json(metadata.decode())["info"]["features"])
    except (ValueError, KeyError, TypeError):
        features = {}
    labels = {
        column: tuple(map(str, feature["names"]))
        for column, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
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


def _labels(name: str, split: str, table: Any, column: str, count: int) -> np.ndarray:
    """The labels int64 [N] of a split, all of them from 0 to `count` - 1."""
    found = table[column].unique().to_pylist()
    odd = [value for value in found if type(value) is not int or not 0 <= value < count]
    if odd:
        listed = ", ".join("null" if value is None else repr(value) for value in odd[:5])
        more = f" and {len(odd) - 5} others" if len(odd) > 5 else ""
        raise InvalidInput(
            f"dataset {name!r}: labels in the column {column!r} of the split {split!r} must be "
            f"whole numbers from 0 to {count - 1}; got {listed}{more}."
        )
    return np.array(table[column].to_numpy(), dtype=np.int64)


def _listed(name: str, split: str, column: Any, labels: np.ndarray) -> Listed:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(column):
        raise InvalidInput(f"dataset {name!r}: the split {split!r} holds no images.")
    fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    if "bytes" not in fields:
        raise InvalidInput(
            f"dataset {name!r}: images of the split {split!r} must be stored as "
            f"struct<bytes, path>; got {column.type}."
        )
    encoded = pc.struct_field(column, "bytes").to_pylist()
    no_paths = [None] * len(encoded)
    paths = pc.struct_field(column, "path").to_pylist() if "path" in fields else no_paths
    names = [
        f"image {index} of {split}" + (f" ({path})" if path else "")
        for index, path in enumerate(paths)
    ]
    return Listed(encoded, names, torch.from_numpy(labels))


def _readable(name: str, folder: Path, ids: Sequence[str]) -> tuple[str, ...]:
    """Class names for ids: the first of an id's names if no other class has it, else all of them.

    An id stays what it is if the names' file does not list it, or if all of its names are another
    class's as well.
    """
    texts = _names_by_id(name, folder / NAMES_FILE)
    wholes = [texts.get(each, each) for each in ids]
    firsts = [texts[each].split(", ")[0] if each in texts else each for each in ids]
    uses_of_first, uses_of_whole = Counter(firsts), Counter(wholes)
    return tuple(
        first if uses_of_first[first] == 1 else whole if uses_of_whole[whole] == 1 else each
        for each, first, whole in zip(ids, firsts, wholes, strict=True)
    )


def _names_by_id(name: str, path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = read_text(path, links=True).removeprefix("\ufeff").split("\n")
    except UnreadableFile as error:
        raise InvalidInput(f"dataset {name!r}: {path} cannot be read: {error}") from error
    texts = {}
    for number, line in enumerate(lines, 1):
        each, _, text = (part.strip() for part in line.partition("\t"))
        if each and text:
            texts[each] = text
        elif line.strip():
            raise InvalidInput(
                f"dataset {name!r}: line {number} of {path} must be an id, a tab and names; got "
                f"{line!r}."
            )
    return texts
