"""Checkpoints of an unfinished run, from which its training resumes as if never interrupted.

A checkpoint is a safetensors file with everything that the next step depends on: weights,
optimiser, the specialty map and its history, the history of the epochs, and the position in the
epoch.  No random state is saved: every draw is a function of (seed, step) or of (seed, epoch,
image).

    <runs_dir>/nofe-glyphs-K10-s0-0123456789ab.unfinished/
        step-00000120.safetensors       the previous one, kept in case the last is damaged
        step-00000240.safetensors

The folder is removed when the run is finished.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nofe_lab.config import (
    InvalidInput,
    first_line,
    printable,
    real_number,
    shown,
    whole_number,
)
from nofe_lab.files import (
    UnreadableFile,
    digest_of_tensors,
    flush_folder,
    is_scratch,
    parse_json,
    read_tensors,
    write_tensors,
)
from nofe_lab.log import log

FORMAT = 2
"""Version of the content of a checkpoint."""

SECONDS = 60.0
"""Default of the longest time between two checkpoints."""

MAX_TIME_SHARE = 0.02
"""Largest share of the time of a training spent on checkpoints at the ends of epochs."""

MAX_SECONDS = 1e9
"""Longest training accepted from a file."""

KEPT = 2
"""Checkpoints kept: the last one, and the previous one in case the last is damaged."""


class State(NamedTuple):
    """The state to save: tensors by name, and a record that JSON can write."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


class OtherFormat(InvalidInput):
    """A run or a checkpoint has a format that this version cannot read."""


class IncompatibleCheckpoint(UnreadableFile):
    """A checkpoint is intact, but belongs to another training; the message says why."""


class Checkpoints:
    """The checkpoints of an unfinished run, in a folder that the first one creates.

    label: name of the run in messages.
    conditions: versions and machine, as text; a new item is added whenever they change.
    origin: what the training starts from beside its identity: digests of the runs it builds on and
    of what was derived from them.  A checkpoint with another origin is not used.
    check: called before a checkpoint is written; raises LockLost if another process has taken over
    the run.
    seconds: longest time between two checkpoints; more are saved at the ends of epochs, as long as
    these take at most MAX_TIME_SHARE of the time.  If a checkpoint cannot be saved (full disk,
    read-only folder), a warning is logged and training continues.
    """

    def __init__(self, folder: Path, run_id: str, seconds: float = SECONDS) -> None:
        self.folder = folder
        self.run_id = run_id
        self.label = folder.name
        self.seconds = seconds
        self.started = self.last = time.perf_counter()
        self.seconds_before = 0.0
        self.interruptions = 0
        self.conditions: list[str] = []
        self.origin: list[str] = []
        self.check: Callable[[], None] = lambda: None
        self.cost = 0.0
        self._failed = False
        self.used: list[Path] = []

    @property
    def step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max((_step_of(path) for path in self._files()), default=0)

    @property
    def seconds_trained(self) -> float:
        """Seconds of training until now, before and after interruptions."""
        return self.seconds_before + time.perf_counter() - self.started

    def resume(self, restore: Callable[[State], None]) -> bool:
        """Pass the newest usable checkpoint to `restore`; False if there is none.

        restore: raises IncompatibleCheckpoint, before changing anything, if the state belongs to
        another training.
        If a checkpoint is not usable, a warning is logged and the previous one is tried.  Raises
        InvalidInput if a checkpoint has another format.
        """
        for path in sorted(self._files(), key=_step_of, reverse=True):
            try:
                state, seconds, interruptions, conditions = self._read(path)
                restore(state)
            except UnreadableFile as reason:
                log.warning(
                    f"checkpoint {path.name} of {self.folder.name} cannot be used: {reason}"
                )
                continue
            self.seconds_before = seconds
            self.interruptions = interruptions + 1
            self._warn_if_changed(conditions)
            self.used = [path]
            return True
        if self.folder.is_dir() and any(self._files()):
            log.warning(f"no checkpoint of {self.folder.name} can be used: training begins anew.")
        return False

    def due(self, epoch_ended: bool) -> bool:
        """Whether it is time for the next checkpoint."""
        waited = time.perf_counter() - self.last
        return waited >= self.seconds or (epoch_ended and waited * MAX_TIME_SHARE >= self.cost)

    def save(self, step: int, state: State) -> bool:
        """Save a checkpoint and keep the previous one.  False if it could not be written."""
        began = time.perf_counter()
        record = {
            "format": FORMAT,
            "id": self.run_id,
            "step": step,
            "seconds": self.seconds_trained,
            "interruptions": self.interruptions,
            "conditions": self.conditions,
            "origin": self.origin,
            "record": state.record,
        }
        text = json.dumps(record)
        path = self.folder / f"step-{step:08}.safetensors"
        try:
            self.check()
            self.folder.mkdir(exist_ok=True)
            texts = {"nofe_lab": text, "digest": _digest(state.tensors, text)}
            write_tensors(path, state.tensors, texts)
        except OSError as error:
            if not self._failed:
                log.warning(
                    f"the checkpoint of step {step} cannot be saved ({first_line(error)}); "
                    "training goes on, and the next one is tried when it is due.",
                )
            self._failed = True
        else:
            self._failed = False
            self.used = [*(kept for kept in self.used if kept != path), path][-KEPT:]
            self._remove_except(self.used)
        self.last = time.perf_counter()
        self.cost = self.last - began
        return not self._failed

    def make_room(self) -> None:
        """Delete the older of two checkpoints, to make room on a full disk."""
        self._remove_except(self.used[-1:])

    def tidy(self) -> None:
        """Remove temporary files of a process that died.  Call only while holding the lock."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_scratch(path):
                    with suppress(OSError):  # a folder, which is not ours
                        path.unlink()

    def remove(self) -> None:
        """Remove all checkpoints and their folder."""
        if self.folder.is_dir():
            self.tidy()
            self._remove_except([])
            with suppress(OSError):  # the folder holds other files
                self.folder.rmdir()

    def _warn_if_changed(self, before: list[str]) -> None:
        """Log a warning if training resumes under other conditions than before."""
        now = [each for each in self.conditions if each not in before[-1:]]
        if before and now:
            log.warning(
                f"begun under {before[-1]}; goes on under {now[0]}: not bit for bit what it would "
                "have been uninterrupted."
            )
        self.conditions = before + now

    def _remove_except(self, kept: list[Path]) -> None:
        for path in self._files():
            if path not in kept:
                with suppress(OSError):  # the folder may have become read-only
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            flush_folder(self.folder)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*.safetensors") if _step_of(path) >= 0]

    def _read(self, path: Path) -> tuple[State, float, int, list[str]]:
        tensors, texts = read_tensors(path)
        text = texts.get("nofe_lab", "")
        if texts.get("digest") != _digest(tensors, text):
            raise UnreadableFile("it is damaged: its checksum differs.")
        try:
            content = parse_json(text)
            if (found := content["format"]) != FORMAT:  # all formats share the checksum
                raise OtherFormat(
                    f"the unfinished run {self.folder.name} is of format {found!r}, this library "
                    f"goes on with format {FORMAT}: finish it with the version that began it, or "
                    f"remove it (nofe-lab runs --remove {self.run_id})."
                )
            origin = content.get("origin", [])
            conditions = [printable(str(c)) for c in content["conditions"]]
            seconds = real_number("its time in seconds", content["seconds"], 0, MAX_SECONDS)
            interruptions = whole_number("its interruptions", content["interruptions"], 0)
            state = State(tensors, content["record"])
            run_id, step = content["id"], content["step"]
            recorded_step = content["record"].get("step", step)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, OtherFormat):
                raise
            raise UnreadableFile(
                f"it is not one of nofe_lab's ({type(error).__name__}: {error})."
            ) from error
        if (run_id, step, recorded_step) != (self.run_id, _step_of(path), _step_of(path)):
            raise IncompatibleCheckpoint(
                f"it is step {shown(step)} ({shown(recorded_step)}) of the run {shown(run_id)}."
            )
        if origin != self.origin:
            raise IncompatibleCheckpoint("the runs that it builds on have been trained anew since.")
        return state, seconds, interruptions, conditions


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest_of_tensors(tensors)} {text}".encode()).hexdigest()


def _step_of(path: Path) -> int:
    """The step in the name of a checkpoint; -1 for any other file."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() and len(digits) < 16 else -1
