"""The queue of the study: what is missing is trained, tested, appended to a table and committed.

A row is one network with one seed; the most telling rows come first (see `questions`).  Rows that
are in the table, or that another process is making, are skipped, so the queue can be continued in
many sessions, and by many processes and machines at once that share the tables' folder: a row is
claimed under a lock, and the tables are read, added to and committed under another.  Asked to, it
trains the networks in a sweep (see `nofe_lab.sweeps`).
Networks that differ in their partitions also get a gate, if they have none; a second table holds
their accuracy and cost when only a few experts are run (see `few_experts`).  What each network
answered for each image is kept beside the table (see `answers`).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from nofe_lab.config import InvalidInput, data_folder, one_of, whole_number
from nofe_lab.evaluation import Predictions, oracle, per_specialty
from nofe_lab.files import user_path, write_file
from nofe_lab.inference import load_specialties
from nofe_lab.log import log
from nofe_lab.runs import code_revision, identity_hash
from nofe_lab.runs.locks import Held, locked
from nofe_lab.stages import Arm, Experiment, NofEStage
from nofe_lab.stages.report import few_experts, final_report
from nofe_lab.study.answers import KEPT_EXPERTS, TopAnswers, answers_folder, write_answers
from nofe_lab.study.questions import GATED, STUDIES, Study
from nofe_lab.sweeps import AnyExecutor, Sweep
from nofe_lab.training.tasks import TrainingDiverged

RESULTS = data_folder() / "results" / "study.csv"
"""The table of the rows."""

CONDITIONAL = RESULTS.with_name("study_conditional.csv")
"""The table of accuracy with few experts."""

KEYS = ("study", "arm", "seed")
"""The columns that identify a row."""


class Queue:
    """The missing rows of some studies, and the two CSV files that rows are appended to.

    What rows answered is kept in a folder beside the first (see `answers`).
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
            known = [each for study in self.studies for each in study.seeds()]
            whole_number("seed", seed, min(known), max(known))
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
                arms = list(study.arms(experiment))
                admitted = experiment.possible(arms)
                rows = [row for row in study.rows(arms) if row[0].name in admitted]
            except InvalidInput as reason:  # its data are missing, or a choice
                log.info(f"{study.name}: left out ({reason})")
                continue
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

    def run(
        self,
        rows: int,
        commit: bool = False,
        executor: AnyExecutor | str | None = None,
        workers: int | None = None,
    ) -> None:
        """Make the next rows; commit tables and answers after each if asked to.

        executor, workers: networks are trained in a sweep (see `Sweep.run`), and tested here as
        they come; None: one after the other, in this process.
        """
        whole_number("rows", rows, 1)
        if executor is not None or workers is not None:
            self._sweep(list(islice(self.missing(), rows)), commit, executor, workers)
            return
        for _ in range(rows):
            if not self.work(commit):
                log.info("no rows left to make")
                break

    def work(self, commit: bool = False) -> bool:
        """Make the next row that no other process makes, or skip it if its training diverges.

        commit: whether to commit tables and answers then.  Returns False if no row is left.
        """
        held: list[tuple[Study, Arm, int]] = []
        # first what is free; then what is held, perhaps by a process that died on another host
        for patient, rows in ((False, self.missing()), (True, held)):
            for row in rows:
                try:
                    if self._claimed(*row, commit, patient):
                        return True
                except Held as who:
                    if patient:
                        log.info(f"{row[0].name}: {row[1].name}, seed {row[2]}: {who} makes it")
                    else:
                        held.append(row)
        return False

    def _claimed(
        self, study: Study, arm: Arm, seed: int, commit: bool, patient: bool = False
    ) -> bool:
        """Make a row unless it is there.  Raises Held if another process makes it."""
        keys = {"study": study.name, "arm": arm.name, "seed": seed}
        claim = identity_hash({**keys, "table": self.results.name})
        with locked(self._locks / claim, patient=patient):
            self.read()
            if _rows_of(self.table, keys).any():
                return False
            self._make(study, arm, seed, commit)
            return True

    def _sweep(
        self,
        rows: list[tuple[Study, Arm, int]],
        commit: bool,
        executor: AnyExecutor | str | None,
        workers: int | None,
    ) -> None:
        """Train the networks of rows together, and make each row when its network is there."""
        if not rows:
            log.info("no rows left to make")
            return
        planned = Sweep.of_rows(
            (study.make(self.runs_dir).with_seed(seed), arm) for study, arm, seed in rows
        )
        left = list(zip(planned.rows, rows, strict=True))

        def make_rows(sweep: Sweep) -> None:
            done = [each for each in left if sweep.state(each[0]) == "done"]
            left[:] = [each for each in left if each not in done]
            for _, (study, arm, seed) in done:
                try:
                    self._claimed(study, arm, seed, commit)
                except Held as who:
                    log.info(f"{study.name}: {arm.name}, seed {seed}: {who} makes it")

        planned.run(executor, workers, watch=make_rows)
        make_rows(planned)
        for row, (study, arm, seed) in left:
            self.failed[study.name].add((arm, seed))
            log.info(f"{study.name}: {arm.name}, seed {seed}: no row ({planned.state(row)})")

    def commit(self) -> None:
        """Commit tables and answers, and nothing else, to their git repository.

        Does nothing if they are unchanged.
        """
        files = (self.results, self.conditional, *answers_folder(self.results).glob("*.npz"))
        if self.table.empty:
            return
        names = [str(path.resolve()) for path in files if path.exists()]
        folder = self.results.resolve().parent
        _git(folder, "add", *names)
        if _git(folder, "status", "--porcelain", "--", *names):
            last = self.table.iloc[-1]
            message = f"Study: {last['arm']}, seed {last['seed']}"
            _git(folder, "commit", "--quiet", "-m", message, "--", *names)

    @property
    def _locks(self) -> Path:
        return self.results.parent / ".locks"

    def _make(self, study: Study, arm: Arm, seed: int, commit: bool) -> None:
        log.info(f"--- {study.name}: {arm.name}, seed {seed}")
        try:
            row, curve, answers = measure(study.make(self.runs_dir).with_seed(seed), arm)
        except TrainingDiverged as reason:
            self.failed[study.name].add((arm, seed))
            log.info(f"{arm.name}, seed {seed}: no row ({reason})")
            return
        keys: dict[str, Any] = {"study": study.name, "arm": arm.name, "seed": seed}
        with locked(self._locks / self.results.name, wait=lambda _: None) as lock:
            self.read()
            lock.check()
            write_answers(self.results, keys, answers)  # first: a row means that the rest is there
            if curve is not None:
                fields = {name: value for name, value in arm.columns.items() if name not in curve}
                self.curves = _with(self.curves, keys, curve.assign(**fields))
                lock.check()
                _write(self.conditional, self.curves)
            self.table = _with(self.table, keys, pd.DataFrame([row]))
            lock.check()
            _write(self.results, self.table)
            if commit:
                self.commit()
        log.info(f"{arm.name}, seed {seed}: {row['top1']:.2%}")


def measure(
    experiment: Experiment, arm: Arm
) -> tuple[dict[str, Any], pd.DataFrame | None, dict[int | None, TopAnswers]]:
    """Train and test a network.

    Returns its row of the study; for arms with a gate, `few_experts`; and its answers by the number
    of experts (None: as it answers).
    """
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
    images = stage.dataset.test.fingerprint
    if not isinstance(stage, NofEStage):
        return row, None, {None: TopAnswers.of(found, images)}
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
    answers: dict[int | None, TopAnswers] = {None: TopAnswers.of(found, images, specialties)}
    if arm not in GATED and arm.sparse is None:
        return row, None, answers

    def keep(experts: int, found: Predictions) -> None:
        if experts in KEPT_EXPERTS:
            answers[experts] = TopAnswers.of(found, images, specialties)

    return row, few_experts(experiment.runner, experiment.gate(stage), keep), answers


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


def _rows_of(table: pd.DataFrame, keys: dict[str, Any]) -> pd.Series:
    """Which rows of a table have these keys."""
    return (table[list(keys)] == pd.Series(keys)).all(axis=1)


def _with(table: pd.DataFrame, keys: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows of these keys in place of those that it has."""
    rows = rows.assign(**keys)[[*KEYS, *rows.columns]]
    others = table[~_rows_of(table, keys)]
    return rows if others.empty else pd.concat([others, rows], ignore_index=True)


def _git(folder: Path, *words: str) -> str:
    """Call git, again while another process has its index; returns what it prints."""
    for _ in range(100):
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        if not done.returncode or "index.lock" not in done.stderr:
            break
        time.sleep(0.1)
    if done.returncode:
        raise InvalidInput(f"git {words[0]} failed ({(done.stderr or done.stdout).strip()}).")
    return done.stdout


def _write(path: Path, table: pd.DataFrame) -> None:
    os.makedirs(path.parent, exist_ok=True)
    text = table.to_csv(index=False, float_format="%.6g")
    write_file(path, f"# nofe-lab dev study\n{text}")
