"""Draws specialties as cards, images of classes, and the classes that two partitions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nofe_lab.config import whole_number
from nofe_lab.data import Dataset
from nofe_lab.specialties import Specialties
from nofe_lab.views.plots.cards import (
    Pictured,
    draw_card,
    draw_image,
    first_images,
    name_size,
    short_names,
)
from nofe_lab.views.plots.style import (
    GREY,
    LIGHT,
    WIDTH,
    Colour,
    canvas,
    name_columns,
    new_figure,
    styled,
)
from nofe_lab.views.plots.text import SMALL, fitted, text_width


@styled
def plot_specialties(
    dataset: Pictured,
    specialties: Specialties,
    *,
    order: Sequence[int] | None = None,
    notes: Mapping[int, str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> Figure:
    """A card for each specialty, with the thumbnails of its classes.

    order: the specialties to draw, in this order; None: all that have a class.
    notes: specialty -> a line below its label.
    colours: one for each specialty; None: those of `specialty_colours`.
    """
    specialties.check_classes(dataset.class_names)
    shown = specialties.nonempty if order is None else tuple(order)
    head = 0.58 if notes else 0.36
    size = name_size(dataset)
    widest = max(text_width(fitted(name, 0.8, size), size) for name in dataset.class_names)
    side, line = 0.64, 0.25
    cell = max(side + 0.04, widest + 0.08)
    most = max(specialties.sizes)

    def cards(split: int) -> tuple[int, list[tuple[int, ...]], list[float]]:
        """For `split` cards a row: thumbnails side by side, specialties and height of each row."""
        columns = max(min(int((9.9 / split - 0.25) / cell), most), 1)
        columns = -(-most // -(-most // columns))  # the fewest that need no more lines
        rows = [shown[i : i + split] for i in range(0, len(shown), split)]
        lines = [max(-(-specialties.sizes[k] // columns) for k in row) for row in rows]
        return columns, rows, [head + 0.06 + n * (side + line) for n in lines]

    split = min((1, 2, 3), key=lambda split: sum(cards(split)[2]) + split / 100)
    columns, rows, heights = cards(split)
    card = max(columns * cell + 0.25, 1.6)
    figure, axes = canvas(split * (card + 0.12) + 0.12, sum(heights) + 0.12 * (len(rows) + 1))
    y = 0.12
    for row, height in zip(rows, heights, strict=True):
        for place, k in enumerate(row):
            x = 0.12 + place * (card + 0.12)
            draw_card(axes, x, y, card, height, specialties, k, colours)
            if notes:
                text = fitted(notes.get(k, ""), card - 0.3)
                axes.text(x + 0.16, y + 0.42, text, fontsize=SMALL, va="center", color=GREY)
            for position, c in enumerate(specialties.members(k)):
                left = x + 0.16 + (cell - side) / 2 + position % columns * cell
                top = y + head + position // columns * (side + line)
                draw_image(axes, dataset.thumbnails[c], left, top, side - 0.04)
                middle = left + (side - 0.04) / 2
                name = fitted(dataset.class_names[c], cell - 0.08, size)
                axes.text(middle, top + side + 0.06, name, ha="center", va="center", fontsize=size)
        y += height + 0.12
    return figure


@styled
def plot_samples(dataset: Dataset, classes: int = 10, per_class: int = 8) -> Figure:
    """Training images of `classes` classes, evenly spaced in class order, a row for each."""
    whole_number("classes", classes, 1)
    whole_number("per_class", per_class, 1)
    shown = np.linspace(0, dataset.C - 1, min(classes, dataset.C)).round().astype(int).tolist()
    columns = 2 if len(shown) > 3 and per_class <= 10 else 1
    rows = -(-len(shown) // columns)
    side = min(((WIDTH - 0.4) / columns - 1.3) / per_class, 0.7)
    figure, axes = canvas(WIDTH, rows * (side + 0.06) + 0.2)
    for position, c in enumerate(shown):
        x = 0.2 + position // rows * (WIDTH - 0.4) / columns
        y = 0.1 + position % rows * (side + 0.06)
        name = fitted(dataset.class_names[c], 1.0, 8)
        axes.text(x + 1.14, y + side / 2, name, ha="right", va="center", fontsize=8)
        for n, image in enumerate(first_images(dataset.train, c, per_class)):
            draw_image(axes, image, x + 1.22 + n * side, y, side - 0.04)
    return figure


@styled
def plot_crosstab(
    specialties: Specialties, other: Specialties, title: str = "superclass"
) -> Figure:
    """How many classes each specialty shares with each group of another partition.

    other: for example the data set's superclasses.  title: what its groups are called.
    Its columns are in the order of the specialties that hold most of their classes.
    """
    table = np.zeros((specialties.K, other.K), dtype=int)
    agreement = specialties.agreement(other)
    np.add.at(table, (specialties.of, other.of), 1)
    order = np.lexsort((-table.max(axis=0), table.argmax(axis=0)))
    groups = [fitted(other.names[group], 2.5, 8) for group in order]
    below = max(text_width(name, 8) for name in groups)
    figure = new_figure(
        float(np.clip(1.9 + 0.42 * other.K, 6, 16)), 1.2 + 0.26 * table.shape[0] + below
    )
    axes = figure.subplots()
    sns.heatmap(
        table[:, order],
        ax=axes,
        cmap="Blues",
        vmin=0,
        annot=np.where(table[:, order] > 0, table[:, order].astype(str), ""),
        fmt="",
        annot_kws={"fontsize": 8},
        linewidths=0.5,
        linecolor=LIGHT,
        cbar_kws={"label": "classes in common", "ticks": MaxNLocator(5, integer=True), "pad": 0.01},
    )
    axes.set_yticks(np.arange(specialties.K) + 0.5, short_names(specialties), rotation=0)
    name_columns(axes, groups, (column + 0.5 for column in range(other.K)), 8)
    axes.tick_params(length=0)
    axes.set(xlabel=title, ylabel="specialty")
    axes.set_title(
        f"normalised mutual information {agreement['nmi']:.2f}\n"
        f"adjusted Rand index {agreement['ari']:.2f} (0: as by chance)"
    )
    return figure
