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

With a fine head it learns the classes too, all the while, so that its trunk is one that tells
classes apart, as a base CNN's does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from nofe_lab.config import ABOVE_0, InvalidInput, derive_seed
from nofe_lab.data import Batch, Dataset
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.knobs import Real, Whole, check_fields
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone
from nofe_lab.ranks import from_first
from nofe_lab.runs.checkpoint import IncompatibleCheckpoint
from nofe_lab.specialties import Specialties, affinity_matrix, assign, objective
from nofe_lab.specialties.assignment import Affinity, Map
from nofe_lab.stages.stage import Stage, StageConfig, Trained, Work
from nofe_lab.training.events import Listener, MapUpdated
from nofe_lab.training.interrupts import interruptible
from nofe_lab.training.tasks import Task, check_finite

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


@dataclass(frozen=True)
class GeneralistConfig(StageConfig):
    """A base CNN over K specialties that are learned together with its weights."""

    K: int = 10
    """Number of specialties."""
    rule: str = "optimal"
    """How the map is updated; with `random` it is drawn once and never updated."""
    update_every: float = 1.0
    """Length in epochs of a training interval between two updates of the map."""
    map_updates: int | None = None
    """How many updates there are, after intervals of one length, instead of `update_every`."""
    affinity: Literal["counts", "probability"] = "counts"
    """What A[c, k] adds up: arg-max decisions, or softmax probabilities."""
    affinity_images: int | None = None
    """Size of the random subset of the training images that A is measured on; None: all."""
    affinity_from: Literal["evaluation", "training"] = "evaluation"
    """evaluation: A is measured by a pass over these images, as published; training: from the
    predictions of the steps since the last update, which costs no pass."""
    elastic_lambda: float = 1000.0
    """Weight of the size penalty of the elastic rule, for counts rescaled to 100 a class."""
    fine_head: bool = False
    """Whether it learns the classes beside the specialties (see `CoarseAndFine`)."""

    def __post_init__(self) -> None:
        check_fields(self, update_every=Real(ABOVE_0), affinity_images=Whole(1))
        if self.affinity_from == "training" and self.affinity_images is not None:
            raise InvalidInput(
                "affinity_images must be 0 (all) with affinity_from 'training', which counts the "
                f"images of every step; got {self.affinity_images}."
            )
        if self.map_updates is not None:  # the other is not read: it must not make another run
            object.__setattr__(self, "update_every", type(self).update_every)
        if self.rule != "elastic":
            object.__setattr__(self, "elastic_lambda", type(self).elastic_lambda)


class GeneralistStage(Stage):
    """The generalist and its specialty map."""

    kind = "generalist"
    config: GeneralistConfig

    def __init__(self, dataset: Dataset, backbone: Backbone, config: GeneralistConfig) -> None:
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
                f"got {config.update_every:g} epochs."
            )
        if config.fine_head:
            self._specialties_alone(self.untrained_network())  # refuses heads it cannot divide

    @property
    def title(self) -> str:
        also = ", fine head" if self.config.fine_head else ""
        return f"generalist ({self.config.rule}, K = {self.K}{also})"

    @property
    def K(self) -> int:
        return self.config.K

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.K, self.config.network.initialisation, self.seed)

    def untrained_network(self) -> nn.Module:
        """The network that is trained: with the outputs of its fine head, if it has one."""
        if not self.config.fine_head:
            return self.network()
        scheme = self.config.network.initialisation
        return CoarseAndFine(self.backbone, self.K, self.dataset.C, scheme, self.seed)

    def _specialties_alone(self, trained: nn.Module) -> nn.Module:
        """What is kept of a `CoarseAndFine`: a generalist with the first K rows of its classifier.

        Raises InvalidInput if its head cannot be divided so.
        """
        generalist = self.network()
        own = generalist.state_dict()
        kept = {
            name: tensor if tensor.shape == own.get(name, tensor).shape else tensor[: self.K]
            for name, tensor in trained.state_dict().items()
        }
        try:
            generalist.load_state_dict(kept)
        except RuntimeError as error:
            raise InvalidInput(
                f"fine_head needs a head whose classifier has one row of weights an output; that "
                f"of {self.backbone.name!r} has others."
            ) from error
        return generalist

    @cached_property
    def updates(self) -> list[int]:
        """The steps after which the map is updated: the ends of all intervals but the last."""
        config, steps = self.config, self.steps
        if config.rule == "random":
            return []
        if (number := config.map_updates) is not None:
            if number >= steps:
                raise InvalidInput(
                    f"map_updates must be at most {steps - 1}, one after each of the {steps} steps "
                    f"but the last; got {number}."
                )
            return [round(k * steps / (number + 1)) for k in range(1, number + 1)]
        interval = max(config.update_every * self.steps_per_epoch, 1)
        ends = np.arange(1, int(steps / interval) + 1) * interval
        return sorted({int(end) for end in ends.round() if 0 < end < steps})

    @property
    def images_evaluated(self) -> int:
        every = len(self.dataset.train)
        if self.config.affinity_from == "training":
            return super().images_evaluated
        each = min(self.config.affinity_images or every, every)
        return super().images_evaluated + (len(self.updates) + 1) * each

    def train(self, work: Work) -> Trained:
        model = self.image_network(self.untrained_network(), work.machine)
        learning = SpecialtyLearning(self, model, work.machine, work.listeners)
        history = self.fit(model, learning, work)
        final = from_first(learning.affinity)
        if self.config.fine_head:
            kept = self._specialties_alone(model.network)
            model = ImageNetwork(model.preprocess, kept, model.precision).to(work.machine.device)
        return Trained(
            model,
            history,
            files={
                "specialties.json": learning.specialties.to_json(),
                "map_updates.csv": pd.DataFrame(learning.rows, columns=MAP_UPDATE_COLUMNS).to_csv(
                    index=False
                ),
                "map_history.csv": learning.map_history(),
                "affinity.csv": pd.DataFrame(
                    final,
                    index=pd.Index(self.dataset.class_names, name="class"),
                    columns=learning.specialties.names,
                ).to_csv(),
            },
            result={"objective": objective(final, learning.maps[-1])},
            output_of_class=learning.map.cpu(),
        )


class CoarseAndFine(CNN):
    """trunk + one head over K specialties and C classes: images [N, c, h, w] -> logits [N, K + C].

    In evaluation the logits are those of the specialties alone, [N, K].
    """

    def __init__(self, backbone: Backbone, K: int, C: int, scheme: str, seed: int) -> None:
        super().__init__(backbone, K + C, scheme, seed)
        self.K = K

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else logits[:, : self.K]


class SpecialtyLearning(Task):
    """Specialties as targets, and the map of classes to specialties learned on the way.

    With a fine head the logits are [B, K + C], and the loss adds the cross-entropy of the classes;
    all other figures are of the specialties.
    """

    def __init__(
        self,
        stage: GeneralistStage,
        model: nn.Module,
        machine: Machine,
        listeners: Sequence[Listener],
    ) -> None:
        super().__init__(stage.recipe, stage.dataset.val)
        self.stage = stage
        self.model = model
        self.listeners = listeners
        self.device = machine.device
        C, K = stage.dataset.C, stage.K
        start = Specialties.random(stage.dataset.class_names, K, stage.seed)
        self.maps = [np.array(start.of, dtype=np.int64)]
        """int64 [C] each: the start, and the map after each update."""
        self.rows: list[dict[str, Any]] = []
        """What each update did: MAP_UPDATE_COLUMNS."""
        self.seen: RunningAffinity | None = None
        if stage.config.affinity_from == "training":
            self.seen = RunningAffinity(C, K, stage.config.affinity, machine.device)
        self._to_device()

    def _to_device(self) -> None:
        self.map = torch.from_numpy(self.maps[-1]).to(self.device)
        """The current one, int64 [C]."""

    @property
    def specialties(self) -> Specialties:
        """The current partition."""
        return Specialties(self.stage.dataset.class_names, tuple(self.maps[-1]), self.stage.K)

    @property
    def output_of_class(self) -> Tensor:
        return self.map

    def targets(self, batch: Batch) -> Tensor:
        return self.map[batch.labels]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        coarse, fine = logits.tensor_split([self.stage.K], dim=1)
        loss = super().loss(coarse, batch)
        return loss + cross_entropy(fine, batch.labels) if self.stage.config.fine_head else loss

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        coarse = logits[:, : self.stage.K]
        if self.seen is not None:
            self.seen.add(coarse, batch.labels)
        return super().metrics(coarse, batch)

    def affinity(self) -> Affinity:
        """A[C, K] for the next update, or after the last.

        Of the predictions since the last update, or of a random subset of the training images that
        is drawn anew for each update.
        """
        config, dataset = self.stage.config, self.stage.dataset
        if self.seen is not None:
            check_finite(self.recipe, "predictions", [self.seen.total])
            return self.seen.affinity
        seed = derive_seed(self.stage.seed, "affinity", len(self.maps))
        found = self.predict(self.model, dataset.train.subset(config.affinity_images, seed))
        return affinity_matrix(found.probabilities, found.labels, dataset.C, config.affinity)

    def after_step(self, step: int) -> None:
        """Update the map, if an update is due after `step` steps."""
        stage, config = self.stage, self.stage.config
        if step not in stage.updates:
            return
        number, old = len(self.maps), self.maps[-1]

        def found() -> tuple[Affinity, Map]:
            with interruptible():
                affinity = self.affinity()
                new = assign(
                    config.rule,
                    affinity,
                    old,
                    seed=derive_seed(stage.seed, "update", number),
                    elastic_lambda=config.elastic_lambda,
                )
            return affinity, new

        affinity, new = from_first(found)
        if self.seen is not None:
            self.seen.begin_anew()
        self.maps.append(new)
        self._to_device()
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

    def map_history(self) -> str:
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

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "maps": torch.from_numpy(np.stack(self.maps)),
            "updates": self.rows,
        }
        if self.seen is not None:
            state |= {"affinity": self.seen.total, "images": self.seen.images}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        stage, seen = self.stage, self.seen
        tensors = dict(state)
        rows = tensors.pop("updates", None)
        kept = tensors.get("maps")
        count = len(kept) if isinstance(kept, Tensor) and kept.ndim else 0
        expected: dict[str, Any] = {"maps": (torch.int64, (count, stage.dataset.C))}
        if seen is not None:
            expected["affinity"] = (torch.float32, tuple(seen.total.shape))
            expected["images"] = (torch.float32, tuple(seen.images.shape))
        found = {
            name: (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
            for name, value in tensors.items()
        }
        if found != expected:
            raise IncompatibleCheckpoint("its specialty map has other types or shapes.")
        maps = tensors["maps"].numpy()
        is_history = (
            isinstance(rows, list)
            and len(rows) == len(maps) - 1
            and all(isinstance(row, dict) and set(row) == set(MAP_UPDATE_COLUMNS) for row in rows)
            and [row["step"] for row in rows] == stage.updates[: len(rows)]
        )
        if not isinstance(rows, list) or not is_history or (maps[0] != self.maps[0]).any():
            raise IncompatibleCheckpoint("the history of its specialty map is another's.")
        if maps.min() < 0 or maps.max() >= stage.K:
            raise IncompatibleCheckpoint(
                f"its specialty map holds {maps.min()} to {maps.max()}, K is {stage.K}."
            )
        self.maps, self.rows = list(maps.copy()), rows
        self._to_device()
        if seen is not None:
            seen.total.copy_(tensors["affinity"])
            seen.images.copy_(tensors["images"])


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
