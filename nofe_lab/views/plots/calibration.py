"""Draws how far a classifier's confidence can be believed, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nofe_lab.evaluation import Predictions, calibration_error, coverage_table, reliability
from nofe_lab.specialties import Specialties
from nofe_lab.views.plots.style import ACCENT, GREY, WRONG, new_figure, percent, styled

COVERAGES = tuple(np.linspace(0.05, 1, 20))
"""Of `plot_coverage`."""


@styled
def plot_reliability(bins: pd.DataFrame) -> Figure:
    """Accuracy against confidence, bin by bin, and how many images each bin has.

    bins: a table of `evaluation.reliability`.  On the diagonal, of the images that the classifier
    is 80 % sure of, 80 % are right; below it, it is too sure.
    """
    figure = new_figure(4.2, 3.9)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw(axes, below, bins)
    axes.set_title(f"calibration error {calibration_error(bins):.1%}", loc="left")
    return figure


@styled
def plot_calibration(
    on_test: Mapping[str, Predictions], on_val: Mapping[str, Predictions]
) -> Figure:
    """`plot_reliability` of several networks, side by side, and what a temperature mends.

    on_test, on_val: network -> predictions.  The bars and the measures are of test; the temperature
    of each network is fitted on val, and left out where there are no val images.
    """
    figure = new_figure(4.2 * len(on_test), 4.2)
    grid = figure.subplots(
        2, len(on_test), sharex=True, sharey="row", height_ratios=(4, 1), squeeze=False
    )
    for (axes, below), (name, raw) in zip(grid.T, on_test.items(), strict=True):
        bins = reliability(raw.probabilities, raw.labels)
        _draw(axes, below, bins, "as it is")
        said = f"calibration error {calibration_error(bins):.1%}"
        if len(on_val[name].labels):
            temperature = on_val[name].temperature
            mended = raw.at_temperature(temperature)
            bins = reliability(mended.probabilities, mended.labels)
            line = (bins["confidence"], bins["accuracy"], "s-")
            axes.plot(*line, color=WRONG, markersize=4, label="at the temperature")
            below.step(_middle(bins), bins["images"], where="mid", color=WRONG, linewidth=1)
            name = f"{name}, temperature {temperature:.2f}"
            said += f" → {calibration_error(bins):.1%}, loss {raw.loss:.3f} → {mended.loss:.3f}"
        axes.set_title(f"{name}\n{said}", loc="left")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for each in grid[:, 1:].flat:
        each.set_ylabel("")
    return figure


def _middle(bins: pd.DataFrame) -> pd.Series:
    return (bins["low"] + bins["high"]) / 2


def _draw(axes: Axes, below: Axes, bins: pd.DataFrame, label: str | None = None) -> None:
    middle, width = _middle(bins), (bins["high"] - bins["low"]) * 0.9
    axes.bar(middle, bins["accuracy"].fillna(0), width, color=ACCENT, alpha=0.75)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    axes.plot(bins["confidence"], bins["accuracy"], "o", color=ACCENT, markersize=3, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    below.bar(middle, bins["images"], width, color=GREY)
    below.set(ylabel="images", xlabel="confidence: the largest probability")
    below.set_xticks(np.linspace(0, 1, 6))
    for each in (axes.yaxis, below.xaxis):
        each.set_major_formatter(FuncFormatter(percent))


@styled
def plot_coverage(networks: Mapping[str, Predictions], specialties: Specialties) -> Figure:
    """How many answers are right if the least certain images are answered with their specialty.

    networks: name -> predictions for the same images.  From left to right, more images are answered
    with their class, the most certain ones first (see `evaluation.coverage_table`).  Solid: of all
    answers; dashed: of those that are classes.
    """
    figure = new_figure(6.2, 3.6)
    axes = figure.subplots()
    colours = dict(zip(networks, sns.color_palette("colorblind"), strict=False))
    for name, found in networks.items():
        table = coverage_table(found.certainty(specialties), specialties, COVERAGES)
        axes.plot(table["coverage"], table["right"], color=colours[name], label=name)
        axes.plot(table["coverage"], table["class_right"], "--", color=colours[name], linewidth=1)
    axes.plot([], [], "-", color=GREY, label="all answers: class or specialty")
    axes.plot([], [], "--", color=GREY, linewidth=1, label="answers with the class")
    axes.set(
        xlim=(0, 1), xlabel="answered with the class", ylabel="share of answers that are right"
    )
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(FuncFormatter(percent))
    axes.grid(alpha=0.4)
    axes.legend(loc="lower left")
    return figure
