"""Draws confusions: the matrix, the share inside specialties, and the images behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.data import Dataset, Source
from nofe_lab.specialties import Specialties
from nofe_lab.statistics import RANDOM_PARTITIONS, InsideShare, errors_inside, inside_by_chance
from nofe_lab.views.plots.cards import (
    blocks_of,
    draw_card,
    draw_image,
    first_images,
    fitted_names,
    name_size,
)
from nofe_lab.views.plots.style import (
    ACCENT,
    BLANK,
    DARK,
    GREY,
    WIDTH,
    axes_inches,
    blank_axes,
    canvas,
    new_figure,
    percent,
    specialty_colours,
    style_shares,
    styled,
)
from nofe_lab.views.plots.text import LINE, SMALL, fitted, text_width, wrapped

CLASS_IMAGES = 12
"""Training images in the figure of a class, in two rows."""
RIVALS = 8
"""Bars in the figure of a class: the classes it is most often mistaken for."""
SCALES = {
    "row": "share of the images of a class",
    "column": "share of the answers with a class",
    "count": "number of images",
}
"""What the colours of a confusion matrix can say."""


@styled
def plot_confusion(
    confusion: NDArray[np.int64],
    specialties: Specialties,
    title: str | None = None,
    minus: NDArray[np.int64] | None = None,
    scale: str = "row",
) -> Figure:
    """The confusion matrix, with the classes in the order of the specialties.

    confusion: counts [C, C], row = label, column = prediction.  The diagonal (right predictions) is
    blank, so that the colour scale covers mistakes only.  Mistakes inside a specialty lie inside
    its outline, which one class alone has not.  Class names are drawn for up to 200 classes.
    minus: counts of another network, which are subtracted, on the same scale.
    scale: what colours are: shares of a row or of a column, or the count.
    """
    C, K = specialties.C, specialties.K
    order = list(specialties.order)
    share = mistake_shares(confusion, C, scale)
    if minus is not None:
        share = share - mistake_shares(minus, C, scale)
    share = share[np.ix_(order, order)]
    top = top_share(share)
    side = max(0.92 * LINE * C if C <= 200 else WIDTH, 3.5)
    names = fitted_names(specialties, order) if C <= 200 else []
    outlined = specialties.nonempty if len(specialties.nonempty) < C else ()
    groups = [fitted(name, 1.0) if outlined else "" for name in specialties.names]
    left = max([text_width(name, SMALL) for name in names], default=0) + 0.5
    right = max(text_width(name, SMALL) for name in [*groups, "specialty"]) + 0.04 * side
    figure = new_figure(side + left + right + 0.1, side + left + 1.0)
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
    for k, first, size in blocks_of(specialties, outlined):
        corner = (first - 0.5, first - 0.5)
        outline = Rectangle(corner, size, size, fill=False, edgecolor=colours[k], linewidth=2)
        outline.set_clip_on(False)
        axes.add_patch(outline)
        strip = (C - 0.5 + 0.006 * C, first - 0.5), 0.012 * C, size
        axes.add_patch(Rectangle(*strip, color=colours[k], clip_on=False, linewidth=0))
        middle = first + size / 2 - 0.5
        axes.text(C - 0.5 + 0.025 * C, middle, groups[k], fontsize=SMALL, va="center")
    if outlined:
        axes.annotate(
            "specialty",
            (C - 0.5 + 0.006 * C, -0.5),
            annotation_clip=False,
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=SMALL,
            va="bottom",
            color=GREY,
        )
    sns.despine(ax=axes, left=True, bottom=True)
    # above the word "specialty", which a long title of few classes reaches
    title = fitted(title, side, 10) if title else _confusion_title(confusion, specialties)
    axes.set_title(title, pad=16)
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
        format="%g" if scale == "count" else FuncFormatter(percent),
    )
    what = SCALES[scale] if minus is None else f"difference: {SCALES[scale]}"
    bar.set_label(f"{what} (right predictions left blank)", fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _confusion_title(confusion: NDArray[np.int64], specialties: Specialties) -> str:
    total, right = int(confusion.sum()), int(np.trace(confusion))
    title = f"accuracy {right / max(total, 1):.1%}"
    if total > right:
        inside, chance = errors_inside(confusion, specialties), inside_by_chance(specialties.sizes)
        title += f"\n{inside:.0%} of the mistakes are inside a specialty"
        title += f" ({chance:.0%} by chance)"
    return title


def mistake_shares(confusion: NDArray[np.int64], C: int, scale: str = "row") -> NDArray[np.float64]:
    """Counts [C, C] as shares of their rows or columns, or counts; with NaN on the diagonal."""
    _check_confusion(confusion, C)
    along = {"row": 1, "column": 0}.get(scale)
    whole = 1 if along is None else np.maximum(confusion.sum(axis=along, keepdims=True), 1)
    shares: NDArray[np.float64] = confusion / whole
    np.fill_diagonal(shares, np.nan)
    return shares


def top_share(shares: NDArray[np.float64]) -> float:
    """The end of the colour scale: 0.5 % of the nonzero shares (or differences) exceed it."""
    sizes = np.abs(shares[np.abs(shares) > 0])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else 0.01


def _check_confusion(confusion: NDArray[np.int64], C: int) -> None:
    if confusion.shape != (C, C):
        raise InvalidInput(f"the confusion must be [{C}, {C}]; got {list(confusion.shape)}.")


@styled
def plot_inside_share(share: InsideShare) -> Figure:
    """The share of mistakes inside specialties, beside that of random partitions."""
    figure = new_figure(6.5, 1.6)
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
        [1, 0],
        ["these specialties", f"{RANDOM_PARTITIONS:,} random partitions\n(mean and central 95%)"],
    )
    longest = np.nanmax([share.share, high, 0.1])
    axes.set(ylim=(-0.6, 1.6), xlim=(0, min(1.0, 1.25 * longest)))
    axes.set_xlabel("mistakes that stay inside a specialty, share of all mistakes")
    style_shares(axes)
    return figure


@styled
def plot_class(
    dataset: Dataset,
    specialties: Specialties,
    confusions: Mapping[str, NDArray[np.int64]],
    label: int,
) -> Figure:
    """One class: its specialty, its first training images, and what networks mistake it for.

    confusions: network -> counts [C, C], row = label, column = prediction.  A bar counts the images
    mistaken for one other class, filled if that class is in the same specialty.
    """
    specialties.check_classes(dataset.class_names)
    for confusion in confusions.values():
        _check_confusion(confusion, dataset.C)
    whole_number("label", label, 0, dataset.C - 1)
    k = specialties.of[label]
    figure = new_figure(5.7 + 3.5 * len(confusions), 3.6, "none")
    axes = blank_axes(figure, (0, 0, 5.6, 3.6))
    draw_card(axes, 0.1, 0.1, 5.4, 1.15, specialties, k)
    size = name_size(dataset)
    listed = wrapped(specialties.class_names_of(k), 5.0, 5, size)
    axes.text(0.26, 0.46, listed, fontsize=size, va="top", linespacing=1.3)
    name = fitted(dataset.class_names[label], 4.2, 13, "bold")
    axes.text(0.1, 1.48, name, fontsize=13, weight="bold", va="center")
    axes.text(5.5, 1.48, "training images", fontsize=8, va="center", ha="right", color=GREY)
    columns = CLASS_IMAGES // 2
    side = 5.4 / columns
    for n, image in enumerate(first_images(dataset.train, label, CLASS_IMAGES)):
        draw_image(axes, image, 0.1 + n % columns * side, 1.68 + n // columns * side, side - 0.05)
    for n, (network, confusion) in enumerate(confusions.items()):
        beside = axes_inches(figure, (6.9 + 3.5 * n, 0.6, 2.1, 2.3))
        _plot_rivals(beside, specialties, confusion, label, network)
    return figure


def _plot_rivals(
    axes: Axes,
    specialties: Specialties,
    confusion: NDArray[np.int64],
    label: int,
    network: str,
) -> None:
    row = np.array(confusion[label])
    total, right = int(row.sum()), int(row[label])
    row[label] = 0
    worst = [c for c in np.argsort(-row, kind="stable")[:RIVALS] if row[c]]
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
    axes.set_yticks(range(len(worst)), fitted_names(specialties, worst, 1.25), fontsize=8)
    axes.set(ylim=(RIVALS - 0.4, -0.6), xlim=(0, 1.4 * max([1, *row])), xticks=[])
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


@styled
def plot_images(
    split: Source, chosen: Sequence[int], captions: Sequence[str], title: str
) -> Figure:
    """The images of a split with these indices, a caption below each."""
    columns, side = 8, 1.2
    lines = -(-len(chosen) // columns)
    figure, axes = canvas(columns * side + 0.2, 0.45 + (lines * (side + 0.1) or 0.4))
    axes.text(0.1, 0.22, fitted(title, columns * side, 10), fontsize=10, va="center")
    if not len(chosen):
        axes.text(0.1, 0.7, "no image", color=GREY)
    for n, (i, caption) in enumerate(zip(chosen, captions, strict=True)):
        x, y = 0.1 + n % columns * side, 0.42 + n // columns * (side + 0.1)
        draw_image(axes, split.sample([i])[0], x, y, side - 0.2)
        axes.text(x, y + side - 0.08, fitted(caption, side - 0.1), fontsize=SMALL, va="center")
    return figure
