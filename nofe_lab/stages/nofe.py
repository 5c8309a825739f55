"""The NofE stage: a trunk, K branches, one softmax over all classes, trained end to end.

Two independent choices make a network of experts: the partition (`specialties`) and the weights
that the trunk begins with (`trunk`), and its branches too where they are the tail of the same
network (`branch_start`).  The paper's is learned specialties on their generalist's
trunk; the other combinations are its rivals, and take the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from nofe_lab.config import (
    CLUSTERED,
    SPECIALTIES,
    InvalidInput,
    check_branch_start,
    whole_number,
)
from nofe_lab.data import Dataset
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import class_means, predict
from nofe_lab.knobs import KNOBS, Choice, check_fields
from nofe_lab.machine import Machine, seeded
from nofe_lab.networks import CNN, Backbone, NofE
from nofe_lab.networks.backbone import fresh
from nofe_lab.networks.counting import count_macs
from nofe_lab.ranks import from_first
from nofe_lab.runs import Run
from nofe_lab.specialties import (
    Specialties,
    balanced_clusters,
    confusion_clusters,
    feature_clusters,
)
from nofe_lab.stages.flat import FlatStage
from nofe_lab.stages.generalist import GeneralistStage
from nofe_lab.stages.stage import Stage, StageConfig, Trained, Work, load_model, specialties_of
from nofe_lab.training.tasks import SparseTraining


@dataclass(frozen=True)
class NofEConfig(StageConfig):
    """A trunk and one expert branch a specialty, trained end to end under one softmax."""

    specialties: str = "learned"
    """learned (the generalist's), random (balanced), superclass, confusion, balanced or features
    (clusters of a trained base CNN's confusions, or of the features of its classes), or file (given
    by its content)."""
    trunk: str = "generalist"
    """Whose trunk it starts from: the generalist's, the base CNN's, or a fresh one (scratch),
    which begins with the backbone's pretrained weights where it has any."""
    branch_width: float = 1.0
    """Factor on the hidden channels of a branch."""
    branch_start: str = "fresh"
    """fresh: as the backbone makes it, with new or pretrained weights; tail: the layers behind the
    trunk it starts from; upcycled: those of a base CNN with the classifier's rows of its classes,
    so that the network of experts begins with the base CNN's logits (at branch_width 1)."""
    clusters: int | None = None
    """How many specialties confusion and features make; None for all others, which know it."""
    overlap: int = 1
    """How many experts have an output for a class, whose logit is their mean; as many as there are:
    every expert knows all classes, which makes an ensemble on one trunk (a TreeNet)."""
    sparse: int | None = None
    """How many of its gate's best experts an image trains beside its own; None: all see all images,
    and there is no gate."""

    @property
    def gate_width(self) -> float:
        """Of the gate in sparse training: the base CNN's whole tail, or as wide as an expert."""
        return 1.0 if self.branch_start == "upcycled" else self.branch_width

    def __post_init__(self) -> None:
        check_fields(self, specialties=Choice((*SPECIALTIES, "file")), clusters=KNOBS["K"].kind)
        check_branch_start(self.branch_start, self.trunk, branch_width=self.branch_width)


class NofEStage(Stage):
    """The network of experts.

    specialties: a partition, or the stage it comes from: the generalist that learns it, or the base
    CNN of which it is made of clusters.  trunk: the stage whose trunk it starts from, or None for
    fresh weights.  teacher: the stage whose answers it learns, in place of the classes.
    Raises InvalidInput if the partition's classes are not the data set's, or if the backbone's
    branches cannot have the width or the start that the config asks for.
    """

    kind = "nofe"
    config: NofEConfig

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        config: NofEConfig,
        specialties: Specialties | GeneralistStage | FlatStage,
        trunk: GeneralistStage | FlatStage | None,
        teacher: Stage | None = None,
    ) -> None:
        parents: dict[str, Stage] = {} if teacher is None else {"teacher": teacher}
        self.given: Specialties | None = None
        if isinstance(specialties, Specialties):
            specialties.check_classes(dataset.class_names)
            _check_experts(specialties)
            self.given = specialties
            self._K = specialties.K
        else:
            parents["specialties"] = specialties
            self._K = config.clusters or specialties.K or 0
            if self._K >= dataset.C and config.specialties in CLUSTERED:
                raise InvalidInput(
                    f"K must be at most {dataset.C - 1} for {config.specialties!r} specialties of "
                    f"the {dataset.C} classes of {dataset.name}; got {self._K}."
                )
        if trunk is not None:
            parents["trunk"] = trunk
        super().__init__(dataset, backbone, config, parents)
        for name in ("sparse", "overlap"):
            if (number := getattr(config, name)) is not None:
                whole_number(name, number, 1, self._K)
        if config.branch_width != 1:
            with seeded(0):
                self.backbone.make_branch(1, config.branch_width)  # refuses a width it cannot have
        if config.branch_start == "tail" and self.backbone.tail is None:
            raise InvalidInput(
                f"branch_start 'tail' needs branches made of the head's layers; {backbone.name!r} "
                "has branches of its own, which start 'fresh'."
            )
        if config.branch_start == "upcycled":
            width = config.branch_width
            with seeded(0):
                head = self.backbone.make_head(dataset.C).state_dict()
                self.backbone.upcycle(self.backbone.make_branch(1, width), head, [0], width)

    @cached_property
    def training_macs(self) -> int:
        """As for every stage; in sparse training an image runs `sparse` experts, and its own.

        Where its own is one of these, less is spent than is counted.
        """
        spent = super().training_macs
        if self.config.sparse is not None:
            network = self.untrained_network()
            assert isinstance(network, NofE)
            branches = network.macs(self.backbone.input_shape).branches
            if self.config.sparse < len(branches):
                own = round(sum(branches) / len(branches))
                spent += 3 * self.steps * self.recipe.batch_size * own
        if self.config.specialties in CLUSTERED:  # the base CNN looks at all training images
            base = self.parents["specialties"]
            forward = count_macs(base.untrained_network(), base.backbone.input_shape)
            spent += len(self.dataset.train) * forward
        return spent

    @property
    def title(self) -> str:
        origin = self.config.specialties if self.config.specialties != "file" else "given"
        trunk = self.config.trunk
        if trunk == "scratch" and getattr(self.backbone, "weights", None) is not None:
            trunk = "its pretrained weights"
        if isinstance(learner := self.parents.get("specialties"), GeneralistStage):
            origin = learner.config.rule
        if isinstance(learner := self.parents.get("trunk"), GeneralistStage):
            trunk = f"generalist ({learner.config.rule})"
        start = self.config.branch_start
        branches = f"; branches: {start}" if start != "fresh" else ""
        if self.config.overlap > 1:
            branches += f"; overlap: {self.config.overlap}"
        if self.config.sparse is not None:
            branches += f"; sparse: own + {self.config.sparse}"
        if "teacher" in self.parents:
            branches += f"; taught by {self.parents['teacher'].title}"
        return f"NofE ({origin} specialties, K = {self.K}; trunk: {trunk}{branches})"

    @property
    def K(self) -> int:
        return self._K

    @property
    def description(self) -> dict[str, Any]:
        width = self.config.branch_width
        gate = {}
        if self.config.sparse is not None:
            gate = {"gate_width": self.config.gate_width, "sparse": self.config.sparse}
        overlap = self.config.overlap
        return {**super().description, "branch_width": width, "overlap": overlap, **gate}

    @property
    def partition(self) -> Specialties | None:
        return self.given

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        found = self.given if self.given is not None else specialties
        if found is None:
            raise ValueError("this network's specialties are learned: pass them")
        _check_experts(found)
        scheme, width = self.config.network.initialisation, self.config.branch_width
        network = NofE(self.backbone, found, scheme, self.seed, width, self.config.overlap)
        if (sparse := self.config.sparse) is not None:
            width = self.config.gate_width
            gate = fresh_gate(self.backbone, self.dataset.C, width, scheme, self.seed)
            network.begin_with_gate(gate, sparse)
        return network

    def image_network(self, network: nn.Module, machine: Machine) -> ImageNetwork:
        """With experts that run in groups, as suits training; hooks on their layers see nothing."""
        assert isinstance(network, NofE)
        network.grouped = True
        return super().image_network(network, machine)

    def train(self, work: Work) -> Trained:
        specialties = from_first(lambda: self._partition(work.parents, work.machine))
        network = self.network(specialties)
        if "trunk" in work.parents:
            self.start_from(work.parents["trunk"], network)
        model = self.image_network(network, work.machine)
        if work.checkpoints is not None:
            work.checkpoints.origin.append(specialties.digest)
        task = self.task(work)
        if self.config.sparse is not None:
            assert isinstance(network, NofE)
            task = SparseTraining(network, task)
        history = self.fit(model, task, work)
        return Trained(model, history, files={"specialties.json": specialties.to_json()})

    def _partition(self, parents: Mapping[str, Run], machine: Machine) -> Specialties:
        if self.given is not None:
            return self.given
        learner, run = self.parents["specialties"], parents["specialties"]
        if self.config.specialties not in CLUSTERED:
            return specialties_of(learner, run)
        base = load_model(learner, run, machine.device)
        train, names, K = self.dataset.train, self.dataset.class_names, self._K
        if self.config.specialties == "confusion":
            return confusion_clusters(predict(base, train).confusion, names, K, self.seed)
        if self.config.specialties == "balanced":
            return balanced_clusters(predict(base, train).confusion, names, K)
        features = ImageNetwork(base.preprocess, base.network.get_submodule("trunk"))
        return feature_clusters(class_means(features, train, len(names)), names, K, self.seed)

    def start_from(self, run: Run, network: nn.Module) -> None:
        """Copy a finished run's trunk into `network`, and its tail into the branches if asked."""
        origin = load_model(self.parents["trunk"], run).network
        assert isinstance(network, NofE)
        assert isinstance(origin, CNN)
        network.begin_as(origin, self.backbone, self.config.branch_start, self.config.branch_width)


def fresh_gate(backbone: Backbone, C: int, width: float, scheme: str, seed: int) -> nn.Module:
    """The untrained gate of a network of experts: a branch with an output for each class."""
    return fresh(backbone, lambda: backbone.make_branch(C, width), scheme, seed, "gate")


def _check_experts(specialties: Specialties) -> None:
    if len(specialties.nonempty) < 2:
        raise InvalidInput(
            "a network of experts needs at least 2 specialties with classes; "
            f"got {len(specialties.nonempty)} (the rule 'optimal' never empties one)."
        )
