"""Final reports: the one place where the test split is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nofe_lab.config import InvalidInput, one_of
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import Predictions, conditional, per_class, per_specialty, predict
from nofe_lab.files import user_path
from nofe_lab.machine import median_seconds
from nofe_lab.networks import NofE
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.networks.nofe import ExpertsAlone
from nofe_lab.ranks import from_first
from nofe_lab.runs import Run, code_revision
from nofe_lab.stages.gate import GateAlone, GateStage
from nofe_lab.stages.generalist import GeneralistStage
from nofe_lab.stages.nofe import NofEStage
from nofe_lab.stages.runner import Runner
from nofe_lab.stages.stage import Stage, load_model
from nofe_lab.statistics import paired_interval

TIMED_BATCHES = (1, 256)
"""Batch sizes at which `few_experts` measures time."""

TIMED_REPEATS = 9
"""Repeats of each of these measurements."""


@dataclass(frozen=True, eq=False)
class FinalReport:
    """Trained networks on the test split of their data set, or on val to choose between them.

    table: one row a network: the fields of its `Arm`; test accuracy (of images; test_class_accuracy
    is the mean over the classes), top-5 accuracy, loss (nats) and calibration error; the training
    loss of the first and the last epoch; parameters, multiply-accumulates of one image; the budget
    (epochs, multiply-accumulates and seconds of its own training, and "total" of its training with
    all the stages it builds on, as are its steps); and where these figures come from.
    predictions: what each network said about the images, in the rows' order.
    split: test, or val, by which the columns are then called.
    """

    table: pd.DataFrame
    class_names: tuple[str, ...]
    predictions: tuple[Predictions, ...]
    split: str = "test"

    def save(self, path: Path | str, command: str) -> Path:
        """Write the table as CSV; its first line is a comment, the command that made it."""
        path = path if isinstance(path, Path) else user_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {command}\n{self.table.to_csv(index=False)}", "utf-8")
        return path

    @property
    def per_class(self) -> pd.DataFrame:
        """One row a class: its images, and the accuracy of each network, in the rows' order."""
        first = per_class(self.predictions[0].confusion, self.class_names)
        found = first[["class", "images"]].copy()
        for name, answers in zip(self.table["network"], self.predictions, strict=True):
            found[name] = per_class(answers.confusion, self.class_names)["accuracy"]
        return found

    @property
    def shown(self) -> pd.DataFrame:
        """The columns that people look at first, as text.

        The mean of the classes' accuracies is among them where classes differ in their images.
        """
        columns = {
            "network": ("network", "{}"),
            "seed": ("seed", "{}"),
            f"{self.split} accuracy": (f"{self.split}_accuracy", "{:.2%}"),
            "mean of classes": (f"{self.split}_class_accuracy", "{:.2%}"),
            "top-5": (f"{self.split}_top5", "{:.2%}"),
            "parameters": ("parameters", "{:,}"),
            "multiply-accumulates": ("macs", "{:,}"),
            "seconds": ("seconds", "{:.0f}"),
            "with its stages": ("total_seconds", "{:.0f}"),
        }
        accuracy = f"{self.split}_accuracy"
        if np.allclose(self.table[f"{self.split}_class_accuracy"], self.table[accuracy]):
            del columns["mean of classes"]
        return pd.DataFrame(
            {title: self.table[name].map(form.format) for title, (name, form) in columns.items()}
        )

    def __str__(self) -> str:
        return self.shown.to_string(index=False)


def final_report(
    runner: Runner, networks: Sequence[tuple[str, Stage]], split: str = "test"
) -> FinalReport:
    """Load or train the runs of the named stages and test each network once.

    split: test, or val for a choice between networks.
    Raises InvalidInput if the split is another one, or a data set has no images of it.
    """
    one_of("split", split, ("test", "val"))
    if not networks:
        raise InvalidInput("a report needs at least 1 network; got none.")
    for _, stage in networks:
        if isinstance(stage, GeneralistStage):
            raise InvalidInput(
                f"a report is of networks that answer with classes; got {stage.title}, which "
                "answers with specialties."
            )
        if not len(getattr(stage.dataset, split)):
            raise InvalidInput(f"a report needs {split} images; {stage.dataset.name} has none.")
    runs = runner.run([stage for _, stage in networks])
    return from_first(lambda: _report(runner, networks, runs, split))


def _report(
    runner: Runner, networks: Sequence[tuple[str, Stage]], runs: Sequence[Run], split: str
) -> FinalReport:
    rows, predictions = [], []
    for (name, stage), run in zip(networks, runs, strict=True):
        with runner.machine.enough_memory(f"the report of {stage.label}"):
            model = load_model(stage, run, runner.machine.device)
            found = predict(model, getattr(stage.dataset, split))
        predictions.append(found)
        figures = {
            f"{split}_accuracy": found.accuracy,
            f"{split}_class_accuracy": found.class_accuracy,
            f"{split}_top5": found.top5,
            f"{split}_loss": found.loss,
            f"{split}_calibration_error": found.calibration_error,
        }
        kept: dict[str, float | pd.DataFrame] = {**figures}
        if split == "test":
            kept["test_images"] = len(found.labels)
            if model.specialties is not None:
                kept["per_specialty"] = per_specialty(found.confusion, model.specialties)
        run.report(**kept)
        lineage = stage.lineage.values()
        rows.append(
            {
                "network": name,
                "seed": stage.seed,
                **(stage.arm.columns if stage.arm is not None else {}),
                "K": stage.K,
                "epochs": stage.recipe.epochs,
                "total_epochs": sum(each.recipe.epochs for each in lineage),
                "total_steps": sum(each.steps for each in lineage),
                **figures,
                "first_epoch_loss": run.history["train_loss"].iloc[0],
                "last_epoch_loss": run.history["train_loss"].iloc[-1],
                "parameters": count_parameters(model.network),
                "macs": count_macs(model.network, stage.backbone.input_shape),
                "total_training_macs": sum(each.training_macs for each in lineage),
                "seconds": run.seconds,
                "total_seconds": run.total_seconds,
                **_origin(stage, run),
            }
        )
    table = pd.DataFrame(rows).astype({"K": "Int64"})
    pairs = zip(runs, _compared(table, predictions), strict=True) if split == "test" else ()
    for run, compared in pairs:
        earlier = run.report_table("compared")
        if "run" in earlier:  # a smaller report does not undo a larger one
            compared = pd.concat([compared, earlier[~earlier["run"].isin(compared["run"])]])
        run.report(compared=compared)
    return FinalReport(table, networks[0][1].dataset.class_names, tuple(predictions), split)


def _compared(table: pd.DataFrame, predictions: Sequence[Predictions]) -> Iterator[pd.DataFrame]:
    """For each network of a report, all of them beside it, as its run keeps them.

    difference, low, high: its test accuracy minus that of another of its seed, on the same images,
    and the 95 % interval of that (see `paired_interval`).
    """
    columns = ["network", "seed", "run", "test_accuracy", "parameters", "macs"]
    rows = table[[*columns, "total_training_macs"]]
    right = [each.predicted == each.labels for each in predictions]
    answered = list(zip(table["seed"], right, predictions, strict=True))
    for seed, own, answers in answered:
        intervals = [
            paired_interval(own, other)
            if other_seed == seed and np.array_equal(each.labels, answers.labels)
            else (None, None, None)
            for other_seed, other, each in answered
        ]
        differences = pd.DataFrame(intervals, columns=["difference", "low", "high"], dtype=float)
        yield pd.concat([rows, differences], axis=1).drop_duplicates("run")


def _origin(stage: Stage, run: Run) -> dict[str, object]:
    made = run.provenance
    return {
        "dataset": stage.dataset.name,
        "run": run.id,
        "device": made["device"],
        "threads": made["threads"],
        "precision": made["precision"],
        "torch": made["versions"]["torch"],
        "python": made["versions"]["python"],
        "revision": made["revision"],
    }


def few_experts(
    runner: Runner,
    stage: GateStage | NofEStage,
    watch: Callable[[int, Predictions], object] | None = None,
    split: str = "test",
) -> pd.DataFrame:
    """Test accuracy and cost when a gate runs only some experts for each image.

    stage: the network of experts with its gate (see `Experiment.gate`), trained if it is missing.
    watch: see `conditional`.  split: test, or val to choose between networks.
    One row for each number of experts, with top1, top5, nll and found (see `conditional`).
    macs: multiply-accumulates of one image, with trunk and gate.  ms_N: milliseconds an image of
    `logits` at batch N; ms_N_all: the same without a gate, all experts run; ms_N_trunk: the layers
    before the experts alone.  gate_top1, macs_gate_alone: the gate's own answers, no expert run.
    gate_epochs, gate_training_macs, gate_seconds: the gate's training, on top of the network's; 0
    where they learned together.
    """
    if (overlap := stage.description["overlap"]) > 1:
        raise InvalidInput(
            f"few experts are counted where each class has one; here a class has {overlap} "
            "(overlap)."
        )
    (run,) = runner.run([stage])
    machine = runner.machine
    model = load_model(stage, run, machine.device)
    network = model.network
    assert isinstance(network, NofE)
    test = getattr(stage.dataset, one_of("split", split, ("test", "val")))
    gate = predict(ImageNetwork(model.preprocess, GateAlone(network)), test)
    every = ImageNetwork(model.preprocess, ExpertsAlone(network)).eval()
    experts = predict(every, test)
    together = network.usual_experts is not None
    table = conditional(experts, gate, network.specialties, watch, together)
    cost = network.macs(stage.backbone.input_shape)
    branches = np.array(cost.branches)
    table["macs"] = [
        round(cost.trunk + cost.gate + np.dot(shares, branches)) for shares in table.pop("shares")
    ]
    trunk = ImageNetwork(model.preprocess, nn.Sequential(network.trunk, network.shared)).eval()
    for batch in TIMED_BATCHES:
        images = test.sample(range(min(batch, len(test)))).to(machine.device)

        def side(m: int, images: torch.Tensor = images) -> Callable[[], object]:
            return lambda: model.logits(images, m)

        with torch.inference_mode():
            sides = [side(m) for m in table["experts"]]
            sides += [partial(each, images) for each in (every, trunk)]
            seconds = median_seconds(machine, TIMED_REPEATS, sides)
        *few, everything, before = (1000 * each / len(images) for each in seconds)
        table[f"ms_{batch}"] = few
        table[f"ms_{batch}_all"], table[f"ms_{batch}_trunk"] = everything, before
    if isinstance(stage, GateStage):
        width, epochs, spent = stage.config.width, stage.recipe.epochs, stage.training_macs
        training = run.seconds
    else:
        width, epochs, spent, training = stage.config.gate_width, 0, 0, 0.0
    return table.assign(
        macs_all=cost.trunk + sum(branches),
        macs_gate_alone=cost.trunk + cost.gate,
        gate_top1=gate.accuracy,
        gate_width=width,
        gate_macs=cost.gate,
        gate_epochs=epochs,
        gate_training_macs=spent,
        gate_seconds=training,
        hardware=machine.name,
        threads=torch.get_num_threads(),
        precision=model.precision,
        torch=torch.__version__,
        revision=run.provenance["revision"],
        tested_by=code_revision(),
        run=run.id,
    )
