"""Files that are written whole or not at all, and files of strangers that are read without harm.

Writing: under a hidden name, flushed to the disk, then renamed; whoever reads sees the old content
or the new one, also after a crash.  Reading: only regular files, none larger than is sensible, and
only formats that hold data and no code: text, JSON, and tensors as safetensors.
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line

MAX_TEXT = 256 * 2**20
"""Bytes of the largest text or JSON file that is read."""

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
"""An environment variable in a path."""


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
    try:
        with open_regular(path, limit, links=links) as file:
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
    """Like `json.loads`; raises ValueError for what is nested too deeply or repeats a key, too."""
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
    """Whether all values of a tensor are finite; False for types that torch cannot look at."""
    try:
        return bool(tensor.isfinite().all())
    except (RuntimeError, NotImplementedError):  # of 8 bits, for example
        return False


def as_written(message: str, path: str | Path) -> str:
    """A message about a path, with the path as its user wrote it: variables keep their values."""
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
    """The tensors of a safetensors file by name, and its texts.  Raises UnreadableFile."""
    check_regular(path, memory(), links=links)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableFile(f"{path.name!r} holds no tensors ({first_line(error)}).") from error


def open_regular(path: Path, limit: int, *, links: bool = False) -> io.BufferedReader:
    """Open a regular file of at most `limit` bytes for reading.  Raises UnreadableFile.

    A device or a pipe could be read for ever; a link could lead anywhere.  What is checked is the
    open file itself, so that nothing can take its place in between.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if links else getattr(os, "O_NOFOLLOW", 0)
    irregular = UnreadableFile(f"{path.name!r} is not a regular file.")
    try:
        if not stat.S_ISREG((path.stat() if links else path.lstat()).st_mode):
            raise irregular  # even to open a device may do something
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
    """Raise UnreadableFile unless `open_regular` can open it: for libraries that take paths."""
    open_regular(path, limit, links=links).close()


def sha256(path: Path) -> str:
    """Checksum of a regular file, hexadecimal.  Raises UnreadableFile."""
    try:
        with open_regular(path, memory()) as file:
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
    """Bytes of memory that this process may use: no file that is loaded can sensibly be larger.

    The machine's, or less where a container or a limit of the process grants less.
    """
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):  # not on this system
        limits = [2**40]
    with suppress(ImportError):
        import resource  # not on Windows

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min(*limits, *_container_limits(), 2**62)


def _container_limits(root: Path = Path("/")) -> list[int]:
    """What Linux's control groups grant this process: version 2, or the memory group of version 1.

    A group cannot use more than those around it may, so all on the way up count.
    """
    found = []
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in groups:
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        inside = mount / place.strip("/")
        for folder in (inside, *inside.parents):
            with suppress(OSError, ValueError):  # "max": no limit here
                found.append(int((folder / file).read_text()))
            if folder == mount:
                break
    return [limit for limit in found if limit > 0]


def user_path(text: str | Path) -> Path:
    """A path as its user wrote it, with ``~`` and environment variables expanded.

    What exists under its literal name is that, whatever the name would expand to.  Raises
    InvalidInput, without the value of any variable, if one is not set or there is no such home.
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
    """The path of a file that can be written, its folder made if it is missing.

    An existing file stays as it is.  Raises InvalidInput, which names the path as it was written.
    """
    try:
        path = user_path(written)
        if not str(written).strip() or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except (OSError, ValueError) as error:
        why = as_written(getattr(error, "strerror", None) or first_line(error), written)
        raise InvalidInput(
            f"{what} {str(written)!r} cannot be written ({why}); accepted: the path of a file that "
            "you may write."
        ) from error
    return path


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
