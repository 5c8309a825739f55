"""Draws networks beside each other: accuracy over seeds, by specialty and by class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset
from nofe_lab.evaluation import Predictions
from nofe_lab.statistics import in_points, over_seeds
from nofe_lab.views.plots.cards import draw_image
from nofe_lab.views.plots.style import (
    ACCENT,
    DARK,
    GREY,
    LIGHT,
    RIGHT,
    WRONG,
    canvas,
    new_figure,
    signed_points,
    style_shares,
    styled,
)
from nofe_lab.views.plots.text import SMALL, fitted

CHANGED_CLASSES, CHANGED_IMAGES = 5, 5
"""Most classes on each side of `plot_gained_lost`, and most images of each."""


@styled
def plot_comparison(table: pd.DataFrame, value: str = "test_accuracy") -> Figure:
    """The accuracy of each network: a point for each seed, the mean and its 95 % interval.

    table: long, with the columns network, seed and `value` (0 to 1).  Networks are drawn in
    the order of their first rows.  The interval (see `over_seeds`) needs two seeds.
    """
    means = over_seeds(table, value)
    n = len(means)
    figure = new_figure(8.5, 1.3 + 0.42 * n)
    axes = figure.subplots()
    colour = ACCENT
    rows = dict(zip(means["network"], range(n), strict=True))
    axes.scatter(
        table[value],
        table["network"].map(rows),
        22,
        facecolors="none",
        edgecolors=GREY,
        zorder=3,
    )
    axes.hlines(means.index, means["low"], means["high"], color=colour, linewidth=2.5)
    axes.scatter(means["mean"], means.index, 46, marker="D", color=colour, zorder=4)
    points = in_points(means)
    for row, (mean, high, seeds) in enumerate(
        zip(points["mean"], points["high"], points["seeds"], strict=True)
    ):
        half = "" if np.isnan(high) else f" ± {high - mean:.1f}"
        axes.text(
            1.02,
            row,
            f"{mean:.1f}{half}%  ({seeds} {'seed' if seeds == 1 else 'seeds'})",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(means.index, [fitted(name, 2.6, 8) for name in means["network"]])
    axes.set(ylim=(n - 0.4, -0.6), xlabel=value.replace("_", " "))
    axes.margins(x=0.08)
    left, right = axes.get_xlim()  # intervals of two seeds may be wider than any accuracy
    axes.set_xlim(max(left, -0.02), min(right, 1.02))
    style_shares(axes, "both")
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor="none"),
        Line2D([], [], color=colour, marker="D", linewidth=0),
        Line2D([], [], color=colour, linewidth=2.5),
    ]
    names = ["one seed", "mean over the seeds", "95% interval of the mean (Student's t)"]
    shown = len(names) if means["low"].notna().any() else 2
    figure.legend(handles[:shown], names[:shown], loc="outside upper center", ncols=3)
    return figure


@styled
def plot_per_specialty(base: pd.DataFrame, nofe: pd.DataFrame) -> Figure:
    """The accuracy on each specialty of the base CNN and of the network of experts.

    base, nofe: tables of `nofe_lab.evaluation.per_specialty` with the same specialties.
    """
    if list(base["specialty"]) != list(nofe["specialty"]):
        raise InvalidInput("the two tables must have the same specialties in the same order.")
    n = len(base)
    figure = new_figure(7.5, 1.2 + 0.27 * n)
    axes = figure.subplots()
    y = np.arange(n)
    before, after = base["accuracy"].to_numpy(), nofe["accuracy"].to_numpy()
    colour = ACCENT
    axes.hlines(y, before, after, color=colour, linewidth=2, alpha=0.5)
    axes.scatter(before, y, 40, facecolors="white", edgecolors=DARK, zorder=3, label="base CNN")
    axes.scatter(after, y, 40, color=colour, zorder=4, label="NofE")
    for row, (low, high) in enumerate(zip(before, after, strict=True)):
        points = signed_points(high - low, 1)
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
    style_shares(axes)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def plot_gained_lost(dataset: Dataset, base: Predictions, nofe: Predictions) -> Figure:
    """The classes whose accuracy changes most from the base CNN to the network of experts.

    base, nofe: their predictions for the test split.  Beside each class are the first test images
    that only the NofE answers correctly (gained, left) or only the base CNN does (lost, right).
    """
    labels = dataset.test.labels.numpy()
    for network, predictions in (("base", base), ("nofe", nofe)):
        if not np.array_equal(predictions.labels, labels):
            raise InvalidInput(
                f"{network} must be predictions for the test images of the data set."
            )
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
    half = CHANGED_IMAGES * cell + 0.15
    rows = min(CHANGED_CLASSES, max(len(found) for found in sides.values()))
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
        for row, c in enumerate(found[:CHANGED_CLASSES]):
            y = 0.42 + row * row_height
            axes.plot([x, x + half - 0.15], [y, y], color=LIGHT, linewidth=1)
            points = signed_points(gain[c], 0)
            figures = f"{accuracies[0][c]:.0%} → {accuracies[1][c]:.0%} ({points} points)"
            name = fitted(dataset.class_names[c], half - 2.1, 9, "bold")
            axes.text(x, y + 0.14, name, fontsize=9, weight="bold", va="center")
            axes.text(x + half - 0.15, y + 0.14, figures, fontsize=8, va="center", ha="right")
            for n, i in enumerate(np.flatnonzero(changed & (labels == c))[:CHANGED_IMAGES]):
                left, top = x + n * cell, y + 0.28
                draw_image(axes, dataset.test.sample([i])[0], left, top, 0.84)
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
