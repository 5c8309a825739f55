"""Comparisons for maintainers: how experts start, and which recipe `make run` should have.

Each makes a final report over seeds, with the budget of every network; finished runs are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from nofe_lab.config import BRANCH_STARTS, one_of
from nofe_lab.files import writable_path
from nofe_lab.log import log
from nofe_lab.stages.arms import Arm
from nofe_lab.stages.experiment import Experiment
from nofe_lab.stages.report import FinalReport
from nofe_lab.stages.stage import Stage
from nofe_lab.study.queue import RESULTS
from nofe_lab.study.tables import EXPERTS, SAME_EPOCHS, SAME_MACS

K = 10
"""Number of specialties."""


def upcycling(
    dataset: str,
    train_per_class: int,
    epochs: int,
    seeds: int,
    runs_dir: str | None,
    results: str | None,
    command: str,
) -> None:
    """Upcycled against fresh experts: same trunk and partition, trained for the same arithmetic.

    A base CNN is trained; clusters of its confusions are the specialties, and its trunk starts the
    networks of experts.  They differ in the start of their branches alone.
    results: a CSV file for the table; its first line is `command`.
    """
    experiment = Experiment(
        dataset,
        backbone="alexnet_quick_bn",
        K=K,
        trunk="base",
        epochs=epochs,
        val_fraction=0.0,
        train_per_class=train_per_class,
        device="cpu",
        runs_dir=runs_dir,
    )
    arms = {"base CNN": Arm("base", budget="generalist")} | {
        f"{start} experts": Arm("nofe", "confusion", trunk="base", branch_start=start)
        for start in BRANCH_STARTS
    }
    report = experiment.comparison(
        experiment.seeds(seeds),
        lambda each: {name: each.stage(arm) for name, arm in arms.items()},
    )
    _save(report, "upcycling", results, command)


CLUSTERS: dict[str, Any] = {"specialties": "confusion", "trunk": "base"}
NORMALISED: dict[str, Any] = {"backbone": "alexnet_quick_bn"}
UPCYCLED: dict[str, Any] = NORMALISED | CLUSTERS | {"branch_start": "upcycled"}


def _on(images: int, first: int, then: int, **changes: Any) -> dict[str, Any]:
    """Images a class, of which a tenth is val; epochs of the trunk's network and of the NofE."""
    return {"dataset": f"glyphs:{images}", "trunk_epochs": first, "epochs": then, **changes}


CANDIDATES: dict[str, dict[str, Any]] = {
    "learned": _on(100, 3, 3),
    "clusters": _on(100, 4, 3, **CLUSTERS),
    "clusters, more images": _on(200, 3, 1, **CLUSTERS),
    "normalised, learned": _on(100, 3, 2, **NORMALISED),
    "normalised, learned, more images": _on(200, 2, 1, **NORMALISED),
    "normalised, clusters, fresh": _on(100, 4, 2, **NORMALISED, **CLUSTERS),
    "normalised, upcycled": _on(100, 4, 2, **UPCYCLED),
    "normalised, upcycled, longer trunk": _on(100, 7, 1, **UPCYCLED),
    "normalised, upcycled, more images": _on(200, 2, 1, **UPCYCLED),
    "normalised, upcycled, balanced, more images": _on(
        200, 2, 1, **UPCYCLED | {"specialties": "balanced"}
    ),
    "normalised, upcycled, half as wide": _on(200, 3, 1, **UPCYCLED, branch_width=0.5),
    "normalised, upcycled, balanced, half as wide": _on(
        200, 3, 1, **UPCYCLED | {"specialties": "balanced"}, branch_width=0.5
    ),
}
"""Recipes for `make run` by name, as changes of an experiment's knobs.

All stages of each compute 3.7 to 4.3 T multiply-accumulates, half of what notebook 3's experts and
their generalist take.
Plain names are AlexNet-Quick's; normalised ones are of alexnet_quick_bn, which can be upcycled.
"""

FIRST_RUN = "normalised, upcycled, balanced, half as wide"
"""The one that was chosen."""


def first_run(
    candidates: Sequence[str],
    seeds: Sequence[int],
    split: str,
    alone: bool,
    runs_dir: str | None,
    results: str | None,
    command: str,
) -> None:
    """Candidates for `make run`: each beside base CNNs of as much arithmetic and as many epochs.

    split: val to choose one, with the same images for all (those of glyphs drawn anew, which none
    has trained on); test for the final figures.  alone: without the base CNNs, for a pilot.
    results: a CSV file for the table; its first line is `command`.
    """
    for name in candidates:
        one_of("candidate", name, CANDIDATES)
    val = Experiment("glyphs", data_seed=1).data.val if split == "val" else None
    reports = []
    for name in candidates or CANDIDATES:
        experiment = Experiment(**CANDIDATES[name], K=K, device="cpu", runs_dir=runs_dir)
        if val is not None:
            experiment = replace(experiment, dataset=replace(experiment.data, val=val))
        reports.append(experiment.comparison(seeds, _alone if alone else _beside_base, split))
    tables = zip(candidates or CANDIDATES, reports, strict=True)
    rows = [report.table.assign(candidate=name) for name, report in tables]
    table = pd.concat(rows, ignore_index=True)
    table = table[["candidate", *table.columns.drop("candidate")]]
    _save(
        replace(reports[0], table=table, predictions=()),
        f"first_run_{'pilot' if alone else split}",
        results,
        command,
    )


def _alone(experiment: Experiment) -> Mapping[str, Stage]:
    return {EXPERTS: experiment.nofe()}


def _beside_base(experiment: Experiment) -> Mapping[str, Stage]:
    networks = experiment.nofe(), experiment.base("arithmetic"), experiment.base("total")
    return dict(zip((EXPERTS, SAME_MACS, SAME_EPOCHS), networks, strict=True))


def _save(report: FinalReport, name: str, results: str | None, command: str) -> None:
    target = RESULTS.parent / f"{name}.csv"
    if results is not None:
        target = writable_path("results", results)
    log.info(f"the table: {report.save(target, command)}")
