"""Draws costs: accuracy against arithmetic, accuracy with few experts, and measured speed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from nofe_lab.statistics import over_seeds
from nofe_lab.views.plots.style import (
    ACCENT,
    DARK,
    GREY,
    LIGHT,
    WIDTH,
    WRONG,
    new_figure,
    percent,
    specialty_colours,
    styled,
)
from nofe_lab.views.plots.text import fitted

SAME_COST = 0.02
"""Costs count as equal if they differ by at most this share."""


@styled
def plot_front(
    table: pd.DataFrame, cost: str = "total_training_macs", by: str = "network"
) -> Figure:
    """Mean accuracy of each network against its cost, with the Pareto front.

    table: long, with the columns `by`, kind (see `Arm`), seed, test_accuracy and `cost`.
    cost: ``macs`` (multiply-accumulates of one image) or ``total_training_macs``; costs that differ
    by up to `SAME_COST` count as equal.
    Grey bars are 95 % intervals, clipped at the edges.  The label of a network with fewer seeds
    than others says how many it has.
    """
    means = over_seeds(table, by=by).set_index(by)
    means["cost"] = table.groupby(by)[cost].mean()
    means = means.sort_values(["cost", "mean"], ascending=[True, False])
    affordable = means["cost"].to_numpy() <= (1 + SAME_COST) * means["cost"].to_numpy()[:, None]
    better = means["mean"].to_numpy() > means["mean"].to_numpy()[:, None]
    best = pd.Series(~(affordable & better).any(1), means.index)
    height = 0.9 + 0.31 * max(len(means), 10)
    # constrained layout would shrink the axes to make room for the names beside them
    figure = new_figure(WIDTH, height, "none")
    left, wide, beside = 0.07, 0.54, 1.06
    axes = figure.add_axes((left, 0.55 / height, wide, 1 - 0.9 / height))
    # letters on a grid of pixels are some percent wider than their outlines
    room = 0.95 * WIDTH * (1 - left - beside * wide)
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
    # points lie too close for labels of their own: labels stand beside, in order of accuracy
    places = np.linspace(0.985, 0.015, len(means))
    for place, (name, row) in zip(
        places, means.sort_values("mean", ascending=False).iterrows(), strict=True
    ):
        few = f" (n = {row['seeds']:.0f})" if row["seeds"] < means["seeds"].max() else ""
        axes.annotate(
            fitted(f"{row['mean']:.1%}{few} {name}", room, 8),
            (row["cost"], row["mean"]),
            (beside, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=DARK if best[str(name)] else GREY,
            arrowprops={"arrowstyle": "-", "color": LIGHT, "linewidth": 0.9, "relpos": (0, 0.5)},
        )
    what = "training, with all stages" if "training" in cost else "an image"
    axes.set(xlabel=f"multiply-accumulates of {what}", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
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
    # intervals of two seeds are much wider than the differences: they may be clipped
    low, high = means["mean"].min(), means["mean"].max()
    margin = 0.15 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    return figure


@styled
def plot_conditional(curves: pd.DataFrame, flat: pd.DataFrame | None = None) -> Figure:
    """Accuracy of networks of experts when the gate selects only some experts for each image.

    curves: long, with the columns arm, seed, experts, top1, macs, gate_top1 and macs_gate_alone.
    flat: long, with the columns arm, seed, top1 and macs: flat networks, points on the right.

    Left: change in accuracy against the number of experts.  Right: accuracy against
    multiply-accumulates of an image, including the gate's; each dotted line starts at the answers
    of the gate alone.  Lines are means over seeds, bands and bars their 95 % intervals.
    """
    figure = new_figure(WIDTH, 3.9)
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
    right.yaxis.set_major_formatter(FuncFormatter(percent))
    low, high = right.get_ylim()  # intervals of two seeds may be wider than any accuracy
    right.set_ylim(max(low, -0.02), min(high, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.4)
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


@styled
def plot_speed(compared: pd.DataFrame) -> Figure:
    """Ratios of a benchmark: a panel for each comparison, a bar for each network.

    compared: the table of `nofe_lab.bench.compared`.  The dashed line is the target; networks
    without a target are grey.
    """
    names = list(dict.fromkeys(compared["what"]))
    networks = list(dict.fromkeys(compared["network"]))
    columns = 2
    lines = -(-len(names) // columns)
    figure = new_figure(WIDTH, 0.9 + lines * (0.75 + 0.24 * len(networks)))
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
