"""A run is a directory: found by what it was asked to be, believed only when it is whole.

A run's id is a hash over its identity: the stage and its configuration, the fingerprint of the
data, the ids of the runs it builds on, and the partition where it is given.  So asking for the same
thing finds the same directory, in another notebook, another process or next week.
Device, versions, code revision and seconds are provenance: kept, shown, but not part of the id.

    <runs_dir>/nofe-glyphs-K10-s0-0123456789ab/
        run.json              identity, provenance, result; size and checksum of every other file
        weights.safetensors
        history.csv           one row an epoch
        ...                   what else the stage keeps, as JSON or CSV
        reports.json          figures of final reports, such as test accuracy, added later

A run is written under a hidden name and renamed when it is whole.  A directory found damaged
is set aside under another name, never overwritten.  While it is trained, a run is locked: others
that ask for it wait, and load what they waited for.

A run folder may come from a stranger.  Reading it executes nothing, follows no link, and trusts
nothing that it says about itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from torch import Tensor

from nofe_lab.config import (
    MAX_FLOAT,
    MAX_INT,
    InvalidInput,
    data_folder,
    first_line,
    printable,
    shown,
)
from nofe_lab.files import (
    UnreadableFile,
    all_finite,
    check_regular,
    flush_folder,
    is_scratch,
    read_json,
    read_tensors,
    read_text,
    redact_path,
    sha256,
    user_path,
    write_tensors,
    write_text,
)
from nofe_lab.log import log
from nofe_lab.runs.checkpoint import MAX_SECONDS, SECONDS, Checkpoints, OtherFormat

FORMAT = 3
"""Version of the layout of a run.  Format 2, whose ids are of identity format 1, is still read."""

IDENTITY_FORMAT = 2
"""Version of what an id is made of: fields at their default are left out, and data sets are known
by their files.  Runs keep their ids when only the layout changes."""

_IDENTITY_FORMATS = {2: 1, FORMAT: IDENTITY_FORMAT}
"""By the format of the run."""

_ASIDE = re.compile(r"\.damaged-\d+$")
"""The ending of a damaged run's folder that was set aside."""

MAX_TOGETHER = 1000 * MAX_SECONDS
"""Seconds of a training and what came before its interruptions."""

MAX_NAME = 255
"""Bytes of the longest name that file systems take."""

UNFINISHED, LOCKS = ".unfinished", ".locks"
"""The ending of an unfinished run's folder, and the folder of the locks."""


class DamagedRun(InvalidInput):
    """A run's directory is not what its run.json says; the message says how."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and what run.json says about it."""

    path: Path
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return str(self.record["id"])

    @property
    def identity(self) -> Mapping[str, Any]:
        """What was hashed into the id."""
        identity: Mapping[str, Any] = self.record["identity"]
        return identity

    @property
    def about(self) -> Mapping[str, Any]:
        """title, dataset, backbone, K, epochs, seed: for people to read."""
        about: Mapping[str, Any] = self.record["about"]
        return about

    @property
    def result(self) -> Mapping[str, float]:
        """Figures at the end of training, such as val_accuracy."""
        result: Mapping[str, float] = self.record["result"]
        return result

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where, when and with what it was made."""
        provenance: Mapping[str, Any] = self.record["provenance"]
        return provenance

    @property
    def seconds(self) -> float:
        """Wall seconds that training took."""
        return float(self.provenance["seconds"])

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the contents of its files."""
        return _digest(self.record["files"])[:16]

    @property
    def lineage(self) -> dict[str, float]:
        """Training seconds of this run and of all runs it builds on, by id."""
        return {**self.provenance["lineage"], self.id: self.seconds}

    @property
    def total_seconds(self) -> float:
        """Wall seconds that training took, together with all runs it builds on."""
        return sum(self.lineage.values())

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: losses, accuracies, learning rate, seconds."""
        found = self.table("history")
        for column in ("epoch", "train_loss"):
            if column not in found or not pd.api.types.is_numeric_dtype(found[column]):
                raise DamagedRun(f"history.csv of {self.path.name} has no numbers {column!r}.")
        return found

    def table(self, name: str) -> pd.DataFrame:
        """The run's file `name`.csv.  Raises DamagedRun if it is no table."""
        text = self.text(f"{name}.csv")
        try:
            return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
        except (ValueError, OverflowError) as error:
            raise DamagedRun(
                f"{name}.csv of {self.path.name} holds no table ({first_line(error)})."
            ) from error

    def text(self, file: str) -> str:
        """The content of one of the run's text files.  Raises DamagedRun or UnreadableFile."""
        return read_text(self._listed(file))

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the network and its preprocessing, by name.

        Raises DamagedRun or UnreadableFile, also if one holds a value that is not finite.
        """
        found = read_tensors(self._listed("weights.safetensors"))[0]
        for name, tensor in found.items():
            if not all_finite(tensor):
                raise DamagedRun(
                    f"weights.safetensors of {self.path.name}: {name!r} holds values that are not "
                    "finite."
                )
        return found

    def _listed(self, file: str) -> Path:
        """The path of a file of the run, of which run.json has the checksum."""
        if file not in self.record["files"]:
            raise DamagedRun(f"{file!r} is not among the files of {self.path.name}.")
        return self.path / _plain_name(file)

    @property
    def reports(self) -> dict[str, Any]:
        """What final reports added, for example ``{"test_accuracy": 0.47}``.

        Empty if there was none yet, or if the file is damaged: a new report can make it again.
        """
        return self._reports()[0]

    @property
    def reports_problem(self) -> str:
        """What is wrong with the file of the reports; "" if nothing is."""
        return self._reports()[1]

    def _reports(self) -> tuple[dict[str, Any], str]:
        path = self.path / "reports.json"
        if not os.path.lexists(path):
            return {}, ""
        try:
            content = read_json(path)
        except UnreadableFile as error:
            return {}, str(error)
        if not isinstance(content, dict):
            return {}, f"reports.json holds {shown(content)}, no figures by name."
        found = {name: value for name, value in content.items() if _is_number(value)}
        odd = sorted(set(content) - set(found))
        return found, f"in reports.json {shown(odd[0])} is no number." if odd else ""

    def report(self, **figures: float) -> None:
        """Add figures of a final report; with a message instead where the run is read-only."""
        plain = {name: float(value) for name, value in figures.items()}  # NumPy's are no JSON
        text = json.dumps({**self.reports, **plain}, indent=1)
        try:
            write_text(self.path / "reports.json", text)
        except OSError as error:
            log.warning(f"reports.json of {self.path.name} was not written ({first_line(error)}).")

    def save_figure(self, figure: Any, name: str) -> Path | None:
        """Keep a matplotlib figure as `name`.png and `name`.svg in the run's folder ``figures``.

        Returns the path of the PNG; None, with a message, where the run is read-only.
        """
        png, svg = (
            self.path / "figures" / _plain_name(f"{name}.{kind}") for kind in ("png", "svg")
        )
        try:
            png.parent.mkdir(exist_ok=True)
            _no_link(png.parent)
            for path in (png, svg):
                path.unlink(missing_ok=True)  # it could be a link
                figure.savefig(path, dpi=150)
        except OSError as error:
            log.warning(f"{png.name} of {self.path.name} was not written ({first_line(error)}).")
            return None
        return png

    def location(self, inside: Path | None = None) -> str:
        """The path of the run, or of something inside it, as seen from the working folder."""
        return os.path.relpath(inside or self.path)

    @property
    def bytes_on_disk(self) -> int:
        """Size of all its files."""
        return sum(file.lstat().st_size for file in self.path.rglob("*") if not file.is_dir())


class RunStore:
    """All runs of one folder, which may be one that can only be read.

    Raises InvalidInput if the folder is not there and cannot be made.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            if not str(folder).strip():
                raise ValueError("it is empty")
            self.folder = user_path(folder).resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
            os.scandir(self.folder).close()
        except (OSError, RuntimeError, ValueError) as error:
            raise _cannot_be_written(folder, error) from error

    def __iter__(self) -> Iterator[Run]:
        """The whole runs, oldest first; those that cannot be opened are left out."""
        return iter(self.opened()[0])

    def opened(self) -> tuple[list[Run], dict[Path, str]]:
        """The whole runs, oldest first; and what is wrong with each other folder of a run."""
        found, problems = [], {}
        for path in sorted(self.folder.iterdir()):
            if is_scratch(path) or _ASIDE.search(path.name) or path.name.endswith(UNFINISHED):
                continue
            try:
                (path / "run.json").lstat()
                found.append(self._open(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (InvalidInput, OSError) as error:
                problems[path] = str(error)
        return sorted(found, key=lambda run: str(run.provenance["finished"])), problems

    def check_writable(self) -> None:
        """Raise InvalidInput if nothing can be written here."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"some bytes, for a full disk makes empty files")
        except OSError as error:
            raise _cannot_be_written(self.folder, error) from error

    def find(self, run_id: str) -> Run | None:
        """The finished run of that id, or None.

        A damaged one is set aside, with a message.  Raises OtherFormat for one of another format.
        """
        for path in sorted(self.folder.glob(f"*-{run_id}")):
            try:
                return self._open(path)
            except DamagedRun as damage:
                self._set_aside(path, damage)
        return None

    @contextmanager
    def training(
        self,
        name: str,
        run_id: str,
        wait: Callable[[str], None] | None = log.info,
        seconds: float = SECONDS,
    ) -> Iterator[Checkpoints]:
        """The sole right to train a run, and its checkpoints.

        If another process has it, `wait` is told who, and this one waits; with None it does not,
        and InvalidInput says who.  The right ends with the process that has it, however that ends:
        the lock is the operating system's.
        seconds: the longest time between two checkpoints.
        Raises InvalidInput if the folder cannot be written.
        """
        self.check_writable()
        locks = self.folder / LOCKS
        holder = locks / f"{run_id}.holder"
        try:
            locks.mkdir(exist_ok=True)
            _no_link(locks)
            # never a file that a dead process leaves locked: where the system has no locks, say so
            lock = FileLock(
                locks / f"{run_id}.lock", mode=0o666, poll_interval=0.2, fallback_to_soft=False
            )
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                if wait is None:
                    raise InvalidInput(f"{_who(holder)} is training the run {run_id}.") from error
                wait(_who(holder))
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise _cannot_be_written(self.folder, error) from error
        try:
            with suppress(OSError):
                write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
            yield self._tidied(name, run_id, seconds)
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()

    def checkpoints(self, name: str, run_id: str, seconds: float = SECONDS) -> Checkpoints:
        """The checkpoints of a run that is not finished; to look at, unless it is locked."""
        by_id = sorted(self.folder.glob(f"*-{run_id}{UNFINISHED}"))  # the data may have been moved
        folder = by_id[0] if by_id else self.folder / f"{name}-{run_id}{UNFINISHED}"
        return Checkpoints(folder, run_id, seconds)

    def sweep(self, name: str, run_id: str) -> None:
        """Remove what is left of a finished run's training; nothing, while another is at it."""
        if self.checkpoints(name, run_id).folder.is_dir():
            with suppress(InvalidInput, OSError), self.training(name, run_id, None) as checkpoints:
                checkpoints.remove()

    def save(
        self,
        name: str,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        files: Mapping[str, str],
        result: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Run:
        """Write a run, whole or not at all.

        about: what people want to read of it beside its identity.  files: text files by name.
        result: figures.  If another process has saved the same run meanwhile, that
        one is kept and returned.  Raises OSError if it cannot be written.
        """
        run_id = identity_hash(identity)
        folder = Path(tempfile.mkdtemp(prefix=_scratch_prefix(name, run_id), dir=self.folder))
        try:
            for file, content in files.items():
                write_text(folder / _plain_name(file), content)
            write_tensors(folder / "weights.safetensors", weights)
            record = {
                "format": FORMAT,
                "id": run_id,
                "identity": identity,
                "about": about,
                "result": result,
                "provenance": provenance,
                "files": {
                    file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
                    for file in sorted(folder.iterdir())
                },
            }
            record["digest"] = _digest(record)
            write_text(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))
            folder.chmod(0o755)
            if (other := self.find(run_id)) is not None:
                return other
            try:
                run = self._open(folder.rename(self.folder / f"{name}-{run_id}"))
                flush_folder(self.folder)
                return run
            except OSError:  # another process was faster between the last two lines
                if (other := self.find(run_id)) is not None:
                    return other
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def unfinished(self) -> list[Path]:
        """The folders of unfinished runs."""
        return sorted(self.folder.glob(f"*{UNFINISHED}"))

    def remove(self, run_id: str) -> Path:
        """Delete the run, finished, unfinished or damaged, whose id begins with `run_id`.

        Raises InvalidInput unless there is exactly one.
        """
        runs, problems = self.opened()
        by_path = {run.path: run.id for run in runs}
        for path in (*filter(_is_ours, problems), *self.unfinished):
            by_path[path] = path.name.removesuffix(UNFINISHED).rpartition("-")[2]
        ids = sorted({known for known in by_path.values() if run_id and known.startswith(run_id)})
        if len(ids) != 1:
            known = ", ".join(dict.fromkeys(by_path.values())) or "none"
            raise InvalidInput(
                f"{run_id!r} names {len(ids)} runs of {self.folder}; known ids: {known}."
            )
        # a process that was killed between its last two deeds leaves a run and its checkpoints
        paths = [path for path, known in by_path.items() if known == ids[0]]
        whole = [path.name for path in paths if not path.name.endswith(UNFINISHED)]
        if len(whole) > 1:
            raise InvalidInput(
                f"{run_id!r} names several folders of {self.folder}, copies of one run: "
                f"{', '.join(whole)}; remove them by hand."
            )
        for path in paths:
            self._remove(path, ids[0])
        return paths[0]

    def _remove(self, path: Path, run_id: str) -> None:
        try:
            if path.is_symlink():
                path.unlink()
            elif path in self.unfinished:
                with self.training("", run_id, None):
                    _delete(path)
            else:
                _delete(path)
        except OSError as error:
            raise InvalidInput(f"{path.name!r} cannot be removed ({first_line(error)}).") from error

    def _open(self, path: Path) -> Run:
        try:
            record = read_json(path / "run.json")
        except UnreadableFile as error:
            _check_readable(path, error)
            raise DamagedRun(f"run.json cannot be read: {error}") from error
        try:
            return Run(path, _checked(record, path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InvalidInput):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise DamagedRun(f"run.json is no record of a run, {reason}") from error

    def _tidied(self, name: str, run_id: str, seconds: float) -> Checkpoints:
        """A run's checkpoints, and nothing that a process that died has left half-written."""
        for path in self.folder.glob(f"{_scratch_prefix(name, run_id)}*"):
            shutil.rmtree(path, ignore_errors=True)
        found = self.checkpoints(name, run_id, seconds)
        _no_link(found.folder)
        found.tidy()
        return found

    def _set_aside(self, path: Path, damage: DamagedRun) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        try:
            path.rename(aside)
            what = f"set aside as {aside.name}"
        except OSError as error:  # the folder is read-only, or another process was faster
            what = f"not set aside, {first_line(error)}"
        log.warning(f"{path.name} is damaged ({str(damage).rstrip('.')}); {what}.")


def _delete(path: Path) -> None:
    """Delete a folder: where that cannot be, nothing of it is lost."""
    gone = path.with_name(f".{secrets.token_hex(8)}.removed")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether a folder's name is one that a run was given."""
    return re.fullmatch(r"(flat|generalist|nofe|gate)-.+-[0-9a-f]{12}", path.name) is not None


def identity_hash(identity: Mapping[str, Any], version: int | None = None) -> str:
    """12 hexadecimal digits that depend on all of `identity` (anything JSON can write).

    version: of what ids are made of, by default IDENTITY_FORMAT.
    """
    return _digest({**identity, "format": version or IDENTITY_FORMAT})[:12]


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


_ABOUT = {
    "title": str,
    "dataset": str,
    "backbone": str,
    "K": (int, NoneType),
    "epochs": int,
    "seed": int,
}
_MADE = {
    "finished": str,
    "seconds": (int, float),
    "lineage": dict,
    "revision": str,
    "precision": str,
    "device": str,
    "threads": int,
    "versions": dict,
}
_VERSIONS = {"torch": str, "python": str}


def _checked(record: Any, path: Path) -> dict[str, Any]:
    """What run.json says, in the present format, once it and the run's files are found true.

    Raises DamagedRun, OtherFormat, and whatever comes of a record that is none.
    """
    found = record["format"]
    if type(found) is int and (found > FORMAT or found == 1):
        raise OtherFormat(
            f"the run {path.name} is of format {found}, this library reads formats 2 to {FORMAT}: "
            "open it with the version of nofe_lab that wrote it, or choose another runs_dir."
        )
    if type(found) is not int or found not in _IDENTITY_FORMATS:
        raise DamagedRun(f"its format is {shown(found)}, this library reads 2 to {FORMAT}")
    if record.pop("digest", None) != _digest(record):
        raise DamagedRun("run.json has been changed")
    run_id, expected_id = record["id"], identity_hash(record["identity"], _IDENTITY_FORMATS[found])
    if run_id != expected_id or not path.name.endswith(f"-{run_id}"):
        raise DamagedRun(f"it is the run {run_id}")
    _check_fields("about", record["about"], _ABOUT)
    _check_fields("provenance", record["provenance"], _MADE)
    _check_fields("versions", record["provenance"]["versions"], _VERSIONS)
    if datetime.fromisoformat(record["provenance"]["finished"]).tzinfo is None:
        raise DamagedRun("the time at which it was finished is in no time zone")
    seconds = [record["provenance"]["seconds"], *record["provenance"]["lineage"].values()]
    numbers = [*seconds, *record["result"].values()]
    if not all(map(_is_number, numbers)) or not all(0 <= s <= MAX_TOGETHER for s in seconds):
        raise DamagedRun(f"one of its figures is none: {shown(numbers)}")
    for file, expected in record["files"].items():
        inside = path / _plain_name(file)
        try:
            check_regular(inside, expected["bytes"])
            whole = sha256(inside) == expected["sha256"]
        except (UnreadableFile, OSError) as error:
            _check_readable(path, error)
            whole = False
        if not whole:
            raise DamagedRun(f"{file} is missing or changed")
    return {**record, "format": FORMAT}


def _check_readable(path: Path, error: BaseException) -> None:
    """Raise InvalidInput where a file is there, and only cannot be read now or by this user."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and not isinstance(
        cause, (FileNotFoundError, NotADirectoryError)
    ):
        raise InvalidInput(
            f"the run {path.name} cannot be read ({first_line(cause)}); accepted: a run that you "
            "may read, on a disk that can be read."
        ) from error


def _check_fields(what: str, found: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if name not in found:
            raise DamagedRun(f"its {what} lack {name!r}")
        value = found[name]
        is_whole = isinstance(value, int)
        if not isinstance(value, kind) or (is_whole and not 0 <= value <= MAX_INT):
            raise DamagedRun(f"{name} of {what} is {shown(value)}")


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= MAX_FLOAT  # type: ignore[arg-type]


def _plain_name(file: str) -> str:
    """The name of a file of the run itself.  Raises InvalidInput if it leads out of its folder."""
    is_plain = Path(file).name == file and "\\" not in file and not file.startswith(".")
    if not is_plain or len(os.fsencode(file)) > MAX_NAME:
        raise DamagedRun(f"{shown(file)} is not the name of a file of its own")
    return file


def _no_link(folder: Path) -> None:
    """Raise InvalidInput if a folder that is to be written in lies elsewhere."""
    if folder.is_symlink():
        raise InvalidInput(f"{folder.name!r} is a link; accepted: a folder of its own.")


def _cannot_be_written(folder: Path | str, error: BaseException) -> InvalidInput:
    why = getattr(error, "strerror", None) or str(error)
    return InvalidInput(
        f"runs_dir {str(folder)!r} cannot be written ({redact_path(why, folder)}); accepted: a "
        "folder that exists or can be made, and that you may write to."
    )


def _who(holder: Path) -> str:
    try:
        return printable(read_text(holder, 200))
    except UnreadableFile:
        return "another process"


def _scratch_prefix(name: str, run_id: str) -> str:
    return f".{name}-{run_id}-"


def default_runs_dir() -> Path:
    """The folder ``runs`` of `data_folder`."""
    return data_folder() / "runs"
