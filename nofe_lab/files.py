"""Files that are written whole or not at all, and files of strangers that are read without harm.

Writing: under a hidden name, flushed to the disk, then renamed; whoever reads sees the old content
or the new one, also after a crash.  Reading: only regular files, none larger than is sensible, and
only formats that hold data and no code: text, JSON, and tensors as safetensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line

MAX_TEXT = 256 * 2**20
"""Bytes of the largest text or JSON file that is read."""


class UnreadableFile(InvalidInput):
    """A file is missing, not a regular file, too large, or not what its name says."""


def write_text(path: Path, content: str) -> None:
    """Replace a file's content in one step.  Raises OSError."""
    scratch = _scratch(path)
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replace a file with tensors, by name, and texts beside them.  Raises OSError."""
    scratch = _scratch(path)
    plain = _apart(tensors)
    try:
        scratch.touch()
        mode = stat.S_IMODE(scratch.stat().st_mode)  # safetensors leaves others no right to read
        try:
            save_file(plain, scratch, dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        scratch.chmod(mode)
        _flush(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """See to it that files made, renamed or removed in a folder are so after a crash too.

    As far as the file system can: some, of networks above all, refuse to flush a folder.
    """
    if os.name == "posix":  # elsewhere folders cannot be opened
        try:
            _flush(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise


def read_text(path: Path, limit: int = MAX_TEXT, *, links: bool = False) -> str:
    """A regular file of at most `limit` bytes of UTF-8.  Raises UnreadableFile.

    links: whether a symbolic link is followed; only where the reader's own user chose the path.
    """
    check_regular(path, limit, links=links)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        return content[:limit].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path.name!r} cannot be opened ({error}).") from error


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """The content of a JSON file.  Raises UnreadableFile."""
    try:
        return parse_json(read_text(path, limit))
    except ValueError as error:
        if isinstance(error, UnreadableFile):
            raise
        raise UnreadableFile(f"{path.name!r} holds no JSON ({error}).") from error


def parse_json(text: str) -> Any:
    """Like `json.loads`; raises ValueError for what is nested too deeply as well."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_tensors(path: Path, *, links: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its texts.  Raises UnreadableFile."""
    check_regular(path, memory(), links=links)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableFile(f"{path.name!r} holds no tensors ({first_line(error)}).") from error


def check_regular(path: Path, limit: int, *, links: bool = False) -> None:
    """Raise UnreadableFile unless `path` is a regular file of at most `limit` bytes.

    A device or a pipe could be read for ever; a link could lead anywhere.
    """
    try:
        status = path.stat() if links else path.lstat()
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UnreadableFile(f"{path.name!r} cannot be opened ({error}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFile(f"{path.name!r} is not a regular file.")
    if status.st_size > limit:
        raise UnreadableFile(
            f"{path.name!r} is too large: {status.st_size:,} bytes; accepted: up to {limit:,}."
        )


def sha256(path: Path) -> str:
    """Checksum of a regular file, hexadecimal.  Raises UnreadableFile."""
    check_regular(path, memory())
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"{path.name!r} cannot be opened ({error}).") from error


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that depend on names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def memory() -> int:
    """Bytes of the machine's memory: no file that is to be loaded can sensibly be larger."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 2**40


def is_scratch(path: Path) -> bool:
    """Whether a file or folder is one that was being written when its process died."""
    return path.name.startswith(".")


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none in the memory of another, as safetensors wants them."""
    plain: dict[str, Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        plain[name] = here.clone() if place in places else here
        places.add(place)
    return plain


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
