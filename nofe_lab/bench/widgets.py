"""How long the kernel takes to answer a click on a widget, and what the live view costs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from nofe_lab.bench.tables import noise, save_table
from nofe_lab.config import whole_number
from nofe_lab.data import Dataset, load_dataset
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import Predictions
from nofe_lab.files import writable_path
from nofe_lab.networks import CNN, NofE, backbone
from nofe_lab.specialties import Specialties
from nofe_lab.stages import Experiment
from nofe_lab.training.events import EpochDone, Event, MapUpdated, StageBegun, StepDone
from nofe_lab.views.widgets.board import SpecialtyBoard
from nofe_lab.views.widgets.confusion import ConfusionExplorer
from nofe_lab.views.widgets.evolution import EvolutionPlayer
from nofe_lab.views.widgets.explorer import SpecialtyExplorer
from nofe_lab.views.widgets.inspector import PredictionInspector
from nofe_lab.views.widgets.live import LiveTraining

UPDATES = 40
"""Of the map that the evolution player shows."""

Click = Callable[[int], object]


def measure(dataset: str, repeats: int, output: str | None, command: str) -> None:
    """Time the widgets on a data set, with K = 10, and on one of 1000 classes; print the table.

    output: a CSV file for the table; its first line is `command`.
    """
    target = writable_path("output", output) if output is not None else None
    data = load_dataset(dataset, val_fraction=0.0)
    parts = [response(data, 10, repeats), response(noise(1000), 30, repeats), live_share()]
    save_table(pd.concat(parts), target, command)


def response(dataset: Dataset, K: int, repeats: int = 21) -> pd.DataFrame:
    """Milliseconds between a click and its response, one row for each widget and kind of click.

    dataset: its test images are shown.  The networks' answers are synthetic.
    median_ms, largest_ms: over `repeats` clicks, each on another thing; from the change of a trait
    to the messages for the browser, packed as JSON.
    """
    whole_number("repeats", repeats, 1)
    rows = []
    for widget, name, click in _clicks(dataset, K):
        # there is no kernel here to pack the messages, so this does
        widget.comm.publish_msg = lambda *_, data=None, **__: json.dumps(data, default=str)
        seconds = []
        for i in range(repeats):
            begun = time.perf_counter()
            click(i)
            seconds.append(time.perf_counter() - begun)
        rows.append(
            {
                "widget": type(widget).__name__,
                "click": name,
                "dataset": dataset.name,
                "classes": dataset.C,
                "images": len(dataset.test),
                "repeats": repeats,
                "median_ms": round(1000 * float(np.median(seconds)), 2),
                "largest_ms": round(1000 * max(seconds), 2),
            }
        )
    return pd.DataFrame(rows)


def live_share() -> pd.DataFrame:
    """The share of a real training's time that its live view takes, in one row."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(device="cpu", runs_dir=folder)
        live, spent = LiveTraining(experiment.data, experiment.usual_K), 0.0

        def timed(event: Event) -> None:
            nonlocal spent
            begun = time.perf_counter()
            live(event)
            spent += time.perf_counter() - begun

        (run,) = experiment.run(experiment.generalist(), watch=timed)
        row = {
            "widget": "LiveTraining",
            "click": "(a whole training)",
            "dataset": experiment.data.name,
            "classes": experiment.data.C,
            "images": len(experiment.data.train),
            "repeats": 1,
            "share": round(spent / run.seconds, 5),
        }
    return pd.DataFrame([row])


def _clicks(dataset: Dataset, K: int) -> Iterator[tuple[Any, str, Click]]:
    """(widget, kind of click, click): click(i) chooses another thing for each i."""
    C, names = dataset.C, dataset.class_names
    rng = np.random.default_rng(0)
    labels = dataset.test.labels.numpy()

    def answers(skill: float) -> Predictions:
        logits = rng.normal(size=(len(labels), C)).astype(np.float32)
        logits[np.arange(len(labels)), labels] += skill
        return Predictions(logits, labels)

    networks = {"base CNN": answers(2.0), "NofE": answers(2.5)}
    counts = {name: found.confusion for name, found in networks.items()}
    maps = [Specialties.random(names, K, seed) for seed in range(UPDATES + 1)]
    own, other = maps[-1], Specialties.random(names, 2 * K, 1)
    affinity = rng.dirichlet(np.ones(K), C)

    explorer = SpecialtyExplorer(dataset, own, counts, affinity=affinity, others={"other": other})
    sorts = explorer.sorts
    yield explorer, "choose a class", lambda i: setattr(explorer, "label", 7 * (i + 1) % C)
    yield explorer, "sort the cards", lambda i: setattr(explorer, "sort_by", sorts[(i + 1) % 5])
    compared = ("other", "")
    yield explorer, "compare", lambda i: setattr(explorer, "compare_with", compared[i % 2])

    matrix = ConfusionExplorer(dataset.test, networks, {"own": own, "other": other})
    shown, orders = matrix.networks, matrix.orders
    yield matrix, "choose a cell", lambda i: setattr(matrix, "column", 7 * (i + 1) % C)
    yield matrix, "another network", lambda i: setattr(matrix, "network", shown[(i + 1) % 3])
    yield matrix, "another order", lambda i: setattr(matrix, "order_by", orders[(i + 1) % 3])

    history = pd.concat(
        pd.DataFrame({"update": u, "class": range(C), "specialty": each.of})
        for u, each in enumerate(maps)
    )
    objectives = np.linspace(0.2, 0.6, UPDATES)
    updates = pd.DataFrame({"objective_before": objectives, "objective_after": objectives + 0.05})
    updates = updates.assign(update=range(1, UPDATES + 1), moved=C)
    player = EvolutionPlayer(history, own, updates)
    yield player, "move the slider", lambda i: setattr(player, "update", i % UPDATES)
    yield player, "follow a class", lambda i: setattr(player, "label", 7 * (i + 1) % C)

    confusion = counts["base CNN"]
    board = SpecialtyBoard(dataset, own, affinity=affinity, confusion=confusion)
    yield board, "move a class", lambda i: board.move(i % C, (own.of[i % C] + 1) % K)
    yield board, "undo", lambda i: board.undo()
    yield board, "lock a class", lambda i: board.lock(i % C)

    network = backbone("alexnet_quick")
    preprocess = Preprocess.measure(dataset, "standardised")
    base = ImageNetwork(preprocess, CNN(network, C, "kaiming", 0))
    nofe = ImageNetwork(preprocess, NofE(network, own, "kaiming", 0))
    inspector = PredictionInspector(dataset, dataset.test, base, nofe, *networks.values())
    shown_images = len(inspector.images[inspector.which])
    yield inspector, "the next image", lambda i: setattr(inspector, "place", (i + 1) % shown_images)

    live = LiveTraining(dataset, K)
    row = {"train_loss": 2.0, "train_accuracy": 0.2}
    moved = {"moved": C, "objective_before": 0.2, "objective_after": 0.3}
    live(StageBegun("network", 10**6, 100))
    yield live, "(a step)", lambda i: live(StepDone(i + 1, 10**6))
    yield live, "(an epoch)", lambda i: live(EpochDone(i + 1, 100, row | {"epoch": i + 1}))
    yield live, "(a map update)", lambda i: live(MapUpdated(i + 1, moved, maps[i % UPDATES].of))
