"""Do experts pay anywhere?  Candidates for a test that was fixed beforehand, and their pilot.

The test: one configuration, chosen on val with seed 0 before any of its test answers is read, beats
two flat networks of equal inference and training arithmetic, of which one learns from the same
teacher, by a mean of at least half a point whose interval is above 0, on new seeds.
All that was trained on the way counts in both budgets: base CNN, gate and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from nofe_lab.bench.tables import save_table
from nofe_lab.config import InvalidInput, data_folder, one_of
from nofe_lab.files import writable_path
from nofe_lab.log import log
from nofe_lab.machine import Machine
from nofe_lab.networks import NofE
from nofe_lab.networks.backbone import width_of_cost
from nofe_lab.stages import Arm, Experiment, NofEStage
from nofe_lab.stages.report import few_experts, final_report
from nofe_lab.statistics import MOST_SEEDS, seeds_to_detect

PILOT = data_folder() / "results" / "pays_pilot.csv"
"""The candidates on val."""

MOST_RUN = 3
"""How many experts for an image are looked at, at most."""

WANTED_LEAD = 0.005
"""By how much experts are to be ahead, as a share of the images."""

CHOOSING = 0
"""The seed that chooses."""

REPEATS = (1000, 1001)
"""More seeds of the chosen one: how much they differ says how many the test needs."""

FEWEST_SEEDS = 5
"""Of the test."""

FLAT = ("flat, taught", "flat")
"""The flat ones of the `rivals`."""

_USUAL: dict[str, Any] = {
    "dataset": "parquet:$NOFE_DATA/cifar100",
    "backbone": "alexnet_quick_bn",
    "preset": "strong",
    "K": 10,
    "trunk": "base",
    "specialties": "balanced",
    "branch_start": "upcycled",
    "sparse": 2,
    "nofe_rate": 0.01,
    "trunk_epochs": 40,
    "epochs": 12,
}
_EARLY: dict[str, Any] = {**_USUAL, "split": "conv2"}
_LATE: dict[str, Any] = {**_USUAL, "split": "conv3"}

CANDIDATES: dict[str, dict[str, Any]] = {
    "early cut": {**_EARLY, "branch_width": 0.5},
    "late cut": _LATE,
    "late cut, narrow experts": {**_LATE, "branch_width": 0.25},
    "late cut, together": {**_LATE, "trunk_epochs": 11, "epochs": 28, "nofe_rate": None},
}
"""Configurations by name, as changes of an experiment's knobs.

early cut: before the second convolution, so that experts are heavy; late cut: before the third.
The base CNN's tail is the gate; experts begin as it, or as half or a quarter of its channels.
together: trunk, gate and experts learn together for most of the time, from a base CNN's first
epochs on.
"""


def rivals(experiment: Experiment) -> dict[str, Arm]:
    """The experiment's network of experts, and what it is set beside, by name.

    Random specialties in place of its own; and two flat networks that take as much arithmetic as it
    does, for an image and in training.  One learns the answers of the experts' teacher or, where
    they have none, of the base CNN that they begin as.  The other learns the classes, from scratch.
    """
    stage = experiment.nofe()
    experts = stage.arm
    assert experts is not None
    flat = Arm(
        "control",
        budget="arithmetic",
        experts=1,
        width=_width_of_few(experiment, stage) / experiment.branch_width,
    )
    return {
        "experts": experts,
        "random experts": replace(experts, partition="random", rule=""),
        "flat, taught": replace(flat, teacher=experts.teacher or "base"),
        "flat": flat,
    }


def rival(arm: Arm) -> str:
    """Which of the `rivals` an arm is."""
    if arm.kind == "nofe":
        return "random experts" if arm.partition == "random" else "experts"
    return "flat, taught" if arm.teacher else "flat"


def ahead(pilot: pd.DataFrame) -> pd.DataFrame:
    """By candidate and seed: accuracy on val minus that of each flat rival, a column each.

    Experts answer as they do by default, with `sparse` of them.  NaN where a network is missing.
    """
    usual = pilot["candidate"].map({name: made["sparse"] for name, made in CANDIDATES.items()})
    own = pilot[(pilot["network"] != "experts") | (pilot["experts"] == usual)]
    top1 = own.pivot(index=["candidate", "seed"], columns="network", values="top1")
    top1 = top1.reindex(columns=["experts", *FLAT])
    return top1[list(FLAT)].rsub(top1["experts"], axis=0)


def leads(pilot: pd.DataFrame) -> pd.Series:
    """By candidate: how far it is ahead of the better flat rival, with the seed that chooses.

    Raises InvalidInput if the table is not of all candidates with both flat rivals.
    """
    found = ahead(pilot).min(axis=1, skipna=False)
    found = found[found.index.get_level_values("seed") == CHOOSING].droplevel("seed").dropna()
    if set(found.index) != set(CANDIDATES):
        raise InvalidInput(
            f"{PILOT.name} has {', '.join(found.index) or 'none'} complete; accepted: "
            f"{', '.join(CANDIDATES)}, as `nofe-lab dev pays` makes them."
        )
    return found


def chosen(pilot: pd.DataFrame) -> str:
    """The candidate with the largest of the `leads`."""
    return str(leads(pilot).idxmax())


def deviation(pilot: pd.DataFrame) -> pd.Series:
    """Over the seeds of the chosen candidate, of what it is `ahead`: the one that differs most.

    Raises InvalidInput unless the table has all of its seeds.
    """
    seeds = [CHOOSING, *REPEATS]
    found = ahead(pilot).xs(chosen(pilot)).reindex(seeds)
    if found.isna().to_numpy().any():
        raise InvalidInput(
            f"{PILOT.name} must have the chosen candidate with the seeds "
            f"{', '.join(map(str, seeds))}, as `nofe-lab dev pays` makes them."
        )
    return found[max(FLAT, key=lambda name: found[name].std())]


def read_pilot() -> pd.DataFrame | None:
    """The table of the pilot; None before it."""
    return pd.read_csv(PILOT, comment="#") if PILOT.exists() else None


def seeds_of_test() -> range:
    """New ones: FEWEST_SEEDS, or as many as tell WANTED_LEAD from nothing, as the pilot has it.

    Raises InvalidInput if the pilot is not whole, or asks for more than MOST_SEEDS.
    """
    n: int | None = FEWEST_SEEDS
    if (pilot := read_pilot()) is not None:
        n = seeds_to_detect(WANTED_LEAD, deviation(pilot).to_numpy(), FEWEST_SEEDS)
    if n is None:
        raise InvalidInput(f"the pilot's deviation asks for more seeds than {MOST_SEEDS}.")
    return range(CHOOSING + 1, CHOOSING + 1 + n)


def chosen_experiment(runs_dir: str | None) -> Experiment:
    """The `chosen` candidate, on all training images.

    Raises InvalidInput before the pilot.
    """
    if (pilot := read_pilot()) is None:
        raise InvalidInput(
            f"no configuration has been chosen; accepted: after `nofe-lab dev pays` has made "
            f"{PILOT.name}."
        )
    return Experiment(**CANDIDATES[chosen(pilot)], val_fraction=0.0, runs_dir=runs_dir)


def _width_of_few(experiment: Experiment, stage: NofEStage) -> float:
    """The width of one branch that costs as much as the gate and the experts that answer."""
    network = stage.untrained_network()
    assert isinstance(network, NofE)
    assert network.usual_experts is not None
    cost = network.macs(stage.backbone.input_shape)
    wanted = cost.gate + network.usual_experts * sum(cost.branches) / len(cost.branches)
    most = 1 + network.usual_experts
    return width_of_cost(stage.backbone, experiment.data.C, wanted, most)


def pilot(
    candidates: Sequence[str], seed: int, runs_dir: str | None, results: str | None, command: str
) -> None:
    """Train candidates and their rivals without a tenth of the training images; test on those.

    All candidates with the seed CHOOSING and the chosen one with REPEATS, into PILOT.  Candidates
    by name or another seed: these alone.  Random experts, which choose nothing, are left out.
    results: another CSV file than PILOT, which a part needs; its first line is `command`.
    """
    for name in candidates:
        one_of("candidate", name, CANDIDATES)
    part = bool(candidates) or seed != CHOOSING
    if part and results is None:
        raise InvalidInput(
            "the table of the whole pilot would become one of a part; accepted: a file of its own "
            "(results), or neither candidates nor a seed."
        )
    target = PILOT if results is None else writable_path("results", results)

    def measured(name: str, seed: int) -> pd.DataFrame:
        made = Experiment(
            **CANDIDATES[name], val_fraction=0.1, seed=seed, device="cpu", runs_dir=runs_dir
        )
        return pd.DataFrame({"candidate": name, "seed": seed, **row} for row in _on_val(made))

    table = pd.concat([measured(name, seed) for name in candidates or CANDIDATES])
    if not part:
        best = chosen(table)
        table = pd.concat([table, *(measured(best, again) for again in REPEATS)])
    machine = Machine.pick("cpu")
    save_table(table, target, command, machine, precision=machine.precision)


def _on_val(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for each flat rival, and for the network of experts one for each number that run."""
    rows: list[dict[str, Any]] = []
    for name, arm in rivals(experiment).items():
        if arm.partition == "random":
            continue
        stage = experiment.stage(arm)
        report = final_report(experiment.runner, [(name, stage)], "val").table.iloc[0]
        figures = {
            "network": name,
            **{key: report[key] for key in ("epochs", "total_epochs", "total_training_macs")},
            "run": report["run"],
        }
        if isinstance(stage, NofEStage):
            curve = few_experts(experiment.runner, stage, split="val")
            rows += [
                figures | {key: few[key] for key in ("experts", "top1", "found", "macs")}
                for _, few in curve[curve["experts"] <= MOST_RUN].iterrows()
            ]
        else:
            whole = {"experts": None, "top1": report["val_accuracy"], "macs": report["macs"]}
            rows.append({**figures, **whole})
        log.info(f"{name}: {report['val_accuracy']:.2%} on val")
    return rows
