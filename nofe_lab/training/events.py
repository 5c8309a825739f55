"""The events of a training, and the progress that is shown of them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tqdm.auto import tqdm

from nofe_lab.log import log


@dataclass(frozen=True)
class StageBegun:
    """A stage is about to be trained, or to go on."""

    title: str
    """What is trained, for readers."""
    steps: int
    """Of the whole stage."""
    epochs: int
    """Of the whole stage."""


@dataclass(frozen=True)
class StageEnded:
    """The stage is trained, or broken off."""

    title: str
    finished: bool


@dataclass(frozen=True)
class StageLoaded:
    """The stage was trained before: its run is loaded."""

    title: str


@dataclass(frozen=True)
class StageAwaited:
    """Another process or thread is training the stage; told each second until it has ended."""

    title: str
    holder: str
    """Who it is, e.g. "process 7 on host"."""


@dataclass(frozen=True)
class StepDone:
    """One step of SGD is done."""

    step: int
    """Counted from 1."""
    steps: int
    """Of the whole stage."""


@dataclass(frozen=True)
class EpochDone:
    """One epoch is done; `row` is its line of the history."""

    epoch: int
    """Counted from 1."""
    epochs: int
    """Of the whole stage."""
    row: dict[str, float]


@dataclass(frozen=True)
class MapUpdated:
    """The generalist's specialty map was updated; `row` is its line of the map's history."""

    update: int
    """Counted from 1; 0 is the random start."""
    row: dict[str, Any]
    specialty_of: tuple[int, ...]
    """The new specialty of each class."""


Event = StageLoaded | StageAwaited | StageBegun | StepDone | EpochDone | MapUpdated | StageEnded
Listener = Callable[[Event], None]


def tell(listeners: Sequence[Listener], event: Event) -> None:
    """Hand an event to all who listen."""
    for listener in listeners:
        listener(event)


SILENCE = 60.0
"""Seconds after which a training says how far it is, if nothing else was said meanwhile."""

LITTLE = 30.0
"""Seconds that are left, of which nothing is said."""


class Progress:
    """Shows a stage's events: a bar where somebody watches, plain lines in a log.

    The bar is tqdm's, a widget in JupyterLab.  Under papermill, in a pipe or a file, where a bar
    would leave a trail of fragments, each epoch prints one line.
    """

    def __init__(self) -> None:
        self._begin("", 0)
        self.bar: Any = None

    def _begin(self, title: str, steps: int) -> None:
        self.title, self.steps = title, steps
        self.began: tuple[int, float] | None = None
        self.last_said = time.perf_counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageBegun):
            self._begin(event.title, event.steps)
            if watched():
                self.bar = tqdm(total=event.steps, desc=event.title, unit="step", leave=False)
        elif isinstance(event, StageEnded):
            if self.bar is not None:
                self.bar.close()
            self.bar = None
        elif isinstance(event, StepDone):
            if self.bar is not None:
                self.bar.update(event.step - self.bar.n)
            now = time.perf_counter()
            self.began = self.began or (event.step, now)
            if now - self.last_said > SILENCE and (left := self._left(event.step)):
                self._line(f"step {event.step} of {event.steps}{left}")
        elif isinstance(event, MapUpdated):
            self._line(
                f"map update {event.update}: {event.row['moved']} classes moved, objective "
                f"{event.row['objective_before']:.3f} -> {event.row['objective_after']:.3f}"
            )
        elif isinstance(event, EpochDone):
            row = event.row
            left = self._left(event.epoch * self.steps // event.epochs)
            shown = ("train", "val")
            right = [f", {n} {row[k]:.1%}" for n in shown if (k := f"{n}_accuracy") in row]
            self._line(
                f"epoch {event.epoch}/{event.epochs}: loss {row['train_loss']:.3f}"
                f"{''.join(right)}, {row['seconds']:.0f} s{left}"
            )

    def _left(self, step: int) -> str:
        """How long it will take from here, by the time that it has taken; "" at the end."""
        first, began = self.began or (step, 0.0)
        if step >= self.steps or step <= first:
            return ""
        seconds = (time.perf_counter() - began) / (step - first) * (self.steps - step)
        return f", about {seconds / 60:.1f} min left" if seconds > LITTLE else ""

    def _line(self, text: str) -> None:
        self.last_said = time.perf_counter()
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            log.info(f"{self.title}: {text}")


def watched() -> bool:
    """Whether somebody sees more than a log: a notebook that is open, or a terminal."""
    # jupyter_server names the notebook's session in its kernels' environment; papermill does not
    in_kernel = "ipykernel" in sys.modules and "JPY_SESSION_NAME" in os.environ
    has_place = threading.current_thread() is threading.main_thread()  # which cell would it be in?
    return has_place and (in_kernel or cast(bool, sys.stderr.isatty()))
