"""The queue of the study: what is missing is trained, tested, appended to a table and committed.

A row is one network with one seed; the most telling rows come first (see `questions`).  Rows that
are in the table are skipped, so the queue can be continued in many sessions and on many machines.
Networks that differ in their partitions also get a gate; a second table holds their accuracy and
cost when only a few experts are run (see `few_experts`).
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from nofe_lab.config import InvalidInput, data_folder, one_of, whole_number
from nofe_lab.evaluation import oracle, per_specialty
from nofe_lab.files import user_path, write_file
from nofe_lab.inference import load_specialties
from nofe_lab.log import log
from nofe_lab.runs import code_revision
from nofe_lab.stages import Arm, Experiment, NofEStage
from nofe_lab.stages.report import few_experts, final_report
from nofe_lab.study.questions import GATED, STUDIES, Study, arms_of
from nofe_lab.training.tasks import TrainingDiverged

RESULTS = data_folder() / "results" / "study.csv"
"""The table of the rows."""

CONDITIONAL = RESULTS.with_name("study_conditional.csv")
"""The table of accuracy with few experts."""

KEYS = ("study", "arm", "seed")
"""The columns that identify a row."""


class Queue:
    """The missing rows of some studies, and the two CSV files that rows are appended to.

    studies: names; None means all.  arm, seed: make only rows of this arm (a name) and this seed.
    Raises InvalidInput for an unknown study or seed and for a file that is no table of a study;
    `missing` raises it for an unknown arm, since that needs the data.
    """

    def __init__(
        self,
        studies: list[str] | None = None,
        results: Path | str = RESULTS,
        conditional: Path | str = CONDITIONAL,
        runs_dir: str | None = None,
        arm: str | None = None,
        seed: int | None = None,
    ) -> None:
        names = studies or list(STUDIES)
        self.studies = [STUDIES[one_of("study", name, STUDIES)] for name in names]
        self.arm, self.seed = arm, seed
        if seed is not None:
            whole_number("seed", seed, 0, max(study.seeds for study in self.studies) - 1)
        self.results, self.conditional = user_path(results), user_path(conditional)
        self.runs_dir = runs_dir
        self.failed: dict[str, set[tuple[Arm, int]]] = defaultdict(set)
        self.read()

    def read(self) -> None:
        """Read the tables anew: other processes may have added rows."""
        self.table = read(self.results, (*KEYS, "top1"))
        self.curves = read(self.conditional, (*KEYS, "experts", "top1"))

    def missing(self) -> Iterator[tuple[Study, Arm, int]]:
        """(study, arm, seed) of the missing rows, in the order of the queue."""
        names: list[str] = []
        for study in self.studies:
            done = self.table[self.table["study"] == study.name]
            known = set(zip(done["arm"], done["seed"], strict=True))
            try:
                experiment = study.make(self.runs_dir)
                everything = arms_of(experiment)
                admitted = experiment.possible(study.arms or everything)
            except InvalidInput as reason:  # its data are missing
                log.info(f"{study.name}: left out ({reason})")
                continue
            rows = [row for row in study.rows(everything) if row[0].name in admitted]
            names += [arm.name for arm, _ in rows]
            for arm, seed in rows:
                asked = self.arm in (None, arm.name) and self.seed in (None, seed)
                is_done = (arm.name, seed) in known or (arm, seed) in self.failed[study.name]
                if asked and not is_done:
                    yield study, arm, seed
        if self.arm is not None and names:
            one_of("arm", self.arm, dict.fromkeys(names))

    def show(self) -> None:
        """Print which rows are missing."""
        missing = list(self.missing())
        for study, arm, seed in missing:
            log.info(f"{study.name}: {arm.name}, seed {seed}")
        log.info(f"{len(missing)} rows missing")

    def run(self, rows: int, commit: bool = False) -> None:
        """Make the next rows; commit the tables after each if asked to."""
        for _ in range(whole_number("rows", rows, 1)):
            if not self.work():
                log.info("no rows missing")
                break
            if commit:
                self.commit()

    def work(self) -> bool:
        """Make the next row, or skip it if training diverges; False if no row is missing."""
        row = next(self.missing(), None)
        if row is not None:
            study, arm, seed = row
            log.info(f"--- {study.name}: {arm.name}, seed {seed}")
            try:
                self._add(study, arm, seed)
            except TrainingDiverged as reason:
                self.failed[study.name].add((arm, seed))
                log.info(f"{arm.name}, seed {seed}: no row ({reason})")
        return row is not None

    def commit(self) -> None:
        """Commit the tables, and nothing else, to their git repository.

        Does nothing if they are unchanged, which is so when training has diverged.
        """
        paths = [path.resolve() for path in (self.results, self.conditional) if path.exists()]
        if not paths:
            return
        git = ["git", "-C", str(paths[0].parent)]
        names = [str(path) for path in paths]
        subprocess.run([*git, "add", *names], check=True)
        staged = subprocess.run([*git, "diff", "--cached", "--quiet", "--", *names])
        if staged.returncode:
            last = self.table.iloc[-1]
            message = f"Study: {last['arm']}, seed {last['seed']}"
            subprocess.run([*git, "commit", "--quiet", "-m", message, "--", *names], check=True)

    def _add(self, study: Study, arm: Arm, seed: int) -> None:
        experiment = study.make(self.runs_dir).with_seed(seed)
        row, curve = measure(experiment, arm)
        keys: dict[str, Any] = {"study": study.name, "arm": arm.name, "seed": seed}
        self.read()
        if curve is not None:  # first, since a row means that its curve is there
            fields = {name: value for name, value in arm.columns.items() if name not in curve}
            self.curves = _appended(self.curves, curve.assign(**keys, **fields))
            _write(self.conditional, self.curves)
        self.table = _appended(self.table, pd.DataFrame([{**keys, **row}]))
        _write(self.results, self.table)
        log.info(f"{arm.name}, seed {seed}: {row['top1']:.2%}")


def measure(experiment: Experiment, arm: Arm) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Train and test a network: its row of the study and, for arms with a gate, `few_experts`."""
    stage = experiment.stage(arm)
    report = final_report(experiment.runner, [(arm.name, stage)])
    (found,) = report.predictions
    table = report.table.iloc[0]
    row: dict[str, Any] = {
        "dataset": table["dataset"],
        "data": stage.dataset.fingerprint,
        "backbone": stage.backbone.name,
        "preset": experiment.preset,
        **arm.columns,
        "K": table["K"],
        "epochs": table["epochs"],
        "total_epochs": table["total_epochs"],
        "total_training_macs": table["total_training_macs"],
        "top1": found.accuracy,
        "top5": found.top5,
        "nll": found.loss,
        "calibration_error": found.calibration_error,
        "train_accuracy": None,
        "parameters": table["parameters"],
        "macs": table["macs"],
        "seconds": table["seconds"],
        "total_seconds": table["total_seconds"],
        "hardware": table["device"],
        **{key: table[key] for key in ("threads", "precision", "torch", "python", "revision")},
        "tested_by": code_revision(),
        "run": table["run"],
    }
    (run,) = experiment.run(stage)
    row["train_accuracy"] = run.result["train_accuracy"]
    if not isinstance(stage, NofEStage):
        return row, None
    specialties = load_specialties(run)
    seen = oracle(found, specialties)
    parts = per_specialty(found.confusion, specialties)
    row |= {
        "within_specialty": seen.within_specialty,
        "right_specialty": seen.right_specialty,
        "crossing": seen.crossing,
        "of_specialties": " ".join(f"{value:.4f}" for value in parts["accuracy"]),
        "map": " ".join(map(str, specialties.of)),
    }
    return row, few_experts(experiment.runner, experiment.gate(stage)) if arm in GATED else None


def read(path: Path | str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of a study; empty if there is no file.

    Raises InvalidInput if the file lacks one of `columns`.
    """
    if not Path(path).exists():
        return pd.DataFrame(columns=list(columns))
    try:
        table = pd.read_csv(path, comment="#", dtype={"run": str, "revision": str})
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{str(path)!r} cannot be read ({error}); accepted: a table of `make study`."
        ) from error
    if missing := set(columns) - set(table.columns):
        raise InvalidInput(
            f"{str(path)!r} lacks the columns {', '.join(sorted(missing))}; accepted: a table of "
            "`make study`."
        )
    return table


def _appended(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The table with these rows added; old rows with the same keys are removed."""
    rows = rows[[*KEYS, *rows.columns.drop(list(KEYS))]]
    if table.empty:
        return rows
    new = set(map(tuple, rows[list(KEYS)].to_numpy()))
    others = [key not in new for key in map(tuple, table[list(KEYS)].to_numpy())]
    return pd.concat([table[others], rows], ignore_index=True)


def _write(path: Path, table: pd.DataFrame) -> None:
    os.makedirs(path.parent, exist_ok=True)
    text = table.to_csv(index=False, float_format="%.6g")
    write_file(path, f"# nofe-lab dev study\n{text}")
