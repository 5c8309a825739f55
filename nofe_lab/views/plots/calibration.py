"""Draws how far a classifier's confidence can be believed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nofe_lab.evaluation import calibration_error
from nofe_lab.views.plots.style import ACCENT, GREY, new_figure, percent, styled


@styled
def plot_reliability(bins: pd.DataFrame) -> Figure:
    """Accuracy against confidence, bin by bin, and how many images each bin has.

    bins: a table of `evaluation.reliability`.  On the diagonal, of the images that the classifier
    is 80 % sure of, 80 % are right; below it, it is too sure.
    """
    figure = new_figure(4.2, 3.9)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    middle, width = (bins["low"] + bins["high"]) / 2, (bins["high"] - bins["low"]) * 0.9
    axes.bar(middle, bins["accuracy"].fillna(0), width, color=ACCENT, alpha=0.75)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    axes.plot(bins["confidence"], bins["accuracy"], "o", color=ACCENT, markersize=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_title(f"calibration error {calibration_error(bins):.1%}", loc="left")
    below.bar(middle, bins["images"], width, color=GREY)
    below.set(ylabel="images", xlabel="confidence: the largest probability")
    below.set_xticks(np.linspace(0, 1, 6))
    for each in (axes.yaxis, below.xaxis):
        each.set_major_formatter(percent)
    return figure
