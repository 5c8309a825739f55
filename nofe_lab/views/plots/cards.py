"""Draws cards of specialties, images and class names, the parts of several figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from nofe_lab.data import Source
from nofe_lab.data.pictures import rgb
from nofe_lab.specialties import Specialties
from nofe_lab.views.plots.style import Colour, mix, specialty_colours
from nofe_lab.views.plots.text import SMALL, fitted, text_width


def draw_card(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    specialties: Specialties,
    k: int,
    colours: Sequence[Colour] | None = None,
) -> None:
    """Draw the frame of specialty k with a coloured label in its top left corner, in inches."""
    colour = (colours or specialty_colours(specialties.K))[k]
    n = specialties.sizes[k]
    count = f": {n} {'class' if n == 1 else 'classes'}"
    room = width - 0.35 - text_width(count, 9, "bold")
    frame = FancyBboxPatch(
        (x + 0.05, y + 0.05),
        width - 0.1,
        height - 0.1,
        boxstyle="round,pad=0.05",
        facecolor=mix(colour, 1.0, 0.93),
        edgecolor=colour,
        linewidth=1,
    )
    axes.add_patch(frame)
    black_on = np.dot(colour, (0.299, 0.587, 0.114)) > 0.5
    axes.text(
        x + 0.16,
        y + 0.19,
        fitted(specialties.title(k), room, 9, "bold") + count,
        fontsize=9,
        weight="bold",
        va="center",
        color="black" if black_on else "white",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": colour, "linewidth": 0},
    )


def draw_image(axes: Axes, image: torch.Tensor, x: float, y: float, side: float) -> None:
    """Draw an image uint8 [channels, height, width] into a square of `side` inches at (x, y)."""
    pixels = rgb(image)
    height, width = (side * length / max(pixels.shape[:2]) for length in pixels.shape[:2])
    left, top = x + (side - width) / 2, y + (side - height) / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", zorder=2)


def first_images(split: Source, c: int, n: int) -> torch.Tensor:
    """The first n images of class c: uint8 [n, channels, height, width]."""
    return split.sample(split.of_class(c)[:n])


class Pictured(Protocol):
    """Classes with an image of each: a `Dataset`, or what a run keeps of one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the C classes."""

    @property
    def thumbnails(self) -> torch.Tensor:
        """An image of each, uint8 [C, channels, height, width]."""


def name_size(dataset: Pictured) -> float:
    """Font size of class names: larger if all names are one or two characters long."""
    return 9.0 if max(map(len, dataset.class_names)) <= 2 else SMALL


def fitted_names(
    specialties: Specialties, classes: Iterable[int], inches: float = 1.1
) -> list[str]:
    """Names of classes, cut to a width."""
    return [fitted(specialties.class_names[c], inches) for c in classes]


def short_names(specialties: Specialties) -> list[str]:
    """Names of the specialties, cut to 1.2 inches."""
    return [fitted(name, 1.2, 8) for name in specialties.names]


def blocks_of(specialties: Specialties, part: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(specialty, first row, number of rows) for each in `part`, one row a class."""
    first = 0
    for k in part:
        yield k, first, specialties.sizes[k]
        first += specialties.sizes[k]
