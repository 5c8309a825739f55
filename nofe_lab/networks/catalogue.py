"""One `backbone(...)` for every CNN: the published six, torchvision's, timm's, or your own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from nofe_lab.config import PRESETS, InvalidInput, Preset, one_of
from nofe_lab.networks.backbone import Backbone
from nofe_lab.networks.paper import PAPER

Network = str | Backbone | nn.Module | Callable[[], nn.Module]
"""What `backbone` accepts."""


def backbone(
    network: Network,
    *,
    split: str | None = None,
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Backbone:
    """The backbone of that name."""
    if isinstance(network, Backbone):
        return network
    return PAPER[one_of("backbone", network, PAPER)]()


def preset(name: str, backbone: Backbone) -> Preset:
    """The recipes called `name` for a backbone: ``quick`` or ``paper``.

    Raises InvalidInput if the name is unknown, or ``paper`` and nothing was published.
    """
    if one_of("preset", name, PRESETS) == "quick":
        return backbone.quick_preset()
    try:
        return backbone.published_preset()
    except NotImplementedError:
        raise InvalidInput(
            f"preset 'paper' is for the published networks ({', '.join(PAPER)}); "
            f"{backbone.name!r} accepts 'quick'."
        ) from None
