"""The flat stage: trunk and head over all C classes, as everybody trains a CNN.

With a backbone as it is, that is the base CNN; with `FlatControl`, the opponent that is as deep and
as large as the network of experts.  Either may start from another stage's trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nofe_lab.data import Dataset
from nofe_lab.networks import CNN, Backbone, FlatControl
from nofe_lab.specialties import Specialties
from nofe_lab.stages.stage import Stage, StageConfig, Trained, Work, load_model


@dataclass(frozen=True)
class FlatConfig(StageConfig):
    """A base CNN: trunk + head over all C classes."""

    trunk: str = "scratch"
    """Whose trunk it starts from: scratch, or the generalist's or the base CNN's."""


class FlatStage(Stage):
    """The base CNN, or the flat control.

    trunk: the stage whose trunk it starts from.  teacher: the stage whose answers it learns, in
    place of the classes.
    """

    kind = "flat"

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        config: FlatConfig,
        trunk: Stage | None = None,
        teacher: Stage | None = None,
    ) -> None:
        parents = {"trunk": trunk, "teacher": teacher}
        given = {role: stage for role, stage in parents.items() if stage is not None}
        super().__init__(dataset, backbone, config, given)

    @property
    def title(self) -> str:
        title = "base CNN"
        if isinstance(self.backbone, FlatControl):
            title = f"flat control of {self.backbone.K} experts"
        if "trunk" in self.parents:
            title += f" (trunk: {self.parents['trunk'].title})"
        if "teacher" in self.parents:
            title += f", taught by {self.parents['teacher'].title}"
        return title

    def network(self, specialties: Specialties | None = None) -> nn.Module:
        return CNN(self.backbone, self.dataset.C, self.config.network.initialisation, self.seed)

    def train(self, work: Work) -> Trained:
        network = self.network()
        if "trunk" in work.parents:
            origin = load_model(self.parents["trunk"], work.parents["trunk"]).network
            trunk = origin.get_submodule("trunk").state_dict()
            network.get_submodule("trunk").load_state_dict(trunk)
        model = self.image_network(network, work.machine)
        history = self.fit(model, self.task(work), work)
        return Trained(model, history)
