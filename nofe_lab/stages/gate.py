"""The gate stage: which experts of a finished network of experts are worth running for an image?

A gate is one more branch on the trunk's features, with an output for each expert.  It learns which
specialty an image belongs to; trunk and experts stay as they are, so that with all experts the
network answers as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from nofe_lab.checkpoint import Checkpoints
from nofe_lab.config import GateConfig
from nofe_lab.data.batches import ImageNetwork
from nofe_lab.machine import Machine
from nofe_lab.networks import NofE
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties
from nofe_lab.stages.nofe import NofEStage
from nofe_lab.stages.stage import Stage, Trained, load_specialties, part_of
from nofe_lab.training import Listener, ParameterGroups


class GateStage(Stage):
    """A network of experts with a gate.  nofe: the one that gets it, as it is."""

    kind = "gate"

    def __init__(self, nofe: NofEStage, config: GateConfig) -> None:
        self.nofe = nofe
        super().__init__(nofe.dataset, nofe.backbone, config, {"nofe": nofe})

    @property
    def title(self) -> str:
        return f"gate of {self.nofe.title}"

    @property
    def K(self) -> int:
        return self.nofe.K

    @property
    def outputs(self) -> int:
        return len(self.nofe.given.nonempty) if self.nofe.given is not None else self.K

    @cached_property
    def training_macs(self) -> int:
        network = self.untrained_network()
        assert isinstance(network, NofE)
        cost = network.macs(self.backbone.input_shape)
        images = self.steps * self.recipe.batch_size
        return images * (cost.trunk + 3 * cost.gate) + self.images_evaluated * (
            cost.trunk + cost.gate
        )

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return self.nofe.network(specialties, gated=True)

    def image_network(self, network: nn.Module, machine: Machine) -> ImageNetwork:
        """The part of it that is trained: images -> the gate's logits, one for each expert."""
        assert isinstance(network, NofE)
        return super().image_network(_GateAlone(network), machine)

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        return self.backbone.parameter_groups(model.get_submodule("network.nofe.gate"), self.recipe)

    def train(
        self,
        parents: Mapping[str, Run],
        machine: Machine,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        specialties = load_specialties(parents["nofe"])
        network = self.network(specialties)
        assert isinstance(network, NofE)
        for part in ("trunk", "shared", "branches"):
            network.get_submodule(part).load_state_dict(part_of(parents["nofe"], part))
        model = self.image_network(network, machine)
        expert_of = {k: place for place, k in enumerate(specialties.nonempty)}
        table = torch.tensor([expert_of[k] for k in specialties.of])
        history = self.fit(model, machine, table, listeners, checkpoints)
        gated = ImageNetwork(model.preprocess, network, machine.precision)
        return Trained(gated, history, files={"specialties.json": specialties.to_json()})


class _GateAlone(nn.Module):
    """The gate on a network of experts that stays as it is: images [N, c, h, w] -> [N, experts]."""

    def __init__(self, nofe: NofE) -> None:
        super().__init__()
        self.nofe = nofe.requires_grad_(False)
        assert nofe.gate is not None
        nofe.gate.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        assert self.nofe.gate is not None
        logits: Tensor = self.nofe.gate(self.nofe.features(x))
        return logits

    def train(self, mode: bool = True) -> _GateAlone:
        super().train(False)
        assert self.nofe.gate is not None
        self.nofe.gate.train(mode)
        return self
