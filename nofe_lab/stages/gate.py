"""The gate stage: which experts of a finished network of experts are worth running for an image?

A gate is one more branch on the trunk's features, with an output for each class.  It learns to
answer as the network of experts does (distillation), which tells it more than the right specialty
would; the probability that it gives to the classes of an expert is that expert's promise.  Trunk
and experts stay as they are, so that with all experts the network answers as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import predict
from nofe_lab.knobs import KNOBS, check_fields
from nofe_lab.machine import Machine
from nofe_lab.networks import NofE
from nofe_lab.specialties import Specialties
from nofe_lab.stages.nofe import NofEStage, fresh_gate
from nofe_lab.stages.stage import Stage, StageConfig, Trained, Work, load_model, specialties_of
from nofe_lab.training.loop import ParameterGroups
from nofe_lab.training.tasks import Distillation


@dataclass(frozen=True)
class GateConfig(StageConfig):
    """A gate that chooses which experts of a trained network of experts are run for an image."""

    width: float = 1.0
    """Factor on the hidden channels of a branch as the backbone makes it."""

    def __post_init__(self) -> None:
        check_fields(self, width=KNOBS["branch_width"].kind)


class GateStage(Stage):
    """A network of experts with a gate.  nofe: the one that gets it, as it is."""

    kind = "gate"
    config: GateConfig

    def __init__(self, nofe: NofEStage, config: GateConfig) -> None:
        self.nofe = nofe
        super().__init__(nofe.dataset, nofe.backbone, config, {"nofe": nofe})

    @property
    def title(self) -> str:
        return f"gate of {self.nofe.title}"

    @property
    def description(self) -> dict[str, Any]:
        about = super().description
        made = self.nofe.description
        also = {name: made[name] for name in ("branch_width", "overlap")}
        return {**about, **also, "gate_width": self.config.width}

    @property
    def K(self) -> int:
        return self.nofe.K

    @cached_property
    def training_macs(self) -> int:
        """Of trunk and gate; the network of experts itself looks at every image once."""
        network = self.untrained_network()
        assert isinstance(network, NofE)
        cost = network.macs(self.backbone.input_shape)
        images = self.steps * self.recipe.batch_size
        once = len(self.dataset.train) * (cost.trunk + sum(cost.branches))
        looked_at = self.images_evaluated * (cost.trunk + cost.gate)
        return images * (cost.trunk + 3 * cost.gate) + once + looked_at

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        network = self.nofe.network(specialties)
        assert isinstance(network, NofE)
        network.gate = fresh_gate(
            self.backbone,
            self.dataset.C,
            self.config.width,
            self.config.network.initialisation,
            self.seed,
        )
        return network

    def image_network(self, network: nn.Module, machine: Machine) -> ImageNetwork:
        """The part of it that is trained: images -> the gate's logits [N, C]."""
        assert isinstance(network, NofE)
        return super().image_network(GateAlone(network), machine)

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        return self.backbone.parameter_groups(model.get_submodule("network.nofe.gate"), self.recipe)

    def train(self, work: Work) -> Trained:
        specialties = specialties_of(self.nofe, work.parents["nofe"])
        logits = self.answers("nofe", work)
        answers = logits.softmax(1).to(work.machine.device)
        teacher = load_model(self.nofe, work.parents["nofe"], work.machine.device)
        network = self.network(specialties)
        assert isinstance(network, NofE)
        network.load_state_dict(teacher.network.state_dict(), strict=False)  # all but the gate
        model = self.image_network(network, work.machine)
        task = Distillation(self.recipe, self.dataset.val, answers)
        history = self.fit(model, task, work)
        gated = ImageNetwork(model.preprocess, network, work.machine.precision)
        last = history[-1]
        result = {f"gate_{name}": last[name] for name in last if name.endswith("_accuracy")}
        # with all experts it answers as before
        right = logits.argmax(1) == self.dataset.train.labels
        result["train_accuracy"] = float(right.double().mean())
        if len(self.dataset.val):
            result["val_accuracy"] = predict(teacher, self.dataset.val).accuracy
        return Trained(gated, history, {"specialties.json": specialties.to_json()}, result)


class GateAlone(nn.Module):
    """The gate of a network of experts that stays as it is: images [N, c, h, w] -> [N, C]."""

    def __init__(self, nofe: NofE) -> None:
        super().__init__()
        self.nofe = nofe.requires_grad_(False)
        assert nofe.gate is not None
        nofe.gate.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        assert self.nofe.gate is not None
        logits: Tensor = self.nofe.gate(self.nofe.features(x))
        return logits

    def train(self, mode: bool = True) -> GateAlone:
        super().train(False)
        assert self.nofe.gate is not None
        self.nofe.gate.train(mode)
        return self
