"""Writes files atomically, and reads untrusted files safely.

Writing: under a hidden name, flushed to disk, then renamed, so that readers see the old or the new
content, even after a crash.  Reading: only regular files of limited size, in formats without code:
text, JSON, and tensors as safetensors.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line

MAX_TEXT = 256 * 2**20
"""Largest text or JSON file that is read, in bytes."""

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
"""An environment variable in a path."""


class UnreadableFile(InvalidInput):
    """A file is missing, irregular, too large, or not in the expected format."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch file to write, which takes the place of `path` once it is whole.

    If writing ends with an exception, `path` stays as it was.  Raises OSError.
    """
    scratch = _scratch_path(path)
    try:
        yield scratch
        _flush(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8.  Raises OSError."""
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors, and texts as metadata, to a file atomically.  Raises OSError."""
    plain = _unshared(tensors)
    with replacing(path) as scratch:
        scratch.touch()
        mode = stat.S_IMODE(scratch.stat().st_mode)  # safetensors would make it private
        try:
            save_file(plain, scratch, dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        scratch.chmod(mode)


def flush_folder(folder: Path) -> None:
    """Make the creation, renaming and removal of files in a folder survive a crash.

    Does nothing on file systems, mostly of networks, that cannot flush a folder.
    """
    if os.name == "posix":  # other systems cannot open a folder
        try:
            _flush(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise


def read_text(path: Path, limit: int = MAX_TEXT, *, links: bool = False) -> str:
    """Read a regular file of at most `limit` bytes of UTF-8.  Raises UnreadableFile.

    links: whether to follow a symbolic link; only for paths that the user chose.
    """
    try:
        with open_regular(path, limit, links=links) as file:
            content = file.read(limit + 1)
        return content[:limit].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path.name!r} cannot be opened ({error}).") from error


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """Read a JSON file.  Raises UnreadableFile."""
    try:
        return parse_json(read_text(path, limit))
    except ValueError as error:
        if isinstance(error, UnreadableFile):
            raise
        raise UnreadableFile(f"{path.name!r} holds no JSON ({error}).") from error


def parse_json(text: str) -> Any:
    """Like `json.loads`, but also raises ValueError for repeated keys and excessive nesting."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def all_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite; False for types that torch cannot check."""
    try:
        return bool(tensor.isfinite().all())
    except (RuntimeError, NotImplementedError):  # 8-bit floats, for example
        return False


def redact_path(message: str, path: str | Path) -> str:
    """Replace the expanded path in a message by `path`, to hide the values of its variables."""
    written = str(path)
    if "$" not in written:
        return message
    try:
        expanded = user_path(written)
    except InvalidInput:
        return message
    parts = [str(expanded), *([expanded.name] if "$" in Path(written).name else [])]
    for part in parts:
        if part and part not in (written, ".", ".."):
            message = re.sub(rf"(?<![\w.]){re.escape(part)}(?!\w)", lambda _: written, message)
    return message


def read_tensors(path: Path, *, links: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file, by name, and its metadata.  Raises UnreadableFile."""
    check_regular(path, memory(), links=links)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableFile(f"{path.name!r} holds no tensors ({first_line(error)}).") from error


def open_regular(path: Path, limit: int, *, links: bool = False) -> io.BufferedReader:
    """Open a regular file of at most `limit` bytes for reading.  Raises UnreadableFile.

    A device or a pipe might never end; a link could lead anywhere.  The open file itself is
    checked, so it cannot be replaced in between.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if links else getattr(os, "O_NOFOLLOW", 0)
    irregular = UnreadableFile(f"{path.name!r} is not a regular file.")
    try:
        if not stat.S_ISREG((path.stat() if links else path.lstat()).st_mode):
            raise irregular  # opening a device can have side effects
        file = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as error:  # ValueError: a null character
        if error is irregular:
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadableFile(f"{path.name!r} cannot be opened ({why}).") from error
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise irregular
        if status.st_size > limit:
            raise UnreadableFile(
                f"{path.name!r} is too large: {status.st_size:,} bytes; accepted: up to {limit:,}."
            )
    except BaseException:
        file.close()
        raise
    return file


def check_regular(path: Path, limit: int, *, links: bool = False) -> None:
    """Raise UnreadableFile unless `open_regular` can open it, for libraries that take paths."""
    open_regular(path, limit, links=links).close()


def check_no_link(folder: Path) -> None:
    """Raise InvalidInput if a folder is a link, through which files would go elsewhere."""
    if folder.is_symlink():
        raise InvalidInput(f"{folder.name!r} is a link; accepted: a folder of its own.")


def sha256(path: Path, *, links: bool = False) -> str:
    """Hexadecimal checksum of a regular file.  Raises UnreadableFile."""
    try:
        with open_regular(path, memory(), links=links) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"{path.name!r} cannot be opened ({error}).") from error


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest names, types, shapes and values to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@cache
def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if less."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):  # not on this system
        limits = [2**40]
    with suppress(ImportError):
        import resource  # not on Windows

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min(*limits, *_container_limits(), 2**62)


def available_memory() -> int:
    """Bytes of memory that can be used now without swapping: the machine's, or its container's."""
    import psutil

    return max(min(psutil.virtual_memory().available, *_container_rooms(), memory()), 0)


def _container_limits(root: Path = Path("/")) -> list[int]:
    """Memory limits of this process's control groups and their parents (Linux, v1 and v2)."""
    found = []
    for folder, file in _control_groups(root):
        with suppress(OSError, ValueError):  # "max" means no limit
            found.append(int((folder / file).read_text()))
    return [limit for limit in found if limit > 0]


def _container_rooms(root: Path = Path("/")) -> list[int]:
    """How much of each of these limits is left; files that are cached can give way."""
    found = []
    for folder, file in _control_groups(root):
        used = "memory.current" if file == "memory.max" else "memory.usage_in_bytes"
        with suppress(OSError, ValueError):
            limit, taken = (int((folder / name).read_text()) for name in (file, used))
            lines = (folder / "memory.stat").read_text().splitlines()
            stat = dict(line.split(maxsplit=1) for line in lines if " " in line)
            cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
            found.append(limit - taken + int(cached))
    return found


def _control_groups(root: Path) -> Iterator[tuple[Path, str]]:
    """The folders of this process's control groups and their parents, with the limit's file."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in groups:
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        inside = mount / place.strip("/")
        for folder in (inside, *inside.parents):
            yield folder, "memory.limit_in_bytes" if controllers else "memory.max"
            if folder == mount:
                break


def user_path(text: str | Path) -> Path:
    """Expand ``~`` and environment variables in a path, unless it exists as written.

    Raises InvalidInput, without the value of any variable, if a variable is not set or a home
    folder does not exist.
    """
    written = str(text)
    if os.path.lexists(written):
        return Path(written)
    try:
        expanded = str(Path(os.path.expandvars(written)).expanduser())
    except RuntimeError as error:  # ~nobody
        raise InvalidInput(f"the path {written!r} cannot be expanded ({error}).") from error
    for name in (braced or plain for braced, plain in VARIABLE.findall(written)):
        if name not in os.environ:
            raise InvalidInput(
                f"the path {written!r} does not exist in {os.getcwd()} and names an environment "
                f"variable that is not set, {name!r}: set it, or write the path out."
            )
    return Path(expanded)


def writable_path(what: str, written: str | Path) -> Path:
    """Expand the path of a file and check that it can be written; makes its folder.

    An existing file is left unchanged.  Raises InvalidInput, naming the unexpanded path.
    """
    try:
        path = user_path(written)
        if not str(written).strip() or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.resolve().unlink()  # a link to nothing stays
    except (OSError, ValueError) as error:
        why = redact_path(getattr(error, "strerror", None) or first_line(error), written)
        raise InvalidInput(
            f"{what} {str(written)!r} cannot be written ({why}); accepted: the path of a file that "
            "you may write."
        ) from error
    return path


def is_scratch(path: Path) -> bool:
    """Whether a file or folder is temporary, left by a process that died while writing it."""
    return path.name.startswith(".")


def _scratch_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors contiguous on the CPU, without shared memory, as safetensors needs."""
    plain: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        address = copy.untyped_storage().data_ptr()
        plain[name] = copy.clone() if address in seen else copy
        seen.add(address)
    return plain


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
