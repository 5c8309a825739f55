"""Data sets of the Hugging Face Hub by name, downloaded and kept by the package `datasets`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nofe_lab.config import InvalidInput, first_line, some_of
from nofe_lab.data.dataset import Dataset
from nofe_lab.data.folders import ReadOptions, split_of
from nofe_lab.data.listing import Rows
from nofe_lab.data.parquet import Columns, Table, assembled, chosen_columns, label_names
from nofe_lab.files import user_path


class _HubTable(Table):
    """The rows of one split of a data set of the Hub.  rows: a `datasets.Dataset`."""

    def __init__(self, rows: Any, split: str, columns: Columns) -> None:
        self.folder, self.paths = Path(), [Path(split)]
        self.columns = columns
        self.name = split
        self.rows = rows
        self.own_names = [label_names(rows.features.to_dict())]
        whole = rows.data.table
        self._check_columns(self.paths[0], whole.schema)
        self.tables = [whole.select(list(columns.names))]
        self.column = whole[columns.image]
        self.packed = self.column.nbytes
        if not len(self):
            raise InvalidInput(f"the split {split!r} holds no images.")

    def images(self, path: Path) -> Iterator[tuple[bytes | None, str]]:
        for part in self.column.chunks:
            for i in range(len(part)):
                row = part[i].as_py() or {}
                yield row.get("bytes"), str(row.get("path") or "")

    def paths_inside(self, path: Path) -> list[str]:
        import pyarrow.compute as pc

        if "path" not in {field.name for field in self.column.type}:
            return [""] * len(self)
        return [each or "" for each in pc.struct_field(self.column, "path").to_pylist()]

    def staying(self) -> Rows:
        files = [Path(file["filename"]) for file in self.rows.cache_files]
        if not files:
            raise InvalidInput(
                "datasets keeps it in memory, from where it cannot be streamed; accepted: "
                "streaming=False, or datasets' setting IN_MEMORY_MAX_SIZE as it is by default."
            )
        return Rows(files, self.columns.image, self.name)


def read_hub(name: str, argument: str, options: ReadOptions) -> Dataset:
    """Read a data set of the Hub: its name, or a folder that `datasets` can load.

    argument: NAME, or NAME:CONFIGURATION where it has several.  Layout and errors are those of
    `read_parquet`; images must be embedded, so a data set of image files is read as ``folder:DIR``.
    Raises InvalidInput if `datasets` is not installed or cannot load it.
    """
    if options.groups is not None:
        raise InvalidInput(
            f"groups is for 'folder:DIR', where images are files; got {options.groups!r} for "
            f"dataset {name!r}."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import datasets
    except ImportError as error:
        raise InvalidInput(
            f"dataset {name!r} needs the package datasets: pip install 'nofe_lab[hub]'."
        ) from error
    place = user_path(argument)
    where, _, configuration = (str(place), "", "") if place.exists() else argument.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = datasets.load_dataset(where, configuration or None)
    except Exception as error:  # of the network, the disk, the data set, its configurations
        raise InvalidInput(
            f"dataset {name!r} cannot be loaded by datasets ({first_line(error)}); accepted: "
            "'hub:NAME' and 'hub:NAME:CONFIGURATION' of a data set of images and labels."
        ) from error
    by_split: dict[str, list[str]] = {}
    others = []
    for key in found:
        split = split_of(str(key))
        by_split.setdefault(split, []).append(str(key)) if split else others.append(str(key))
    if "train" not in by_split or len(by_split) < 2 or any(len(s) > 1 for s in by_split.values()):
        raise InvalidInput(
            f"dataset {name!r} must have a split train and one of test and validation; got "
            f"{', '.join(map(str, found)) or 'none'}."
        )
    notes = [f"Splits that are not read: {some_of(others)}."] if others else []
    try:
        features = found[by_split["train"][0]].features.to_dict()
        columns = chosen_columns(features, name)
        splits: dict[str, Table] = {
            split: _HubTable(found[key], key, columns) for split, (key,) in by_split.items()
        }
    except InvalidInput as error:
        raise InvalidInput(f"dataset {name!r}: {error}") from error
    return assembled(name, columns.class_names, splits, options, notes)
