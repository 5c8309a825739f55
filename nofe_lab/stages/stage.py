"""What a stage is: a request for one trained network.

"This network, trained this way, on this data, from these earlier stages": a stage knows the id of
its run before anything is trained, because an id depends on requests alone.  The runner
(`nofe_lab.stages.runner`) carries stages out.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, identity_of
from nofe_lab.data import Batches, Dataset
from nofe_lab.data.batches import Window, steps_per_epoch
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import predict
from nofe_lab.inference import Classifier, Description, assembled, load_specialties
from nofe_lab.knobs import check_fields
from nofe_lab.machine import Machine
from nofe_lab.networks import Backbone
from nofe_lab.networks.counting import count_macs
from nofe_lab.networks.tracing import failing_layer, view_refused
from nofe_lab.ranks import from_first, own_rank, world_size
from nofe_lab.recipes import NetworkConfig, Recipe
from nofe_lab.runs import Checkpoints, DamagedRun, Run, identity_hash
from nofe_lab.specialties import Specialties
from nofe_lab.stages.arms import Arm
from nofe_lab.training.events import Listener
from nofe_lab.training.loop import ParameterGroups, fit, seconds_per_step
from nofe_lab.training.tasks import Classification, Distillation, Task

MAX_RUN_NAME = 150
"""Bytes of the readable part of a run's folder; file systems take 255 for a name in all."""


@dataclass(frozen=True)
class StageConfig:
    """What every stage's config has; all of it is part of a run's identity."""

    network: NetworkConfig
    """How the weights begin, and what the pixels look like."""
    recipe: Recipe
    """How the network is optimised."""
    seed: int = 0
    """Of the weights, the order of the images, their augmentation and every other draw."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Work:
    """What a stage is trained with."""

    parents: Mapping[str, Run]
    """The finished runs of the stages it builds on, by role."""
    machine: Machine
    listeners: Sequence[Listener] = ()
    checkpoints: Checkpoints | None = None
    """Where its training is kept, and goes on from if there is one."""


@dataclass
class Trained:
    """What a stage's training leaves behind: a network, tables and texts to keep, figures."""

    model: ImageNetwork
    history: list[dict[str, float]]
    files: dict[str, str | bytes] = field(default_factory=dict)
    result: dict[str, float] = field(default_factory=dict)
    output_of_class: torch.Tensor | None = None
    """The correct output for each class, int64 [C]; None: the class itself."""


class Stage(ABC):
    """A request for one trained network.  Raises InvalidInput if network and data do not fit."""

    kind: ClassVar[str]
    config: StageConfig
    arm: Arm | None = None
    """What it is in a comparison."""
    command: str = ""
    """What one types to make its run again: a command line, or Python; "" if that is unknown."""
    public_command: str = ""
    """The same, with the names of files and folders in place of their paths."""
    choices: tuple[str, ...] = ()
    """What was chosen for the data, in sentences that are printed before training."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        config: StageConfig,
        parents: Mapping[str, Stage],
    ) -> None:
        self.dataset = dataset
        self.backbone = backbone.for_images(dataset.image_shape)
        self.parents = dict(parents)
        self.config = config
        if self.trunk == "scratch" and not self.backbone.pretrained:  # a new trunk learns as fast
            self.config = replace(config, recipe=replace(config.recipe, trunk_rate=1.0))
        self.steps_per_epoch = steps_per_epoch(dataset.train, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """How the network is optimised."""
        return self.config.recipe

    @property
    def seed(self) -> int:
        """The seed of everything random in this stage."""
        return self.config.seed

    @property
    @abstractmethod
    def title(self) -> str:
        """A name for people: "base CNN", "generalist (optimal, K = 10)"."""

    @property
    def label(self) -> str:
        """The title with epochs and seed, which tell stages of one title apart."""
        epochs = self.recipe.epochs
        return f"{self.title}, {epochs} epoch{'s' * (epochs > 1)}, seed {self.seed}"

    @property
    def K(self) -> int | None:
        """Number of specialties, None for a flat network."""
        return None

    @abstractmethod
    def network(self, specialties: Specialties | None = None) -> nn.Module:
        """The untrained network.  specialties: the partition, if it is learned by a parent."""

    def untrained_network(self) -> nn.Module:
        """The untrained network, with a random partition if it has yet to be learned."""
        names, K = self.dataset.class_names, self.K
        return self.network(Specialties.random(names, K, 0) if K is not None else None)

    @abstractmethod
    def train(self, work: Work) -> Trained:
        """Train the network.  Raises TrainingDiverged, Interrupted or OutOfMemory."""

    @property
    def trunk(self) -> str:
        """Where its trunk begins: generalist, base or scratch."""
        return str(getattr(self.config, "trunk", "scratch"))

    @property
    def partition(self) -> Specialties | None:
        """The partition if it is given; then its content is part of the identity."""
        return None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the run's id depends on."""
        return {
            "stage": self.kind,
            "backbone": self.backbone.identity,
            "config": identity_of(self.config),
            "data": self.dataset.fingerprint,
            "parents": {role: stage.id for role, stage in self.parents.items()},
            "specialties": self.partition.digest if self.partition is not None else None,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What a list of runs shows."""
        return {
            "title": self.title,
            "dataset": self.dataset.name,
            "backbone": self.backbone.name,
            "K": self.K,
            "epochs": self.recipe.epochs,
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        """The id of its run."""
        return identity_hash(self.identity)

    @property
    def run_name(self) -> str:
        """The readable part of its run's folder."""
        data = Path(re.sub(r"^(parquet|folder):", "", self.dataset.name)).name.replace(":", "-")
        size = f"-K{self.K}" if self.K is not None else ""
        name = f"{self.kind}-{data}-{self.backbone.name}{size}-s{self.seed}"
        plain = "".join(ch if ch.isalnum() or ch in "-_." else "_" for ch in name)
        return plain.encode()[:MAX_RUN_NAME].decode(errors="ignore")

    @property
    def description(self) -> dict[str, Any]:
        """What its trained network is made of: the fields of `Description`."""
        return {
            "kind": self.kind,
            "network": self.backbone.description,
            "image_shape": self.dataset.image_shape,
            "bit_depth": self.dataset.bit_depth,
            "of_features": torch.uint8 not in self.dataset.train.dtypes,
            "superclass_names": self.dataset.superclass_names,
            "superclass_of": self.dataset.superclass_of,
        }

    @property
    def steps(self) -> int:
        """Steps of SGD."""
        return self.recipe.epochs * self.steps_per_epoch

    def image_network(self, network: nn.Module, machine: Machine) -> ImageNetwork:
        """The network with its preprocessing in front, on the machine."""
        statistics, inputs = self.backbone.input_statistics, self.config.network.inputs
        preprocess = Preprocess.measure(self.dataset, inputs, self.window, statistics)
        model = ImageNetwork(preprocess, network, machine.precision).to(machine.device)
        if self.recipe.trunk_rate == 0:
            model.freeze("trunk")
        if self.recipe.keep_statistics:
            model.keep_statistics()
        return model

    @property
    def window(self) -> Window:
        """(height, width) of the part of an image that the network sees."""
        return self.backbone.input_shape[1:]

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        """The optimiser's parameter groups."""
        return self.backbone.parameter_groups(model, self.recipe)

    def batches(self, device: torch.device) -> Batches:
        """This rank's training images, on the device."""
        rank, world = own_rank(), world_size()
        return Batches(self.dataset.train, self.recipe, self.seed, device, self.window, rank, world)

    def task(self, work: Work) -> Task:
        """What its network is taught: the classes, or the answers of its teacher, a parent."""
        val = self.dataset.val
        if "teacher" not in self.parents:
            return Classification(self.recipe, val)
        answers = self.answers("teacher", work).softmax(1)
        return Distillation(self.recipe, val, answers.to(work.machine.device))

    def answers(self, role: str, work: Work) -> Tensor:
        """The logits that a parent's network gives to the training images, [N, C], on the CPU."""
        stage, run, device = self.parents[role], work.parents[role], work.machine.device
        parent = load_model(stage, run, device)
        found = from_first(lambda: predict(parent, self.dataset.train).logits)
        return torch.from_numpy(found)

    def fit(self, model: nn.Module, task: Task, work: Work) -> list[dict[str, float]]:
        """Train `model` in place on a task, by the stage's recipe; returns the history."""
        return fit(
            model,
            self.parameter_groups(model),
            task,
            self.batches(work.machine.device),
            self.recipe,
            checkpoints=work.checkpoints,
            listeners=work.listeners,
        )

    @property
    def images_evaluated(self) -> int:
        """How many images are evaluated in its training, each time counted."""
        return self.recipe.epochs * len(self.dataset.val)

    @cached_property
    def training_macs(self) -> int:
        """Multiply-accumulates of its training; a backward pass counts as two forward passes."""
        network, shape = self.untrained_network(), self.backbone.input_shape
        forward, images = count_macs(network, shape), self.steps * self.recipe.batch_size
        spent = forward * (3 * images + self.images_evaluated) + self.teacher_macs
        if self.recipe.trunk_rate == 0:  # no backward pass through the trunk
            spent -= 2 * images * count_macs(network.get_submodule("trunk"), shape)
        return spent

    @property
    def teacher_macs(self) -> int:
        """Multiply-accumulates of its teacher, which looks at every training image once."""
        if (teacher := self.parents.get("teacher")) is None:
            return 0
        network, shape = teacher.untrained_network(), teacher.backbone.input_shape
        return len(self.dataset.train) * count_macs(network, shape)

    @property
    def lineage(self) -> dict[str, Stage]:
        """This stage and all stages that it builds on, by id."""
        found = {self.id: self}
        for parent in self.parents.values():
            found |= parent.lineage
        return found

    def trial(self, machine: Machine) -> tuple[float, tuple[str, ...]]:
        """Its estimated training time in seconds, from a few steps, and notes of the network."""
        model = self.image_network(self.untrained_network(), machine)
        batches = self.batches(machine.device)
        groups, recipe = self.parameter_groups(model), self.recipe
        try:
            step = seconds_per_step(model, groups, batches, recipe, machine.synchronize)
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) or error from error
        forward = step / 3 / self.recipe.batch_size  # of one image; the backward pass costs two
        seconds = self.steps * step + self.images_evaluated * forward
        return seconds, getattr(model.network, "notes", ())

    def _refused(self, error: Exception) -> InvalidInput | None:
        """What to say of a network whose layers cannot do a step; None for any other error."""
        if "Expected more than 1 value per channel" in str(error):
            return InvalidInput(
                f"batch_size must be at least 2 for {self.backbone.name!r}, whose "
                f"{failing_layer(error)} sees one value of an image; got {self.recipe.batch_size}."
            )
        return view_refused(error, self.backbone.name)


def load_model(
    stage: Stage, run: Run, device: torch.device | str = "cpu", precision: str = "fp32"
) -> Classifier:
    """The trained network of a stage's finished run (see `nofe_lab.load`), on `device`.

    It answers in fp32, whatever it was trained in, unless another precision is asked for.  Raises
    DamagedRun if the run's tensors are not those of the network.
    """
    if run.id != stage.id:
        raise InvalidInput(f"the run {run.path.name} is not that of {stage.label}, {stage.id}.")
    where = Machine.pick(str(device)).device
    partition = specialties_of(stage, run) if stage.K is not None else None
    about, names = Description(**stage.description), stage.dataset.class_names
    network = stage.network(partition)
    hint = f"remove the run to train it anew (nofe-lab runs --remove {run.id})"
    found = assembled(run, about, names, partition, stage.backbone, network, precision, hint)
    return found.to(where)


def specialties_of(stage: Stage, run: Run) -> Specialties:
    """The partition of a stage's finished run.

    Raises DamagedRun unless it is one of the data set's classes into as many specialties as the
    stage has.
    """
    try:
        found = load_specialties(run)
        found.check_classes(stage.dataset.class_names)
        if found.K != stage.K:
            raise InvalidInput(f"it has {found.K} specialties, not {stage.K}.")
    except InvalidInput as error:
        raise DamagedRun(
            f"specialties.json of {run.path.name} does not fit {stage.label}: {error} Remove the "
            f"run to train it anew (nofe-lab runs --remove {run.id})."
        ) from error
    return found
