"""What a stage is, and the workshop that carries stages out.

A stage is a request: "this network, trained this way, on this data, from these earlier stages".
It knows its run's id before anything is trained, because an id depends on requests alone.  The
workshop looks for the runs, says which are missing and how long they will take, and trains those,
each after the ones it builds on.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from nofe_lab.checkpoint import SECONDS, Checkpoints
from nofe_lab.config import (
    FlatConfig,
    GateConfig,
    GeneralistConfig,
    InvalidInput,
    NetworkConfig,
    NofEConfig,
    Recipe,
    first_line,
    identity_of,
    real_number,
)
from nofe_lab.data import Dataset, Split
from nofe_lab.data.batches import Batches, ImageNetwork, Preprocess, Window, steps_per_epoch
from nofe_lab.evaluation import Predictions, predict
from nofe_lab.log import log
from nofe_lab.machine import Machine, exact_float32
from nofe_lab.networks import Backbone
from nofe_lab.networks.counting import count_macs
from nofe_lab.networks.tracing import failing_layer, view_refused
from nofe_lab.runs import (
    DamagedRun,
    Run,
    RunStore,
    code_digest,
    code_revision,
    identity_hash,
    provenance,
)
from nofe_lab.specialties import Specialties
from nofe_lab.stages.arms import Arm
from nofe_lab.training import (
    Event,
    Listener,
    ParameterGroups,
    Progress,
    StageBegun,
    StageEnded,
    StageLoaded,
    TrainingDiverged,
    check_finite,
    fit,
    seconds_per_step,
    tell,
)

MAX_RUN_NAME = 150
"""Bytes of the readable part of a run's folder; file systems take 255 for a name in all."""


@dataclass
class Trained:
    """What a stage's training leaves behind: a network, tables and texts to keep, figures."""

    model: nn.Module
    history: list[dict[str, float]]
    files: dict[str, str] = field(default_factory=dict)
    result: dict[str, float] = field(default_factory=dict)


class Stage(ABC):
    """A request for one trained network.  Raises InvalidInput if network and data do not fit."""

    kind: ClassVar[str]
    arm: Arm | None = None
    """What it is in a comparison."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        config: FlatConfig | GeneralistConfig | NofEConfig | GateConfig,
        parents: Mapping[str, Stage],
    ) -> None:
        self.dataset = dataset
        self.backbone = backbone.for_images(dataset.image_shape)
        self.parents = dict(parents)
        self._config = config
        self.steps_per_epoch = steps_per_epoch(dataset.train, self.recipe)

    @property
    def network_config(self) -> NetworkConfig:
        """Its initialisation and its inputs."""
        return self._config.network

    @property
    def recipe(self) -> Recipe:
        """How the network is optimised."""
        return self._config.recipe

    @property
    def seed(self) -> int:
        """Of everything that is random in this stage."""
        return self._config.seed

    @property
    @abstractmethod
    def title(self) -> str:
        """What people read: "base CNN", "generalist (optimal, K = 10)"."""

    @property
    def label(self) -> str:
        """The title with what tells two stages of one title apart."""
        epochs = self.recipe.epochs
        return f"{self.title}, {epochs} epoch{'s' * (epochs > 1)}, seed {self.seed}"

    @property
    def K(self) -> int | None:
        """Number of specialties, None for a flat network."""
        return None

    @property
    def outputs(self) -> int:
        """How many outputs the network that is trained has."""
        return self.dataset.C

    @abstractmethod
    def network(self, specialties: Specialties | None = None) -> nn.Module:
        """The untrained network.  `specialties` stand in for a partition not yet learned."""

    def untrained_network(self) -> nn.Module:
        """The network, with a balanced partition where it is yet to be learned."""
        names, K = self.dataset.class_names, self.K
        return self.network(Specialties.random(names, K, 0) if K is not None else None)

    @abstractmethod
    def train(
        self,
        parents: Mapping[str, Run],
        machine: Machine,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        """Train it.  `parents` are the finished runs of the stages it builds on.

        checkpoints: where its training is kept, and goes on from if there is one.
        """

    @property
    def trunk(self) -> str:
        """Where its trunk begins: generalist, base or scratch."""
        return str(getattr(self._config, "trunk", "scratch"))

    @property
    def partition(self) -> Specialties | None:
        """The partition, where it is given and not learned; its content is part of the identity."""
        return None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that makes this run a different one."""
        return {
            "stage": self.kind,
            "backbone": self.backbone.identity,
            "config": identity_of(self._config),
            "data": self.dataset.fingerprint,
            "parents": {role: stage.id for role, stage in self.parents.items()},
            "specialties": self.partition.digest if self.partition is not None else None,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What people want to read of its run."""
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
    def steps(self) -> int:
        """Steps of SGD."""
        return self.recipe.epochs * self.steps_per_epoch

    def image_network(self, network: nn.Module, machine: Machine) -> ImageNetwork:
        """The network with its preprocessing in front, on the machine."""
        preprocess = Preprocess.measure(self.dataset, self.network_config.inputs, self.window)
        return ImageNetwork(preprocess, network, machine.precision).to(machine.device)

    @property
    def window(self) -> Window:
        """(height, width) of the part of an image that the network sees."""
        return self.backbone.input_shape[1:]

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        """The optimiser's parameter groups."""
        return self.backbone.parameter_groups(model, self.recipe)

    def batches(self, device: torch.device) -> Batches:
        """The training images on the device."""
        return Batches(self.dataset.train, self.recipe, self.seed, device, self.window)

    def fit(
        self,
        model: nn.Module,
        machine: Machine,
        target_of_class: Tensor,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
        **hooks: Any,
    ) -> list[dict[str, float]]:
        """Train `model` in place by the stage's recipe, validated on val after each epoch."""

        def validate(table: Tensor) -> dict[str, float]:
            # images that have probabilities to learn are validated with their classes
            found = self.predict(model, self.dataset.val, table if table.ndim == 1 else None)
            return {"val_loss": found.loss, "val_accuracy": found.accuracy}

        return fit(
            model,
            self.parameter_groups(model),
            self.batches(machine.device),
            self.recipe,
            target_of_class,
            validate=validate if len(self.dataset.val) else None,
            checkpoints=checkpoints,
            listeners=listeners,
            **hooks,
        )

    def predict(
        self, model: nn.Module, split: Split, target_of_class: Tensor | None = None
    ) -> Predictions:
        """Predictions amid training.  Raises TrainingDiverged if they are not finite."""
        found = predict(model, split, target_of_class)
        check_finite(self.recipe, "predictions", [torch.from_numpy(found.logits)])
        return found

    @property
    def images_evaluated(self) -> int:
        """How many images it looks at without learning from them, all evaluations together."""
        return self.recipe.epochs * len(self.dataset.val)

    @cached_property
    def training_macs(self) -> int:
        """Multiply-accumulates of its training; a backward pass is counted as two forward ones."""
        forward = count_macs(self.untrained_network(), self.backbone.input_shape)
        return forward * (3 * self.steps * self.recipe.batch_size + self.images_evaluated)

    @property
    def lineage(self) -> dict[str, Stage]:
        """It and all stages that it builds on, by id."""
        found = {self.id: self}
        for parent in self.parents.values():
            found |= parent.lineage
        return found

    def trial(self, machine: Machine) -> tuple[float, tuple[str, ...]]:
        """Estimate of its training time in seconds, from a few steps, and what they have shown."""
        model = self.image_network(self.untrained_network(), machine)
        batches = self.batches(machine.device)
        groups, recipe = self.parameter_groups(model), self.recipe
        try:
            step = seconds_per_step(
                model, groups, batches, recipe, self.outputs, machine.synchronize
            )
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


@dataclass
class _Unsaved:
    """A network that is trained, but could not be saved."""

    trained: Trained
    provenance: dict[str, Any]


class _Guarded:
    """A listener that cannot do harm to the training it watches: it is dropped if it fails."""

    def __init__(self, listener: Listener) -> None:
        self.listener: Listener | None = listener

    def __call__(self, event: Event) -> None:
        if self.listener is None:
            return
        try:
            self.listener(event)
        except Exception as error:
            self.listener = None
            log.warning(f"The training goes on unwatched ({type(error).__name__}: {error}).")


_UNSAVED: dict[tuple[Path, str], _Unsaved] = {}
"""By runs folder and id, in this process: the disk may have room when the run is asked for again.
"""


class Workshop:
    """Carries stages out in one runs folder, on one machine.

    checkpoint_seconds: the longest time between two checkpoints of a training.
    Raises InvalidInput if the folder cannot be made, the device is not to be had or the time is
    negative.
    """

    def __init__(
        self,
        runs_dir: Path | str,
        device: str = "auto",
        precision: str = "auto",
        checkpoint_seconds: float = SECONDS,
    ) -> None:
        self.machine = Machine.pick(device, precision)
        if self.machine.device.type == "cuda":
            exact_float32()
        self.seconds = real_number("checkpoint_seconds", checkpoint_seconds, 0)
        self.store = RunStore(runs_dir)

    def carry_out(self, stages: Sequence[Stage], watch: Listener | None = None) -> list[Run]:
        """The runs of `stages`, in their order: loaded where finished, trained where missing.

        watch: is told the events of what is trained (see `nofe_lab.training`).
        """
        ordered: dict[str, Stage] = {}
        runs: dict[str, Run] = {}

        def visit(stage: Stage) -> None:
            if stage.id in ordered:
                return
            if (run := self.store.find(stage.id)) is not None:
                runs[stage.id] = run
                self.store.sweep(stage.run_name, stage.id)
            else:
                for parent in stage.parents.values():
                    visit(parent)
            ordered[stage.id] = stage

        for stage in stages:
            visit(stage)
        watch = _Guarded(watch) if watch is not None else None
        self._announce(ordered, runs, watch)
        for run_id, stage in ordered.items():
            if run_id not in runs:
                parents = {role: runs[parent.id] for role, parent in stage.parents.items()}
                runs[run_id] = self._train(stage, parents, watch)
        return [runs[stage.id] for stage in stages]

    def _announce(
        self, ordered: Mapping[str, Stage], runs: Mapping[str, Run], watch: Listener | None
    ) -> None:
        for run_id, stage in ordered.items():
            if run_id in runs:
                made = runs[run_id].provenance
                here = {"precision": self.machine.precision}
                if made.get("code") != code_digest():  # older runs do not say
                    here["revision"] = code_revision()
                other = [
                    f"{what} {made[what]}, now {now}"
                    for what, now in here.items()
                    if made[what] != now
                ]
                note = f" (trained under {'; '.join(other)})" if other else ""
                name = runs[run_id].path.name
                log.info(f"{stage.label}: loaded {name}{note}")
                if watch is not None:
                    watch(StageLoaded(stage.title))
        missing = [stage for run_id, stage in ordered.items() if run_id not in runs]
        if not missing:
            return
        self.store.check_writable()
        # stages that differ in their seed or their parents alone take the same time
        known: dict[tuple[object, ...], tuple[float, tuple[str, ...]]] = {}
        total = 0.0
        for note in dict.fromkeys(note for stage in missing for note in stage.backbone.notes):
            log.info(note)
        log.info(f"To train, on {self.machine}:")
        for stage in missing:
            network = json.dumps(stage.backbone.identity)
            alike = (stage.kind, stage.K, network, stage.recipe, stage.dataset.name)
            if alike not in known:
                with self.machine.enough_memory(stage.label, stage.recipe.batch_size):
                    known[alike] = stage.trial(self.machine)
            done = self.store.checkpoints(stage.run_name, stage.id).step / stage.steps
            seconds = known[alike][0] * max(1 - done, 0)
            total += seconds
            log.info(f"  {stage.label}: about {seconds / 60:.1f} min")
        for note in dict.fromkeys(note for _, notes in known.values() for note in notes):
            log.info(f"  {note}")
        log.info(f"  together about {total / 60:.1f} min")

    def _train(self, stage: Stage, parents: Mapping[str, Run], watch: Listener | None) -> Run:
        def wait(who: str) -> None:
            log.info(f"{stage.label}: {who} is training it; waiting for the result.")

        key = (self.store.folder, stage.id)
        with self.store.training(stage.run_name, stage.id, wait, self.seconds) as checkpoints:
            if (run := self.store.find(stage.id)) is not None:
                log.info(f"{stage.label}: loaded {run.path.name}, which has been trained meanwhile")
                _UNSAVED.pop(key, None)
                return run
            if key not in _UNSAVED:
                _UNSAVED[key] = self._trained(stage, parents, checkpoints, watch)
            run = self._saved(stage, _UNSAVED[key], checkpoints)
            del _UNSAVED[key]
            checkpoints.remove()
        figures = ", ".join(
            f"{name.replace('_accuracy', '')} {run.result[name]:.1%}"
            for name in ("train_accuracy", "val_accuracy")
            if name in run.result
        )
        log.info(f"{stage.label}: {figures}, {run.seconds:.0f} s; saved {run.path.name}")
        return run

    def _trained(
        self,
        stage: Stage,
        parents: Mapping[str, Run],
        checkpoints: Checkpoints,
        watch: Listener | None,
    ) -> _Unsaved:
        made = provenance(self.machine, 0.0)
        told = [f"{name} {made[name]}" for name in ("code", "device", "precision", "threads")]
        checkpoints.conditions = [", ".join([*told, f"torch {made['versions']['torch']}"])]
        checkpoints.label = stage.label
        checkpoints.origin = [f"{role} {run.digest}" for role, run in sorted(parents.items())]
        progress = Progress(stage.title, stage.steps)
        listeners: list[Listener] = [_Guarded(each) for each in (progress, watch) if each]
        finished = False
        tell(listeners, StageBegun(stage.title, stage.steps, stage.recipe.epochs))
        try:
            with self.machine.enough_memory(stage.label, stage.recipe.batch_size):
                trained = stage.train(parents, self.machine, listeners, checkpoints)
            finished = True
        except TrainingDiverged:
            checkpoints.remove()  # it would diverge again
            raise
        finally:
            progress.close()
            tell(listeners, StageEnded(stage.title, finished))
        made = {
            **provenance(self.machine, checkpoints.seconds_trained),
            "interruptions": checkpoints.interruptions,
            "conditions": checkpoints.conditions,
            "lineage": {key: s for run in parents.values() for key, s in run.lineage.items()},
        }
        return _Unsaved(trained, made)

    def _saved(self, stage: Stage, unsaved: _Unsaved, checkpoints: Checkpoints) -> Run:
        trained = unsaved.trained
        last = trained.history[-1]
        shown: dict[str, float] = {
            name: last[name] for name in ("train_accuracy", "val_accuracy") if name in last
        }

        def save() -> Run:
            return self.store.save(
                stage.run_name,
                stage.identity,
                stage.about,
                trained.model.state_dict(),
                {
                    "history.csv": pd.DataFrame(trained.history).to_csv(index=False),
                    "classes.json": json.dumps(stage.dataset.class_names, ensure_ascii=False),
                    **trained.files,
                },
                shown | trained.result,
                unsaved.provenance,
            )

        try:
            return save()
        except OSError:
            checkpoints.make_room()
        try:
            return save()
        except OSError as error:
            raise InvalidInput(
                f"{stage.label}: trained, but cannot be saved in {str(self.store.folder)!r} "
                f"({first_line(error)}); mend that and run this cell again: the trained network is "
                f"kept in this process, and on disk what it was at step {checkpoints.step} of "
                f"{stage.steps}."
            ) from error


def load_specialties(run: Run) -> Specialties:
    """The partition that a generalist learned or a network of experts was built with."""
    return Specialties.from_json(run.text("specialties.json"))


def load_model(
    stage: Stage, run: Run, device: torch.device | str = "cpu", precision: str = "fp32"
) -> ImageNetwork:
    """The trained network of a finished run: raw images uint8 [N, c, h, w] -> logits.

    It answers in fp32, whatever it was trained in, unless another precision is asked for.  Raises
    DamagedRun if the run's tensors are not those of the network.
    """
    if run.id != stage.id:
        raise InvalidInput(f"the run {run.path.name} is not that of {stage.label}, {stage.id}.")
    where = Machine.pick(str(device)).device
    specialties = specialties_of(stage, run) if stage.K is not None else None
    weights = run.weights()
    image_shape = channels, height, width = stage.dataset.image_shape
    mean, scale = (channels, 1, 1), (channels, 1, 1)
    if stage.network_config.inputs == "mean_image":
        mean, scale = (channels, height, width), (1, 1, 1)
    preprocess = Preprocess(torch.zeros(mean), torch.ones(scale), stage.window, image_shape)
    model = ImageNetwork(preprocess, stage.network(specialties), precision)
    expected = model.state_dict()
    for name in sorted(set(weights) | set(expected)):
        here, there = (
            f"{each[name].dtype} {list(each[name].shape)}" if name in each else "missing"
            for each in (weights, expected)
        )
        if here != there:
            raise DamagedRun(
                f"weights.safetensors of {run.path.name} are not those of {stage.label}: {name!r} "
                f"is {here}, in the network {there}; remove the run to train it anew (python -m "
                f"nofe_lab runs --remove {run.id})."
            )
    model.load_state_dict(weights)
    return model.to(where).eval()


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
            f"run to train it anew (python -m nofe_lab runs --remove {run.id})."
        ) from error
    return found
