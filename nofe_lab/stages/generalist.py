"""The generalist stage: an easy classifier, and the specialties that make its task easy.

The generalist is an ordinary CNN with K outputs.  It learns to tell specialties apart while the
specialties learn what it can tell apart, in turn:

1. start from a random, balanced partition of the classes;
2. train for an interval with the partition held fixed;
3. see into which specialty the network puts the training images of each class (the affinity),
   make the partition that fits best under the rule, and go on from 2 with the same weights and the
   same optimiser state.

Classes that the network confuses lean to the same specialty, so they meet there.  There is no
update after the last interval: the final partition is one that the generalist has trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from nofe_lab.checkpoint import Checkpoints, Misfit, State
from nofe_lab.config import GeneralistConfig, InvalidInput, derive_seed
from nofe_lab.data import Dataset
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties, affinity_matrix, assign, objective
from nofe_lab.specialties.assignment import Affinity
from nofe_lab.stages.stage import Stage, Trained
from nofe_lab.training import Listener, MapUpdated, check_finite, interruptible

MAP_UPDATE_COLUMNS = (
    "update",
    "step",
    "epoch",
    "moved",
    "objective_before",
    "objective_after",
    "smallest",
    "largest",
    "sizes",
)


MAX_UPDATES = 100_000
"""The most updates of the map in one training."""


class GeneralistStage(Stage):
    """The generalist and its specialty map."""

    kind = "generalist"

    def __init__(self, dataset: Dataset, backbone: Backbone, config: GeneralistConfig) -> None:
        self.config = config
        super().__init__(dataset, backbone, config, {})
        if config.K > dataset.C:
            raise InvalidInput(
                f"K must be at most the {dataset.C} classes of {dataset.name}; got {config.K}."
            )
        if config.rule != "random" and self.steps < 2:
            raise InvalidInput(
                f"epochs must be more, or batch_size smaller, for an update of the map amid the "
                f"training; got {self.steps} step in all."
            )
        if config.rule != "random" and not self.updates:
            raise InvalidInput(
                f"update_every must leave room for an update within {self.recipe.epochs} epochs; "
                f"got {config.update_every:g} {config.update_unit}."
            )

    @property
    def title(self) -> str:
        return f"generalist ({self.config.rule}, K = {self.K})"

    @property
    def K(self) -> int:
        return self.config.K

    @property
    def outputs(self) -> int:
        return self.K

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.K, self.network_config.initialisation, self.seed)

    @cached_property
    def updates(self) -> list[int]:
        """The steps after which the map is updated: the ends of all intervals but the last."""
        if self.config.rule == "random":
            return []
        interval = self.config.update_every
        if self.config.update_unit == "epochs":
            interval *= self.steps_per_epoch
        interval = max(interval, 1)  # more often than after each step is no more often
        if self.steps / interval > MAX_UPDATES:
            raise InvalidInput(
                f"update_every must be longer: {self.config.update_every:g} "
                f"{self.config.update_unit} make more than {MAX_UPDATES:,} updates of the map in "
                f"{self.recipe.epochs:,} epochs."
            )
        ends = np.arange(1, int(self.steps / interval) + 1) * interval
        return sorted({int(end) for end in ends.round() if 0 < end < self.steps})

    @property
    def images_evaluated(self) -> int:
        every = len(self.dataset.train)
        if self.config.affinity_from == "training":
            return super().images_evaluated
        each = min(self.config.affinity_images or every, every)
        return super().images_evaluated + (len(self.updates) + 1) * each

    def train(
        self,
        parents: Mapping[str, Run],
        machine: Machine,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        model = self.image_network(self.network(), machine)
        learning = MapLearning(self, model, machine, listeners)
        history = self.fit(
            model,
            machine,
            learning.table,
            listeners,
            checkpoints,
            new_table=learning.update,
            observe=learning.observe,
            memory=learning,
        )
        final = learning.affinity()
        return Trained(
            model,
            history,
            files={
                "specialties.json": learning.specialties.to_json(),
                "map_updates.csv": pd.DataFrame(learning.rows, columns=MAP_UPDATE_COLUMNS).to_csv(
                    index=False
                ),
                "map_history.csv": learning.history(),
                "affinity.csv": pd.DataFrame(
                    final,
                    index=pd.Index(self.dataset.class_names, name="class"),
                    columns=learning.specialties.names,
                ).to_csv(),
            },
            result={"objective": objective(final, learning.maps[-1])},
        )

    def affinity(self, model: nn.Module, number: int) -> Affinity:
        """A[C, K] on training images, a random subset drawn anew for each update."""
        seed = derive_seed(self.seed, "affinity", number)
        images = self.dataset.train.subset(self.config.affinity_images, seed)
        found = self.predict(model, images)
        return affinity_matrix(
            found.probabilities, found.labels, self.dataset.C, self.config.affinity
        )


class MapLearning:
    """The specialty map on its way from the random start: the hooks of the training loop."""

    def __init__(
        self,
        stage: GeneralistStage,
        model: nn.Module,
        machine: Machine,
        listeners: Sequence[Listener],
    ) -> None:
        self.stage = stage
        self.model = model
        self.listeners = listeners
        C, K = stage.dataset.C, stage.K
        start = Specialties.random(stage.dataset.class_names, K, stage.seed)
        self.maps = [np.array(start.of, dtype=np.int64)]
        """int64 [C] each: the start, and the map after each update."""
        self.rows: list[dict[str, Any]] = []
        """What each update did: MAP_UPDATE_COLUMNS."""
        self.seen: RunningAffinity | None = None
        if stage.config.affinity_from == "training":
            self.seen = RunningAffinity(C, K, stage.config.affinity, machine.device)

    @property
    def specialties(self) -> Specialties:
        """The current partition."""
        return Specialties(self.stage.dataset.class_names, tuple(self.maps[-1]), self.stage.K)

    @property
    def table(self) -> Tensor:
        """The generalist's target for each class, int64 [C]."""
        return torch.from_numpy(self.maps[-1])

    def observe(self, logits: Tensor, classes: Tensor) -> None:
        """Take note of a training step's predictions, if the affinity is made of them."""
        if self.seen is not None:
            self.seen.add(logits, classes)

    def affinity(self) -> Affinity:
        """A[C, K] for the next update, or after the last."""
        if self.seen is None:
            return self.stage.affinity(self.model, len(self.maps))
        check_finite(self.stage.recipe, "predictions", [self.seen.total])
        return self.seen.affinity

    def update(self, step: int) -> Tensor | None:
        """Update the map, if an update is due after `step` steps, and return the new table."""
        stage, config = self.stage, self.stage.config
        if step not in stage.updates:
            return None
        number, old = len(self.maps), self.maps[-1]
        with interruptible():
            affinity = self.affinity()
            new = assign(
                config.rule,
                affinity,
                old,
                seed=derive_seed(stage.seed, "update", number),
                elastic_lambda=config.elastic_lambda,
            )
        if self.seen is not None:
            self.seen.begin_anew()
        self.maps.append(new)
        sizes = self.specialties.sizes
        row = {
            "update": number,
            "step": step,
            "epoch": step / stage.steps_per_epoch,
            "moved": int((old != new).sum()),
            "objective_before": objective(affinity, old),
            "objective_after": objective(affinity, new),
            "smallest": min(sizes),
            "largest": max(sizes),
            "sizes": " ".join(map(str, sizes)),
        }
        self.rows.append(row)
        for listener in self.listeners:
            listener(MapUpdated(number, row, tuple(new.tolist())))
        return self.table

    def history(self) -> str:
        """CSV, one row a class and update: the map's way from its random start (0)."""
        names = self.stage.dataset.class_names
        epochs = [0.0, *(row["epoch"] for row in self.rows)]
        parts = [
            pd.DataFrame(
                {
                    "update": number,
                    "epoch": epoch,
                    "class": range(len(names)),
                    "class_name": names,
                    "specialty": found,
                }
            )
            for number, (epoch, found) in enumerate(zip(epochs, self.maps, strict=True))
        ]
        return pd.concat(parts).to_csv(index=False)

    def state(self) -> State:
        tensors = {"maps": torch.from_numpy(np.stack(self.maps))}
        if self.seen is not None:
            tensors |= {"affinity": self.seen.total, "images": self.seen.images}
        return State(tensors, {"updates": self.rows})

    def restore(self, state: State) -> Tensor:
        stage, seen = self.stage, self.seen
        kept = state.tensors.get("maps")
        count = len(kept) if kept is not None and kept.ndim else 0
        expected: dict[str, Any] = {"maps": (torch.int64, (count, stage.dataset.C))}
        if seen is not None:
            expected["affinity"] = (torch.float32, tuple(seen.total.shape))
            expected["images"] = (torch.float32, tuple(seen.images.shape))
        found = {name: (value.dtype, tuple(value.shape)) for name, value in state.tensors.items()}
        if found != expected:
            raise Misfit(f"its specialty map is another's: {found}, not {expected}.")
        maps = state.tensors["maps"].numpy()
        rows: Any = state.record.get("updates") if isinstance(state.record, Mapping) else None
        is_history = (
            isinstance(rows, list)
            and len(rows) == len(maps) - 1
            and all(isinstance(row, dict) and set(row) == set(MAP_UPDATE_COLUMNS) for row in rows)
            and [row["step"] for row in rows] == stage.updates[: len(rows)]
        )
        if not is_history or (maps[0] != self.maps[0]).any():
            raise Misfit("the history of its specialty map is another's.")
        if maps.min() < 0 or maps.max() >= stage.K:
            raise Misfit(f"its specialty map holds {maps.min()} to {maps.max()}, K is {stage.K}.")
        self.maps, self.rows = list(maps.copy()), rows
        if seen is not None:
            seen.total.copy_(state.tensors["affinity"])
            seen.images.copy_(state.tensors["images"])
        return self.table


class RunningAffinity:
    """A[C, K] of the predictions of training, added up on the device (see `affinity_matrix`)."""

    def __init__(self, C: int, K: int, kind: str, device: torch.device) -> None:
        self.kind = kind
        self.total = torch.zeros(C, K, device=device)
        self.images = torch.zeros(C, device=device)

    def add(self, logits: Tensor, classes: Tensor) -> None:
        """Count a batch: logits [B, K], classes int64 [B]."""
        votes = logits.softmax(1)
        if self.kind == "counts":
            # what is not a number stays so, to be found
            votes = one_hot(votes.argmax(1), logits.shape[1]) + 0 * logits
        self.total.index_add_(0, classes, votes)
        self.images.index_add_(0, classes, torch.ones_like(classes, dtype=votes.dtype))

    @property
    def affinity(self) -> Affinity:
        """Of all that was added since counting began."""
        return (self.total / self.images.clamp(min=1)[:, None]).cpu().double().numpy()

    def begin_anew(self) -> None:
        """Forget what was counted."""
        self.total.zero_()
        self.images.zero_()
