"""The flat stage: the base CNN, trunk and head over all C classes, as everybody trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nofe_lab.checkpoint import Checkpoints
from nofe_lab.config import FlatConfig
from nofe_lab.data import Dataset
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties
from nofe_lab.stages.stage import Stage, Trained
from nofe_lab.training import Listener


class FlatStage(Stage):
    """The base CNN."""

    kind = "flat"

    def __init__(self, dataset: Dataset, backbone: Backbone, config: FlatConfig) -> None:
        super().__init__(dataset, backbone, config, {})

    @property
    def title(self) -> str:
        return "base CNN"

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.dataset.C, self.network_config.initialisation, self.seed)

    def train(
        self,
        parents: Mapping[str, Run],
        machine: Machine,
        listeners: Sequence[Listener],
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        model = self.image_network(self.network(), machine)
        history = self.fit(model, machine, torch.arange(self.dataset.C), listeners, checkpoints)
        return Trained(model, history)
