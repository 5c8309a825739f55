"""The one training loop, for base CNNs, generalists and networks of experts alike.

It knows nothing about specialties beyond a table: the target of each class.  A base CNN's table is
the identity, a generalist's is the specialty map, and when the map is updated the table is replaced
between two steps while weights and optimiser state go on.

The loop emits events; progress bars, histories and live views listen to them.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from nofe_lab.config import InvalidInput, Recipe, derive_seed
from nofe_lab.data.batches import Batches


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


class TrainingDiverged(InvalidInput):
    """The loss or the weights are no longer numbers; nothing of the stage is kept."""


Event = StepDone | EpochDone | MapUpdated
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
    listeners: Sequence[Listener] = (),
) -> list[dict[str, float]]:
    """Train `model` in place and return its history, one row an epoch.

    model: raw images uint8 [B, c, h, w] and what was drawn for them -> logits.  groups: the
    optimiser's parameter groups, with "rate_multiplier".
    target_of_class: int64 [C], the output that stands for a class.
    validate: called with the table after each epoch; its figures join the row.
    new_table: called with the number of steps done; returns a table to go on with, or None.  At the
    end of an epoch it is called after the validation.
    observe: called in every step with the logits [B, n] and the classes [B] of its images.
    Losses stay on the device until the epoch ends.  Dropout draws from torch's global random state,
    which is seeded anew for every step and is afterwards what it was before.
    """
    with _own_random_state():
        return _fit(
            model, groups, batches, recipe, target_of_class, validate, new_table, observe, listeners
        )


def _fit(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Batches,
    recipe: Recipe,
    target_of_class: Tensor,
    validate: Callable[[Tensor], dict[str, float]] | None,
    new_table: Callable[[int], Tensor | None] | None,
    observe: Callable[[Tensor, Tensor], None] | None,
    listeners: Sequence[Listener],
) -> list[dict[str, float]]:
    device = batches.device
    optimiser = sgd(groups, recipe, device)
    table = target_of_class.to(device)
    steps = recipe.epochs * len(batches)
    step = 0

    def after_step(done: int, table: Tensor) -> Tensor:
        found = new_table(done) if new_table is not None else None
        if found is None:
            return table
        model.train()
        return found.to(device)

    history: list[dict[str, float]] = []
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        model.train()
        for images, labels, drawn in batches.epoch(epoch):
            _seed(device, derive_seed(batches.seed, "step", step))
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step, steps) * group["rate_multiplier"]
            targets = table[labels]
            logits = model(images, drawn)
            loss = cross_entropy(logits, targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == targets).sum()
            if observe is not None:
                observe(logits.detach(), labels)
            step += 1
            _tell(listeners, StepDone(step, steps))
            if step % len(batches):
                table = after_step(step, table)
        row = {
            "epoch": epoch + 1,
            "learning_rate": recipe.rate(step - 1, steps),
            "train_loss": loss_sum.item() / len(batches),
            "train_accuracy": correct.item() / (len(batches) * recipe.batch_size),
        }
        check_finite(recipe, "losses", [loss_sum])
        check_finite(recipe, "weights", model.parameters())
        row |= validate(table) if validate is not None else {}
        row["seconds"] = time.perf_counter() - started
        history.append(row)
        _tell(listeners, EpochDone(epoch + 1, recipe.epochs, row))
        table = after_step(step, table)  # after validation, so that both speak of one table
    return history


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
    with _own_random_state():
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
    """Seed what dropout draws from; torch.manual_seed takes longer, as it looks for all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _own_random_state() -> AbstractContextManager[None]:
    return torch.random.fork_rng(range(torch.cuda.device_count()))


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


def _tell(listeners: Sequence[Listener], event: Event) -> None:
    for listener in listeners:
        listener(event)


class Progress:
    """Shows a stage's events: a bar where somebody watches, plain lines in a log.

    The bar is tqdm's, a widget in JupyterLab.  Under papermill, in a pipe or a file, where a bar
    would leave a trail of fragments, each epoch prints one line.
    """

    def __init__(self, title: str, steps: int) -> None:
        self.title = title
        self.bar = tqdm(total=steps, desc=title, unit="step", leave=False) if _watched() else None

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if self.bar is not None:
                self.bar.update(event.step - self.bar.n)
        elif isinstance(event, MapUpdated):
            self._line(
                f"map update {event.update}: {event.row['moved']} classes moved, objective "
                f"{event.row['objective_before']:.3f} -> {event.row['objective_after']:.3f}"
            )
        else:
            row = event.row
            val = f", val {row['val_accuracy']:.1%}" if "val_accuracy" in row else ""
            self._line(
                f"epoch {event.epoch}/{event.epochs}: loss {row['train_loss']:.3f}, "
                f"train {row['train_accuracy']:.1%}{val}, {row['seconds']:.0f} s"
            )

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            print(f"{self.title}: {text}", flush=True)


def _watched() -> bool:
    # jupyter_server names the notebook's session in its kernels' environment; papermill does not
    in_kernel = "ipykernel" in sys.modules and "JPY_SESSION_NAME" in os.environ
    return in_kernel or cast(bool, sys.stderr.isatty())
