"""Data in, Figure out: the pictures of the workbench.

A view has three layers.  What is to be seen is *computed* elsewhere, as plain arrays and tables
(`nofe_lab.evaluation`, `nofe_lab.specialties`); a ``plot_*`` function here *draws* it; a widget
(`nofe_lab.views.widgets`) lets a reader *choose* what is drawn.  So every picture can be made from
a test, a script or a notebook, and an interactive view never shows what a plain cell could not.

Every function returns a `matplotlib.figure.Figure` that pyplot has forgotten already: as the last
expression of a cell it is shown once, and ``figure.savefig(path)`` writes it to a file.  Colours
mean specialties (in `plot_history`, networks): specialty k has the same colour in all pictures.
Class names are shown as they are, never read as formulas; one that is too long for its place is cut
in its middle.  The font of matplotlib's settings comes first; characters that no font has are named
once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.data import Dataset, Split
from nofe_lab.evaluation import (
    InsideShare,
    Predictions,
    inside_by_chance,
    over_seeds,
    specialty_confusion,
)
from nofe_lab.inspection import Inspection
from nofe_lab.log import log
from nofe_lab.specialties import Specialties, maps_of

Colour = tuple[float, float, float]
P = ParamSpec("P")

SMALL = 7.0
"""Font size of class names, in points: the smallest that is used."""
LINE = 0.115
"""Height of a line of class names, in inches."""
WIDTH = 10.0
"""Width of a full-width figure, in inches."""
SAME_COST = 0.02
"""Share by which costs may differ and count as equal."""
MOST_MAPS = 12
"""How many updates of the map are drawn; of more, as many, evenly spaced."""
DARK, GREY, LIGHT, BLANK = "#262626", "#8c8c8c", "#e4e4e4", "#d3e4f3"
ACCENT, RIGHT, WRONG = "#3d348b", "#00735c", "#b84a00"

# DejaVu Sans, which comes with matplotlib, has no East Asian or Indic scripts
_OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei")
_STYLE = {
    **sns.axes_style("ticks"),
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,
    "text.usetex": False,
}


def _families() -> list[str]:
    """The fonts that are looked into for a character, in turn: those of the user first."""
    own: list[str] = []
    settings: Any = mpl.rcParams
    for name in settings["font.family"]:
        kind = f"font.{name}"  # of sans-serif and the like, the first
        own += settings[kind][:1] if kind in settings else [name]
    installed = {font.name for font in fontManager.ttflist}
    wanted = (*own, "DejaVu Sans", *_OTHER_FONTS)
    return [name for name in dict.fromkeys(wanted) if name in installed]


def _styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """A plot function in the style of all pictures here."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context({**_STYLE, "font.family": _families()}):
            return plot(*args, **kwargs)

    return drawn


_SAID: set[str] = set()
"""Characters that no font has, and of which this was said."""


@contextmanager
def _missing_characters_said() -> Iterator[None]:
    """Matplotlib warns of each character in each text, with the paths of fonts; say it once."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    missing = set()
    for warning in heard:
        if found := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if new := sorted(missing - _SAID):
        _SAID.update(new)
        log.warning(
            f"No font here has {' '.join(new[:20])}{' ...' if len(new) > 20 else ''}: boxes are "
            "drawn instead; matplotlib.rcParams['font.family'] = NAME, before the pictures, takes "
            "a font of yours that has them."
        )


class _Figure(Figure):
    def draw(self, renderer: Any) -> None:
        with _missing_characters_said():
            super().draw(renderer)


def specialty_colours(K: int) -> list[Colour]:
    """One colour a specialty, K of them as (red, green, blue) from 0 to 1.

    The first ten are seaborn's colour-blind-safe palette; then come the same hues, darker and
    lighter, so that specialty k keeps its colour up to K = 30.  Beyond that, K hues around the
    circle.
    """
    whole_number("K", K, 1)
    if K > 30:
        return [to_rgb(colour) for colour in sns.husl_palette(K)]
    safe = [to_rgb(colour) for colour in sns.color_palette("colorblind", 10)]
    shades = [*safe, *(_mix(c, 0.0, 0.45) for c in safe), *(_mix(c, 1.0, 0.55) for c in safe)]
    return shades[:K]


@_styled
def plot_history(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss (left) and accuracy (right) of each network over its epochs.

    histories: network -> table with the columns epoch, train_loss, train_accuracy, and val_loss,
    val_accuracy where there are validation images.
    """
    figure = _figure(WIDTH, 3.4)
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
                    )
        axes.set(xlabel="epoch", ylabel=measure, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.4)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    if any("val_loss" in history for history in histories.values()):
        lines = [Line2D([], [], color=DARK, linestyle=line) for line in ("-", "--")]
        both[0].legend(lines, ["training images", "validation images"])
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours.values()]
    names = [fitted(network, 4.0, 8) for network in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


@_styled
def plot_affinity(affinity: NDArray[np.floating], specialties: Specialties) -> Figure:
    """How much of each class the generalist puts into each specialty, as a heat map.

    affinity: A[C, K], as the rules for the specialty map read it.  A row is a class, in the order
    of the specialties; its own specialty is outlined.
    """
    C, K = specialties.C, specialties.K
    if affinity.shape != (C, K):
        raise InvalidInput(f"the affinity must be [{C}, {K}]; got {list(affinity.shape)}.")
    panels = _halves(specialties) if C > 50 else [specialties.nonempty]
    rows = [[c for k in part for c in specialties.members(k)] for part in panels]
    columns = _short_names(specialties)
    pitch = 1.2 * LINE if C > 30 else 0.2
    height = pitch * max(map(len, rows)) + max(_width(name, SMALL) for name in columns)
    figure = _figure(max(min(2.2 + 0.36 * K, 5.2) * len(panels), 4.6), height + 1.4)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = specialty_colours(K)
    top = float(affinity.max()) or 1.0
    for axes, part, classes in zip(every, panels, rows, strict=True):
        image = axes.imshow(affinity[classes], cmap="Blues", vmin=0, vmax=top, aspect="auto")
        axes.set_yticks(range(len(classes)), _names(specialties, classes), fontsize=SMALL)
        _name_columns(axes, columns, range(K), SMALL)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_xlabel("specialty")
        axes.xaxis.set_label_position("top")
        for k, first, size in _blocks(specialties, part):
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


@_styled
def plot_confusion(
    confusion: NDArray[np.int64],
    specialties: Specialties,
    title: str | None = None,
    minus: NDArray[np.int64] | None = None,
) -> Figure:
    """What the images of each class are mistaken for, classes in the order of the specialties.

    confusion: counts [C, C], row = label, column = prediction.  Colours show shares of a row; the
    diagonal (right predictions) is left blank, so that the scale serves the mistakes.  Specialties
    are outlined: what lies inside an outline is a mistake inside a specialty.  With more than 200
    classes their names are left out.
    minus: counts of another network: what is drawn is how much larger or smaller the shares are.
    """
    C, K = specialties.C, specialties.K
    order = list(specialties.order)
    share = mistake_shares(confusion, C)
    if minus is not None:
        share = share - mistake_shares(minus, C)
    share = share[np.ix_(order, order)]
    top = top_share(share)
    side = max(0.92 * LINE * C if C <= 200 else WIDTH, 3.5)
    names = _names(specialties, order) if C <= 200 else []
    groups = [fitted(name, 1.0) for name in specialties.names]
    left = max([_width(name, SMALL) for name in names], default=0) + 0.5
    right = max(_width(name, SMALL) for name in [*groups, "specialty"]) + 0.04 * side
    figure = _figure(side + left + right + 0.1, side + left + 1.0)
    axes = figure.subplots()
    bottom, colour_map = (0.0, "Greys") if minus is None else (-top, "PuOr")
    image = axes.imshow(
        share,
        cmap=mpl.colormaps[colour_map].with_extremes(bad=BLANK),
        vmin=bottom,
        vmax=top,
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.tick_params(length=0, pad=2)
    axes.set(xlabel="predicted class", ylabel="class")
    colours = specialty_colours(K)
    for k, first, size in _blocks(specialties, specialties.nonempty):
        corner = (first - 0.5, first - 0.5)
        outline = Rectangle(corner, size, size, fill=False, edgecolor=colours[k], linewidth=2)
        outline.set_clip_on(False)
        axes.add_patch(outline)
        strip = (C - 0.5 + 0.006 * C, first - 0.5), 0.012 * C, size
        axes.add_patch(Rectangle(*strip, color=colours[k], clip_on=False, linewidth=0))
        middle = first + size / 2 - 0.5
        axes.text(C - 0.5 + 0.025 * C, middle, groups[k], fontsize=SMALL, va="center")
    axes.text(C - 0.5 + 0.006 * C, -0.6, "specialty", fontsize=SMALL, va="bottom", color=GREY)
    sns.despine(ax=axes, left=True, bottom=True)
    axes.set_title(fitted(title, side, 10) if title else _confusion_title(confusion, specialties))
    bar = figure.colorbar(
        image,
        ax=axes,
        location="bottom",
        shrink=0.5,
        aspect=40,
        pad=0.01,
        extend=("neither", "max", "both")[
            int((np.abs(share) > top).any()) * (1 if minus is None else 2)
        ],
        format=FuncFormatter(_percent),
    )
    what = "share of the images of a class" if minus is None else "difference of the shares"
    bar.set_label(f"{what} (right predictions left blank)", fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@_styled
def plot_inside_share(share: InsideShare) -> Figure:
    """Share of the mistakes inside specialties, against random partitions of the same sizes."""
    figure = _figure(6.5, 1.6)
    axes = figure.subplots()
    low, high, mean = share.random_low, share.random_high, share.random_mean
    axes.plot([low, high], [0, 0], color=GREY, linewidth=5, solid_capstyle="butt")
    axes.plot(mean, 0, "|", color=DARK, markersize=12)
    axes.plot(share.share, 1, "D", color=ACCENT, markersize=8)
    for row, value, right_end in ((0, mean, high), (1, share.share, share.share)):
        if np.isfinite(value):
            axes.annotate(
                f"{value:.1%}",
                (right_end, row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
    if not np.isfinite(share.share):
        axes.text(0.01, 1, "no mistakes", va="center", color=GREY)
    axes.set_yticks(
        [1, 0], ["these specialties", f"{share.draws:,} random partitions\n(mean and central 95%)"]
    )
    longest = np.nanmax([share.share, high, 0.1])
    axes.set(ylim=(-0.6, 1.6), xlim=(0, min(1.0, 1.25 * longest)))
    axes.set_xlabel("mistakes that stay inside a specialty, share of all mistakes")
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(axis="x", alpha=0.4)
    sns.despine(ax=axes, left=True)
    axes.tick_params(axis="y", length=0)
    return figure


@_styled
def plot_evolution(
    map_history: pd.DataFrame,
    specialties: Specialties,
    map_updates: pd.DataFrame,
    *,
    update: int | None = None,
    follow: int | None = None,
) -> Figure:
    """How the classes moved between the specialties while the generalist learned.

    map_history: columns update, class, specialty; update 0 is the random start.  map_updates:
    columns update, moved, objective_before, objective_after.  specialties: the final ones.
    A line is a class, in the colour of the specialty that it ends in.  Below: how many classes
    each update moved, and the objective before and after it, on the same images.
    update: is marked.  follow: a class whose line stands out from the others.
    """
    maps = maps_of(map_history)
    C, K, updates = specialties.C, specialties.K, len(maps) - 1
    if tuple(maps[-1]) != specialties.of:
        raise InvalidInput("the map's history must end in the specialties that it is drawn with.")
    pitch = float(np.clip(6.5 / C, 0.07, 0.25))
    gap = max(1.5, 0.1 / pitch)
    rows = [pitch * (C + gap * K), *([0.9, 1.2] if updates else [])]
    figure = _figure(WIDTH, sum(rows) + 0.9)
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
            name = fitted(label_of(specialties, k), 1.2, 8)
            at = axes.get_yaxis_transform()
            middle = top + size / 2 - 0.5
            axes.text(-0.01, middle, name, transform=at, ha="right", va="center", fontsize=8)
        if update == updates:
            listed = _wrapped(specialties.class_names_of(k), 3.0, int(size * pitch / LINE + 0.7))
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


@_styled
def plot_specialties(
    dataset: Dataset,
    specialties: Specialties,
    *,
    order: Sequence[int] | None = None,
    notes: Mapping[int, str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> Figure:
    """The specialties drawn: a card for each, with the thumbnail of each of its classes.

    order: the specialties in the order of their cards; None: all that have a class.  notes: a line
    below the label of a card.  colours: one a specialty, to match those of another partition.
    """
    specialties.check_classes(dataset.class_names)
    shown = specialties.nonempty if order is None else tuple(order)
    head = 0.58 if notes else 0.36
    size = _name_size(dataset)
    widest = max(_width(fitted(name, 0.8, size), size) for name in dataset.class_names)
    side, line = 0.64, 0.25
    cell = max(side + 0.04, widest + 0.08)
    most = max(specialties.sizes)

    def cards(split: int) -> tuple[int, list[tuple[int, ...]], list[float]]:
        """Thumbnails side by side, specialties of each row of `split` cards, heights of rows."""
        columns = max(min(int((9.9 / split - 0.25) / cell), most), 1)
        columns = -(-most // -(-most // columns))  # as few as need no more lines
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
            _card(axes, x, y, card, height, specialties, k, colours)
            if notes:
                text = fitted(notes.get(k, ""), card - 0.3)
                axes.text(x + 0.16, y + 0.42, text, fontsize=SMALL, va="center", color=GREY)
            for position, c in enumerate(specialties.members(k)):
                left = x + 0.16 + (cell - side) / 2 + position % columns * cell
                top = y + head + position // columns * (side + line)
                _draw(axes, dataset.thumbnails[c], left, top, side - 0.04)
                middle = left + (side - 0.04) / 2
                name = fitted(dataset.class_names[c], cell - 0.08, size)
                axes.text(middle, top + side + 0.06, name, ha="center", va="center", fontsize=size)
        y += height + 0.12
    return figure


@_styled
def plot_gallery(dataset: Dataset, specialties: Specialties, k: int, per_class: int = 8) -> Figure:
    """The classes of specialty k, each with the first `per_class` of its training images."""
    specialties.check_classes(dataset.class_names)
    whole_number("k", k, 0, specialties.K - 1)
    whole_number("per_class", per_class, 1)
    members = specialties.members(k)
    _, height = _rows(members, per_class)
    figure, axes = canvas(WIDTH, height + 0.62)
    _card(axes, 0.1, 0.1, WIDTH - 0.2, height + 0.42, specialties, k)
    _draw_rows(axes, 0.46, dataset, members, per_class)
    return figure


@_styled
def plot_samples(dataset: Dataset, classes: int = 10, per_class: int = 8) -> Figure:
    """Training images of `classes` classes, evenly spaced in class order, one row a class."""
    whole_number("classes", classes, 1)
    whole_number("per_class", per_class, 1)
    shown = np.linspace(0, dataset.C - 1, min(classes, dataset.C)).round().astype(int).tolist()
    _, height = _rows(shown, per_class)
    figure, axes = canvas(WIDTH, height + 0.2)
    _draw_rows(axes, 0.1, dataset, shown, per_class)
    return figure


@_styled
def plot_crosstab(
    specialties: Specialties, other: Specialties, title: str = "superclass"
) -> Figure:
    """How many classes specialties share with the groups of another partition of the classes.

    other: for instance the data set's superclasses.  title: what its groups are called.  Its
    columns are in the order of the specialties that hold most of them.
    """
    table = np.zeros((specialties.K, other.K), dtype=int)
    agreement = specialties.agreement(other)
    np.add.at(table, (specialties.of, other.of), 1)
    order = np.lexsort((-table.max(axis=0), table.argmax(axis=0)))
    groups = [fitted(other.names[group], 2.5, 8) for group in order]
    below = max(_width(name, 8) for name in groups)
    figure = _figure(
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
    axes.set_yticks(np.arange(specialties.K) + 0.5, _short_names(specialties), rotation=0)
    _name_columns(axes, groups, (column + 0.5 for column in range(other.K)), 8)
    axes.tick_params(length=0)
    axes.set(xlabel=title, ylabel="specialty")
    axes.set_title(
        f"normalised mutual information {agreement['nmi']:.2f}\n"
        f"adjusted Rand index {agreement['ari']:.2f} (0: as by chance)"
    )
    return figure


@_styled
def plot_per_specialty(base: pd.DataFrame, nofe: pd.DataFrame) -> Figure:
    """Accuracy on the images of each specialty: the base CNN against the network of experts.

    Both tables are those of `nofe_lab.evaluation.per_specialty`, with the same specialties.
    """
    if list(base["specialty"]) != list(nofe["specialty"]):
        raise InvalidInput("the two tables must have the same specialties in the same order.")
    n = len(base)
    figure = _figure(7.5, 1.2 + 0.27 * n)
    axes = figure.subplots()
    y = np.arange(n)
    before, after = base["accuracy"].to_numpy(), nofe["accuracy"].to_numpy()
    colour = ACCENT
    axes.hlines(y, before, after, color=colour, linewidth=2, alpha=0.5)
    axes.scatter(before, y, 40, facecolors="white", edgecolors=DARK, zorder=3, label="base CNN")
    axes.scatter(after, y, 40, color=colour, zorder=4, label="NofE")
    for row, (low, high) in enumerate(zip(before, after, strict=True)):
        points = _signed(100 * (high - low), 1)
        at, shift = (max(low, high), row), (8, 0)
        axes.annotate(points, at, shift, textcoords="offset points", va="center", fontsize=8)
    labels = [
        f"{fitted(str(name), 1.8, 8)}  ({classes} {'class' if classes == 1 else 'classes'})"
        for name, classes in zip(base["specialty"], base["classes"], strict=True)
    ]
    axes.set_yticks(y, labels)
    axes.set(ylim=(n - 0.4, -0.6), ylabel="specialty")
    axes.set_xlabel("accuracy on its images (numbers: difference in percentage points)")
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(axis="x", alpha=0.4)
    sns.despine(ax=axes, left=True)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@_styled
def plot_gained_lost(
    dataset: Dataset, base: Predictions, nofe: Predictions, images: int = 5, classes: int = 5
) -> Figure:
    """The classes that gained and lost most from the base CNN to the network of experts.

    base, nofe: their predictions for the test split.  Beside each class, up to `images` of its test
    images that the NofE corrected (gained, left) or broke (lost, right), the first in test order.
    """
    labels = dataset.test.labels.numpy()
    for network, predictions in (("base", base), ("nofe", nofe)):
        if not np.array_equal(predictions.labels, labels):
            raise InvalidInput(
                f"{network} must be predictions for the test images of the data set."
            )
    whole_number("images", images, 1)
    whole_number("classes", classes, 1)
    tested = np.maximum(np.bincount(labels, minlength=dataset.C), 1)
    accuracies = [
        np.bincount(labels, predictions.predicted == labels, dataset.C) / tested
        for predictions in (base, nofe)
    ]
    gain = accuracies[1] - accuracies[0]
    ranks = np.argsort(-gain, kind="stable")
    sides = {
        "gained: test images that the NofE corrected": [c for c in ranks if gain[c] > 0],
        "lost: test images that the NofE broke": [c for c in ranks[::-1] if gain[c] < 0],
    }
    cell, row_height = 1.0, 1.62
    half = max(images, 4) * cell + 0.15
    rows = min(classes, max(len(found) for found in sides.values()))
    figure, axes = canvas(2 * half + 0.3, 0.5 + max(rows, 0.3) * row_height)
    for side, (heading, found) in enumerate(sides.items()):
        x = 0.1 + side * (half + 0.1)
        axes.text(
            x, 0.2, fitted(heading, half - 0.1, 10, "bold"), fontsize=10, weight="bold", va="center"
        )
        if not found:
            axes.text(x, 0.55, f"No class {heading.split(':')[0]}.", color=GREY)
        better, worse = (nofe, base) if side == 0 else (base, nofe)
        changed = (better.predicted == labels) & (worse.predicted != labels)
        for row, c in enumerate(found[:classes]):
            y = 0.42 + row * row_height
            axes.plot([x, x + half - 0.15], [y, y], color=LIGHT, linewidth=1)
            points = _signed(100 * gain[c], 0)
            figures = f"{accuracies[0][c]:.0%} → {accuracies[1][c]:.0%} ({points} points)"
            name = fitted(dataset.class_names[c], half - 2.1, 9, "bold")
            axes.text(x, y + 0.14, name, fontsize=9, weight="bold", va="center")
            axes.text(x + half - 0.15, y + 0.14, figures, fontsize=8, va="center", ha="right")
            for n, i in enumerate(np.flatnonzero(changed & (labels == c))[:images]):
                left, top = x + n * cell, y + 0.28
                _draw(axes, dataset.test.images[i], left, top, 0.84)
                said = {"true": c, "base": base.predicted[i], "NofE": nofe.predicted[i]}
                for line, (who, given) in enumerate(said.items()):
                    axes.text(
                        left,
                        top + 0.93 + line * 0.125,
                        fitted(f"{who}: {dataset.class_names[given]}", cell - 0.05),
                        fontsize=SMALL,
                        va="center",
                        color=DARK if who == "true" else RIGHT if given == c else WRONG,
                    )
    return figure


@_styled
def plot_comparison(table: pd.DataFrame) -> Figure:
    """The test accuracy of each network: a point a seed, their mean, and its 95 % interval.

    table: long, with the columns network, seed and test_accuracy (0 to 1); networks are drawn from
    top to bottom in the order of their first rows.  The interval is Student's t over the seeds; a
    network with a single seed has none.
    """
    means = over_seeds(table)
    n = len(means)
    figure = _figure(8.5, 1.3 + 0.42 * n)
    axes = figure.subplots()
    colour = ACCENT
    rows = dict(zip(means["network"], range(n), strict=True))
    axes.scatter(
        table["test_accuracy"],
        table["network"].map(rows),
        22,
        facecolors="none",
        edgecolors=GREY,
        zorder=3,
    )
    axes.hlines(means.index, means["low"], means["high"], color=colour, linewidth=2.5)
    axes.scatter(means["mean"], means.index, 46, marker="D", color=colour, zorder=4)
    for row, (mean, high, seeds) in enumerate(
        zip(means["mean"], means["high"], means["seeds"], strict=True)
    ):
        half = "" if np.isnan(high) else f" ± {100 * (high - mean):.1f}"
        axes.text(
            1.02,
            row,
            f"{100 * mean:.1f}{half}%  ({seeds} {'seed' if seeds == 1 else 'seeds'})",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(means.index, [fitted(name, 2.6, 8) for name in means["network"]])
    axes.set(ylim=(n - 0.4, -0.6), xlabel="test accuracy")
    axes.margins(x=0.08)
    left, right = axes.get_xlim()  # intervals of two seeds may be wider than any accuracy
    axes.set_xlim(max(left, -0.02), min(right, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(axis="both", alpha=0.4)
    sns.despine(ax=axes, left=True)
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor="none"),
        Line2D([], [], color=colour, marker="D", linewidth=0),
        Line2D([], [], color=colour, linewidth=2.5),
    ]
    names = ["one seed", "mean over the seeds", "95% interval of the mean (Student's t)"]
    shown = len(names) if means["low"].notna().any() else 2
    figure.legend(handles[:shown], names[:shown], loc="outside upper center", ncols=3)
    return figure


@_styled
def plot_front(
    table: pd.DataFrame, cost: str = "total_training_macs", by: str = "network"
) -> Figure:
    """Mean accuracy of each network against what it costs; the front is what nothing beats.

    table: long, with the columns `by`, kind (see `Arm`), seed, test_accuracy and `cost`, which is
    in multiply-accumulates: ``macs`` of one image, or ``total_training_macs``.  Costs that differ
    by up to SAME_COST count as equal.  Grey bars are 95 % intervals, cut where they leave the
    picture; networks with fewer seeds than others say so.
    """
    means = over_seeds(table, by=by).set_index(by)
    means["cost"] = table.groupby(by)[cost].mean()
    means = means.sort_values(["cost", "mean"], ascending=[True, False])
    affordable = means["cost"].to_numpy() <= (1 + SAME_COST) * means["cost"].to_numpy()[:, None]
    better = means["mean"].to_numpy() > means["mean"].to_numpy()[:, None]
    best = pd.Series(~(affordable & better).any(1), means.index)
    height = 0.9 + 0.31 * max(len(means), 10)
    figure = _figure(WIDTH, height)
    figure.set_layout_engine("none")  # it would shrink the axes for the names beside them
    axes = figure.add_axes((0.07, 0.55 / height, 0.6, 1 - 0.9 / height))
    front = means[best]
    axes.plot(front["cost"], front["mean"], color=ACCENT, linewidth=1.2, drawstyle="steps-post")
    axes.errorbar(
        means["cost"],
        means["mean"],
        (means["high"] - means["mean"]).fillna(0),
        fmt="none",
        ecolor=LIGHT,
        elinewidth=2,
        zorder=1,
    )
    experts = table.groupby(by)["kind"].first()[means.index] == "nofe"
    for which, marker in ((~experts, "s"), (experts, "o")):
        part = means[which]
        colours = [ACCENT if best[str(name)] else GREY for name in part.index]
        axes.scatter(part["cost"], part["mean"], 34, c=colours, marker=marker, zorder=3)
    # labels beside the axes, in the order of accuracy: points lie too close for names of their own
    places = np.linspace(0.985, 0.015, len(means))
    for place, (name, row) in zip(
        places, means.sort_values("mean", ascending=False).iterrows(), strict=True
    ):
        few = f" (n = {row['seeds']:.0f})" if row["seeds"] < means["seeds"].max() else ""
        axes.annotate(
            fitted(f"{100 * row['mean']:.1f}%{few} {name}", 3.0, 8),
            (row["cost"], row["mean"]),
            (1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=DARK if best[str(name)] else GREY,
            arrowprops={"arrowstyle": "-", "color": LIGHT, "linewidth": 0.9, "relpos": (0, 0.5)},
        )
    what = "training, with all stages" if "training" in cost else "an image"
    axes.set(xlabel=f"multiply-accumulates of {what}", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.4)
    handles = [
        Line2D([], [], color=GREY, marker="s", linestyle=""),
        Line2D([], [], color=GREY, marker="o", linestyle=""),
        Line2D([], [], color=ACCENT, linewidth=1.2),
    ]
    names = ["flat network", "network of experts"]
    names += [f"more accurate than all that cost no more (to {SAME_COST:.0%})"]
    if means["low"].notna().any():
        handles += [Line2D([], [], color=LIGHT, linewidth=2)]
        names += ["interval over seeds (95 %)"]
    figure.legend(handles, names, loc="upper left", ncols=4)
    # intervals of two seeds are many times as wide as the differences: they may leave the picture
    low, high = means["mean"].min(), means["mean"].max()
    margin = 0.15 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    return figure


@_styled
def plot_conditional(curves: pd.DataFrame, flat: pd.DataFrame | None = None) -> Figure:
    """What is left of a network of experts when only the most promising experts are run.

    curves: long, with the columns arm, seed, experts, top1, macs, gate_top1 and macs_gate_alone.
    Left: accuracy lost against the number of experts; right: accuracy against multiply-accumulates
    of an image, with the gate's, and where each dotted line begins, the gate's own answers.  Lines
    are means over the seeds, bands and bars their 95 % intervals (Student t).
    flat: long, with the columns arm, seed, top1 and macs: flat networks, drawn as points on the
    right.
    """
    figure = _figure(WIDTH, 3.9)
    left, right = figure.subplots(1, 2)
    arms = list(dict.fromkeys(curves["arm"]))
    colours = dict(zip(arms, specialty_colours(len(arms)), strict=True))
    last = curves["experts"].max()
    for arm in arms:
        rows = curves[curves["arm"] == arm]
        everything = rows[rows["experts"] == rows["experts"].max()].set_index("seed")["top1"]
        lost = rows.assign(lost=rows["top1"] - rows["seed"].map(everything))
        for axes, value, across in ((left, "lost", "experts"), (right, "top1", "macs")):
            means = over_seeds(lost, value, "experts")
            x = lost.groupby("experts")[across].mean() if across == "macs" else means["experts"]
            axes.plot(x, means["mean"], color=colours[arm], marker="o", markersize=3.5)
            if means["low"].notna().all():
                axes.fill_between(x, means["low"], means["high"], color=colours[arm], alpha=0.15)
        first = rows[rows["experts"] == rows["experts"].min()]
        alone, one = ("macs_gate_alone", "gate_top1"), ("macs", "top1")
        costs, accuracies = (
            [first[a].mean(), first[b].mean()] for a, b in zip(alone, one, strict=True)
        )
        right.plot(costs, accuracies, color=colours[arm], linestyle=":")
        right.plot(costs[:1], accuracies[:1], color=colours[arm], marker="o", fillstyle="none")
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set(xlabel=f"experts that are run for an image, of {last}")
    left.set_ylabel("change in accuracy, points")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="multiply-accumulates of an image", ylabel="test accuracy")
    right.xaxis.set_major_formatter(EngFormatter())
    handles = [Line2D([], [], color=colours[arm], marker="o", markersize=3.5) for arm in arms]
    names = [fitted(arm, 3.0, 8) for arm in arms]
    handles.append(Line2D([], [], color=DARK, marker="o", linestyle=":", fillstyle="none"))
    names.append("the gate alone")
    if flat is not None and len(flat):
        points = over_seeds(flat, "top1", "arm").set_index("arm")
        points["macs"] = flat.groupby("arm")["macs"].mean()
        for marker, (name, point) in zip("sD^vPX*hd<>", points.iterrows(), strict=False):
            right.scatter(point["macs"], point["mean"], 36, color=DARK, marker=marker, zorder=3)
            if point["seeds"] > 1:
                right.vlines(point["macs"], point["low"], point["high"], color=GREY, zorder=2)
            handles.append(Line2D([], [], color=DARK, marker=marker, linestyle=""))
            names.append(fitted(str(name), 3.0, 8))
    right.yaxis.set_major_formatter(FuncFormatter(_percent))
    low, high = right.get_ylim()  # intervals of two seeds may be wider than any accuracy
    right.set_ylim(max(low, -0.02), min(high, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.4)
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


@_styled
def plot_speed(compared: pd.DataFrame) -> Figure:
    """Ratios of a benchmark (see `nofe_lab.bench.compared`): a panel a comparison, a bar a network.

    The dashed line is the target; networks that it does not speak of are grey.
    """
    names = list(dict.fromkeys(compared["what"]))
    networks = list(dict.fromkeys(compared["network"]))
    columns = 2
    lines = -(-len(names) // columns)
    figure = _figure(WIDTH, 0.9 + lines * (0.75 + 0.24 * len(networks)))
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes, what in zip(panels, names, strict=False):
        rows = compared[compared["what"] == what].set_index("network").reindex(networks)
        places = np.arange(len(networks))
        colours = [ACCENT if counts is True else GREY for counts in rows["counts"]]
        axes.barh(places, rows["ratio"], 0.62, color=colours)
        limit = rows["limit"].max()
        axes.axvline(limit, color=WRONG, linestyle="--", linewidth=1.2)
        for place, ratio in zip(places, rows["ratio"], strict=True):
            if np.isfinite(ratio):
                beside = axes.get_yaxis_transform()
                axes.text(1.02, place, f"{ratio:.3g}", transform=beside, va="center", fontsize=8)
        axes.set_yticks(places, networks)
        axes.set(ylim=(len(networks) - 0.4, -0.6))
        side = "≥" if rows["at_least"].dropna().all() else "≤"
        axes.set_title(f"{what} ({side} {limit:g})", loc="left", fontsize=9)
        axes.tick_params(axis="y", length=0)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    handles = [
        Patch(color=ACCENT),
        Patch(color=GREY),
        Line2D([], [], color=WRONG, linestyle="--", linewidth=1.2),
    ]
    labels = ["measured", "measured, without a target", "target"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


@_styled
def plot_images(split: Split, chosen: Sequence[int], captions: Sequence[str], title: str) -> Figure:
    """Images of a split, by their indices, each with a line below it."""
    columns, side = 8, 1.2
    lines = -(-len(chosen) // columns)
    figure, axes = canvas(columns * side + 0.2, 0.45 + (lines * (side + 0.1) or 0.4))
    axes.text(0.1, 0.22, fitted(title, columns * side, 10), fontsize=10, va="center")
    if not len(chosen):
        axes.text(0.1, 0.7, "no image", color=GREY)
    for n, (i, caption) in enumerate(zip(chosen, captions, strict=True)):
        x, y = 0.1 + n % columns * side, 0.42 + n // columns * (side + 0.1)
        _draw(axes, split.images[i], x, y, side - 0.2)
        axes.text(x, y + side - 0.08, fitted(caption, side - 0.1), fontsize=SMALL, va="center")
    return figure


@_styled
def plot_class(
    dataset: Dataset,
    specialties: Specialties,
    confusions: Mapping[str, NDArray[np.int64]],
    label: int,
    images: int = 12,
    rivals: int = 8,
) -> Figure:
    """One class: its specialty, training images of it, and what networks mistake it for.

    confusions: network -> counts [C, C], row = label, column = prediction.  Bars are the `rivals`
    classes that images of the class are most often mistaken for, inside and outside its specialty.
    """
    specialties.check_classes(dataset.class_names)
    for confusion in confusions.values():
        _check_confusion(confusion, dataset.C)
    whole_number("label", label, 0, dataset.C - 1)
    k = specialties.of[label]
    figure = plt.figure(figsize=(5.7 + 3.5 * len(confusions), 3.6))
    plt.close(figure)
    axes = _inches(figure, (0, 0, 5.6, 3.6))
    _card(axes, 0.1, 0.1, 5.4, 1.15, specialties, k)
    size = _name_size(dataset)
    listed = _wrapped(specialties.class_names_of(k), 5.0, 5, size)
    axes.text(0.26, 0.46, listed, fontsize=size, va="top", linespacing=1.3)
    name = fitted(dataset.class_names[label], 4.2, 13, "bold")
    axes.text(0.1, 1.48, name, fontsize=13, weight="bold", va="center")
    axes.text(5.5, 1.48, "training images", fontsize=8, va="center", ha="right", color=GREY)
    columns = max(-(-images // 2), 1)
    side = min(5.4 / columns, 0.9)
    for n, image in enumerate(_images(dataset.train, label, images)):
        _draw(axes, image, 0.1 + n % columns * side, 1.68 + n // columns * side, side - 0.05)
    for n, (network, confusion) in enumerate(confusions.items()):
        beside = axes_inches(figure, (6.9 + 3.5 * n, 0.6, 2.1, 2.3))
        _plot_rivals(beside, specialties, confusion, label, rivals, network)
    return figure


def _plot_rivals(
    axes: Axes,
    specialties: Specialties,
    confusion: NDArray[np.int64],
    label: int,
    rivals: int,
    network: str,
) -> None:
    row = np.array(confusion[label])
    total, right = int(row.sum()), int(row[label])
    row[label] = 0
    worst = [c for c in np.argsort(-row, kind="stable")[:rivals] if row[c]]
    k = specialties.of[label]
    colour = specialty_colours(specialties.K)[k]
    fills = {True: colour, False: to_rgb("white")}
    edges = {True: colour, False: to_rgb(GREY)}
    inside = [specialties.of[c] == k for c in worst]
    bars = axes.barh(
        range(len(worst)),
        row[worst],
        color=[fills[each] for each in inside],
        edgecolor=[edges[each] for each in inside],
    )
    counts = [f"{row[c]} ({row[c] / total:.0%})" for c in worst]
    axes.bar_label(bars, counts, padding=3, fontsize=8)
    axes.set_yticks(range(len(worst)), _names(specialties, worst, 1.25), fontsize=8)
    axes.set(ylim=(rivals - 0.4, -0.6), xlim=(0, 1.4 * max([1, *row])), xticks=[])
    axes.set_title(
        f"{fitted(network, 2.1, 9)}\nright: {right} of {total} images"
        + (f" ({right / total:.0%})" if total else "")
        + ("\nmost often mistaken for" if worst else "\nnever mistaken"),
        fontsize=9,
        loc="left",
    )
    sns.despine(ax=axes, bottom=True)
    axes.tick_params(length=0)
    handles = [Patch(facecolor=fills[each], edgecolor=edges[each]) for each in (True, False)]
    where = ["inside its specialty", "outside"]
    axes.legend(handles, where, loc="upper center", bbox_to_anchor=(0.4, -0.02), ncols=2)


def heat(image: torch.Tensor, where: NDArray[np.float64]) -> torch.Tensor:
    """An image uint8 [channels, height, width] in grey under a map of it [height, width].

    Returns uint8 [3, height, width]: dark blue where the map is 0, yellow where it is 1.
    """
    grey = image.double().mean(0).numpy() / 255
    colour = mpl.colormaps["viridis"](where)[..., :3]
    mixed = 255 * (0.4 * grey[..., None] + 0.6 * colour)
    return torch.from_numpy(mixed.round().astype(np.uint8)).permute(2, 0, 1)


@_styled
def plot_inspection(
    image: torch.Tensor, found: Inspection, specialties: Specialties, title: str
) -> Figure:
    """One image through a network of experts: where it looks, and what each expert says of it.

    Bars: full, what the common softmax gives to an expert's classes together; hollow, what the
    expert gives to its own best class when it is asked alone; a diamond, what the gate believes.
    """
    experts = list(specialties.nonempty)
    figure = plt.figure(figsize=(WIDTH, max(4.4, 1.3 + 0.27 * len(experts))))
    plt.close(figure)
    height = figure.get_size_inches()[1]
    axes = _inches(figure, (0, 0, 4.4, height))
    axes.text(0.1, 0.2, fitted(title, 4.2, 10), fontsize=10, va="center")
    side = 1.75
    for n, (name, drawn) in enumerate(inspected_maps(image, found, specialties).items()):
        x, y = 0.1 + n % 2 * (side + 0.25), 0.42 + n // 2 * (side + 0.24)
        _draw(axes, drawn, x, y, side)
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
    beside.xaxis.set_major_formatter(FuncFormatter(_percent))
    beside.grid(axis="x", alpha=0.4)
    sns.despine(ax=beside, left=True)
    beside.tick_params(axis="y", length=0)
    figure.legend(handles, labels, loc="lower right", ncols=2)
    return figure


def inspected_maps(
    image: torch.Tensor, found: Inspection, specialties: Specialties
) -> dict[str, torch.Tensor]:
    """The pictures of an inspection, each with its caption: uint8 [channels, height, width]."""
    k = specialties.nonempty[found.expert]
    said = specialties.class_names[int(found.nofe.argmax())]
    base = specialties.class_names[int(found.base.argmax())]
    return {
        "the image": image,
        "the trunk's features": heat(image, found.trunk_view),
        f"base CNN: {base}": heat(image, found.base_map),
        f"expert {specialties.names[k]}: {said}": heat(image, found.expert_map),
    }


@_styled
def plot_words(text: str) -> Figure:
    """A few lines of small grey text: the caption below a stack of figures."""
    figure, axes = canvas(WIDTH, 0.2 + 0.16 * (1 + text.count("\n")))
    axes.text(0.1, 0.1, text, fontsize=8, va="top", color="#595959", linespacing=1.35)
    return figure


# What the plots share


def _figure(width: float, height: float) -> Figure:
    """A figure that pyplot, and so the notebook's inline backend, knows how to show, once."""
    figure = plt.figure(figsize=(width, height), layout="constrained", FigureClass=_Figure)
    plt.close(figure)
    return figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one invisible Axes whose units are inches, from the top left corner."""
    figure = plt.figure(figsize=(width, height), FigureClass=_Figure)
    plt.close(figure)
    return figure, _inches(figure, (0, 0, width, height))


def _inches(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """An invisible Axes over a box (left, bottom, width, height), in inches from its top left."""
    _, _, width, height = box
    axes = axes_inches(figure, box)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def axes_inches(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes over a box (left, bottom, width, height) in inches."""
    w, h = figure.get_size_inches()
    left, bottom, width, height = box
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _card(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    specialties: Specialties,
    k: int,
    colours: Sequence[Colour] | None = None,
) -> None:
    """The frame of specialty k with a coloured label in its top left corner, in inches."""
    colour = (colours or specialty_colours(specialties.K))[k]
    n = specialties.sizes[k]
    count = f": {n} {'class' if n == 1 else 'classes'}"
    room = width - 0.35 - _width(count, 9, "bold")
    frame = FancyBboxPatch(
        (x + 0.05, y + 0.05),
        width - 0.1,
        height - 0.1,
        boxstyle="round,pad=0.05",
        facecolor=_mix(colour, 1.0, 0.93),
        edgecolor=colour,
        linewidth=1,
    )
    axes.add_patch(frame)
    black_on = np.dot(colour, (0.299, 0.587, 0.114)) > 0.5
    axes.text(
        x + 0.16,
        y + 0.19,
        fitted(label_of(specialties, k), room, 9, "bold") + count,
        fontsize=9,
        weight="bold",
        va="center",
        color="black" if black_on else "white",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": colour, "linewidth": 0},
    )


def _draw(axes: Axes, image: torch.Tensor, x: float, y: float, side: float) -> None:
    """Draw an image uint8 [channels, height, width] into a square of `side` inches at (x, y)."""
    pixels = image.permute(1, 2, 0).numpy()
    if pixels.shape[2] != 3:
        pixels = pixels[..., :1].repeat(3, axis=2)
    height, width = (side * length / max(pixels.shape[:2]) for length in pixels.shape[:2])
    left, top = x + (side - width) / 2, y + (side - height) / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", zorder=2)


def _rows(classes: Sequence[int], per_class: int) -> tuple[int, float]:
    """How many columns of rows of images, and their height in inches."""
    columns = 2 if len(classes) > 3 and per_class <= 10 else 1
    return columns, -(-len(classes) // columns) * (_row_side(columns, per_class) + 0.06)


def _row_side(columns: int, per_class: int) -> float:
    return min(((WIDTH - 0.4) / columns - 1.3) / per_class, 0.7)


def _draw_rows(
    axes: Axes, top: float, dataset: Dataset, classes: Sequence[int], per_class: int
) -> None:
    """A row a class: its name, and its first training images."""
    columns, _ = _rows(classes, per_class)
    rows, side = -(-len(classes) // columns), _row_side(columns, per_class)
    for position, c in enumerate(classes):
        x = 0.2 + position // rows * (WIDTH - 0.4) / columns
        y = top + position % rows * (side + 0.06)
        name = fitted(dataset.class_names[c], 1.0, 8)
        axes.text(x + 1.14, y + side / 2, name, ha="right", va="center", fontsize=8)
        for n, image in enumerate(_images(dataset.train, c, per_class)):
            _draw(axes, image, x + 1.22 + n * side, y, side - 0.04)


def _images(split: Split, c: int, n: int) -> torch.Tensor:
    return split.images[split.of_class(c)[:n]]


def _percent(share: float, _: int | None = None) -> str:
    return f"{round(100 * share, 2):g}%"


def _signed(points: float, digits: int) -> str:
    return f"{points:+.{digits}f}".replace("-", "−")


def _mix(colour: Colour, grey: float, share: float) -> Colour:
    red, green, blue = (channel * (1 - share) + grey * share for channel in colour)
    return red, green, blue


def fitted(text: str, inches: float, size: float = SMALL, weight: str = "normal") -> str:
    """The text in one line, cut in its middle with "…" where it would be wider than `inches`.

    Names of a series differ in their ends.
    """
    return _cut(" ".join(text.split()), inches, size, weight, tuple(_families()))


@cache
def _cut(text: str, inches: float, size: float, weight: str, families: tuple[str, ...]) -> str:
    if _width(text, size, weight) <= inches:
        return text
    for kept in range(len(text) - 1, 0, -1):
        tail = (kept - 1) // 2
        cut = f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
        if _width(cut, size, weight) <= inches:
            return cut
    return "…"


def _width(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family=_families(), size=size, weight=weight)
    with _missing_characters_said():
        width: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return width / 72


def _wrapped(names: Sequence[str], inches: float, lines: int, size: float = SMALL) -> str:
    """The names in at most `lines` lines of `inches`; what does not fit is counted."""
    wrapped: list[str] = []
    line = ""
    for n, name in enumerate(names):
        part = fitted(name, inches / 2, size) + (", " if n < len(names) - 1 else "")
        left = f"and {len(names) - n} more"
        last = len(wrapped) >= lines - 1
        room = inches - (_width(left, size) if last and n < len(names) - 1 else 0)
        if line and _width(line + part, size) > room:
            if last:
                return "\n".join([*wrapped, line + left])
            wrapped.append(line)
            line = ""
        line += part
    return "\n".join([*wrapped, line])


def _name_size(dataset: Dataset) -> float:
    """Font size of class names: larger where they are single characters."""
    return 9.0 if max(map(len, dataset.class_names)) <= 2 else SMALL


def _names(specialties: Specialties, classes: Iterable[int], inches: float = 1.1) -> list[str]:
    return [fitted(specialties.class_names[c], inches) for c in classes]


def _short_names(specialties: Specialties) -> list[str]:
    return [fitted(name, 1.2, 8) for name in specialties.names]


def _name_columns(axes: Axes, names: list[str], x: Iterable[float], size: float) -> None:
    """Tick labels below or above columns, upright where they are too wide to lie."""
    upright = max(_width(name, size) for name in names) > 0.28
    axes.set_xticks(list(x), names, fontsize=size, rotation=90 if upright else 0)


def label_of(specialties: Specialties, k: int) -> str:
    """What specialty k is called in a text: its name, or "specialty 3" where it has none."""
    name = specialties.names[k]
    return f"specialty {name}" if name.isdecimal() else name


def _blocks(specialties: Specialties, part: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(specialty, its first row, its number of rows), one specialty below the other."""
    first = 0
    for k in part:
        yield k, first, specialties.sizes[k]
        first += specialties.sizes[k]


def _halves(specialties: Specialties) -> list[tuple[int, ...]]:
    """The specialties that have a class, as two parts of about equally many classes."""
    every = specialties.nonempty
    ends = np.cumsum([specialties.sizes[k] for k in every])
    cut = int(np.abs(ends - specialties.C / 2).argmin()) + 1
    return [part for part in (every[:cut], every[cut:]) if part]


def mistake_shares(confusion: NDArray[np.int64], C: int) -> NDArray[np.float64]:
    """Counts [C, C] as shares of their rows; NaN on the diagonal, where there is no mistake."""
    _check_confusion(confusion, C)
    shares: NDArray[np.float64] = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, np.nan)
    return shares


def top_share(shares: NDArray[np.float64]) -> float:
    """Where the scale of such shares, or of their differences, ends: few cells lie beyond it."""
    sizes = np.abs(shares[np.abs(shares) > 0])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else 0.01


def _check_confusion(confusion: NDArray[np.int64], C: int) -> None:
    if confusion.shape != (C, C):
        raise InvalidInput(f"the confusion must be [{C}, {C}]; got {list(confusion.shape)}.")


def _confusion_title(confusion: NDArray[np.int64], specialties: Specialties) -> str:
    total, right = int(confusion.sum()), int(np.trace(confusion))
    inside = int(np.trace(specialty_confusion(confusion, specialties))) - right
    title = f"accuracy {right / max(total, 1):.1%}"
    if total > right:
        chance = inside_by_chance(specialties.sizes)
        title += f"\n{inside / (total - right):.0%} of the mistakes are inside a specialty"
        title += f" ({chance:.0%} by chance)"
    return title


def alluvial(
    maps: NDArray[np.integer], K: int, gap: float
) -> tuple[NDArray[np.float64], list[tuple[int, int, float, int]]]:
    """Where each class lies in each map: y [maps, C], and the blocks of the specialties.

    A block is (map, specialty, top, size).  Inside a specialty, classes have the order in which
    they lie in the next map, so that few lines cross.
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
    """Which maps are drawn, of the random start and so many updates: all, or evenly spaced ones."""
    found: NDArray[np.int64] = np.unique(
        np.linspace(0, updates, min(updates, MOST_MAPS) + 1).round().astype(np.int64)
    )
    return found


def _curves(
    x: NDArray[np.int64], places: NDArray[np.float64], margin: float
) -> list[NDArray[np.float64]]:
    """One smooth line [points, 2] a class through its places at x, level near each x."""
    along = np.linspace(0, 1, 25)
    rise = along**2 * (3 - 2 * along)
    left, right = x[:-1, None] + margin, x[1:, None] - margin
    across = (left + along * (right - left)).ravel()
    return [
        np.column_stack([across, (way[:-1, None] + np.diff(way)[:, None] * rise).ravel()])
        for way in places.T
    ]
