"""Encoded images that stay where they are, and what is known of them without keeping their pixels.

Every image is read once to identify and check it.  What was found is kept in a cache, so that a
folder that has been listed before opens in seconds; files that have changed are read again.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, data_folder, first_line
from nofe_lab.data.pictures import (
    Examined,
    PixelBudget,
    UnreadableImage,
    examine,
    only_bombs_reported,
)
from nofe_lab.data.source import short_digest
from nofe_lab.files import replacing, write_file
from nofe_lab.log import log

MANY = 10_000
"""From so many images on it is said that they are read, and how far it is."""


class Encoded(Protocol):
    """N encoded images.  Small in memory, and cheap to hand to another process."""

    place: str
    """Where they are; another place, another cache."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Path | bytes | None:
        """An image file or its content; None if it is missing.

        Raises UnreadableImage if it has changed since it was listed.
        """

    def name(self, index: int) -> str:
        """The name of an image in messages."""

    def some(self, index: Sequence[int]) -> Encoded:
        """The images at some indices."""

    def states(self) -> Iterator[tuple[str, str]]:
        """Yield of each image what stays the same, and what changes with its content."""

    @property
    def is_empty(self) -> bool:
        """Whether no image has a content."""


class Files:
    """Image files below a folder.  names: their paths seen from there."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import pyarrow as pa

        self.folder = Path(os.path.abspath(folder))
        self.place = os.path.realpath(folder)
        # no Python objects, which processes that are forked would copy one by one
        self.names = pa.array([os.fsencode(name) for name in names], type=pa.large_binary())
        status = [_status(folder / name) for name in names]
        self.status = np.array(status, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        path = self.folder / self.name(index)
        # the third changes too where a file is linked to, or its owner changes
        if _status(path)[:2] != tuple(self.status[index, :2].tolist()):
            raise UnreadableImage("it has changed since the data set was listed")
        return path

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index].as_py())

    def some(self, index: Sequence[int]) -> Files:
        import pyarrow as pa

        other = copy.copy(self)
        other.names = self.names.take(pa.array(index, type=pa.int64()))
        other.status = self.status[list(index)]
        return other

    def states(self) -> Iterator[tuple[str, str]]:
        for i, status in enumerate(self.status.tolist()):
            yield self.name(i).encode("utf-8", "backslashreplace").decode(), str(status)

    @property
    def is_empty(self) -> bool:
        return not self.status[:, 0].any()


def _status(path: Path) -> tuple[int, int, int]:
    """What changes with a file's content: size, and when content and status changed, in ns.

    0 if it is missing.
    """
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Rows:
    """Rows of Arrow files, mapped into memory: images as binary, or as struct with bytes.

    split: of the data set, for messages.
    """

    def __init__(self, files: Sequence[Path], column: str, split: str) -> None:
        self.files = tuple(Path(os.path.abspath(file)) for file in files)
        self.column = column
        self.split = split
        self.place = " ".join(map(os.path.realpath, self.files))
        self._parts: list[list[Any]] | None = None
        counts = [sum(map(len, parts)) for parts in self._opened()]
        self.rows: NDArray[np.int64] = np.arange(sum(counts))
        self.file_ends: NDArray[np.int64] = np.cumsum(counts)
        lengths = [len(part) for parts in self._opened() for part in parts]
        self.ends: NDArray[np.int64] = np.cumsum(lengths)

    def _opened(self) -> list[list[Any]]:
        """Of each file the parts of its column."""
        if self._parts is None:  # assigned whole: several threads may come here
            self._parts = [_parts_of(file, self.column) for file in self.files]
        return self._parts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> bytes | None:
        row = int(self.rows[index])
        file = int(np.searchsorted(self.file_ends, row, side="right"))
        part = int(np.searchsorted(self.ends, row, side="right"))
        before = sum(map(len, self._opened()[:file]))
        first = int(self.ends[part - 1]) if part else 0
        content: bytes | None = self._opened()[file][part - before][row - first].as_py()
        return content

    def name(self, index: int) -> str:
        return f"image {self.rows[index]} of {self.split}"

    def some(self, index: Sequence[int]) -> Rows:
        other = copy.copy(self)
        other.rows, other._parts = self.rows[list(index)], self._parts
        return other

    def states(self) -> Iterator[tuple[str, str]]:
        status = [str(_status(file)) for file in self.files]
        files = np.searchsorted(self.file_ends, self.rows, side="right")
        return ((str(row), status[k]) for row, k in zip(self.rows.tolist(), files, strict=True))

    @property
    def is_empty(self) -> bool:
        import pyarrow.compute as pc

        parts = (part for parts in self._opened() for part in parts)
        return not any(pc.max(pc.binary_length(part)).as_py() for part in parts)


def _parts_of(file: Path, column: str) -> list[Any]:
    """The parts of a column of an Arrow file, mapped into memory, as binary."""
    import pyarrow as pa

    chunks = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()[column].chunks
    return [each.field("bytes") if pa.types.is_struct(each.type) else each for each in chunks]


def cache_folder() -> Path:
    """Where listings, unpacked images and sums over them are kept; it may be removed.

    The folder that NOFE_CACHE names, else ``cache`` beside the downloads.
    """
    return Path(os.environ.get("NOFE_CACHE") or data_folder() / "cache")


def keep(name: str, content: bytes) -> None:
    """Keep a file in the cache, or warn that it cannot be kept."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_file(cache_folder() / name, content + hashlib.sha256(content).digest())
    except OSError as error:
        log.warning(f"{name} cannot be kept in {cache_folder()} ({first_line(error)}).")


def kept(name: str) -> bytes | None:
    """A file that was kept in the cache, unless it is damaged."""
    with suppress(OSError):
        content = (cache_folder() / name).read_bytes()
        content, digest = content[:-_SHA], content[-_SHA:]
        return content if hashlib.sha256(content).digest() == digest else None
    return None


_SHA = hashlib.sha256().digest_size


def examined(images: Encoded, whole: bool = False) -> list[Examined]:
    """What is known of N images, from the cache where they have not changed.

    whole: see `examine`.
    """
    name = f"listing-{short_digest(images.place).hex()}.parquet"
    asked = pd.DataFrame(images.states(), columns=_KEYS)
    known = _known(name)
    usable = known[known["whole"]] if whole else known
    places = pd.MultiIndex.from_frame(usable[_KEYS]).get_indexer(pd.MultiIndex.from_frame(asked))
    found: dict[int, Examined] = {}
    old, new = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
    decoded = np.full(len(asked), whole)
    decoded[old] = usable["whole"].to_numpy()[places[old]]
    rows = usable.iloc[places[old]][_FACTS].itertuples(index=False, name=None)
    for i, (digest, width, height, kind, peak, has_more) in zip(old.tolist(), rows, strict=True):
        found[i] = Examined(digest, (width, height), kind, peak, has_more, "")
    if not len(new):
        return [found[i] for i in range(len(asked))]
    budget = PixelBudget()
    try:
        with only_bombs_reported(), ThreadPoolExecutor() as pool:
            if len(new) >= MANY:
                log.info(
                    f"Reads {len(new):,} images once, to check them and to know them again ..."
                )
            for first in range(0, len(new), MANY):
                some = new[first : first + MANY].tolist()
                read = pool.map(lambda i: _examined(images, i, whole, budget), some)
                found.update(zip(some, read, strict=True))
                if len(new) > 2 * MANY:
                    log.info(f"  {min(first + MANY, len(new)):,} of {len(new):,}")
    finally:  # however long it took until an interrupt
        _keep_listing(name, asked, found, decoded, known)
    return [found[i] for i in range(len(asked))]


def _examined(images: Encoded, index: int, whole: bool, budget: PixelBudget) -> Examined:
    try:
        encoded = images[index]
    except UnreadableImage as error:
        return Examined(b"", (0, 0), "", 0, False, str(error))
    return examine(encoded, whole, budget)


_KEYS = ["image", "state"]
_FACTS = ["digest", "width", "height", "kind", "peak", "has_more"]


def _keep_listing(
    name: str,
    asked: pd.DataFrame,
    found: Mapping[int, Examined],
    decoded: NDArray[np.bool_],
    known: pd.DataFrame,
) -> None:
    """Add what was found to what is known; decoded: for which images all of it was.

    Errors are not kept: what has failed may not fail again, with more memory or another Pillow.
    """
    rows = [i for i in sorted(found) if not found[i].error]
    keys = asked.iloc[rows].reset_index(drop=True)
    facts = [(found[i].digest, *found[i].size, *found[i][2:-1]) for i in rows]
    table = keys.join(pd.DataFrame(facts, columns=_FACTS)).assign(whole=decoded[rows])
    others = known[~known["image"].isin(asked["image"])]
    if len(others):
        table = pd.concat([table, others], ignore_index=True)
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    keep(name, content.getvalue())


def _known(name: str) -> pd.DataFrame:
    """A listing that was kept; empty if there is none, or another version's."""
    empty = pd.DataFrame(columns=[*_KEYS, *_FACTS, "whole"]).astype({"whole": bool})
    if (content := kept(name)) is None:
        return empty
    table = pd.read_parquet(io.BytesIO(content))
    return table if list(table.columns) == list(empty.columns) else empty


def unpacked(paths: Sequence[Path], column: str, split: str, rows_at_once: int) -> Rows:
    """The images of parquet files as rows of Arrow files in the cache, where each can be reached.

    column: struct with bytes.  split: see `Rows`.  Raises InvalidInput if they cannot be written,
    for lack of room for example.
    """
    import pyarrow as pa

    files = []
    for path in paths:
        key = short_digest(os.path.realpath(path), column, str(_status(path))).hex()
        place = cache_folder() / f"images-{key}.arrow"
        files.append(place)
        try:
            if not _is_whole(place, path, column):
                log.info(f"Unpacks the images of {path.name} into {cache_folder()} ...")
                place.parent.mkdir(parents=True, exist_ok=True)
                with replacing(place) as scratch:
                    _unpack(path, column, rows_at_once, scratch)
        except (OSError, pa.ArrowException) as error:
            raise InvalidInput(
                f"the images of {path.name} cannot be unpacked into {cache_folder()} "
                f"({first_line(error)}), from where they would be read in training; make room "
                "there, name another folder by NOFE_CACHE, or keep them in memory with "
                "streaming=False."
            ) from error
    return Rows(files, column, split)


def _unpack(path: Path, column: str, rows_at_once: int, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.large_binary())])
    with (
        pq.ParquetFile(path) as file,
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in file.iter_batches(rows_at_once, columns=[column]):
            contents = batch.column(0).field("bytes").cast(pa.large_binary())
            writer.write_batch(pa.record_batch([contents], schema=schema))


def _is_whole(place: Path, path: Path, column: str) -> bool:
    """Whether the images of a parquet file have been unpacked, all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not place.is_file():
        return False
    try:
        rows = sum(map(len, _parts_of(place, column)))
    except (OSError, pa.ArrowException, KeyError):
        return False
    return rows == int(pq.read_metadata(path).num_rows)
