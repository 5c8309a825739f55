"""Do experts pay anywhere?  Candidates for a test that was fixed beforehand, and their pilot.

The test: one configuration, chosen on val with seed 0 before any of its test answers is read, beats
the flat network of equal inference arithmetic, which learns from the same teacher with equal
training arithmetic, by a mean of at least half a point whose interval is above 0, on new seeds.
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
from nofe_lab.networks import NofE
from nofe_lab.networks.backbone import width_of_cost
from nofe_lab.stages import Arm, Experiment, NofEStage
from nofe_lab.stages.report import few_experts, final_report

PILOT = data_folder() / "results" / "pays_pilot.csv"
"""The candidates on val."""

MOST_RUN = 3
"""How many experts for an image are looked at, at most."""

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


def leads(pilot: pd.DataFrame) -> dict[str, float]:
    """{candidate: accuracy on val minus that of the better of its flat rivals}.

    It answers as it was trained to, with so many of the gate's best experts.
    """
    found = {}
    for name, own in pilot.groupby("candidate", sort=False):
        is_flat = own["network"].isin(["flat, taught", "flat"])
        usual = ~is_flat & (own["experts"] == CANDIDATES[str(name)]["sparse"])
        flat = own[is_flat].groupby("network")["top1"].mean()
        found[str(name)] = float(own.loc[usual, "top1"].mean() - flat.max())
    return found


def chosen_experiment(runs_dir: str | None) -> Experiment:
    """The candidate with the largest of the `leads`, on all training images.

    Raises InvalidInput before the pilot.
    """
    if not PILOT.exists():
        raise InvalidInput(
            f"no configuration has been chosen; accepted: after `nofe-lab dev pays` has made "
            f"{PILOT.name}."
        )
    found = leads(pd.read_csv(PILOT, comment="#"))
    best = max(found, key=lambda name: found[name])
    return Experiment(**CANDIDATES[best], val_fraction=0.0, runs_dir=runs_dir)


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
    """Train the candidates and their rivals without a tenth of the training images; test on those.

    The candidate with the largest of the `leads` is chosen.  Random experts, which choose nothing,
    are left out.
    results: a CSV file for the table, by default PILOT, which is of all candidates; its first line
    is `command`.
    """
    for name in candidates:
        one_of("candidate", name, CANDIDATES)
    if candidates and results is None:
        raise InvalidInput(
            "the table of all candidates would become one of some; accepted: a file of their own "
            "(results), or all."
        )
    target = PILOT if results is None else writable_path("results", results)
    rows = []
    for name in candidates or CANDIDATES:
        experiment = Experiment(
            **CANDIDATES[name], val_fraction=0.1, seed=seed, device="cpu", runs_dir=runs_dir
        )
        rows += [{"candidate": name, "seed": seed, **row} for row in _on_val(experiment)]
    machine = experiment.runner.machine
    save_table(pd.DataFrame(rows), target, command, machine, precision=machine.precision)


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
