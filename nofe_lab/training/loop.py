"""The one training loop, for base CNNs, generalists, networks of experts and gates alike.

It knows a model, a task and batches.  It emits events; progress bars, histories and live views
listen to them.

Training can be stopped between any two steps and resumed by another process, with the same result
to the bit: the order of the images, their augmentation and every other random draw are functions of
the seed and the step, and everything else that a step depends on is in the checkpoint.

On several ranks (see `nofe_lab.ranks`) each computes its images of a batch; the task sees the
logits of all of them, on every rank.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nofe_lab.data import Batch, Batches
from nofe_lab.log import log
from nofe_lab.machine import seeded
from nofe_lab.ranks import (
    from_first,
    gathered,
    largest,
    own_rank,
    parallel,
    whole_draws,
    world_size,
)
from nofe_lab.recipes import Recipe
from nofe_lab.runs.checkpoint import MAX_SECONDS, Checkpoints, IncompatibleCheckpoint, State
from nofe_lab.training.events import EpochDone, Listener, StepDone, tell
from nofe_lab.training.interrupts import StopNow, StopRequests
from nofe_lab.training.tasks import Task, TrainingDiverged, check_finite

ParameterGroups = list[dict[str, Any]]


def fit(
    model: nn.Module,
    groups: ParameterGroups,
    task: Task,
    batches: Batches,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    listeners: Sequence[Listener] = (),
) -> list[dict[str, float]]:
    """Train `model` in place and return its history, one row an epoch.

    model: raw images uint8 [B, c, h, w] and what was drawn for them -> logits [B, n].  groups: the
    optimiser's parameter groups, with "rate_multiplier".  task: what it is taught.
    checkpoints: where training is saved, and resumed from if there is one.  An interruption
    (SIGINT) then raises Interrupted after the current step, once everything is saved; without
    checkpoints it raises KeyboardInterrupt at once, as usual.
    Losses stay on the device until the epoch ends.  Random numbers, of dropout for example, come
    from the global generators of torch, NumPy and Python, which are seeded for every step and
    restored after it.
    """
    with StopRequests(listen=checkpoints is not None) as stop:
        training = _Training(model, groups, task, batches, recipe, checkpoints, listeners, stop)
        training.resume()
        training.run()
        return training.history


class _Training:
    """One call of `fit`: its parts, and where it stands between two steps."""

    def __init__(
        self,
        model: nn.Module,
        groups: ParameterGroups,
        task: Task,
        batches: Batches,
        recipe: Recipe,
        checkpoints: Checkpoints | None,
        listeners: Sequence[Listener],
        stop: StopRequests,
    ) -> None:
        self.model, self.task, self.batches, self.recipe = model, task, batches, recipe
        self.checkpoints, self.listeners, self.stop = checkpoints, listeners, stop
        self.optimiser = sgd(groups, recipe, batches.device)
        self.steps = recipe.epochs * len(batches)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}
        """Of the current epoch, on the device: the loss of its batches, the metrics of its images.
        """
        self.seconds = 0.0
        """Of the current epoch."""
        self.is_step_open = False
        """Whether the task was interrupted after the last step and has yet to finish it."""

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if self.checkpoints is None:
            return
        checkpoints = self.checkpoints
        from_first(lambda: checkpoints.resume(self._load))
        if world_size() > 1:
            state = from_first(self._on_cpu)
            if own_rank() and state is not None:
                self._load(state)
        if self.step:
            log.info(f"{self.checkpoints.label}: resumes from step {self.step} of {self.steps}")
            tell(self.listeners, StepDone(self.step, self.steps))
            if self.is_step_open:
                self.is_step_open = False
                with self._seeded(self.step - 1):
                    self._after_step()

    def run(self) -> None:
        """Do the steps that are left."""
        batches, recipe = self.batches, self.recipe
        self.forward = parallel(self.model, lambda: batches.source.sample([0]))
        for epoch in range(self.step // len(batches), recipe.epochs):
            started = time.perf_counter() - self.seconds
            self.model.train()
            for batch in batches.epoch(epoch, self.step % len(batches)):
                with self._seeded(self.step):
                    self._do_step(batch)
                    epoch_ended = self.step % len(batches) == 0
                    if epoch_ended:
                        self._end_epoch(epoch, started)
                    else:
                        self.seconds = time.perf_counter() - started
                    self._after_step()  # after validation, so that both see one state of the task
                if self.checkpoints is None:
                    continue
                due = not own_rank() and self.checkpoints.due(epoch_ended)
                requested, due_at_first = largest(self.stop.requested or 0, due)
                if requested or due_at_first:
                    saved = from_first(self._save)
                    if requested:
                        self.stop.requested = requested
                        self.stop.end(self.step, self.steps, saved)

    def _seeded(self, step: int) -> AbstractContextManager[None]:
        """For what a step may draw: dropout draws from torch, networks of one's own from any."""
        return seeded(self.batches.seed, "step", step, device=self.batches.device)

    def _do_step(self, batch: Batch) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps) * group["rate_multiplier"]
        size = self.recipe.batch_size
        self.task.before_step(batch)
        with whole_draws(size):
            part = self.forward(batch.images, batch.drawn)
        logits = gathered(part, size)
        index, labels = (gathered(each, size) for each in (batch.index, batch.labels))
        batch = replace(batch, index=index, labels=labels)
        loss = self.task.loss(logits, batch)
        self.optimiser.zero_grad(set_to_none=True)
        (loss * world_size()).backward()  # the gradients of all ranks are averaged, not added up
        self.optimiser.step()
        found = {**self.task.metrics(logits.detach(), batch), "loss": loss.detach()}
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step += 1
        tell(self.listeners, StepDone(self.step, self.steps))

    def _end_epoch(self, epoch: int, started: float) -> None:
        row = from_first(lambda: self._row(epoch, started))
        self.history.append(row)
        self.sums, self.seconds = {}, 0.0
        tell(self.listeners, EpochDone(epoch + 1, self.recipe.epochs, row))

    def _row(self, epoch: int, started: float) -> dict[str, float]:
        batches, sums = len(self.batches), self.sums
        images = batches * self.recipe.batch_size
        check_finite(self.recipe, "losses", [sums["loss"]])
        check_finite(self.recipe, "weights", self.model.parameters())
        row = {
            "epoch": epoch + 1,
            "learning_rate": self.recipe.rate(self.step - 1, self.steps),
            "train_loss": sums.pop("loss").item() / batches,
            **{f"train_{name}": value.item() / images for name, value in sums.items()},
            **self.task.validate(self.model),
        }
        for name, value in row.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise TrainingDiverged(
                    f"{name} of epoch {epoch + 1} must be a finite number; got {value!r}."
                )
        row["seconds"] = time.perf_counter() - started
        return row

    def _after_step(self) -> None:
        try:
            self.task.after_step(self.step)
        except StopNow:
            self.is_step_open = True
            self.stop.end(self.step, self.steps, from_first(self._save))
        if not self.model.training:  # the task has evaluated it
            self.model.train()

    def _save(self) -> bool:
        assert self.checkpoints is not None
        return self.checkpoints.save(self.step, self._state())

    def _state(self) -> State:
        """Everything that the next step depends on and that the stage does not make itself."""
        weights = _values(self.model)
        momentum = {
            name: self.optimiser.state[value]["momentum_buffer"]
            for name, value in weights.items()
            if self.optimiser.state.get(value, {}).get("momentum_buffer") is not None
        }
        of_task = self.task.state_dict()
        tensors = {key: value for key, value in of_task.items() if isinstance(value, Tensor)}
        parts = {"model": weights, "momentum": momentum, "task": tensors, "sums": self.sums}
        record = {
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "open": self.is_step_open,
            "task": {key: value for key, value in of_task.items() if key not in tensors},
        }
        named = {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}
        return State(named, record)

    def _on_cpu(self) -> State | None:
        """The state for another rank; None before the first step."""
        if not self.step:
            return None
        state = self._state()
        return state._replace(tensors={name: t.cpu() for name, t in state.tensors.items()})

    def _load(self, state: State) -> None:
        """The inverse of `_state`.

        Raises IncompatibleCheckpoint, and changes nothing, if the state is another training's.
        """
        weights, momentum, of_task, sums = (
            {
                name.removeprefix(prefix): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(prefix)
            }
            for prefix in ("model.", "momentum.", "task.", "sums.")
        )
        own = _values(self.model)
        _check_alike("weights", weights, own)
        _check_alike("momentum", momentum, {name: own[name] for name in momentum if name in own})
        if not all(value.ndim == 0 and value.isfinite() for value in sums.values()):
            raise IncompatibleCheckpoint("the sums of its epoch are not finite scalars.")
        try:
            step, history = int(state.record["step"]), list(state.record["history"])
            seconds, record = float(state.record["seconds"]), dict(state.record["task"])
            rows = [{str(name): float(value) for name, value in row.items()} for row in history]
            epochs = [int(row.get("epoch", 0)) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise IncompatibleCheckpoint(
                f"its record cannot be read ({type(error).__name__}: {error})."
            ) from error
        if not 0 < step <= self.steps or epochs != [*range(1, step // len(self.batches) + 1)]:
            raise IncompatibleCheckpoint(
                f"it is of step {step} and {len(rows)} epochs; this training has {self.steps}."
            )
        if ("loss" in sums) != bool(step % len(self.batches)):
            raise IncompatibleCheckpoint("the sums of its epoch are missing, or another's.")
        if not 0 <= seconds <= MAX_SECONDS or not all(
            map(math.isfinite, chain(*map(dict.values, rows)))
        ):
            raise IncompatibleCheckpoint("its history holds values that are not finite.")
        try:
            self.task.load_state_dict({**record, **of_task})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, IncompatibleCheckpoint):
                raise
            raise IncompatibleCheckpoint(
                f"its task's state is another's ({type(error).__name__}: {error})."
            ) from error
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])
            for name, value in momentum.items():
                # laid out as its weights: the fused optimiser reads both in the order of memory
                buffer = torch.empty_like(own[name], memory_format=torch.preserve_format)
                self.optimiser.state[own[name]]["momentum_buffer"] = buffer.copy_(value)
        self.step, self.seconds = step, seconds
        self.is_step_open = state.record.get("open") is True
        self.history = [{**row, "epoch": n} for row, n in zip(rows, epochs, strict=True)]
        self.sums = {name: value.to(self.batches.device) for name, value in sums.items()}


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once, also those that a state dict leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check_alike(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise IncompatibleCheckpoint unless the tensors have the same names, types and shapes."""
    if odd := sorted(set(found) ^ set(expected)):
        raise IncompatibleCheckpoint(
            f"its {what} are another network's: only one of both has {odd[0]!r}."
        )
    for name, tensor in found.items():
        here = expected[name]
        if (tensor.dtype, tensor.shape) != (here.dtype, here.shape):
            raise IncompatibleCheckpoint(
                f"its {what} are another network's: {name!r} is {tensor.dtype} "
                f"{list(tensor.shape)}, not {here.dtype} {list(here.shape)}."
            )
        if not tensor.isfinite().all():
            raise IncompatibleCheckpoint(
                f"its {what} hold values that are not finite, in {name!r}."
            )


def seconds_per_step(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Batches,
    recipe: Recipe,
    synchronize: Callable[[], None],
    repeats: int = 3,
) -> float:
    """Median seconds of a training step.  The weights of `model` change."""
    model.train()
    optimiser = sgd(groups, recipe, batches.device)
    seconds = []
    with seeded(0, device=batches.device):
        for repeat, batch in enumerate(batches.epoch(0)):
            started = time.perf_counter()
            logits = model(batch.images, batch.drawn)
            cross_entropy(logits, batch.labels % logits.shape[1]).backward()
            optimiser.step()
            optimiser.zero_grad()
            synchronize()
            seconds.append(time.perf_counter() - started)
            if repeat == repeats:
                break
    return statistics.median(seconds[1:] or seconds)  # the first step warms up


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
