"""Draws what a network of experts makes of one image."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nofe_lab.inspection import Inspection
from nofe_lab.specialties import Specialties
from nofe_lab.views.plots.cards import draw_image
from nofe_lab.views.plots.style import (
    DARK,
    GREY,
    WIDTH,
    axes_inches,
    blank_axes,
    new_figure,
    specialty_colours,
    style_shares,
    styled,
)
from nofe_lab.views.plots.text import fitted


@styled
def plot_inspection(
    image: torch.Tensor, found: Inspection, specialties: Specialties, title: str
) -> Figure:
    """Where the networks look in one image, and how sure each expert is.

    For each expert, a filled bar is the probability of its classes together in the softmax over all
    classes, a hollow bar the probability of its best class in the softmax over its own classes, and
    a diamond the probability that the gate gives to the best class of that specialty.
    """
    experts = list(specialties.nonempty)
    height = max(4.4, 1.3 + 0.27 * len(experts))
    figure = new_figure(WIDTH, height, "none")
    axes = blank_axes(figure, (0, 0, 4.4, height))
    axes.text(0.1, 0.2, fitted(title, 4.2, 10), fontsize=10, va="center")
    side = 1.75
    for n, (name, drawn) in enumerate(inspected_maps(image, found, specialties).items()):
        x, y = 0.1 + n % 2 * (side + 0.25), 0.42 + n // 2 * (side + 0.24)
        draw_image(axes, drawn, x, y, side)
        axes.text(x, y + side + 0.1, fitted(name, side + 0.2, 8), fontsize=8, va="center")
    beside = axes_inches(figure, (6.1, 0.75, 3.6, height - 1.25))
    colours = specialty_colours(specialties.K)
    places = np.arange(len(experts))
    own = [colours[k] for k in experts]
    beside.barh(places, found.alone[found.best], 0.75, color="none", edgecolor=own, linewidth=1.5)
    beside.barh(places, found.mass, 0.4, color=own)
    names = [
        f"{fitted(specialties.names[k], 0.7, 8)}: {fitted(specialties.class_names[c], 0.9, 8)}"
        for k, c in zip(experts, found.best, strict=True)
    ]
    handles: list[Artist] = [Patch(facecolor=GREY), Patch(facecolor="none", edgecolor=GREY)]
    labels = ["its share under the common softmax", "its own best class, asked alone"]
    if found.gate is not None:
        beside.scatter(found.gate, places, 30, color=DARK, marker="D", zorder=3)
        handles.append(Line2D([], [], color=DARK, marker="D", linestyle=""))
        labels.append("its best class, as the gate believes")
    beside.set_yticks(places, names, fontsize=8)
    beside.set(ylim=(len(experts) - 0.4, -0.6), xlim=(0, 1.02), ylabel="expert: its best class")
    style_shares(beside)
    figure.legend(handles, labels, loc="lower right", ncols=2)
    return figure


def inspected_maps(
    image: torch.Tensor, found: Inspection, specialties: Specialties
) -> dict[str, torch.Tensor]:
    """The images of an inspection: caption -> uint8 [channels, height, width]."""
    k = specialties.nonempty[found.expert]
    said = specialties.class_names[int(found.nofe.argmax())]
    base = specialties.class_names[int(found.base.argmax())]
    return {
        "the image": image,
        "the trunk's features": heat(image, found.trunk_view),
        f"base CNN: {base}": heat(image, found.base_map),
        f"expert {specialties.names[k]}: {said}": heat(image, found.expert_map),
    }


def heat(image: torch.Tensor, where: NDArray[np.float64]) -> torch.Tensor:
    """An image in grey with a heat map over it: uint8 [3, height, width].

    image: uint8 [channels, height, width].  where: the map [height, width], from 0 (dark blue) to 1
    (yellow).
    """
    grey = image.double().mean(0).numpy() / 255
    colour = mpl.colormaps["viridis"](where)[..., :3]
    mixed = 255 * (0.4 * grey[..., None] + 0.6 * colour)
    return torch.from_numpy(mixed.round().astype(np.uint8)).permute(2, 0, 1)
