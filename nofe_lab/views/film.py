"""The film of a generalist's training: thumbnails travel from card to card as specialties form.

It is drawn from the map after every update, which a run keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from nofe_lab.data import Dataset
from nofe_lab.data.pictures import rgb
from nofe_lab.evaluation import Formation
from nofe_lab.log import log
from nofe_lab.specialties import Specialties, maps_of
from nofe_lab.views import plots
from nofe_lab.views.palette import Palette

DPI = 120
COLOURS = 32
"""Colours of a film; few colours make a small file."""
EXACT = 14
"""How many of them are kept exactly: those of page, cards, text and ten specialties."""
FRAMES = 40
"""About how many frames a film has, whatever the number of updates."""
STEPS = (3, 12)
"""Fewest and most frames of an update that moves classes."""
MOVING, RESTING, END = 90, 700, 3500
"""How long a frame is shown, in ms: during an update, after it, and the last one."""


@dataclass(frozen=True)
class Theme:
    """The colours of a page that a film stands on."""

    page: str
    card: str
    text: str
    faint: str


LIGHT = Theme("#ffffff", "#f6f8fa", "#1f2328", "#6e7781")
DARK = Theme("#0d1117", "#161b22", "#e6edf3", "#8b949e")


@dataclass(frozen=True)
class Film:
    """Frames and how long each is shown, in ms."""

    frames: tuple[Image.Image, ...]
    durations: tuple[int, ...]

    def save(self, path: Path | str) -> None:
        """Write an endless GIF of at most `COLOURS` colours."""
        first, last = self.frames[0], self.frames[-1]
        both = Image.new("RGB", (first.width, first.height + last.height))
        both.paste(first, (0, 0))
        both.paste(last, (0, first.height))  # together they have all colours of the film
        palette = Palette.of(both, COLOURS, EXACT)
        first, *others = map(palette.apply, self.frames)
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=list(self.durations),
            loop=0,
            optimize=True,
        )


def film(
    dataset: Dataset,
    specialties: Specialties,
    map_history: pd.DataFrame,
    map_updates: pd.DataFrame,
    objective: str = "mean affinity\nof the classes for\ntheir specialties",
    start: str = "random start",
    theme: Theme = LIGHT,
) -> Film:
    """How the classes found their specialties, with the objective below.

    map_history: columns update, class, specialty; update 0 is the start.  map_updates: columns
    update, moved, objective_before, objective_after.  specialties: the final ones; the frame of a
    thumbnail has the colour of the specialty that its class ends in.  objective: what the objective
    is, in three short lines.  start: what the first map is, in a few words.
    Raises InvalidInput if the history does not end in the specialties.
    """
    specialties.check_classes(dataset.class_names)
    maps = maps_of(map_history, specialties)
    scene = _Scene(dataset, specialties, maps, map_updates, objective, start, theme)
    frames, durations = [], []
    for before, update, share in moments(maps):
        frames.append(scene.at(before, update, share))
        durations.append(MOVING if share < 1 else RESTING)
    return Film(tuple(frames), (*durations[:-1], END))


def save_films(folder: Path, formation: Formation) -> None:
    """Write `film` as film.gif, for light pages, and as film_dark.gif."""
    for name, theme in (("film.gif", LIGHT), ("film_dark.gif", DARK)):
        made = film(*formation, theme=theme)
        made.save(folder / name)
        log.info(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.2f} MB")


def moments(maps: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
    """(update, next update, share of the way to its map), frame by frame.

    Of many updates only some are shown, evenly spaced, as `plots.plot_evolution` does.
    """
    shown = plots.shown_maps(len(maps) - 1)
    moves = [(maps[a] != maps[b]).any() for a, b in pairwise(shown)]
    fewest, most = STEPS
    free = FRAMES - 1 - moves.count(False)
    steps = int(np.clip(free // max(moves.count(True), 1), fewest, most))
    yield 0, 0, 1.0
    for (before, after), moved in zip(pairwise(shown), moves, strict=True):
        if moved:
            yield from ((before, after, step / steps) for step in range(1, steps))
        yield before, after, 1.0


def seats(maps: NDArray[np.int64], K: int) -> NDArray[np.int64]:
    """The place of each class on its card in each map, int64 [maps, C].

    Classes that stay on a card keep their place; new ones take the lowest free places.
    """
    places = np.zeros_like(maps)
    for m, now in enumerate(maps):
        for k in range(K):
            members = np.flatnonzero(now == k)
            stay = maps[m - 1][members] == k if m else np.zeros(len(members), bool)
            places[m, members[stay]] = places[m - 1, members[stay]]
            taken = set(places[m, members[stay]].tolist())
            free = (place for place in range(maps.shape[1]) if place not in taken)
            for c in members[~stay]:
                places[m, c] = next(free)
    return places


class _Scene:
    """A figure whose thumbnails move and whose curve grows, frame by frame."""

    WIDTH, MARGIN, HEAD, BELOW = 8.6, 0.1, 0.42, 1.25

    def __init__(
        self,
        dataset: Dataset,
        specialties: Specialties,
        maps: NDArray[np.int64],
        map_updates: pd.DataFrame,
        objective: str,
        start: str,
        theme: Theme,
    ) -> None:
        self.theme = theme
        self.updates = map_updates
        self.maps = maps
        self.last = len(maps) - 1
        K = specialties.K
        places = seats(maps, K)
        rows = max(round((K / 2.5) ** 0.5), 1)
        columns = -(-K // rows)
        rows = -(-K // columns)
        most = int(places.max()) + 1
        abreast = int(np.ceil((2.5 * most) ** 0.5))
        card = (self.WIDTH - self.MARGIN * (columns + 1)) / columns
        self.side = (card - 0.16) / abreast
        tall = 0.3 + -(-most // abreast) * self.side + 0.06
        height = self.HEAD + rows * (tall + self.MARGIN) + self.BELOW
        height = round(height * DPI) / DPI  # whole pixels, or the last row stays blank
        self.figure, axes = plots.canvas(self.WIDTH, height)
        self.figure.set_facecolor(theme.page)
        colours = plots.specialty_colours(K)
        corners = np.array(
            [
                (
                    self.MARGIN + k % columns * (card + self.MARGIN),
                    self.HEAD + k // columns * (tall + self.MARGIN),
                )
                for k in range(K)
            ]
        )
        for k, (x, y) in enumerate(corners):
            axes.add_patch(
                FancyBboxPatch(
                    (x + 0.04, y + 0.04),
                    card - 0.08,
                    tall - 0.08,
                    boxstyle="round,pad=0.04",
                    facecolor=theme.card,
                    edgecolor=colours[k],
                    linewidth=1.5,
                )
            )
            name = plots.fitted(specialties.title(k), card - 0.2, 8)
            axes.text(x + 0.1, y + 0.16, name, fontsize=8, va="center", color=theme.text)
        inside = np.stack([places % abreast, places // abreast], axis=-1) * self.side
        self.path = corners[maps] + (0.08, 0.28) + inside
        """The top left corner of each thumbnail in each map, in inches [maps, C, 2]."""
        self.thumbnails = [
            _Thumbnail(axes, rgb(image), colours[specialties.of[c]])
            for c, image in enumerate(dataset.thumbnails)
        ]
        self.said = axes.text(
            self.WIDTH - self.MARGIN,
            0.22,
            "",
            fontsize=9,
            va="center",
            ha="right",
            color=theme.faint,
        )
        title = f"How {specialties.C} classes find {K} specialties"
        axes.text(self.MARGIN, 0.22, title, fontsize=11, va="center", color=theme.text)
        self._begin_curve(objective, start)

    def _begin_curve(self, objective: str, start: str) -> None:
        theme = self.theme
        width = self.WIDTH - 2.6
        axes = plots.axes_inches(self.figure, (2.2, 0.5, width, self.BELOW - 0.62))
        axes.set_facecolor(theme.page)
        top = max(float(self.updates["objective_after"].max()), 0.01) if self.last else 1.0
        axes.set(xlim=(-0.1, max(self.last, 1) + 0.1), ylim=(0, 1.08 * top))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.tick_params(colors=theme.faint, labelsize=8, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(theme.faint)
        axes.set_xlabel(f"update of the map (0: {start})", fontsize=8, color=theme.faint)
        axes.text(
            -0.09,
            0.5,
            f"objective: {objective}",
            transform=axes.transAxes,
            fontsize=8,
            ha="right",
            va="center",
            color=theme.text,
        )
        (self.curve,) = axes.plot([], [], color=theme.text, linewidth=1.5, clip_on=False)
        (self.dot,) = axes.plot([], [], "o", color=theme.text, markersize=5, clip_on=False)

    def at(self, before: int, update: int, share: float) -> Image.Image:
        """The frame at `share` of the way from the map of one update to that of a later one."""
        eased = share**2 * (3 - 2 * share)
        start, end = self.path[before], self.path[update]
        travelling = (start != end).any(axis=1) & (share < 1)
        for c, (x, y) in enumerate(start + eased * (end - start)):
            self.thumbnails[c].put(x, y, self.side, 6 if travelling[c] else 2)
        if update:
            n = int((self.maps[update] != self.maps[before]).sum())
            self.said.set_text(
                f"update {update} of {self.last}: {n} {'class' if n == 1 else 'classes'} moved"
            )
            done = self.updates[self.updates["update"] <= update]
            heights = done[["objective_before", "objective_after"]].to_numpy(copy=True).ravel()
            heights[-1] = heights[-2] + eased * (heights[-1] - heights[-2])
            self.curve.set_data(np.repeat(done["update"], 2), heights)
            self.dot.set_data([update], heights[-1:])
        canvas = FigureCanvasAgg(self.figure)
        self.figure.set_dpi(DPI)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


class _Thumbnail:
    """An image in a coloured frame."""

    def __init__(self, axes: Axes, pixels: NDArray[np.uint8], colour: plots.Colour) -> None:
        self.frame = Rectangle((0, 0), 1, 1, color=colour, linewidth=0)
        axes.add_patch(self.frame)
        self.image: AxesImage = axes.imshow(
            pixels, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased"
        )

    def put(self, x: float, y: float, side: float, level: int) -> None:
        self.frame.set_bounds(x + 0.01, y + 0.01, side - 0.02, side - 0.02)
        self.image.set_extent((x + 0.03, x + side - 0.03, y + side - 0.03, y + 0.03))
        self.frame.set_zorder(level)
        self.image.set_zorder(level + 1)
