"""The flat stage: trunk and head over all C classes, as everybody trains a CNN.

With a backbone as it is, that is the base CNN; with `FlatControl`, the opponent that is as deep and
as large as the network of experts.  Either may start from another stage's trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nofe_lab.checkpoint import Checkpoints
from nofe_lab.config import FlatConfig
from nofe_lab.data import Dataset
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone, FlatControl
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties
from nofe_lab.stages.stage import Stage, Trained, load_model
from nofe_lab.training import Listener


class FlatStage(Stage):
    """The base CNN, or the flat control.  trunk: the stage whose trunk it starts from."""

    kind = "flat"

    def __init__(
        self, dataset: Dataset, backbone: Backbone, config: FlatConfig, trunk: Stage | None = None
    ) -> None:
        super().__init__(dataset, backbone, config, {} if trunk is None else {"trunk": trunk})

    @property
    def title(self) -> str:
        title = "base CNN"
        if isinstance(self.backbone, FlatControl):
            title = f"flat control of {self.backbone.K} experts"
        if "trunk" in self.parents:
            title += f" (trunk: {self.parents['trunk'].title})"
        return title

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.dataset.C, self.network_config.initialisation, self.seed)

    def train(
        self,
        parents: Mapping[str, Run],
        machine: Machine,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        network = self.network()
        if "trunk" in parents:
            origin = load_model(self.parents["trunk"], parents["trunk"]).network
            trunk = origin.get_submodule("trunk").state_dict()
            network.get_submodule("trunk").load_state_dict(trunk)
        model = self.image_network(network, machine)
        history = self.fit(model, machine, torch.arange(self.dataset.C), listeners, checkpoints)
        return Trained(model, history)
