"""Draws a training: loss and accuracy, the affinity, and the specialties as they form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput
from nofe_lab.specialties import Specialties, maps_of
from nofe_lab.views.plots.cards import blocks_of, fitted_names, short_names
from nofe_lab.views.plots.style import (
    DARK,
    GREY,
    WIDTH,
    name_columns,
    new_figure,
    percent,
    specialty_colours,
    styled,
)
from nofe_lab.views.plots.text import LINE, SMALL, fitted, text_width, wrapped

MOST_MAPS = 12
"""At most so many updates of the map are drawn; of more, evenly spaced ones."""


@styled
def plot_history(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss (left) and accuracy (right) of each network over its epochs.

    histories: network -> table with the columns epoch, train_loss and train_accuracy; val_loss and
    val_accuracy if there are validation images.
    """
    figure = new_figure(WIDTH, 3.4)
    colours = dict(zip(histories, specialty_colours(max(len(histories), 1)), strict=False))
    both = figure.subplots(1, 2)
    for axes, measure in zip(both, ("loss", "accuracy"), strict=True):
        for network, history in histories.items():
            marker = "o" if len(history) <= 20 else None
            for part, line in (("train", "-"), ("val", "--")):
                if (column := f"{part}_{measure}") in history:
                    axes.plot(
                        history["epoch"],
                        history[column],
                        line,
                        color=colours[network],
                        marker=marker,
                        markersize=3,
                        linewidth=1.5,
                        clip_on=False,  # a single epoch's point lies on the edge
                    )
        axes.set(xlabel="epoch", ylabel=measure, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.4)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(percent))
    if any("val_loss" in history for history in histories.values()):
        lines = [Line2D([], [], color=DARK, linestyle=line) for line in ("-", "--")]
        both[0].legend(lines, ["training images", "validation images"])
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours.values()]
    names = [fitted(network, 4.0, 8) for network in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


@styled
def plot_affinity(affinity: NDArray[np.floating], specialties: Specialties) -> Figure:
    """Heat map of the affinity: how much of each class the generalist puts into each specialty.

    affinity: A[C, K], the input of the assignment rules.  Rows are classes in the order of the
    specialties; the specialty of each class is outlined.
    """
    C, K = specialties.C, specialties.K
    if affinity.shape != (C, K):
        raise InvalidInput(f"the affinity must be [{C}, {K}]; got {list(affinity.shape)}.")
    panels = _halves(specialties) if C > 50 else [specialties.nonempty]
    rows = [[c for k in part for c in specialties.members(k)] for part in panels]
    columns = short_names(specialties)
    pitch = 1.2 * LINE if C > 30 else 0.2
    height = pitch * max(map(len, rows)) + max(text_width(name, SMALL) for name in columns)
    figure = new_figure(max(min(2.2 + 0.36 * K, 5.2) * len(panels), 4.6), height + 1.4)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = specialty_colours(K)
    top = float(affinity.max()) or 1.0
    for axes, part, classes in zip(every, panels, rows, strict=True):
        image = axes.imshow(affinity[classes], cmap="Blues", vmin=0, vmax=top, aspect="auto")
        axes.set_yticks(range(len(classes)), fitted_names(specialties, classes), fontsize=SMALL)
        name_columns(axes, columns, range(K), SMALL)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_xlabel("specialty")
        axes.xaxis.set_label_position("top")
        for k, first, size in blocks_of(specialties, part):
            outline = (k - 0.5, first - 0.5), 1, size
            axes.add_patch(Rectangle(*outline, fill=False, edgecolor=DARK, linewidth=1.2))
            strip = (-0.5 - 0.02 * K, first - 0.5), 0.015 * K, size
            axes.add_patch(Rectangle(*strip, color=colours[k], clip_on=False, linewidth=0))
            axes.axhline(first - 0.5, color=GREY, linewidth=0.4)
        axes.tick_params(axis="y", pad=11)
        sns.despine(ax=axes, left=True, bottom=True)
    bar = figure.colorbar(
        image, ax=list(every), location="bottom", shrink=0.5 if len(panels) > 1 else 0.9, aspect=40
    )
    bar.set_label("affinity: share of the class put into the specialty", fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _halves(specialties: Specialties) -> list[tuple[int, ...]]:
    """The specialties that have a class, in two parts with about as many classes each."""
    every = specialties.nonempty
    ends = np.cumsum([specialties.sizes[k] for k in every])
    cut = int(np.abs(ends - specialties.C / 2).argmin()) + 1
    return [part for part in (every[:cut], every[cut:]) if part]


@styled
def plot_evolution(
    map_history: pd.DataFrame,
    specialties: Specialties,
    map_updates: pd.DataFrame,
    *,
    update: int | None = None,
    follow: int | None = None,
) -> Figure:
    """How the classes moved between specialties while the generalist learned.

    map_history: columns update, class, specialty; update 0 is the random start.
    map_updates: columns update, moved, objective_before, objective_after.
    specialties: the final ones; each class is a line in the colour of its final specialty.
    update: marks this update.  follow: highlights the line of this class.

    Panels below the lines show how many classes each update moved, and the objective before and
    after it on the same images.
    """
    maps = maps_of(map_history, specialties)
    C, K, updates = specialties.C, specialties.K, len(maps) - 1
    pitch = float(np.clip(6.5 / C, 0.07, 0.25))
    gap = max(1.5, 0.1 / pitch)
    rows = [pitch * (C + gap * K), *([0.9, 1.2] if updates else [])]
    figure = new_figure(WIDTH, sum(rows) + 0.9)
    shown = shown_maps(updates)
    grid = figure.add_gridspec(len(rows), 2, width_ratios=[6, 3.4], height_ratios=rows)
    axes, names = (figure.add_subplot(grid[0, column]) for column in (0, 1))
    colours = specialty_colours(K)
    bar = 0.025 * max(updates, 1)
    places, blocks = alluvial(maps[shown], K, gap)
    for column, k, top, size in blocks:
        update = shown[column]
        corner = (update - bar / 2, top - 0.5)
        axes.add_patch(Rectangle(corner, bar, size, color=colours[k], linewidth=0, zorder=3))
        if update == 0:
            name = fitted(specialties.title(k), 1.2, 8)
            at = axes.get_yaxis_transform()
            middle = top + size / 2 - 0.5
            axes.text(-0.01, middle, name, transform=at, ha="right", va="center", fontsize=8)
        if update == updates:
            listed = wrapped(specialties.class_names_of(k), 3.0, int(size * pitch / LINE + 0.7))
            names.text(0.02, top + size / 2 - 0.5, listed, va="center", fontsize=SMALL)
            badge = Rectangle((-0.02, top - 0.5), 0.02, size, color=colours[k], linewidth=0)
            names.add_patch(badge)
    axes.add_collection(
        LineCollection(
            _curves(shown, places, bar / 2),
            colors=[
                (*colours[k], 0.8 if follow is None else 1.0 if c == follow else 0.15)
                for c, k in enumerate(specialties.of)
            ],
            linewidths=min(0.7 * pitch * 72, 6),
            capstyle="butt",
        )
    )
    for each in (axes, names):
        each.set(ylim=(C + gap * K - gap, -1), yticks=[])
        sns.despine(ax=each, left=True, bottom=True)
    names.set(xticks=[], xlim=(-0.02, 1))
    axes.set_xlim(-max(bar, 0.3), updates + max(bar, 0.3))
    axes.tick_params(length=0)
    if not updates:
        axes.set_xticks([0], ["random start"])
        axes.set_title("The map was never updated: these are the specialties it began with.")
        return figure
    some = f" ({len(shown)} of {updates + 1} maps)" if len(shown) <= updates else ""
    axes.set_title(f"Specialty of each class, from the random start to the final map{some}")
    moved, objective = (figure.add_subplot(grid[row, 0], sharex=axes) for row in (1, 2))
    x = map_updates["update"]
    bars = moved.bar(x, map_updates["moved"], width=0.5, color=GREY)
    if updates <= 20:
        moved.bar_label(bars, fontsize=8, padding=1)
    moved.set(ylabel="classes\nmoved", ylim=(0, 1.25 * max(map_updates["moved"].max(), 1)))
    before, after = map_updates["objective_before"], map_updates["objective_after"]
    objective.vlines(x, before, after, color=GREY, linewidth=1.5)
    for value, face, name in (
        (before, "white", "before the update"),
        (after, DARK, "after it, on the same images"),
    ):
        objective.scatter(x, value, 22, facecolors=face, edgecolors=DARK, zorder=3, label=name)
    objective.set(ylabel="objective", xlabel="update of the map (0: random start)")
    key = figure.add_subplot(grid[2, 1])
    key.set_axis_off()
    key.legend(*objective.get_legend_handles_labels(), loc="center left")
    objective.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    moved.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for each in (axes, moved):
        each.tick_params(axis="x", labelbottom=False, length=0)
    for each in (moved, objective):
        each.grid(axis="y", alpha=0.4)
    if update is not None:
        for each in (axes, moved, objective):
            each.axvline(update, color=DARK, linestyle="--", linewidth=1)
    figure.align_ylabels([moved, objective])
    return figure


def alluvial(
    maps: NDArray[np.integer], K: int, gap: float
) -> tuple[NDArray[np.float64], list[tuple[int, int, float, int]]]:
    """The layout of an alluvial diagram: y of each class [maps, C], and blocks of specialties.

    A block is (map, specialty, top, size).  Classes of a specialty are ordered as in the next map,
    so that few lines cross.
    """
    places = np.zeros(maps.shape)
    following = np.arange(maps.shape[1], dtype=float)
    blocks = []
    for column in reversed(range(len(maps))):
        top = 0.0
        for k in range(K):
            members = np.flatnonzero(maps[column] == k)
            members = members[np.argsort(following[members], kind="stable")]
            places[column, members] = top + np.arange(len(members))
            if len(members):
                blocks.append((column, k, top, len(members)))
            top += len(members) + gap
        following = places[column]
    return places, blocks


def shown_maps(updates: int) -> NDArray[np.int64]:
    """The updates whose maps are drawn, from 0, the random start: all, or evenly spaced ones."""
    found: NDArray[np.int64] = np.unique(
        np.linspace(0, updates, min(updates, MOST_MAPS) + 1).round().astype(np.int64)
    )
    return found


def _curves(
    x: NDArray[np.int64], places: NDArray[np.float64], margin: float
) -> list[NDArray[np.float64]]:
    """A smooth line [points, 2] for each class through its places at x."""
    along = np.linspace(0, 1, 25)
    rise = along**2 * (3 - 2 * along)
    left, right = x[:-1, None] + margin, x[1:, None] - margin
    across = (left + along * (right - left)).ravel()
    return [
        np.column_stack([across, (way[:-1, None] + np.diff(way)[:, None] * rise).ravel()])
        for way in places.T
    ]
