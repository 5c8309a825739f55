"""Final reports: the one place where the test split is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nofe_lab.config import InvalidInput
from nofe_lab.evaluation import Predictions, per_class, predict
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.runs import Run
from nofe_lab.stages.stage import Stage, Workshop, load_model


@dataclass(frozen=True, eq=False)
class FinalReport:
    """Trained networks on the test split of their data set.

    table: one row a network: the fields of its `Arm`; test accuracy (of images; test_class_accuracy
    is the mean over the classes), top-5 accuracy, loss (nats) and calibration error; the training
    loss of the first and the last epoch; parameters, multiply-accumulates of one image; the budget
    (epochs, multiply-accumulates and seconds of its own training, and "total" of its training with
    all the stages it builds on); and where these figures come from.
    predictions: what each network said about the test images, in the rows' order.
    """

    table: pd.DataFrame
    class_names: tuple[str, ...]
    predictions: tuple[Predictions, ...]

    def save(self, path: Path | str, command: str) -> Path:
        """Write the table as CSV; its first line is a comment, the command that made it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {command}\n{self.table.to_csv(index=False)}", "utf-8")
        return path

    @property
    def per_class(self) -> pd.DataFrame:
        """One row a class: test images, and the accuracy of each network, in the rows' order."""
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
            "test accuracy": ("test_accuracy", "{:.2%}"),
            "mean of classes": ("test_class_accuracy", "{:.2%}"),
            "top-5": ("test_top5", "{:.2%}"),
            "parameters": ("parameters", "{:,}"),
            "multiply-accumulates": ("macs", "{:,}"),
            "seconds": ("seconds", "{:.0f}"),
            "with its stages": ("total_seconds", "{:.0f}"),
        }
        if np.allclose(self.table["test_class_accuracy"], self.table["test_accuracy"]):
            del columns["mean of classes"]
        return pd.DataFrame(
            {title: self.table[name].map(form.format) for title, (name, form) in columns.items()}
        )

    def __str__(self) -> str:
        return self.shown.to_string(index=False)


def final_report(workshop: Workshop, networks: Sequence[tuple[str, Stage]]) -> FinalReport:
    """Load or train the runs of the named stages and test each network once."""
    if not networks:
        raise InvalidInput("a report needs at least 1 network; got none.")
    rows, predictions = [], []
    runs = workshop.carry_out([stage for _, stage in networks])
    for (name, stage), run in zip(networks, runs, strict=True):
        with workshop.machine.enough_memory(f"the report of {stage.label}"):
            model = load_model(stage, run, workshop.machine.device)
            found = predict(model, stage.dataset.test)
        predictions.append(found)
        figures = {
            "test_accuracy": found.accuracy,
            "test_class_accuracy": found.class_accuracy,
            "test_top5": found.top5,
            "test_loss": found.loss,
            "test_calibration_error": found.calibration_error,
        }
        run.report(**figures)
        lineage = stage.lineage.values()
        rows.append(
            {
                "network": name,
                "seed": stage.seed,
                **(stage.arm.columns if stage.arm is not None else {}),
                "K": stage.K,
                "epochs": stage.recipe.epochs,
                "total_epochs": sum(each.recipe.epochs for each in lineage),
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
    return FinalReport(table, networks[0][1].dataset.class_names, tuple(predictions))


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
