"""Runs in directories, found by their identity and verified before they are used.

A run's id is a hash of its identity: the stage and its configuration, the fingerprint of the data,
the ids of the runs it builds on, and the partition if one is given.  The same request finds the
same directory, in another notebook, another process or next week.  Device, versions, code revision
and seconds are provenance: saved and shown, but not part of the id.

    <runs_dir>/nofe-glyphs-K10-s0-0123456789ab/
        run.json              identity, provenance, result; size and checksum of every other file
        weights.safetensors
        history.csv           one row per epoch
        ...                   further files of the stage, as JSON or CSV
        reports.json          figures of final reports, such as test accuracy, added later

A folder to publish holds the same in fewer files: `PUBLISHED` in place of run.json, with the texts
of `INLINE` and the reports in it, and `PUBLISHED_WEIGHTS`.

A run is written under a hidden name and renamed when it is complete.  A damaged directory is
renamed, never overwritten.  A run is locked while it is trained: other processes that request it
wait, then load it.

Run folders are not trusted: reading one never executes code or follows a link, and everything that
it says about itself is checked.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
from torch import Tensor

from nofe_lab.config import (
    MAX_FLOAT,
    MAX_INT,
    InvalidInput,
    data_folder,
    first_line,
    printable,
    shown,
    some_of,
    text,
)
from nofe_lab.files import (
    UnreadableFile,
    all_finite,
    check_no_link,
    check_regular,
    flush_folder,
    is_scratch,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    redact_path,
    sha256,
    user_path,
    write_file,
    write_tensors,
)
from nofe_lab.log import log
from nofe_lab.runs.checkpoint import MAX_SECONDS, SECONDS, Checkpoints, OtherFormat
from nofe_lab.runs.locks import Held, Lock, locked

FORMAT = 3
"""Version of the layout of a run.  Format 2, whose ids are of identity format 1, is still read."""

IDENTITY_FORMAT = 2
"""Version of the content of an identity: fields at their defaults are left out, and data sets are
identified by their files.  Runs keep their ids when only the layout changes."""

_IDENTITY_FORMATS = {2: 1, FORMAT: IDENTITY_FORMAT}
"""Identity format by format of the run."""

_DAMAGED = re.compile(r"\.damaged-\d+$")
"""Suffix of the folder of a damaged run that was set aside."""

MAX_TOTAL_SECONDS = 1000 * MAX_SECONDS
"""Largest number of seconds accepted in a run's provenance."""

PUBLISHED, PUBLISHED_WEIGHTS = "config.json", "model.safetensors"
"""The record of a run and its weights in a folder to publish, as other tools call them."""

INLINE = {"classes.json": "classes", "model.json": "model"}
"""Files of a run that a published record holds itself, and under which names."""

MAX_NAME = 255
"""Longest file name, in bytes."""

UNFINISHED, LOCKS = ".unfinished", ".locks"
"""Suffix of the folder of an unfinished run, and the folder of the locks."""


class DamagedRun(InvalidInput):
    """A run's directory does not match its run.json; the message says how."""


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, or a published one: its directory and the content of its record."""

    path: Path
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<{printable(str(self.about['title']))}: {printable(str(self.path))}>"

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return str(self.record["id"])

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the id is a hash of."""
        identity: Mapping[str, Any] = self.record["identity"]
        return identity

    @property
    def about(self) -> Mapping[str, Any]:
        """title, dataset, backbone, K, epochs and seed, for display."""
        about: Mapping[str, Any] = self.record["about"]
        return about

    @property
    def result(self) -> Mapping[str, float]:
        """Figures at the end of training, such as val_accuracy."""
        result: Mapping[str, float] = self.record["result"]
        return result

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy by split (test, val, train), of those that were measured.

        Of a generalist it is the share of right specialties.  An earlier library kept that of the
        gate alone for a network with a gate; then only test is given.
        """
        found = {"test": self.reports.get("test_accuracy")}
        if self.identity.get("stage") != "gate" or "gate_train_accuracy" in self.result:
            found |= {split: self.result.get(f"{split}_accuracy") for split in ("val", "train")}
        return {split: value for split, value in found.items() if value is not None}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where, when and with which versions the run was made."""
        provenance: Mapping[str, Any] = self.record["provenance"]
        return provenance

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training."""
        return float(self.provenance["seconds"])

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the contents of the run's files."""
        return _digest(self.record["files"])[:16]

    @property
    def lineage(self) -> dict[str, float]:
        """Training seconds by id, of this run and all runs it builds on."""
        return {**self.provenance["lineage"], self.id: self.seconds}

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds of training of this run and all runs it builds on."""
        return sum(self.lineage.values())

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: losses, accuracies, learning rate, seconds."""
        found = self.table("history")
        for column in ("epoch", "train_loss"):
            if column not in found or not pd.api.types.is_numeric_dtype(found[column]):
                raise DamagedRun(f"history.csv of {self.path.name} has no numbers {column!r}.")
        return found

    def table(self, name: str) -> pd.DataFrame:
        """Read the run's file `name`.csv.  Raises DamagedRun if it is not a table."""
        text = self.text(f"{name}.csv")
        try:
            return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
        except (ValueError, OverflowError) as error:
            raise DamagedRun(
                f"{name}.csv of {self.path.name} holds no table ({first_line(error)})."
            ) from error

    def has(self, file: str) -> bool:
        """Whether a file is among the run's files."""
        return file in self.record["files"] or INLINE.get(file) in self.record

    def text(self, file: str) -> str:
        """Read one of the run's text files.  Raises DamagedRun or UnreadableFile."""
        if INLINE.get(file) in self.record:
            return json.dumps(self.record[INLINE[file]], ensure_ascii=False)
        return read_text(self.file(file))

    def weights(self) -> dict[str, Tensor]:
        """Read all tensors of the network and its preprocessing, by name.

        Raises DamagedRun or UnreadableFile, also for values that are not finite.
        """
        file = PUBLISHED_WEIGHTS if self.has(PUBLISHED_WEIGHTS) else "weights.safetensors"
        found = read_tensors(self.file(file))[0]
        for name, tensor in found.items():
            if not all_finite(tensor):
                raise DamagedRun(
                    f"{file} of {self.path.name}: {name!r} holds values that are not finite."
                )
        return found

    def file(self, file: str) -> Path:
        """The path of one of the run's files.  Raises DamagedRun if run.json does not list it."""
        if file not in self.record["files"]:
            raise DamagedRun(f"{file!r} is not among the files of {self.path.name}.")
        return self.path / _check_file_name(file)

    @property
    def reports(self) -> dict[str, Any]:
        """Figures of final reports, for example ``{"test_accuracy": 0.47}``.

        Empty if there are none, or if the file is damaged; a new report replaces it.
        """
        return {name: value for name, value in self._reports()[0].items() if _is_number(value)}

    def report_table(self, name: str) -> pd.DataFrame:
        """A table of the last final report (see `report`); empty if there is none."""
        found = self._reports()[0].get(name)
        return pd.DataFrame(found if isinstance(found, list) else [])

    @property
    def reports_problem(self) -> str:
        """What is wrong with reports.json; "" if nothing is."""
        return self._reports()[1]

    def _reports(self) -> tuple[dict[str, Any], str]:
        path = self.path / "reports.json"
        content = self.record.get("reports", {})
        try:
            content = read_json(path) if os.path.lexists(path) else content
        except UnreadableFile as error:
            return {}, str(error)
        if not isinstance(content, dict):
            return {}, f"reports.json holds {shown(content)}, not figures by name."
        found = {k: v for k, v in content.items() if _is_number(v) or _is_table(v)}
        odd = sorted(set(content) - set(found))
        return found, f"in reports.json {shown(odd[0])} is no number and no table." if odd else ""

    def report(self, **found: float | pd.DataFrame) -> None:
        """Add figures and tables of a final report; logs a warning if the run is read-only."""
        plain = {
            name: json.loads(each.to_json(orient="records"))
            if isinstance(each, pd.DataFrame)
            else float(each)
            for name, each in found.items()
        }
        text = json.dumps({**self._reports()[0], **plain}, indent=1, ensure_ascii=False)
        try:
            write_file(self.path / "reports.json", text)
        except OSError as error:
            log.warning(f"reports.json of {self.path.name} was not written ({first_line(error)}).")

    def save_figure(self, figure: Any, name: str) -> Path | None:
        """Save a matplotlib figure as `name`.png and `name`.svg in the run's folder ``figures``.

        Returns the path of the PNG; logs a warning and returns None if the run is read-only.
        """
        draw = partial(figure.savefig, dpi=150)
        png = self.keep(f"{name}.png", draw)
        if png is not None:
            self.keep(f"{name}.svg", draw)
        return png

    def keep(self, name: str, write: Callable[[Path], object]) -> Path | None:
        """Have `write` make a file for people, such as a page, in the run's folder ``figures``.

        Returns its path; logs a warning and returns None if the run is read-only.
        """
        path = self.path / "figures" / _check_file_name(name)
        check_no_link(path.parent)
        try:
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)  # the old file could be a link
            write(path)
        except (InvalidInput, OSError) as error:
            log.warning(f"{name} of {self.path.name} was not written ({first_line(error)}).")
            return None
        return path

    def location(self, inside: Path | None = None) -> str:
        """The path of the run, or of a path inside it, relative to the working folder."""
        return os.path.relpath(inside or self.path)

    @property
    def bytes_on_disk(self) -> int:
        """Size of all files of the run."""
        return sum(file.lstat().st_size for file in self.path.rglob("*") if not file.is_dir())


class RunStore:
    """The runs in a folder, which may be read-only.

    Raises InvalidInput if the folder does not exist and cannot be created.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            if not str(folder).strip():
                raise ValueError("it is empty")
            self.folder = user_path(folder).resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
            os.scandir(self.folder).close()
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_writable(folder, error) from error
        self._held: dict[str, Lock] = {}

    def __iter__(self) -> Iterator[Run]:
        """The intact runs, oldest first."""
        return iter(self.opened()[0])

    def opened(self) -> tuple[list[Run], dict[Path, str]]:
        """Open all runs: the intact ones, oldest first, and the problem of each other folder."""
        found, problems = [], {}
        for path in sorted(self.folder.iterdir()):
            if is_scratch(path) or _DAMAGED.search(path.name) or path.name.endswith(UNFINISHED):
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
                file.write(b"some bytes: a full disk may still allow empty files")
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    def find(self, run_id: str) -> Run | None:
        """Find the finished run with an id; None if there is none.

        A damaged run is set aside, with a warning.  Raises OtherFormat if its format is unknown.
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
        wait: Callable[[str], object] | None = None,
        seconds: float = SECONDS,
    ) -> Iterator[Checkpoints]:
        """Lock a run for training and give its checkpoints.

        While another process holds the lock, calls `wait` with its name each second; raises
        InvalidInput instead if `wait` is None.  See `locked` for locks of processes that died.
        seconds: longest time between two checkpoints.
        Raises InvalidInput if the folder cannot be written.
        """
        self.check_writable()
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(locked(self.folder / LOCKS / run_id, wait))
            except Held as who:
                raise InvalidInput(f"{who} is training the run {run_id}.") from who
            except (OSError, NotImplementedError) as error:
                raise _not_writable(self.folder, error) from error
            self._held[run_id] = lock
            stack.callback(self._held.pop, run_id)
            checkpoints = self._tidy_checkpoints(name, run_id, seconds)
            checkpoints.check = lock.check
            yield checkpoints

    def checkpoints(self, name: str, run_id: str, seconds: float = SECONDS) -> Checkpoints:
        """The checkpoints of an unfinished run; change them only while holding its lock."""
        by_id = sorted(self.folder.glob(f"*-{run_id}{UNFINISHED}"))  # the name may have changed
        folder = by_id[0] if by_id else self.folder / f"{name}-{run_id}{UNFINISHED}"
        return Checkpoints(folder, run_id, seconds)

    def remove_leftovers(self, name: str, run_id: str) -> None:
        """Remove the checkpoints of a finished run, unless another process is training it."""
        if self.checkpoints(name, run_id).folder.is_dir():
            with suppress(InvalidInput, OSError), self.training(name, run_id, None) as checkpoints:
                checkpoints.remove()

    def save(
        self,
        name: str,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        files: Mapping[str, str | bytes],
        result: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Run:
        """Write a run atomically.

        about, result, provenance: see `Run`.  files: further files by name.  If another process has
        saved the same run meanwhile, returns that one.  Raises OSError if it cannot be written, and
        LockLost if it is in `training` and another process has taken it over.
        """
        run_id = identity_hash(identity)
        folder = Path(tempfile.mkdtemp(prefix=_scratch_prefix(name, run_id), dir=self.folder))
        try:
            for file, content in files.items():
                write_file(folder / _check_file_name(file), content)
            write_tensors(folder / "weights.safetensors", weights)
            record = {
                "format": FORMAT,
                "id": run_id,
                "identity": identity,
                "about": about,
                "result": result,
                "provenance": provenance,
                "files": _listed(folder),
            }
            record["digest"] = _digest(record)
            write_file(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))
            folder.chmod(0o755)
            if (other := self.find(run_id)) is not None:
                return other
            if run_id in self._held:
                self._held[run_id].check()
            try:
                run = self._open(folder.rename(self.folder / f"{name}-{run_id}"))
                flush_folder(self.folder)
                return run
            except OSError:  # another process may have been faster
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
        for path in (*filter(_is_run_folder, problems), *self.unfinished):
            by_path[path] = path.name.removesuffix(UNFINISHED).rpartition("-")[2]
        ids = sorted({known for known in by_path.values() if run_id and known.startswith(run_id)})
        if len(ids) != 1:
            known = ", ".join(dict.fromkeys(by_path.values())) or "none"
            raise InvalidInput(
                f"{run_id!r} names {len(ids)} runs of {self.folder}; known ids: {known}."
            )
        # a killed process can leave a finished run and its checkpoints
        paths = [path for path, known in by_path.items() if known == ids[0]]
        finished = [path.name for path in paths if not path.name.endswith(UNFINISHED)]
        if len(finished) > 1:
            raise InvalidInput(
                f"{run_id!r} names several folders of {self.folder}, copies of one run: "
                f"{', '.join(finished)}; remove them by hand."
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
        run = _open(path)
        if not path.name.endswith(f"-{run.id}"):
            raise DamagedRun(f"it is the run {run.id}")
        return run

    def _tidy_checkpoints(self, name: str, run_id: str, seconds: float) -> Checkpoints:
        """The checkpoints of a run, after removing temporary files of processes that died."""
        for path in self.folder.glob(f"{_scratch_prefix(name, run_id)}*"):
            shutil.rmtree(path, ignore_errors=True)
        found = self.checkpoints(name, run_id, seconds)
        check_no_link(found.folder)
        found.tidy()
        return found

    def _set_aside(self, path: Path, damage: DamagedRun) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        try:
            path.rename(aside)
            what = f"set aside as {aside.name}"
        except OSError as error:  # read-only, or another process was faster
            what = f"not set aside, {first_line(error)}"
        log.warning(f"{path.name} is damaged ({str(damage).rstrip('.')}); {what}.")


def open_run(which: Run | Path | str, runs_dir: Path | str | None = None) -> Run:
    """Open a finished run: a `Run`, its folder, whatever its name, or the beginning of its id.

    runs_dir: where runs are looked up by id; None: the default folder.
    Raises InvalidInput if there is no such run, or several, and DamagedRun if its files were
    changed.
    """
    if isinstance(which, Run):
        return which
    text("run", which)
    if runs_dir is not None:
        text("runs_dir", runs_dir)
    where = user_path(runs_dir or default_runs_dir())
    try:
        folder = user_path(which)
        if not folder.is_dir() and (where / folder.name / "run.json").is_file():
            folder = where / folder.name
        is_folder = folder.is_dir()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"run {shown(str(which))}: {first_line(error)[:200]}") from error
    if is_folder:
        if not any(os.path.lexists(folder / name) for name in ("run.json", PUBLISHED)):
            raise InvalidInput(
                f"the folder {str(which)!r} is no run, it has no run.json; accepted: the folder of "
                "a finished or a published run, or a run's id."
            )
        return _opened(folder)
    found = []
    if re.fullmatch("[0-9a-f]{4,12}", str(which)):
        found = sorted(filter(_is_run_folder, where.glob(f"*-{which}*")))
        found = [path for path in found if path.name.rpartition("-")[2].startswith(str(which))]
    if len(found) != 1:
        known = some_of([path.name for path in found]) if found else "none"
        raise InvalidInput(
            f"run {shown(str(which))} must be the folder of a finished run, or the beginning of "
            f"the id of one in {str(where)!r} (at least 4 digits); found {known} ('nofe-lab "
            "runs' lists them)."
        )
    return _opened(found[0])


def write_published(
    run: Run,
    folder: Path,
    texts: Mapping[str, str],
    keep: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Run:
    """Write a run as a folder to publish, atomically.

    texts: further files, that may be edited later.  keep: which of the run's files are in it, of
    those that it has, beside its weights and the files of `INLINE`.  about, provenance: in place of
    the run's own.  Raises InvalidInput if the folder exists and is not empty, or cannot be written.
    """
    folder = new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _no_new_folder(folder, error) from error
    try:
        for name in keep:
            if run.has(name):
                shutil.copyfile(run.file(name), scratch / name)
        write_tensors(scratch / PUBLISHED_WEIGHTS, run.weights(), {"format": "pt"})
        record = {name: value for name, value in run.record.items() if name not in INLINE.values()}
        record |= {
            "about": {**run.about, **(about or {})},
            "provenance": {**run.provenance, **(provenance or {})},
            **{key: parse_json(run.text(file)) for file, key in INLINE.items() if run.has(file)},
            "reports": run._reports()[0],
            "files": _listed(scratch),
        }
        record["digest"] = _digest({k: v for k, v in record.items() if k != "digest"})
        write_file(scratch / PUBLISHED, json.dumps(record, indent=1, ensure_ascii=False))
        for name, text in texts.items():
            write_file(scratch / name, text)
        scratch.chmod(0o755)
        scratch.replace(folder)  # an empty folder may be there
        return _opened(folder)
    except OSError as error:
        raise _no_new_folder(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def new_folder(written: Path | str) -> Path:
    """The path of a folder that is to be written; raises InvalidInput unless it is new or empty."""
    text("folder", written)
    try:
        if not str(written).strip():
            raise FileNotFoundError(errno.ENOENT, "it has no name")
        folder = user_path(written).resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(errno.EEXIST, "it is there and not empty")
        if folder == Path.cwd():
            raise FileExistsError(errno.EEXIST, "it is the working folder")
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _no_new_folder(written, error) from error
    return folder


def _no_new_folder(folder: Path | str, error: Exception) -> InvalidInput:
    why = getattr(error, "strerror", None) or first_line(error)
    return InvalidInput(
        f"the folder {shown(str(folder))} cannot be written ({why}); accepted: the path of a new "
        "or an empty folder."
    )


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of each file in a folder."""
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
    }


def _opened(path: Path) -> Run:
    """`_open` for people, who do not know which folder it is about."""
    try:
        return _open(path)
    except DamagedRun as damage:
        raise DamagedRun(f"the run {path.name} is damaged: {damage}") from damage


def _open(path: Path) -> Run:
    """Open the run in a folder, whatever the folder's name."""
    is_published = not os.path.lexists(path / "run.json") and os.path.lexists(path / PUBLISHED)
    name = PUBLISHED if is_published else "run.json"
    try:
        record = read_json(path / name)
    except UnreadableFile as error:
        _check_readable(path, error)
        raise DamagedRun(f"{name} cannot be read: {error}") from error
    try:
        return Run(path, _validated(record, path, name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DamagedRun(f"{name} is not the record of a run, {reason}") from error


def _delete(path: Path) -> None:
    """Delete a folder; keeps all of it if it cannot be renamed."""
    gone = path.with_name(f".{secrets.token_hex(8)}.removed")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _is_run_folder(path: Path) -> bool:
    """Whether a folder has a name of a run."""
    return re.fullmatch(r"(flat|generalist|nofe|gate)-.+-[0-9a-f]{12}", path.name) is not None


def identity_hash(identity: Mapping[str, Any], version: int | None = None) -> str:
    """Hash an identity, of anything JSON can write, to the 12 hexadecimal digits of an id.

    version: the identity format, by default IDENTITY_FORMAT.
    """
    return _digest({**identity, "format": version or IDENTITY_FORMAT})[:12]


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


_ABOUT_TYPES = {
    "title": str,
    "dataset": str,
    "backbone": str,
    "K": (int, NoneType),
    "epochs": int,
    "seed": int,
}
_PROVENANCE_TYPES = {
    "finished": str,
    "seconds": (int, float),
    "lineage": dict,
    "revision": str,
    "precision": str,
    "device": str,
    "threads": int,
    "versions": dict,
}
_VERSION_TYPES = {"torch": str, "python": str}


def _validated(record: Any, path: Path, name: str) -> dict[str, Any]:
    """Check a record, of the file `name`, and the run's files; returns it in the present format.

    Raises DamagedRun or OtherFormat, or any error that a malformed record causes.
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
        raise DamagedRun(f"{name} has been changed")
    run_id, expected_id = record["id"], identity_hash(record["identity"], _IDENTITY_FORMATS[found])
    if run_id != expected_id:
        raise DamagedRun(f"it is the run {run_id}")
    _check_fields("about", record["about"], _ABOUT_TYPES)
    _check_fields("provenance", record["provenance"], _PROVENANCE_TYPES)
    _check_fields("versions", record["provenance"]["versions"], _VERSION_TYPES)
    if datetime.fromisoformat(record["provenance"]["finished"]).tzinfo is None:
        raise DamagedRun("the time when it was finished has no time zone")
    seconds = [record["provenance"]["seconds"], *record["provenance"]["lineage"].values()]
    numbers = [*seconds, *record["result"].values()]
    if not all(map(_is_number, numbers)) or not all(0 <= s <= MAX_TOTAL_SECONDS for s in seconds):
        raise DamagedRun(f"one of its figures is not a number in range: {shown(numbers)}")
    kept = dict(record["files"])
    for file, expected in record["files"].items():
        inside = path / _check_file_name(file)
        if name == PUBLISHED and file != PUBLISHED_WEIGHTS and not os.path.lexists(inside):
            del kept[file]  # whoever published it may leave files out
            continue
        try:
            check_regular(inside, expected["bytes"])
            is_intact = sha256(inside) == expected["sha256"]
        except (UnreadableFile, OSError) as error:
            _check_readable(path, error)
            is_intact = False
        if not is_intact:
            raise DamagedRun(f"{file} is missing or changed")
    return {**record, "format": FORMAT, "files": kept}


def _check_readable(path: Path, error: BaseException) -> None:
    """Raise InvalidInput if a file exists but cannot be read, now or by this user."""
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


def _is_table(value: object) -> bool:
    """Whether a value of reports.json is a table: rows of texts, numbers and gaps."""
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and all(cell is None or isinstance(cell, str) or _is_number(cell) for cell in row.values())
        for row in value
    )


def _check_file_name(file: str) -> str:
    """Return the name of a file in the run's folder.  Raises DamagedRun if it is a path."""
    is_plain = Path(file).name == file and "\\" not in file and not file.startswith(".")
    if not is_plain or len(os.fsencode(file)) > MAX_NAME:
        raise DamagedRun(f"{shown(file)} is not the name of a file of its own")
    return file


def _not_writable(folder: Path | str, error: BaseException) -> InvalidInput:
    why = getattr(error, "strerror", None) or str(error)
    return InvalidInput(
        f"runs_dir {str(folder)!r} cannot be written ({redact_path(why, folder)}); accepted: a "
        "folder that exists or can be made, and that you may write to."
    )


def _scratch_prefix(name: str, run_id: str) -> str:
    return f".{name}-{run_id}-"


def default_runs_dir() -> Path:
    """The folder ``runs`` of `data_folder`."""
    return data_folder() / "runs"
