"""The flat control: as deep and as large as a network of experts, but without experts.

A network of experts is deeper and larger than its base CNN.  Its control has the same trunk and one
branch instead of K: as deep as they are, and as expensive as all of them together.  What the
network of experts gains over its control comes from the specialties, the rest from depth and size.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from torch import nn

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.networks.backbone import Backbone, seeded
from nofe_lab.recipes import Preset


class FlatControl(Backbone):
    """The backbone of the flat control of K experts: its head comes from `make_control`.

    width: of the experts.  `for_images` raises InvalidInput if the branches' width is fixed.
    """

    def __init__(self, backbone: Backbone, K: int, width: float = 1.0) -> None:
        self.original = backbone
        self.K = whole_number("K", K, 1)
        self.width = width
        self.name = f"{backbone.name}_control{K}"
        self.input_shape = backbone.input_shape
        self.notes = backbone.notes
        self.pretrained = backbone.pretrained
        self.input_statistics = backbone.input_statistics
        self.usual_side = backbone.usual_side

    def make_trunk(self) -> nn.Module:
        return self.original.make_trunk()

    def make_head(self, n: int) -> nn.Module:
        control = self.original.make_control(n, self.K, self.width)
        return nn.Sequential(self.original.make_shared(), control)

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        raise InvalidInput(f"backbone {self.name!r} is flat: it has no experts.")

    def initialise(self, part: nn.Module, scheme: str) -> None:
        self.original.initialise(part, scheme)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        return self.original.multipliers(parameter_name)

    def published_preset(self) -> Preset:
        return self.original.published_preset()

    def quick_preset(self) -> Preset:
        return self.original.quick_preset()

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
