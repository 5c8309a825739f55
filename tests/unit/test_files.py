"""Files are written whole or not at all; what is read is what it says, and not too large."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nofe_lab import InvalidInput, load_dataset
from nofe_lab.files import (
    UnreadableFile,
    read_json,
    read_tensors,
    read_text,
    write_file,
    write_tensors,
)

LYING = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4]}}'


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "Ünïcode\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "Ünïcode\r\n".encode()
    tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"about": "text"})
    found, texts = read_tensors(tmp_path / "a.safetensors")
    assert texts == {"about": "text"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(list(tmp_path.iterdir())) == 2


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    write_tensors(tmp_path / "a", {"whole": whole, "again": whole, "part": whole[:2]})
    found, _ = read_tensors(tmp_path / "a")
    assert found["part"].tolist() == [0, 1]
    assert found["again"].tolist() == [0, 1, 2, 3]


def test_others_may_read_what_was_written_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a", {"w": torch.ones(1)})
        write_file(tmp_path / "b", "")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert modes == {0o640}


@pytest.mark.parametrize("write", [write_file, write_tensors])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new" if write is write_file else {"w": torch.ones(1)})  # type: ignore[operator]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        (2**40).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        len(LYING).to_bytes(8, "little") + LYING + bytes(4),
        (2).to_bytes(8, "little") + b"[]",
        b"",
        b"PK\x03\x04",
    ],
)
def test_tensors_whose_sizes_lie_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"'a\.safetensors' holds no tensors \("):
        read_tensors(path)


@pytest.mark.parametrize("content", ["[" * 10**6, "{", "\ud800", "9" * 10**5 + "e", "NaN x"])
def test_json_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8", "surrogatepass")
    with pytest.raises(UnreadableFile, match=r"'a\.json' (holds no JSON|cannot be opened) \("):
        read_json(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(UnreadableFile, match="is not a regular file"):
            read_text(tmp_path / name, links=True)


def test_what_is_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: no bytes on the disk
    for read in (read_json, read_tensors):
        with pytest.raises(UnreadableFile, match="is too large: 1,099,511,627,776 bytes"):
            read(path)


def test_a_small_parquet_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    images = pa.array([{"bytes": bytes(10**6), "path": None}] * 400)
    bomb = pa.table({"image": images, "label": pa.array([0] * 400)})
    bomb = bomb.replace_schema_metadata(metadata)
    for split in ("train", "test"):
        path = tmp_path / f"{split}-0-of-1.parquet"
        pq.write_table(bomb, path, compression="zstd")
        assert path.stat().st_size < 10**6
    monkeypatch.setattr("nofe_lab.data.parquet.memory", lambda: 10**8)
    with pytest.raises(InvalidInput, match=r"does not fit into memory: it unpacks to more than"):
        load_dataset(f"parquet:{tmp_path}")


@pytest.mark.parametrize(
    "metadata",
    [b"[" * 200_000, b'{"info": {"features": []}}', b'{"info": {"features": 3}}', b"\xff",
     b'{"info": {"features": {"label": {"_type": "ClassLabel"}, "image": {"_type": "Image"}}}}'],
)  # fmt: skip
def test_a_parquet_file_whose_metadata_is_none_is_refused(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"]), "label": pa.array([0])})
    for split in ("train", "test"):
        path = tmp_path / f"{split}-0-of-1.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
    with pytest.raises(InvalidInput, match="must name an Image column and a ClassLabel column"):
        load_dataset(f"parquet:{tmp_path}")


def test_a_folder_that_cannot_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def of_files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_file(tmp_path / "a.txt", "b")
    assert (tmp_path / "a.txt").read_text() == "b"
