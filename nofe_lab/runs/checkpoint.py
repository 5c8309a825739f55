"""How an unfinished run is kept: checkpoints, from which its training goes on as if never stopped.

A checkpoint is one safetensors file with all that the next step depends on: weights, optimiser,
the specialty map and its history, the history of the epochs, and the place in the epoch.  Random
states need no place of their own: every draw is a function of (seed, step) or of (seed, epoch,
image), so the number of the step says where each of them stands.

    <runs_dir>/nofe-glyphs-K10-s0-0123456789ab.unfinished/
        step-00000120.safetensors       the one before, kept in case the last is damaged
        step-00000240.safetensors

The folder goes when the run is finished.
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
"""Version of what a checkpoint holds."""

SECONDS = 60.0
"""The longest time between two checkpoints, if no other is asked for."""

SHARE = 0.02
"""The largest share of its time that a training spends on the checkpoints at the ends of epochs."""

MAX_SECONDS = 1e9
"""More than any training has taken."""

KEPT = 2
"""The last one, and the one before in case the last is damaged."""


class State(NamedTuple):
    """What is to be kept of something that goes on: tensors by name, and what JSON can write."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


class OtherFormat(InvalidInput):
    """A run or a checkpoint is of a format that this version cannot read."""


class IncompatibleCheckpoint(UnreadableFile):
    """A checkpoint is whole, but not one of this training; the message says why."""


class Checkpoints:
    """The checkpoints of one unfinished run, in a folder that is made when the first is saved.

    label: what people call the run.
    conditions: the versions and the machine that it is trained under, for people to read, one text
    for each change of them.
    origin: what the training starts from, beside what its id says: digests of the runs it builds on
    and of what was made of them.  A checkpoint of another origin is another training's.
    seconds: the longest time between two; beside these there is one at the end of each epoch, as
    long as they take no more than SHARE of the time.  A checkpoint that cannot be saved, because
    the disk is full or the folder has become read-only, does not stop the training: it says so, and
    the next one is tried when it is due.
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
        self.cost = 0.0
        self.fails = False
        self.used: list[Path] = []

    @property
    def step(self) -> int:
        """The step of the newest one, 0 if there is none."""
        return max((_step_of(path) for path in self._files()), default=0)

    @property
    def seconds_trained(self) -> float:
        """Seconds of the training until now: what came before its last interruption, and since."""
        return self.seconds_before + time.perf_counter() - self.started

    def resume(self, restore: Callable[[State], None]) -> bool:
        """Hand the newest checkpoint that can be used to `restore`; False if there is none.

        restore: raises IncompatibleCheckpoint, before it has changed anything, if the state is
        another training's.
        A checkpoint that cannot be used is named, and the one before it is tried.  Raises
        InvalidInput if one is of another format.
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
            self._compare(conditions)
            self.used = [path]
            return True
        if self.folder.is_dir() and any(self._files()):
            log.warning(f"no checkpoint of {self.folder.name} can be used: training begins anew.")
        return False

    def due(self, epoch_ended: bool) -> bool:
        """Whether it is time for the next one."""
        waited = time.perf_counter() - self.last
        return waited >= self.seconds or (epoch_ended and waited * SHARE >= self.cost)

    def save(self, step: int, state: State) -> bool:
        """Save a checkpoint; its predecessor is kept.  False if it could not be written."""
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
            self.folder.mkdir(exist_ok=True)
            texts = {"nofe_lab": text, "digest": _digest(state.tensors, text)}
            write_tensors(path, state.tensors, texts)
        except OSError as error:
            if not self.fails:
                log.warning(
                    f"the checkpoint of step {step} cannot be saved ({first_line(error)}); "
                    "training goes on, and the next one is tried when it is due.",
                )
            self.fails = True
        else:
            self.fails = False
            self.used = [*(kept for kept in self.used if kept != path), path][-KEPT:]
            self._keep(self.used)
        self.last = time.perf_counter()
        self.cost = self.last - began
        return not self.fails

    def make_room(self) -> None:
        """Give up the older of two checkpoints, where a full disk needs its place."""
        self._keep(self.used[-1:])

    def tidy(self) -> None:
        """Remove what a process that died while it was writing has left.  Only under the lock."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_scratch(path):
                    with suppress(OSError):  # a folder is not ours
                        path.unlink()

    def remove(self) -> None:
        """Remove all of them, and their folder."""
        if self.folder.is_dir():
            self.tidy()
            self._keep([])
            with suppress(OSError):  # it holds what is not ours
                self.folder.rmdir()

    def _compare(self, before: list[str]) -> None:
        """Say so if training goes on under other conditions than before."""
        now = [each for each in self.conditions if each not in before[-1:]]
        if before and now:
            log.warning(
                f"begun under {before[-1]}; goes on under {now[0]}: not bit for bit what it would "
                "have been uninterrupted."
            )
        self.conditions = before + now

    def _keep(self, kept: list[Path]) -> None:
        for path in self._files():
            if path not in kept:
                with suppress(OSError):  # it may have become read-only: then they stay
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            flush_folder(self.folder)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*.safetensors") if _step_of(path) >= 0]

    def _read(self, path: Path) -> tuple[State, float, int, list[str]]:
        tensors, texts = read_tensors(path)
        text = texts.get("nofe_lab", "")
        if texts.get("digest") != _digest(tensors, text):
            raise UnreadableFile("it is damaged, its checksum is another.")
        try:
            content = parse_json(text)
            if (found := content["format"]) != FORMAT:  # of which only the checksum is the same
                raise OtherFormat(
                    f"the unfinished run {self.folder.name} is of format {found!r}, this library "
                    f"goes on with format {FORMAT}: finish it with the version that began it, or "
                    f"remove it (python -m nofe_lab runs --remove {self.run_id})."
                )
            origin = content.get("origin", [])
            conditions = [printable(str(c)) for c in content["conditions"]]
            seconds = real_number("its time in seconds", content["seconds"], 0, MAX_SECONDS)
            interruptions = whole_number("its interruptions", content["interruptions"], 0)
            state = State(tensors, content["record"])
            run_id, step = content["id"], content["step"]
            told = content["record"].get("step", step)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, OtherFormat):
                raise
            raise UnreadableFile(
                f"it is not one of nofe_lab's ({type(error).__name__}: {error})."
            ) from error
        if (run_id, step, told) != (self.run_id, _step_of(path), _step_of(path)):
            raise IncompatibleCheckpoint(
                f"it is step {shown(step)} ({shown(told)}) of the run {shown(run_id)}."
            )
        if origin != self.origin:
            raise IncompatibleCheckpoint("the runs that it builds on have been trained anew since.")
        return state, seconds, interruptions, conditions


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest_of_tensors(tensors)} {text}".encode()).hexdigest()


def _step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 if it is none."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() and len(digits) < 16 else -1
