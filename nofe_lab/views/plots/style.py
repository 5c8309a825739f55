"""What all figures share: colours, the style, new figures and axes, number formats."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image, ImageDraw

from nofe_lab.config import whole_number
from nofe_lab.views.plots.text import font_families, missing_characters_reported, text_width

Colour = tuple[float, float, float]
LayoutName = Literal["constrained", "none"]
P = ParamSpec("P")

WIDTH = 10.0
"""Width of a full-width figure, in inches."""
MARGIN, CORNER = 0.2, 10
"""Of the paper that a notebook shows a figure on: in inches, and the radius in pixels."""
DARK, GREY, LIGHT, BLANK = "#262626", "#8c8c8c", "#e4e4e4", "#d3e4f3"
ACCENT, RIGHT, WRONG = "#3d348b", "#00735c", "#b84a00"

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


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a plot function: it draws in the style of this package."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context({**_STYLE, "font.family": font_families()}):
            return plot(*args, **kwargs)

    return drawn


class _Figure(Figure):
    """A figure that reports characters without a font once, and lies on paper in a notebook."""

    def draw(self, renderer: Any) -> None:
        with missing_characters_reported():
            super().draw(renderer)

    def _ipython_display_(self) -> None:
        """Show it in a notebook on white paper with round corners, in light and dark themes.

        Its images and colours are made for white.  A file that is saved has straight corners.
        """
        packed = io.BytesIO()
        self.savefig(packed, format="png", bbox_inches="tight", pad_inches=MARGIN)
        paper = Image.open(packed)
        width, height = paper.size
        shape = Image.new("L", (4 * width, 4 * height))
        whole = (0, 0, 4 * width - 1, 4 * height - 1)
        ImageDraw.Draw(shape).rounded_rectangle(whole, 4 * CORNER, fill=255)
        paper.putalpha(shape.reduce(4))
        packed = io.BytesIO()
        paper.save(packed, format="png")
        picture = base64.b64encode(packed.getvalue()).decode()
        display({"text/plain": repr(self), "image/png": picture}, raw=True)


def specialty_colours(K: int) -> list[Colour]:
    """K colours, one for each specialty, as (red, green, blue) from 0 to 1.

    The first ten are seaborn's colour-blind-safe palette, the next twenty the same hues darker and
    lighter: up to K = 30, specialty k has the same colour for every K.  For larger K, the hues are
    evenly spaced.
    """
    whole_number("K", K, 1)
    if K > 30:
        return [to_rgb(colour) for colour in sns.husl_palette(K)]
    safe = [to_rgb(colour) for colour in sns.color_palette("colorblind", 10)]
    shades = [*safe, *(mix(c, 0.0, 0.45) for c in safe), *(mix(c, 1.0, 0.55) for c in safe)]
    return shades[:K]


def mix(colour: Colour, grey: float, share: float) -> Colour:
    """The colour with `share` of it replaced by a grey (0: black, 1: white)."""
    red, green, blue = (channel * (1 - share) + grey * share for channel in colour)
    return red, green, blue


def new_figure(width: float, height: float, layout: LayoutName = "constrained") -> Figure:
    """A figure of that size in inches, closed, so that a notebook shows it only once."""
    figure = plt.figure(figsize=(width, height), layout=layout, FigureClass=_Figure)
    plt.close(figure)
    return figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one invisible Axes in inches; (0, 0) is the top left corner."""
    figure = new_figure(width, height, "none")
    return figure, blank_axes(figure, (0, 0, width, height))


def blank_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """An invisible Axes over a box (see `axes_inches`) in inches; (0, 0) is its top left corner."""
    _, _, width, height = box
    axes = axes_inches(figure, box)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def axes_inches(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes over the box (left, bottom, width, height) of a figure, in inches."""
    w, h = figure.get_size_inches()
    left, bottom, width, height = box
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def name_columns(axes: Axes, names: list[str], x: Iterable[float], size: float) -> None:
    """Tick labels for columns, rotated if they are too wide."""
    upright = max(text_width(name, size) for name in names) > 0.28
    axes.set_xticks(list(x), names, fontsize=size, rotation=90 if upright else 0)


def style_shares(axes: Axes, grid: Literal["x", "both"] = "x") -> None:
    """Style Axes that show shares from left to right, a named row for each."""
    axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.grid(axis=grid, alpha=0.4)
    sns.despine(ax=axes, left=True)
    axes.tick_params(axis="y", length=0)


def percent(share: float, _: int | None = None) -> str:
    """A share as "12.5%", also as the function of a `FuncFormatter`."""
    return f"{round(100 * share, 2):g}%"


def signed_points(difference: float, digits: int) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


@styled
def plot_words(text: str) -> Figure:
    """A few lines of small grey text, as a caption below other figures."""
    figure, axes = canvas(WIDTH, 0.2 + 0.16 * (1 + text.count("\n")))
    axes.text(0.1, 0.1, text, fontsize=8, va="top", color="#595959", linespacing=1.35)
    return figure
