"""Data sets in the Hugging Face Hub's parquet layouts, ``data/<split>-0000i-of-0000n.parquet`` etc.

Images are struct{bytes, path}, labels integers, and each file's own metadata names its labels.  A
path from a file is never opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nofe_lab.config import InvalidInput, composed, first_line, some_of
from nofe_lab.data.dataset import Dataset, superclass_of
from nofe_lab.data.folders import (
    ImageList,
    ReadOptions,
    Skipped,
    dataset_folder,
    decode_splits,
    files_in,
    readable_names,
    split_of,
)
from nofe_lab.data.listing import Rows, unpacked
from nofe_lab.data.pictures import examine
from nofe_lab.data.streaming import is_streamed
from nofe_lab.files import check_regular, memory, parse_json

FINE, COARSE = ("fine_label", "label"), "coarse_label"
"""Preferred columns of the classes, and the column of the superclasses."""

_ROWS = 32
"""Rows that are unpacked at once: few, because a small file may unpack to huge rows."""

_NUMBERED = re.compile(r"(?P<split>.*[^\W\d_])[-_](?P<k>\d+)-of-(?P<n>\d+)(?![\d]).*")
_BARE_NUMBER = re.compile(r"\d+")
_UNKNOWN = (-1, None)
"""Labels of unlabelled images, in test splits whose labels are secret."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read, and the names of their labels."""

    image: str
    label: str
    coarse: str | None
    names: Mapping[str, tuple[str, ...]]
    """Label names by column, for the columns label and coarse."""
    notes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names[self.label]


def read_parquet(name: str, directory: str, options: ReadOptions) -> Dataset:
    """Read a folder in one of the Hub's parquet layouts.

    These are ``data/train-00000-of-00001.parquet``, ``train.parquet`` and
    ``default/train/0000.parquet``, for train and test, validation or both.  `NAMES_FILE` in the
    folder can give ids readable class names.  Raises InvalidInput if files, columns, labels or
    images are missing or malformed, if files disagree about what labels mean, or if the folder
    holds several data sets.
    """
    folder = dataset_folder(name, directory)
    if options.groups is not None:
        raise InvalidInput(
            f"groups is for 'folder:DIR', where images are files; got {options.groups!r} for "
            f"dataset {name!r}."
        )
    try:
        shards, notes = _shards(folder)
        if "train" not in shards or not {"test", "val"} & set(shards):
            raise InvalidInput(
                f"{folder} must hold train-*.parquet and test-*.parquet (or valid-*, "
                f"validation-*) in the Hub's layout; found the splits {sorted(shards)}."
            )
        columns = chosen_columns(
            _features(shards["train"][0]), _relative(folder, shards["train"][0])
        )
        splits = {split: Table(folder, paths, columns) for split, paths in shards.items()}
        names = readable_names(folder, columns.class_names)
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    return assembled(name, names, splits, options, notes)


def assembled(
    name: str,
    class_names: tuple[str, ...],
    splits: dict[str, Table],
    options: ReadOptions,
    notes: list[str],
) -> Dataset:
    """The data set of the splits train, test, val or both.  Errors as of `read_parquet`."""
    columns = splits["train"].columns
    try:
        if {"test", "val"} <= set(splits) and splits["test"].has_no_labels:
            secret = splits.pop("test")
            notes.append(
                f"The split {secret.name!r} is not read: its labels are missing (-1 or null)."
            )
        if "test" not in splits:
            splits["test"] = splits.pop("val")
            notes.append(f"No test split: {splits['test'].name} is the test split.")
        elif "val" in splits:
            notes.append(
                f"The split {splits['val'].name} is the val split: val_fraction is not applied."
            )
        side = options.image_size
        size = splits["train"].size if side is None else (side, side)
        counts = {split: len(table) for split, table in splits.items()}
        packed = sum(table.packed for table in splits.values())
        count = options.count(counts, len(class_names))
        streamed = is_streamed(name, count, size, options.streaming, packed)
        listed = {split: table.listed(streamed) for split, table in splits.items()}
        parents: tuple[int, ...] = ()
        if columns.coarse:
            fine, coarse = listed["train"].labels.numpy(), splits["train"].labels(columns.coarse)
            parents = superclass_of(fine, coarse, len(columns.class_names))
            if not parents:
                notes.append(
                    f"The superclasses of the column {columns.coarse!r} are left out: images of "
                    "one class have several."
                )
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    dataset = decode_splits(name, class_names, listed, options, (*columns.notes, *notes))
    if not parents:
        return dataset
    superclass_names = columns.names[str(columns.coarse)]
    return replace(dataset, superclass_names=superclass_names, superclass_of=parents)


def _split_name(path: Path) -> str:
    """The name of a file's split, as the file or its folder spells it."""
    return _stem(path) if split_of(_stem(path)) is not None else path.parent.name


def _stem(path: Path) -> str:
    """A file's name without its extension and shard number."""
    match = _NUMBERED.fullmatch(path.stem)
    return match["split"] if match else path.stem


def _shards(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Find the files of each split, in order; also returns notes about other files.

    Raises InvalidInput if there are several data sets, or if a shard is missing or there twice.
    """
    by_place: dict[Path, dict[str, list[Path]]] = {}
    skipped = Skipped()
    others = []
    for path in files_in(folder, (".parquet",), skipped):
        split, place = split_of(_stem(path)), path.parent
        if split is None and _BARE_NUMBER.fullmatch(path.stem):
            split, place = split_of(place.name), place.parent
        elif split is not None and split_of(place.name) == split and place != folder:
            place = place.parent  # train/train-00000-of-00001.parquet
        if split is None:
            others.append(str(path.relative_to(folder)))
        else:
            by_place.setdefault(place, {}).setdefault(split, []).append(path)
    if len(by_place) > 1:
        listed = ", ".join(_relative(folder, place) for place in sorted(by_place))
        raise InvalidInput(
            f"{folder} holds several data sets, in {listed}; accepted: the folder of one of them."
        )
    found: dict[str, list[Path]] = {}
    for split, paths in next(iter(by_place.values()), {}).items():
        kinds = {_split_name(path) for path in paths}
        if len(kinds) > 1:
            raise InvalidInput(
                f"{folder} holds the splits {', '.join(sorted(kinds))}; accepted: one of them, as "
                f"{split}."
            )
        found[split] = _ordered_shards(folder, paths)
    notes = [f"Parquet files of no known split, not read: {some_of(others)}."] if others else []
    if found:
        skipped.endings.clear()  # licences and the like
    return found, [*notes, *skipped.notes]


def _relative(folder: Path, path: Path) -> str:
    inside = os.path.relpath(path, folder)
    return "DIR itself" if inside == "." else inside


def _ordered_shards(folder: Path, paths: list[Path]) -> list[Path]:
    """Sort the shards of a split.  Raises InvalidInput unless each of them is there once."""
    numbers: dict[int, list[Path]] = {}
    totals = set()
    for path in paths:
        match = _NUMBERED.fullmatch(path.stem)
        if match:
            totals.add(int(match["n"][:9]))
            numbers.setdefault(int(match["k"][:9]), []).append(path)
        else:
            bare = _BARE_NUMBER.fullmatch(path.stem)
            totals.add(-1)
            numbers.setdefault(int(path.stem[:9]) if bare else 0, []).append(path)
    listed = some_of([_relative(folder, path) for path in sorted(paths)])
    if len(totals) > 1 or any(len(same) > 1 for same in numbers.values()):
        raise InvalidInput(
            f"the files {listed} are not the shards of one split; accepted: each of them once."
        )
    total = max(totals.pop(), max(numbers) + 1 if totals == {-1} else 1)
    if beyond := [k for k in sorted(numbers) if k >= total]:
        raise InvalidInput(
            f"shard number {beyond[0]} is beyond the {total} shards (from 0) that its name gives; "
            f"found {listed}."
        )
    if missing := [str(k) for k in range(min(total, len(numbers) + 5)) if k not in numbers]:
        raise InvalidInput(
            f"of the shards 0 to {total - 1} of a split, {some_of(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; found {listed}."
        )
    return [numbers[k][0] for k in sorted(numbers)]


def _features(path: Path) -> dict[str, Any]:
    """Read the description of the columns in a file's metadata; empty if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(path, memory(), links=True)
    try:
        metadata = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    try:
        features = dict(parse_json(metadata.decode())["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}
    return {key: value for key, value in features.items() if isinstance(value, dict)}


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{path.parent} holds a parquet file that cannot be read, {path.name} "
        f"({first_line(error)})."
    )


def label_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Get the names of the labels in each ClassLabel column."""
    return {
        column: tuple(composed(each) for each in feature["names"])
        for column, feature in features.items()
        if feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and all(isinstance(each, str) for each in feature["names"])
    }


def chosen_columns(features: Mapping[str, Any], where: str) -> Columns:
    """Choose the columns to read by a file's metadata; notes name the alternatives."""
    labels = label_names(features)
    images = [column for column, feature in features.items() if feature.get("_type") == "Image"]
    label = next((c for c in FINE if c in labels), next(iter(labels), None))
    if label is None or not images:
        raise InvalidInput(
            "its 'huggingface' metadata must name an Image column and a ClassLabel column; found "
            f"{sorted(features) or 'none'} in {where}."
        )
    coarse = COARSE if COARSE in labels and label != COARSE else None
    notes = []
    if others := [column for column in labels if column not in (label, coarse)]:
        notes.append(f"The labels are those of the column {label!r}, not {some_of(others)}.")
    if len(images) > 1:
        notes.append(
            f"The images are those of the column {images[0]!r}, not {some_of(images[1:])}."
        )
    names = {column: labels[column] for column in (label, coarse) if column is not None}
    return Columns(images[0], label, coarse, names, tuple(notes))


class Table:
    """The rows of one split: labels, file by file, and images, which are read last.

    Raises InvalidInput if a file cannot be read or a column has the wrong type.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder = folder
        self.columns = columns
        self.name = _split_name(paths[0])
        self.paths = paths
        self.own_names = [label_names(_features(path)) for path in paths]
        self.tables = []
        self.packed = 0
        """Bytes of the images, before they are decoded."""
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    self._check_columns(path, file.schema_arrow)
                    self.packed += _bytes_of(file, columns.image)
                    self.tables.append(file.read(list(columns.names)))
            except (pa.ArrowException, OSError, OverflowError) as error:
                raise _unreadable(path, error) from error
        if not len(self):
            raise InvalidInput(f"the split {self.name!r} holds no images.")

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first image that can be decoded; (0, 0) if there is none."""
        contents = (content for path in self.paths for content, _ in self.images(path))
        sizes = (examine(content).size for content in contents)
        return next((size for size in sizes if all(size)), (0, 0))

    def images(self, path: Path) -> Iterator[tuple[bytes | None, str]]:
        """Yield the content and the path of each image of a file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        unpacked = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=[self.columns.image]):
                    unpacked += batch.nbytes
                    _check_memory(path, unpacked)
                    for row in batch.column(0).to_pylist():
                        yield (row or {}).get("bytes"), str((row or {}).get("path") or "")
        except (pa.ArrowException, OSError, OverflowError) as error:
            raise _unreadable(path, error) from error

    def paths_inside(self, path: Path) -> list[str]:
        """The paths of the images of a file, without the images."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            column = f"{self.columns.image}.path"
            if column not in {c.path for c in map(file.schema.column, range(len(file.schema)))}:
                return [""] * file.metadata.num_rows
            rows = file.read([column]).column(0).to_pylist()
        return [str((row or {}).get("path") or "") for row in rows]

    def _check_columns(self, path: Path, schema: Any) -> None:
        import pyarrow as pa

        for column in (self.columns.image, *self.columns.names):
            if len(schema.get_all_field_indices(column)) != 1:
                raise InvalidInput(
                    f"the split {self.name!r} has no column {column!r} in "
                    f"{_relative(self.folder, path)}; found {schema.names}."
                )
        for column in self.columns.names:
            kind = schema.field(column).type
            if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
                raise InvalidInput(
                    f"labels in the column {column!r} of the split {self.name!r} must be whole "
                    f"numbers, one an image; got {kind}."
                )
        kind = schema.field(self.columns.image).type
        fields = {each.name: each.type for each in kind} if pa.types.is_struct(kind) else {}
        binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
        if "bytes" not in fields or not any(is_kind(fields["bytes"]) for is_kind in binary):
            raise InvalidInput(
                f"images of the split {self.name!r} must be stored as struct<bytes: binary, path>; "
                f"got {kind}."
            )

    @property
    def has_no_labels(self) -> bool:
        """Whether no image has a label."""
        known = {v for t in self.tables for v in t[self.columns.label].unique().to_pylist()}
        return known <= set(_UNKNOWN)

    def labels(self, column: str) -> np.ndarray:
        """Read the labels in a column, int64 [N], numbered as in the first file of train.

        Raises InvalidInput if a label is missing, out of range, or has a name unknown there.
        """
        names = self.columns.names[column]
        found = []
        for path, table, own in zip(self.paths, self.tables, self.own_names, strict=True):
            if not len(table):
                continue
            if column not in own:
                raise InvalidInput(
                    f"{_relative(self.folder, path)} does not say what the labels in its column "
                    f"{column!r} mean; accepted: a ClassLabel in its 'huggingface' metadata."
                )
            if len(set(own[column])) < len(own[column]):
                raise InvalidInput(
                    f"names of the labels in {_relative(self.folder, path)} must differ; got "
                    f"{own[column][:60]}."
                )
            self._check_labels(table[column], column, len(own[column]))
            labels = np.array(table[column].to_numpy(), dtype=np.int64)
            for label in np.unique(labels):
                if (called := own[column][label]) not in names:
                    raise InvalidInput(
                        f"the files disagree about what labels mean: in "
                        f"{_relative(self.folder, path)} label {label} of the column {column!r} is "
                        f"{called!r}, which is not among the {len(names)} names in the first file "
                        "of train."
                    )
            number = {each: i for i, each in enumerate(names)}
            found.append(np.array([number.get(each, -1) for each in own[column]])[labels])
        return np.concatenate(found)

    def _check_labels(self, values: Any, column: str, count: int) -> None:
        odd = [v for v in values.unique().to_pylist() if type(v) is not int or not 0 <= v < count]
        if odd:
            listed = ", ".join("null" if value is None else repr(value) for value in odd[:5])
            more = f" and {len(odd) - 5} others" if len(odd) > 5 else ""
            raise InvalidInput(
                f"labels in the column {column!r} of the split {self.name!r} must be whole numbers "
                f"from 0 to {count - 1}; got {listed}{more}."
            )

    def staying(self) -> Rows:
        """The images where each of them can be reached."""
        return unpacked(self.paths, self.columns.image, self.name, _ROWS)

    def listed(self, streamed: bool) -> ImageList:
        """List the images and their labels.  streamed: whether the images stay where they are."""
        labels = torch.from_numpy(self.labels(self.columns.label))
        encoded: list[bytes | None] = []
        names: list[str] = []
        rows: list[str] = []
        for file in self.paths:
            if streamed:
                paths = self.paths_inside(file)
            else:
                images = list(self.images(file))
                encoded += [content for content, _ in images]
                paths = [path for _, path in images]
            names += [
                f"image {i} of {self.name}{path and f' ({path[:80]})'}"
                for i, path in enumerate(paths, len(names))
            ]
            place = file.relative_to(self.folder).as_posix()
            rows += [f"{place}:{i}" for i in range(len(paths))]
        staying = self.staying() if streamed else None
        if not any(encoded) and (staying is None or staying.is_empty):
            raise InvalidInput(
                f"images of the split {self.name!r} are stored by path alone; accepted: images "
                "whose contents are in the file (datasets: cast to Image(), then push_to_hub or "
                "to_parquet, embeds them)."
            )
        return ImageList(encoded, names, labels, rows=rows, staying=staying)


def _bytes_of(file: Any, column: str) -> int:
    """Bytes that a column of a parquet file unpacks to."""
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    parts = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )


def _check_memory(path: Path, unpacked: int) -> None:
    """Raise InvalidInput if a file unpacks to more than fits into memory."""
    if unpacked > memory():
        raise InvalidInput(
            f"{path} does not fit into memory: it unpacks to more than {memory():,} bytes."
        )
