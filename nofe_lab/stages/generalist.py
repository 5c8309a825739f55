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

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from nofe_lab.config import GeneralistConfig, InvalidInput, derive_seed
from nofe_lab.data import Dataset
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties, affinity_matrix, assign, objective
from nofe_lab.specialties.assignment import Affinity
from nofe_lab.stages.stage import Stage, Trained
from nofe_lab.training import Listener, MapUpdated, check_finite

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

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.K, self.network_config.initialisation, self.seed)

    @property
    def updates(self) -> list[int]:
        """The steps after which the map is updated: the ends of all intervals but the last."""
        if self.config.rule == "random":
            return []
        interval = self.config.update_every
        if self.config.update_unit == "epochs":
            interval *= self.steps_per_epoch
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
        self, parents: Mapping[str, Run], machine: Machine, listeners: Sequence[Listener]
    ) -> Trained:
        model = self.image_network(self.network(), machine)
        current = Specialties.random(self.dataset.class_names, self.K, self.seed)
        maps = [(0, 0.0, current)]
        rows: list[dict[str, object]] = []
        due = set(self.updates)
        seen = RunningAffinity(self.dataset.C, self.K, self.config.affinity, machine.device)
        from_training = self.config.affinity_from == "training"

        def update(step: int) -> Tensor | None:
            nonlocal current
            if step not in due:
                return None
            number = len(maps)
            if from_training:
                check_finite(self.recipe, "predictions", [seen.total])
            affinity = seen.take() if from_training else self.affinity(model, number)
            old = np.array(current.of)
            new = assign(
                self.config.rule,
                affinity,
                old,
                seed=derive_seed(self.seed, "update", number),
                elastic_lambda=self.config.elastic_lambda,
            )
            current = Specialties(self.dataset.class_names, tuple(new), self.K)
            maps.append((number, step / self.steps_per_epoch, current))
            row = {
                "update": number,
                "step": step,
                "epoch": step / self.steps_per_epoch,
                "moved": int((old != new).sum()),
                "objective_before": objective(affinity, old),
                "objective_after": objective(affinity, new),
                "smallest": min(current.sizes),
                "largest": max(current.sizes),
                "sizes": " ".join(map(str, current.sizes)),
            }
            rows.append(row)
            for listener in listeners:
                listener(MapUpdated(number, row))
            return torch.tensor(current.of)

        start = torch.tensor(current.of)
        watch = seen.add if from_training else None
        history = self.fit(model, machine, start, listeners, new_table=update, observe=watch)
        final = seen.take() if from_training else self.affinity(model, len(maps))
        return Trained(
            model,
            history,
            files={
                "specialties.json": current.to_json(),
                "map_updates.csv": pd.DataFrame(rows, columns=MAP_UPDATE_COLUMNS).to_csv(
                    index=False
                ),
                "map_history.csv": _map_history(maps),
                "affinity.csv": pd.DataFrame(
                    final, index=pd.Index(current.class_names, name="class"), columns=current.names
                ).to_csv(),
            },
            result={"objective": objective(final, np.array(current.of))},
        )

    def affinity(self, model: nn.Module, number: int) -> Affinity:
        """A[C, K] on training images, a random subset drawn anew for each update."""
        seed = derive_seed(self.seed, "affinity", number)
        images = self.dataset.train.subset(self.config.affinity_images, seed)
        found = self.predict(model, images)
        return affinity_matrix(
            found.probabilities, found.labels, self.dataset.C, self.config.affinity
        )


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

    def take(self) -> Affinity:
        """The affinity since the last time; counting begins anew."""
        found = (self.total / self.images.clamp(min=1)[:, None]).cpu().double().numpy()
        self.total.zero_()
        self.images.zero_()
        return found


def _map_history(maps: Sequence[tuple[int, float, Specialties]]) -> str:
    """One row a class and update: the whole way of the partition from its random start (0)."""
    parts = [
        pd.DataFrame(
            {
                "update": number,
                "epoch": epoch,
                "class": range(found.C),
                "class_name": found.class_names,
                "specialty": found.of,
            }
        )
        for number, epoch, found in maps
    ]
    return pd.concat(parts).to_csv(index=False)
