"""Backbones around another: the flat control, and what stands on a frozen trunk.

A network of experts is deeper and larger than its base CNN.  Its control has the same trunk and one
branch instead of K: as deep as they are, and as expensive as all of them together.  What the
network of experts gains over its control comes from the specialties, the rest from depth and size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.machine import seeded
from nofe_lab.networks.backbone import Backbone, size_in_words
from nofe_lab.recipes import Preset


class Around(Backbone):
    """A backbone that has another one's parts, weights and recipes, except for some."""

    def __init__(self, backbone: Backbone) -> None:
        self.original = backbone
        self.name = backbone.name
        self.input_shape = backbone.input_shape
        self.notes = backbone.notes
        self.pretrained = backbone.pretrained
        self.input_statistics = backbone.input_statistics
        self.usual_side = backbone.usual_side
        self.added = backbone.added
        self.fixed_deviations = backbone.fixed_deviations

    def make_trunk(self) -> nn.Module:
        return self.original.make_trunk()

    def make_head(self, n: int) -> nn.Module:
        return self.original.make_head(n)

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return self.original.make_branch(n, width)

    def pass_on(self, branch: nn.Module) -> None:
        self.original.pass_on(branch)

    def narrowed(self, head: Mapping[str, Tensor], width: float) -> Mapping[str, Tensor]:
        return self.original.narrowed(head, width)

    def initialise(self, part: nn.Module, scheme: str) -> None:
        self.original.initialise(part, scheme)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        return self.original.multipliers(parameter_name)

    def published_preset(self) -> Preset:
        return self.original.published_preset()

    def quick_preset(self) -> Preset:
        return self.original.quick_preset()


class FlatControl(Around):
    """The backbone of the flat control of K experts: its head comes from `make_control`.

    width: of the experts.  `for_images` raises InvalidInput if the branches' width is fixed.
    """

    def __init__(self, backbone: Backbone, K: int, width: float = 1.0) -> None:
        super().__init__(backbone)
        self.K = whole_number("K", K, 1)
        self.width = width
        self.name = f"{backbone.name}_control{K}"

    def make_head(self, n: int) -> nn.Module:
        control = self.original.make_control(n, self.K, self.width)
        return nn.Sequential(self.original.make_shared(), control)

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """fan_in: as published; fixed deviations of layers with r times the inputs of a branch's
        are divided by the root of r.
        """
        super().initialise(part, scheme)
        if scheme == "fan_in" and self.fixed_deviations:
            with torch.device("meta"):
                branch = self.original.make_branch(2)
            narrow = nn.Sequential(nn.Identity(), branch).state_dict()  # named as in the head
            for name, tensor in part.state_dict().items():
                if name in narrow and name.endswith("weight"):
                    tensor /= (tensor[0].numel() / narrow[name][0].numel()) ** 0.5

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        raise InvalidInput(f"backbone {self.name!r} is flat: it has no experts.")

    def for_images(self, image_shape: tuple[int, int, int]) -> Backbone:
        found = FlatControl(self.original.for_images(image_shape), self.K, self.width)
        with seeded(0):
            found.make_head(2)  # raises InvalidInput if a width is impossible
        return found

    @property
    def description(self) -> dict[str, Any]:
        """That of the backbone whose control it is, with the experts' number and width."""
        return {**self.original.description, "experts": self.K, "width": self.width}

    @cached_property
    def identity(self) -> dict[str, Any]:
        with seeded(0):
            head = self.make_head(7)
        digest = hashlib.sha256(repr(head).encode()).hexdigest()[:16]
        return {**self.original.identity, "name": self.name, "control": digest}


class OnFeatures(Around):
    """A backbone whose images are the features of a frozen trunk (see `nofe_lab.data.features`).

    Its trunk passes them on; head, branches and control are the original's.  backbone: for the
    images that the features are of.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.name = f"{backbone.name}_features"
        trunk = backbone.make_trunk().eval()
        with torch.no_grad():
            self.features = tuple(trunk(torch.zeros(1, *backbone.input_shape)).shape[1:])
        channels, height, width = (*self.features, 1, 1)[: max(len(self.features), 3)]
        self.input_shape = (channels, height, width)
        self.notes = ()

    def make_trunk(self) -> nn.Module:
        """Features [N, c, h, w] -> [N, ...], as the frozen trunk gave them."""
        is_map = self.features == self.input_shape
        return nn.Identity() if is_map else nn.Flatten(len(self.features))

    def make_shared(self) -> nn.Module:
        return self.original.make_shared()

    def make_control(self, n: int, K: int, width: float = 1.0) -> nn.Module:
        return self.original.make_control(n, K, width)

    def for_images(self, image_shape: tuple[int, int, int]) -> Backbone:
        if image_shape != self.input_shape:
            raise InvalidInput(
                f"backbone {self.name!r} takes features of {size_in_words(self.input_shape)}; got "
                f"{size_in_words(image_shape)}."
            )
        return self

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {**self.original.identity, "name": self.name, "features": list(self.features)}
