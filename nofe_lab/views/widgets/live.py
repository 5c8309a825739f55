"""Live training: the curves and the specialties while a network trains."""

from __future__ import annotations

import pandas as pd
import traitlets
from matplotlib.figure import Figure

from nofe_lab.data import Dataset
from nofe_lab.specialties import Specialties
from nofe_lab.training.events import (
    EpochDone,
    Event,
    MapUpdated,
    StageBegun,
    StageEnded,
    StageLoaded,
    watched,
)
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import TrainingView, cards, hex_colours, script, thumbnails


class LiveTraining(TrainingView):
    """Curves, progress and specialties, drawn from the events of the training loop.

    >>> live = LiveTraining(experiment.data, K=10)
    >>> display(live)
    >>> experiment.run(experiment.generalist(), watch=live)

    K: number of specialties that a generalist learns.  Without a viewer (papermill, a pipe) nothing
    is displayed; the loop prints a line for each epoch instead.
    """

    _esm = script("cards", "live")
    what = "training"

    loaded = traitlets.List(traitlets.Unicode(), help="What was trained before.").tag(sync=True)
    histories = traitlets.Dict(help="What was trained -> one row an epoch.").tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    thumbnails = traitlets.Dict().tag(sync=True)
    cards = traitlets.List(traitlets.Dict(), help="The current specialties.").tag(sync=True)
    moved = traitlets.List(traitlets.Int(), help="Classes that the last update moved.").tag(
        sync=True
    )

    def __init__(self, dataset: Dataset, K: int) -> None:
        self.dataset = dataset
        self.K = K
        self.specialties: Specialties | None = None
        super().__init__(
            class_names=list(dataset.class_names),
            colours=hex_colours(10),
            words="Nothing has been trained yet.",
        )

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        match event:
            case StageLoaded():
                self.loaded = [*self.loaded, event.title]
                self.words = f"{event.title} was trained before: its run is loaded."
            case StageBegun():
                self.words = f"{event.title}: {event.epochs} epochs."
            case EpochDone():
                # a stage of this title may have been trained before, or broken off
                earlier = self.histories.get(self.stage, [])
                rows = [*(r for r in earlier if r["epoch"] < event.row["epoch"]), event.row]
                self.histories = {**self.histories, self.stage: rows}
                row = event.row
                self.words = (
                    f"{self.stage}, epoch {event.epoch} of {event.epochs}: loss "
                    f"{row['train_loss']:.3f}, {row['train_accuracy']:.1%} of the training images."
                )
            case MapUpdated():
                self._show_map(event)
            case StageEnded():
                if not event.finished:
                    self.words = f"{event.title} was broken off. {self.words}"
                self.refresh()

    def _show_map(self, event: MapUpdated) -> None:
        before = self.specialties
        now = Specialties(self.dataset.class_names, event.specialty_of, self.K)
        if not self.thumbnails:
            self.thumbnails = thumbnails(self.dataset)
        with self.hold_sync():
            self.moved = (
                [c for c in range(now.C) if now.of[c] != before.of[c]] if before is not None else []
            )
            self.cards = cards(now, hex_colours(self.K))
        self.specialties = now
        row = event.row
        self.words = (
            f"Map update {event.update} moved {row['moved']} classes; objective "
            f"{row['objective_before']:.1%} to {row['objective_after']:.1%}."
        )

    def figures(self) -> dict[str, Figure]:
        drawn = {}
        if self.histories:
            tables = {title: pd.DataFrame(rows) for title, rows in self.histories.items()}
            drawn["history"] = plots.plot_history(tables)
        if self.specialties is not None:
            drawn["specialties"] = plots.plot_specialties(self.dataset, self.specialties)
        return drawn

    def _ipython_display_(self) -> None:
        if watched():
            super()._ipython_display_()
