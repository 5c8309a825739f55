"""The one training loop, for base CNNs, generalists and networks of experts alike.

It knows nothing about specialties beyond a table: the target of each class.  A base CNN's table is
the identity, a generalist's is the specialty map, and when the map is updated the table is replaced
between two steps while weights and optimiser state go on.

The loop emits events; progress bars, histories and live views listen to them.

It can be stopped between any two steps and taken up again, by another process, as if it had never
been stopped: the order of the images, their augmentation and every other random draw are functions
of the seed and of the place in the training, and all else that a step depends on is kept in a
checkpoint (`nofe_lab.checkpoint`).
"""

from __future__ import annotations

import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from types import FrameType
from typing import Any, ClassVar, NoReturn, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from nofe_lab.checkpoint import MAX_SECONDS, Checkpoints, Misfit, State
from nofe_lab.config import InvalidInput, Recipe, derive_seed
from nofe_lab.data.batches import Batches
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


class TrainingDiverged(InvalidInput):
    """The loss or the weights are no longer numbers; nothing of the stage is kept."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by hand and is kept; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Memory(Protocol):
    """What the hooks of `fit` remember from step to step."""

    def state(self) -> State:
        """All of it, for a checkpoint."""

    def restore(self, state: State) -> Tensor:
        """Go on from there, with the table that is returned.

        Raises Misfit, and changes nothing, if the state is another training's.
        """


STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that ask a training to stop; a terminal that is closed sends SIGHUP."""

Event = StageLoaded | StageBegun | StepDone | EpochDone | MapUpdated | StageEnded
Listener = Callable[[Event], None]
ParameterGroups = list[dict[str, Any]]


def fit(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Batches,
    recipe: Recipe,
    target_of_class: Tensor,
    *,
    validate: Callable[[Tensor], dict[str, float]] | None = None,
    new_table: Callable[[int], Tensor | None] | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
    memory: Memory | None = None,
    checkpoints: Checkpoints | None = None,
    listeners: Sequence[Listener] = (),
) -> list[dict[str, float]]:
    """Train `model` in place and return its history, one row an epoch.

    model: raw images uint8 [B, c, h, w] and what was drawn for them -> logits.  groups: the
    optimiser's parameter groups, with "rate_multiplier".
    target_of_class: int64 [C], the output that stands for a class; or float [C, n], the
    probabilities that its images are to be given.
    validate: called with the table after each epoch; its figures join the row.
    new_table: called with the number of steps done; returns a table to go on with, or None.  At the
    end of an epoch it is called after the validation.
    observe: called in every step with the logits [B, n] and the classes [B] of its images.
    memory: of the hooks, which is kept with the rest.
    checkpoints: where training is kept, and goes on from if there is one.  An interruption (SIGINT)
    then raises Interrupted after the step under way, when all is saved; without them it raises
    KeyboardInterrupt at once, as usual.
    Losses stay on the device until the epoch ends.  Random numbers, of dropout for example, are
    drawn from the global states of torch, numpy and Python, which are seeded anew for every step
    and are afterwards what they were before.
    """
    with _own_random_states(), _StopRequests(listen=checkpoints is not None) as stop:
        return _fit(
            model,
            groups,
            batches,
            recipe,
            _Place(target_of_class, batches.device),
            validate,
            new_table,
            observe,
            memory,
            checkpoints,
            stop,
            listeners,
        )


@dataclass
class _Place:
    """Where a training stands between two steps."""

    table: Tensor
    device: torch.device
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    """Of the epoch under way."""
    is_unready: bool = False
    """Whether what belongs behind the last step, an update of the table, is yet to be done."""

    def __post_init__(self) -> None:
        self.table = self.table.to(self.device)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget what belongs to the last epoch."""
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), device=self.device, dtype=torch.int64)
        self.seconds = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of its values that are tensors."""
        return {"loss_sum": self.loss_sum, "correct": self.correct}


def _fit(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Batches,
    recipe: Recipe,
    place: _Place,
    validate: Callable[[Tensor], dict[str, float]] | None,
    new_table: Callable[[int], Tensor | None] | None,
    observe: Callable[[Tensor, Tensor], None] | None,
    memory: Memory | None,
    checkpoints: Checkpoints | None,
    stop: _StopRequests,
    listeners: Sequence[Listener],
) -> list[dict[str, float]]:
    device = batches.device
    optimiser = sgd(groups, recipe, device)
    steps = recipe.epochs * len(batches)

    def after_step() -> None:
        try:
            found = new_table(place.step) if new_table is not None else None
        except _StopNow:
            place.is_unready = True
            stop.end(place.step, steps, keep())
        if found is not None:
            place.table = found.to(device)
            model.train()

    def keep() -> bool:
        assert checkpoints is not None
        return checkpoints.save(place.step, _state_of(model, optimiser, place, memory))

    if checkpoints is not None:
        resumable = (model, optimiser, place, memory)
        checkpoints.resume(lambda state: _restore(state, *resumable, steps, len(batches)))
        if place.step:
            log.info(f"{checkpoints.label}: goes on from step {place.step} of {steps}")
            tell(listeners, StepDone(place.step, steps))
            if place.is_unready:
                place.is_unready = False
                after_step()
    for epoch in range(place.step // len(batches), recipe.epochs):
        started = time.perf_counter() - place.seconds
        model.train()
        for images, labels, drawn in batches.epoch(epoch, place.step % len(batches)):
            _seed(device, derive_seed(batches.seed, "step", place.step))
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(place.step, steps) * group["rate_multiplier"]
            targets = place.table[labels]
            logits = model(images, drawn)
            loss = cross_entropy(logits, targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            place.loss_sum += loss.detach()
            right = targets if targets.ndim == 1 else targets.argmax(1)
            place.correct += (logits.detach().argmax(1) == right).sum()
            if observe is not None:
                observe(logits.detach(), labels)
            place.step += 1
            tell(listeners, StepDone(place.step, steps))
            epoch_ended = place.step % len(batches) == 0
            if epoch_ended:
                row = {
                    "epoch": epoch + 1,
                    "learning_rate": recipe.rate(place.step - 1, steps),
                    "train_loss": place.loss_sum.item() / len(batches),
                    "train_accuracy": place.correct.item() / (len(batches) * recipe.batch_size),
                }
                check_finite(recipe, "losses", [place.loss_sum])
                check_finite(recipe, "weights", model.parameters())
                row |= validate(place.table) if validate is not None else {}
                row["seconds"] = time.perf_counter() - started
                place.history.append(row)
                place.begin_epoch()
                tell(listeners, EpochDone(epoch + 1, recipe.epochs, row))
            else:
                place.seconds = time.perf_counter() - started
            after_step()  # after validation, so that both speak of one table
            if checkpoints is not None and (stop.requested or checkpoints.due(epoch_ended)):
                kept = keep()
                if stop.requested:
                    stop.end(place.step, steps, kept)
    return place.history


def _state_of(
    model: nn.Module, optimiser: torch.optim.SGD, place: _Place, memory: Memory | None
) -> State:
    """All that the next step depends on, but what is made anew from the stage itself."""
    remembered = memory.state() if memory is not None else State({}, {})
    weights = _values(model)
    momentum = {
        name: optimiser.state[value]["momentum_buffer"]
        for name, value in weights.items()
        if optimiser.state.get(value, {}).get("momentum_buffer") is not None
    }
    tensors = {
        **{f"model.{name}": value for name, value in weights.items()},
        **{f"momentum.{name}": value for name, value in momentum.items()},
        **{f"memory.{name}": value for name, value in remembered.tensors.items()},
        **{f"place.{name}": value for name, value in place.tensors.items()},
    }
    record = {
        "step": place.step,
        "history": place.history,
        "seconds": place.seconds,
        "unready": place.is_unready,
        "memory": remembered.record,
    }
    return State(tensors, record)


def _restore(
    state: State,
    model: nn.Module,
    optimiser: torch.optim.SGD,
    place: _Place,
    memory: Memory | None,
    steps: int,
    steps_per_epoch: int,
) -> None:
    """The inverse of `_state_of`.  Raises Misfit, and changes nothing, if it is not of this."""
    weights, momentum, remembered, placed = (
        {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        for prefix in ("model.", "momentum.", "memory.", "place.")
    )
    own = _values(model)
    _check_alike("weights", weights, own)
    _check_alike("momentum", momentum, {name: own[name] for name in momentum if name in own})
    _check_alike("place", placed, place.tensors)
    try:
        step, history = int(state.record["step"]), list(state.record["history"])
        seconds, record = float(state.record["seconds"]), state.record["memory"]
        rows = [{str(name): float(value) for name, value in row.items()} for row in history]
        epochs = [int(row.get("epoch", 0)) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Misfit(f"its record is not one ({type(error).__name__}: {error}).") from error
    if not 0 < step <= steps or epochs != [*range(1, step // steps_per_epoch + 1)]:
        raise Misfit(f"it is of step {step} and {len(rows)} epochs; this training has {steps}.")
    if not 0 <= seconds <= MAX_SECONDS or not all(
        map(math.isfinite, chain(*map(dict.values, rows)))
    ):
        raise Misfit("its history holds what is no number.")
    if memory is not None:
        place.table = memory.restore(State(remembered, record)).to(place.device)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
        for name, value in momentum.items():
            # laid out as its weights: the fused optimiser reads both in the order of memory
            buffer = torch.empty_like(own[name], memory_format=torch.preserve_format)
            optimiser.state[own[name]]["momentum_buffer"] = buffer.copy_(value)
    place.step, place.seconds = step, seconds
    place.is_unready = state.record.get("unready") is True
    place.history = [{**row, "epoch": n} for row, n in zip(rows, epochs, strict=True)]
    place.loss_sum = placed["loss_sum"].to(place.device)
    place.correct = placed["correct"].to(place.device)


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once, also those that a state dict leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check_alike(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise Misfit unless the tensors have the same names, types and shapes."""
    if odd := sorted(set(found) ^ set(expected)):
        raise Misfit(f"its {what} are another network's: {odd[0]!r} is in one of both alone.")
    for name, tensor in found.items():
        here = expected[name]
        if (tensor.dtype, tensor.shape) != (here.dtype, here.shape):
            raise Misfit(
                f"its {what} are another network's: {name!r} is {tensor.dtype} "
                f"{list(tensor.shape)}, not {here.dtype} {list(here.shape)}."
            )
        if not tensor.isfinite().all():
            raise Misfit(f"its {what} hold values that are not finite, in {name!r}.")


class _StopNow(BaseException):
    """A request to stop has come where nothing is lost by breaking off."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Marks work of a hook, such as an update of the map, that a request to stop breaks off.

    It must change nothing that the hook remembers: it is done anew when the training goes on.
    """
    stop = _StopRequests.listening
    if stop is None:
        yield
        return
    stop.may_raise = True
    try:
        if stop.requested is not None:
            raise _StopNow
        yield
    finally:
        stop.may_raise = False


class _StopRequests:
    """SIGINT, SIGTERM and SIGHUP, noted instead of obeyed, so that training stops between steps.

    A second SIGINT is obeyed at once.  In another thread than the main one, where Python delivers
    no signals, nothing is listened to.
    """

    listening: ClassVar[_StopRequests | None] = None

    def __init__(self, listen: bool) -> None:
        self.listens = listen and threading.current_thread() is threading.main_thread()
        self.requested: int | None = None
        self.may_raise = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequests:
        for number in STOPPING if self.listens else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)
        if self.listens:
            _StopRequests.listening = self
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        if self.listens:
            _StopRequests.listening = None
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.before = {}
        if self.requested is not None and kind is None:  # it came when there was no step to end
            os.kill(os.getpid(), self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            handler = self.before[number]
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        self.requested = number
        if self.may_raise:
            self.may_raise = False
            raise _StopNow

    def end(self, step: int, steps: int, kept: bool) -> NoReturn:
        """Stop, now that all is kept: by the signal that asks for it, or with a sentence."""
        number, self.requested = self.requested, None
        self.__exit__()
        if number is not None and number != signal.SIGINT:
            os.kill(os.getpid(), number)
            # whoever handles that signal lets us live: then the cell ends here
        state = "all of it is kept" if kept else "what was saved before is kept"
        raise Interrupted(
            f"stopped after step {step} of {steps}; {state}. Run this cell, or the same command, "
            "again to go on."
        )


def check_finite(recipe: Recipe, what: str, values: Iterable[Tensor]) -> None:
    """Raise TrainingDiverged unless all values are finite."""
    if not torch.stack([tensor.detach().isfinite().all() for tensor in values]).all():
        raise TrainingDiverged(
            f"training has diverged, its {what} are no longer finite: a learning_rate below "
            f"{recipe.learning_rate:g} or a batch_size above {recipe.batch_size} may help."
        )


def seconds_per_step(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Batches,
    recipe: Recipe,
    targets: int,
    synchronize: Callable[[], None],
    repeats: int = 3,
) -> float:
    """Median seconds of a training step; `model` is not what it was afterwards."""
    model.train()
    optimiser = sgd(groups, recipe, batches.device)
    seconds = []
    with _own_random_states():
        for repeat, (images, labels, drawn) in enumerate(batches.epoch(0)):
            started = time.perf_counter()
            cross_entropy(model(images, drawn), labels % targets).backward()
            optimiser.step()
            optimiser.zero_grad()
            synchronize()
            seconds.append(time.perf_counter() - started)
            if repeat == repeats:
                break
    return statistics.median(seconds[1:] or seconds)  # the first step warms up


def _seed(device: torch.device, seed: int) -> None:
    """Seed what a step may draw from: dropout draws from torch, networks of one's own from any."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would look for all devices
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextmanager
def _own_random_states() -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def sgd(groups: ParameterGroups, recipe: Recipe, device: torch.device) -> torch.optim.SGD:
    """The optimiser: SGD, fused into one kernel for all weights where the device has it.

    The loop sets the learning rates before each step.
    """
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=device.type in ("cpu", "cuda"),
    )


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

    def __init__(self, title: str, steps: int) -> None:
        self.title = title
        self.steps = steps
        self.began: tuple[int, float] | None = None
        self.last_said = time.perf_counter()
        self.bar = tqdm(total=steps, desc=title, unit="step", leave=False) if watched() else None

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
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
            val = f", val {row['val_accuracy']:.1%}" if "val_accuracy" in row else ""
            self._line(
                f"epoch {event.epoch}/{event.epochs}: loss {row['train_loss']:.3f}, "
                f"train {row['train_accuracy']:.1%}{val}, {row['seconds']:.0f} s{left}"
            )

    def _left(self, step: int) -> str:
        """How long it will take from here, by the time that it has taken; "" at the end."""
        first, began = self.began or (step, 0.0)
        if step >= self.steps or step <= first:
            return ""
        seconds = (time.perf_counter() - began) / (step - first) * (self.steps - step)
        return f", about {seconds / 60:.1f} min left" if seconds > LITTLE else ""

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

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
    return in_kernel or cast(bool, sys.stderr.isatty())
