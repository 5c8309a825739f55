"""The study: does a network of experts help, when, and why?

A queue of rows, each one network with one seed: `opponents` of an experiment, the most telling ones
first.  A row that is in the table already is skipped, so the queue can be worked off over many
sessions, on one machine after another; what it leaves is a CSV file to be committed.

Networks of experts that differ in their partitions get a gate as well (see `nofe_lab.stages.gate`),
and a second table says what is left of their accuracy when only the most promising experts are run,
and what that saves.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from nofe_lab.bench import expert_macs, in_turn, width_for
from nofe_lab.config import InvalidInput, data_folder, derive_seed, one_of, whole_number
from nofe_lab.data.batches import ImageNetwork
from nofe_lab.evaluation import conditional, oracle, per_specialty, predict
from nofe_lab.files import write_text
from nofe_lab.log import log
from nofe_lab.networks import PAPER, NofE, backbone, preset
from nofe_lab.networks.paper import PUBLISHED
from nofe_lab.runs import code_revision
from nofe_lab.specialties import Specialties
from nofe_lab.stages import Arm, Experiment, NofEStage, load_specialties
from nofe_lab.stages.arms import TWO_AND_GATE
from nofe_lab.stages.gate import GateAlone
from nofe_lab.stages.report import final_report
from nofe_lab.training import TrainingDiverged

RESULTS = data_folder() / "results" / "study.csv"
"""The table of the rows."""

CONDITIONAL = RESULTS.with_name("study_conditional.csv")
"""The table of what a few experts do."""

PAIRS = data_folder() / "specialties" / "cifar100_superclass_pairs.json"
"""CIFAR-100's 20 superclasses, two by two, as a person would put them."""

KEYS = ("study", "arm", "seed")
"""What tells a row."""

BATCHES = (1, 256)
"""Images at once, where seconds are measured."""

REPEATS = 9
"""Of every measurement of seconds."""

BASE, BASE_TOTAL, BASE_ARITHMETIC = (
    Arm("base", budget=budget) for budget in ("nofe", "total", "arithmetic")
)
CONTROL, CONTROL_TOTAL, CONTROL_ARITHMETIC = (
    Arm("control", budget=budget) for budget in ("nofe", "total", "arithmetic")
)
CONTROL_NOFE_RECIPE = Arm("control", budget="total", recipe="nofe")
CONTROL_GENERALIST, CONTROL_BASE_TRUNK = (
    Arm("control", trunk=trunk) for trunk in ("generalist", "base")
)
SMALL_TOTAL = Arm("control", budget="total", experts=TWO_AND_GATE)
SMALL_GENERALIST = Arm("control", trunk="generalist", experts=TWO_AND_GATE)
LEARNED = Arm("nofe")
"""The paper's network (with the exact rule), which all others are compared with."""
FLIPS = LEARNED.with_changes(flips=True)
"""The same, trained with flips in its second stage too."""
GREEDY = Arm("nofe", rule="greedy")
OWN_RANDOM = Arm("nofe", "random", rule="random")
"""Random specialties on the trunk of their own generalist."""
RANDOM, CONFUSION, FEATURES = (Arm("nofe", each) for each in ("random", "confusion", "features"))
"""Other partitions on the paper's network's trunk."""
SUPERCLASS = Arm("nofe", "superclass", width=0.5)
"""CIFAR-100's twenty, with experts half as wide."""
SUPERCLASS_PAIRS = Arm("nofe", str(PAIRS), label="superclass pairs")
OTHER_TRUNK = Arm("nofe", trunk_rule="random")
"""Learned specialties on the trunk of the random ones' generalist."""
BASE_TRUNK, RANDOM_BASE_TRUNK = (Arm("nofe", each, trunk="base") for each in ("", "random"))
"""Learned and random specialties on the trunk of a base CNN."""
RANDOM_SCRATCH = Arm("nofe", "random", trunk="scratch")

PRIMARY = (BASE, LEARNED, OWN_RANDOM)
"""The arms that come first, with every seed: do learned specialties help?"""

SECONDARY = (CONTROL, CONTROL_GENERALIST, BASE_TOTAL, CONTROL_TOTAL, RANDOM)
"""The arms that come next: is it the specialties, or size, training time and trunk?"""

TERTIARY = (FLIPS, CONTROL_BASE_TRUNK, SMALL_TOTAL, SMALL_GENERALIST, CONTROL_NOFE_RECIPE)
"""Then: is it the flips, or the base CNN's trunk, and would a flat network of two experts' cost do
what two experts do?"""

OTHERS: tuple[Arm, ...] = ()
"""Stands for the arms that are named nowhere else."""

LAST = (RANDOM_BASE_TRUNK, RANDOM_SCRATCH, SUPERCLASS_PAIRS)
"""The arms that come last: they only explain the others."""

GATED = (LEARNED, OWN_RANDOM, RANDOM, CONFUSION, FEATURES, SUPERCLASS, SUPERCLASS_PAIRS)
"""The arms that get a gate: those that differ in the partition, not in the trunk or the rule."""


@dataclass(frozen=True)
class Study:
    """One experiment, with several seeds."""

    name: str
    make: Callable[[str | None], Experiment]
    """From the folder of the runs."""
    seeds: int
    arms: tuple[Arm, ...] | None = None
    """None: all that an honest comparison has."""
    tiers: tuple[tuple[Arm, ...], ...] = (PRIMARY, SECONDARY, TERTIARY, OTHERS, LAST)
    """Their order: a tier comes when those before it have every seed."""

    def rows(self, everything: Iterable[Arm]) -> list[tuple[Arm, int]]:
        """(arm, seed) of every row, in the order of the queue."""
        arms = list(self.arms or everything)
        known = {arm for tier in self.tiers for arm in tier}
        others = [arm for arm in arms if arm not in known]
        return [
            (arm, seed)
            for tier in self.tiers
            for seed in range(self.seeds)
            for arm in tier or others
            if arm in arms
        ]


CIFAR100, TINY = "parquet:$NOFE_DATA/cifar100", "parquet:$NOFE_DATA/tiny-imagenet-200-32px"

NARROW = (LEARNED, OWN_RANDOM)
"""The arms that say whether learned specialties help."""

FEW = (
    BASE,
    BASE_TOTAL,
    CONTROL,
    CONTROL_TOTAL,
    CONTROL_GENERALIST,
    SMALL_TOTAL,
    *NARROW,
    BASE_ARITHMETIC,
    CONTROL_BASE_TRUNK,
    BASE_TRUNK,
    RANDOM_BASE_TRUNK,
)
"""Those, and how far size, depth, training time and trunk explain."""


def _quick(runs_dir: str | None, dataset: str = CIFAR100, **changes: Any) -> Experiment:
    """AlexNet-Quick by the published recipe, unless changed."""
    usual = {"preset": "paper", "rule": "optimal", "K": 10}
    return Experiment(dataset, runs_dir=runs_dir, **{**usual, **changes})


def _with_K(runs_dir: str | None, K: int) -> Experiment:
    """The same with K experts that cost together what ten do."""
    ten = _quick(runs_dir)
    network = backbone("alexnet_quick")
    width = width_for(network, K, expert_macs(network, ten.K))
    return replace(ten, K=K, branch_width=width)


STUDIES = {
    study.name: study
    for study in (
        Study("cifar100 alexnet_quick, published recipe", _quick, seeds=5),
        Study("cifar100 alexnet_quick, strong recipe", partial(_quick, preset="strong"), 3, FEW),
        *(
            Study(f"cifar100 alexnet_quick, K = {K}", partial(_with_K, K=K), 3, NARROW)
            for K in (2, 5, 20, 50)
        ),
        Study("tiny-imagenet alexnet_quick", partial(_quick, dataset=TINY), 3, FEW),
    )
}
"""In the order in which they are worked off."""


def arms_of(experiment: Experiment) -> list[Arm]:
    """The networks that are compared: the experiment's, and its superclasses in pairs."""
    names = experiment.data.superclass_names
    in_pairs = len(names) == 2 * experiment.K and PAIRS.is_file() and "trees" in names
    return [*experiment.arms(), *([SUPERCLASS_PAIRS] if in_pairs else [])]


class Queue:
    """The rows of some studies and the tables they go into, two CSV files.

    arm, seed: of these rows alone; an arm is asked for by its name.
    Raises InvalidInput if there is no such study, seed or arm (that one not before its data have
    been read), or a file is not a table of one.
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
        self.results, self.conditional = Path(results), Path(conditional)
        self.runs_dir = runs_dir
        self.failed: dict[str, set[tuple[Arm, int]]] = defaultdict(set)
        self.read()

    def read(self) -> None:
        """Look what the tables hold: other processes may add to them."""
        self.table = read(self.results, (*KEYS, "top1"))
        self.curves = read(self.conditional, (*KEYS, "experts", "top1"))

    def missing(self) -> Iterator[tuple[Study, Arm, int]]:
        """(study, arm, seed) of the rows that are yet to be made, the most telling first."""
        names: list[str] = []
        for study in self.studies:
            done = self.table[self.table["study"] == study.name]
            known = set(zip(done["arm"], done["seed"], strict=True))
            try:
                experiment = study.make(self.runs_dir)
                everything = arms_of(experiment)
                admitted = experiment.possible(study.arms or everything)
            except InvalidInput as reason:  # its data are not there
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

    def work(self) -> bool:
        """Make the next row, or pass by one that diverges; False if there is none left."""
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
        """Commit the tables, and nothing else, to the git repository that they are in.

        Does nothing if they are as they were: a row may have diverged.
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
        row, curve = measured(experiment, arm)
        keys: dict[str, Any] = {"study": study.name, "arm": arm.name, "seed": seed}
        self.read()
        if curve is not None:  # first: a row says that all of it is there
            fields = {name: value for name, value in arm.columns.items() if name not in curve}
            self.curves = _appended(self.curves, curve.assign(**keys, **fields))
            _write(self.conditional, self.curves)
        self.table = _appended(self.table, pd.DataFrame([{**keys, **row}]))
        _write(self.results, self.table)
        log.info(f"{arm.name}, seed {seed}: {row['top1']:.2%}")


def measured(experiment: Experiment, arm: Arm) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Train a network and test it: its row of the study, and its curve over the experts run."""
    stage = experiment.stage(arm)
    report = final_report(experiment.workshop, [(arm.name, stage)])
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
    return row, few_experts(experiment, stage) if arm in GATED else None


def few_experts(experiment: Experiment, stage: NofEStage) -> pd.DataFrame:
    """What is left when only some experts are run for each image, and what it costs.

    One row a number of experts: top1, top5, nll, found (see `conditional`), multiply-accumulates of
    an image with trunk and gate, and milliseconds an image of `predict`, at batches of BATCHES;
    under "all" those of the network as it is, without a gate, and under "trunk" those before the
    experts.  gate_top1, macs_gate_alone: of the gate's own answers, without any expert;
    gate_epochs, gate_training_macs, gate_seconds: of its training, beyond the network's.
    """
    gate_stage = experiment.gate(stage)
    (run,) = experiment.run(gate_stage)
    model = experiment.model(gate_stage)
    nofe = model.network
    assert isinstance(nofe, NofE)
    test = experiment.data.test
    gate = predict(ImageNetwork(model.preprocess, GateAlone(nofe)), test)
    table = conditional(predict(model, test), gate, nofe.specialties)
    cost = nofe.macs(stage.backbone.input_shape)
    branches = np.array(cost.branches)
    table["macs"] = [
        round(cost.trunk + cost.gate + np.dot(shares, branches)) for shares in table.pop("shares")
    ]
    machine = experiment.workshop.machine
    trunk = ImageNetwork(model.preprocess, torch.nn.Sequential(nofe.trunk, nofe.shared)).eval()
    for batch in BATCHES:
        images = test.images[:batch].to(machine.device)

        def side(m: int | None, images: torch.Tensor = images) -> Callable[[], object]:
            return lambda: model.predict(images, m)

        with torch.inference_mode():
            sides = [side(m) for m in (*table["experts"], None)]
            seconds = in_turn(machine, REPEATS, [*sides, partial(trunk, images)])
        *few, everything, before = (1000 * each / len(images) for each in seconds)
        table[f"ms_{batch}"] = few
        table[f"ms_{batch}_all"], table[f"ms_{batch}_trunk"] = everything, before
    return table.assign(
        macs_all=cost.trunk + sum(branches),
        macs_gate_alone=cost.trunk + cost.gate,
        gate_top1=gate.accuracy,
        gate_width=gate_stage.config.width,
        gate_macs=cost.gate,
        gate_epochs=gate_stage.recipe.epochs,
        gate_training_macs=gate_stage.training_macs,
        gate_seconds=run.seconds,
        hardware=machine.name,
        threads=torch.get_num_threads(),
        precision=model.precision,
        torch=torch.__version__,
        revision=run.provenance["revision"],
        tested_by=code_revision(),
        run=run.id,
    )


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How alike the specialties are that different seeds lead to, one row an arm.

    table: rows of one study.  ari, nmi: means over the pairs of seeds (see
    `Specialties.agreement`); chance_nmi: the same between each map and another with its classes
    shuffled, for mutual information between unrelated partitions is not 0.
    """
    rows = []
    for arm, part in table.dropna(subset=["map"]).groupby("arm", sort=False):
        maps = [np.array(each.split(), dtype=int) for each in part["map"]]
        names = tuple(map(str, range(len(maps[0]))))
        shuffled = np.random.default_rng(derive_seed("agreement", arm))

        def alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> dict[str, float]:
            K = int(max(one.max(), other.max())) + 1
            left, right = (Specialties(names, tuple(of), K) for of in (one, other))  # noqa: B023
            return left.agreement(right)

        pairs = list(combinations(maps, 2))
        found = pd.DataFrame([alike(*pair) for pair in pairs], columns=["ari", "nmi"])
        chance = [alike(one, shuffled.permutation(other))["nmi"] for one, other in pairs]
        rows.append(
            {
                "arm": arm,
                "pairs": len(pairs),
                "ari": found["ari"].mean(),
                "nmi": found["nmi"].mean(),
                "chance_nmi": np.mean(chance) if chance else np.nan,
            }
        )
    return pd.DataFrame(rows)


def paper_rows(results: Path | str = RESULTS.parent) -> pd.DataFrame:
    """Each published row beside what this code has measured so far, one row a network.

    Accuracies in per cent, means over `seeds`; published_epochs and epochs: of generalist + NofE
    stage; recipe: preset, rule and, where they are not all, images a class of the measured networks
    (the published ones are greedy, and saw all images).  source: the file of `results` that the
    figures come from, whose first line is their command; empty where there is none yet.
    """
    folder = Path(results)
    rows = []
    for name, (base, nofe) in PUBLISHED.items():
        recipes = preset("paper", PAPER[name]())
        found, source = _measured(folder, name)
        rows.append(
            {
                "network": name,
                "published_base": base,
                "published_nofe": nofe,
                "published_epochs": f"{recipes.generalist.epochs} + {recipes.nofe.epochs}",
                **found,
                "source": source,
            }
        )
    return pd.DataFrame(rows)


def _measured(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """What is known of a published network: the study's rows, else a single run's."""
    path = folder / RESULTS.name
    if path.is_file():
        needed = ("backbone", "preset", "rule", "epochs", "total_epochs")
        table = read(path, (*KEYS, "top1", *needed))
        arms = {"base": BASE.name, "nofe": GREEDY.name}  # the paper's rule
        first = table["study"] == next(iter(STUDIES))  # others have another K, or other images
        rows = table[first & (table["backbone"] == name)]
        parts = {key: rows[rows["arm"] == arm] for key, arm in arms.items()}
        if all(len(part) for part in parts.values()):
            last = parts["nofe"].iloc[0]
            stages = f"{last['total_epochs'] - last['epochs']} + {last['epochs']}"
            seeds = min(len(part) for part in parts.values())
            means = {key: 100 * part["top1"].mean() for key, part in parts.items()}
            recipe = f"{last['preset']}, {last['rule']}"
            return {**means, "epochs": stages, "seeds": seeds, "recipe": recipe}, path.name
    path = folder / f"cifar100_{name}.csv"
    if path.is_file():
        single = pd.read_csv(path, comment="#").set_index("network")
        base, nofe = single.loc["base CNN"], single.loc["network of experts"]
        stages = f"{base['epochs']} + {nofe['epochs']}"
        accuracies = {"base": 100 * base["test_accuracy"], "nofe": 100 * nofe["test_accuracy"]}
        recipe = _recipe(path, str(nofe["rule"]))
        return {**accuracies, "epochs": stages, "seeds": 1, "recipe": recipe}, path.name
    return {"base": np.nan, "nofe": np.nan, "epochs": "", "seeds": 0, "recipe": ""}, ""


def _recipe(path: Path, rule: str) -> str:
    """The recipe that the command on a file's first line asked of notebook 3."""
    with path.open(encoding="utf-8") as file:
        words = shlex.split(file.readline())
    asked = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    few = asked.get("train_per_class")
    return f"{asked.get('preset', 'quick')}, {rule}{f', {few} images a class' if few else ''}"


def read(path: Path | str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of a study; empty where there is no file yet.

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
    """The table with these rows, in the place of those of the same keys."""
    rows = rows[[*KEYS, *rows.columns.drop(list(KEYS))]]
    if table.empty:
        return rows
    new = set(map(tuple, rows[list(KEYS)].to_numpy()))
    others = [key not in new for key in map(tuple, table[list(KEYS)].to_numpy())]
    return pd.concat([table[others], rows], ignore_index=True)


def _write(path: Path, table: pd.DataFrame) -> None:
    os.makedirs(path.parent, exist_ok=True)
    text = table.to_csv(index=False, float_format="%.6g")
    write_text(path, f"# python -m nofe_lab study\n{text}")
