"""The flat stage: trunk and head over all C classes, as everybody trains a CNN.

With a backbone as it is, that is the base CNN; with `FlatControl`, the opponent that is as deep and
as large as the network of experts.  Either may start from another stage's trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nofe_lab.data import Dataset
from nofe_lab.knobs import check_fields
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, Backbone, FlatControl
from nofe_lab.recipes import NetworkConfig, Recipe
from nofe_lab.runs import Checkpoints, Run
from nofe_lab.specialties import Specialties
from nofe_lab.stages.stage import Stage, Trained, load_model
from nofe_lab.training import Classification, Listener


@dataclass(frozen=True)
class FlatConfig:
    """A base CNN: trunk + head over all C classes."""

    network: NetworkConfig
    """The network."""
    recipe: Recipe
    """Its optimisation."""
    seed: int = 0
    """Of the weights, the order of the images and their augmentation."""
    trunk: str = "scratch"
    """Whose trunk it starts from: scratch, or the generalist's or the base CNN's."""

    def __post_init__(self) -> None:
        check_fields(self)


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
        task = Classification(self.recipe, self.dataset.val)
        history = self.fit(model, machine, task, listeners, checkpoints)
        return Trained(model, history)
