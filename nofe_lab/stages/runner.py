"""The runner carries stages out: it finds finished runs and trains the missing ones.

It says which runs are missing and how long they will take, then trains each after the ones that it
builds on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from nofe_lab.config import InvalidInput, first_line, shown
from nofe_lab.data.streaming import dead_workers_said
from nofe_lab.inference import THUMBNAILS, Description, kept_files
from nofe_lab.knobs import KNOBS
from nofe_lab.log import log, quiet
from nofe_lab.machine import Machine, exact_float32
from nofe_lab.ranks import from_first, own_rank, together, world_size
from nofe_lab.runs import Checkpoints, Run, RunStore, code_digest, code_revision
from nofe_lab.runs.checkpoint import SECONDS
from nofe_lab.runs.provenance import provenance
from nofe_lab.stages import launch
from nofe_lab.stages.stage import Stage, Trained, Work
from nofe_lab.training.events import (
    Event,
    Listener,
    Progress,
    StageAwaited,
    StageBegun,
    StageEnded,
    StageLoaded,
    tell,
)
from nofe_lab.training.tasks import TrainingDiverged


@dataclass
class _Unsaved:
    """A network that is trained, but could not be saved."""

    trained: Trained
    provenance: dict[str, Any]


class _Guarded:
    """A listener that cannot do harm to the training it watches: it is dropped if it fails."""

    def __init__(self, listener: Listener) -> None:
        self.listener: Listener | None = listener

    def __call__(self, event: Event) -> None:
        if self.listener is None:
            return
        try:
            self.listener(event)
        except Exception as error:
            self.listener = None
            log.warning(f"The training goes on unwatched ({type(error).__name__}: {error}).")


_UNSAVED: dict[tuple[Path, str], _Unsaved] = {}
"""By runs folder and id, in this process: the disk may have room when the run is asked for again.
"""


class Runner:
    """Carries stages out in one runs folder, on one machine.

    checkpoint_seconds: the longest time between two checkpoints of a training.
    ranks: how many processes share each batch, with a GPU each or on one CPU; above 1 they are
    started, with torchrun, for what has to be trained.
    Raises InvalidInput if the device is not available or the time is negative.
    """

    def __init__(
        self,
        runs_dir: Path | str,
        device: str = "auto",
        precision: str = "auto",
        checkpoint_seconds: float = SECONDS,
        ranks: int = 1,
    ) -> None:
        self.machine = Machine.pick(device, precision)
        self.ranks = KNOBS["ranks"].check(ranks)
        launch.check(self.machine.device, self.ranks)
        if self.machine.device.type == "cuda":
            exact_float32()
        self.seconds = KNOBS["checkpoint_seconds"].check(checkpoint_seconds)
        self.runs_dir = runs_dir

    @cached_property
    def store(self) -> RunStore:
        """The runs in its folder, which is made now.  Raises InvalidInput if that fails."""
        return RunStore(self.runs_dir)

    def run(self, stages: Sequence[Stage], watch: Listener | None = None) -> list[Run]:
        """The runs of `stages`, in their order: loaded where finished, trained where missing.

        watch: is told the events of what is trained (see `nofe_lab.training.events`).
        """
        if strange := [each for each in stages if not isinstance(each, Stage)]:
            raise InvalidInput(
                f"a runner runs stages, such as experiment.nofe(); got {shown(strange[0])}."
            )
        listeners = [_Guarded(each) for each in (Progress(), watch) if each is not None]
        if self.ranks > 1 and any(self.store.find(stage.id) is None for stage in stages):
            device, precision = self.machine.device.type, self.machine.precision
            make = partial(type(self), self.store.folder, device, precision, self.seconds)
            launch.train(self.ranks, make, stages, listeners)
            with quiet():  # listeners and log have heard it
                return self.carry_out(stages, [])
        return self.carry_out(stages, listeners)

    def carry_out(self, stages: Sequence[Stage], listeners: Sequence[Listener]) -> list[Run]:
        """The same in this process, which may be one of several ranks."""
        known = {run_id: each for stage in stages for run_id, each in stage.lineage.items()}
        order, runs = from_first(lambda: self._begin(stages, listeners))
        for run_id in order:
            if run_id not in runs:
                stage = known[run_id]
                parents = {role: runs[parent.id] for role, parent in stage.parents.items()}
                with together():
                    runs[run_id] = self._train(stage, parents, () if own_rank() else listeners)
        return [runs[stage.id] for stage in stages]

    def _begin(
        self, stages: Sequence[Stage], listeners: Sequence[Listener]
    ) -> tuple[list[str], dict[str, Run]]:
        """The ids of all that is asked for, parents first, and the runs that there are."""
        ordered: dict[str, Stage] = {}
        runs: dict[str, Run] = {}

        def visit(stage: Stage) -> None:
            if stage.id in ordered:
                return
            if (run := self.store.find(stage.id)) is not None:
                runs[stage.id] = run
                self.store.remove_leftovers(stage.run_name, stage.id)
            else:
                for parent in stage.parents.values():
                    visit(parent)
            ordered[stage.id] = stage

        for stage in stages:
            visit(stage)
        self._announce(ordered, runs, listeners)
        return list(ordered), runs

    def _announce(
        self,
        ordered: Mapping[str, Stage],
        runs: Mapping[str, Run],
        listeners: Sequence[Listener],
    ) -> None:
        for run_id, stage in ordered.items():
            if run_id in runs:
                made = runs[run_id].provenance
                here = {"precision": self.machine.precision}
                if made.get("code") != code_digest():  # older runs do not say
                    here["revision"] = code_revision()
                other = [
                    f"{what} {made[what]}, now {now}"
                    for what, now in here.items()
                    if made[what] != now
                ]
                note = f" (trained under {'; '.join(other)})" if other else ""
                name = runs[run_id].path.name
                log.info(f"{stage.label}: loaded {name}{note}")
                tell(listeners, StageLoaded(stage.title))
        missing = [stage for run_id, stage in ordered.items() if run_id not in runs]
        if not missing:
            return
        self.store.check_writable()
        # stages that differ only in seed or parents take the same time
        known: dict[tuple[object, ...], tuple[float, tuple[str, ...]]] = {}
        total = 0.0
        notes = (note for each in missing for note in (*each.choices, *each.backbone.notes))
        for note in dict.fromkeys(notes):
            log.info(note)
        by = f", by {world_size()} ranks" if world_size() > 1 else ""
        log.info(f"To train, on {self.machine}{by}:")
        for stage in missing:
            network = json.dumps(stage.backbone.identity)
            alike = (
                stage.kind,
                stage.K,
                network,
                replace(stage.config, seed=0),
                stage.dataset.name,
            )
            if alike not in known:
                with self.machine.enough_memory(stage.label, stage.recipe.batch_size):
                    known[alike] = stage.trial(self.machine)
            done = self.store.checkpoints(stage.run_name, stage.id).step / stage.steps
            seconds = known[alike][0] * max(1 - done, 0)
            total += seconds
            log.info(f"  {stage.label}: about {seconds / 60:.1f} min")
        for note in dict.fromkeys(note for _, notes in known.values() for note in notes):
            log.info(f"  {note}")
        log.info(f"  together about {total / 60:.1f} min")

    def _train(
        self, stage: Stage, parents: Mapping[str, Run], listeners: Sequence[Listener]
    ) -> Run:
        told = set()

        def wait(who: str) -> None:
            if who not in told:
                log.info(f"{stage.label}: {who} is training it; waiting for the result.")
            told.add(who)
            tell(listeners, StageAwaited(stage.title, who))

        key = (self.store.folder, stage.id)
        checkpoints = self.store.checkpoints(stage.run_name, stage.id, self.seconds)
        with ExitStack() as stack:

            def begin() -> tuple[Run | None, bool]:
                """The run, if another process has trained it, and whether it is to be trained."""
                nonlocal checkpoints
                lock = self.store.training(stage.run_name, stage.id, wait, self.seconds)
                checkpoints = stack.enter_context(lock)
                if (run := self.store.find(stage.id)) is not None:
                    name = run.path.name
                    log.info(f"{stage.label}: loaded {name}, which has been trained meanwhile")
                    _UNSAVED.pop(key, None)
                return run, run is None and key not in _UNSAVED

            def end() -> Run:
                run = self._saved(stage, _UNSAVED[key], checkpoints)
                checkpoints.remove()
                return run

            run, to_train = from_first(begin)
            if run is not None:
                return run
            if to_train:
                _UNSAVED[key] = self._trained(stage, parents, checkpoints, listeners)
            run = from_first(end)
            _UNSAVED.pop(key, None)
        figures = ", ".join(
            f"{name.replace('_accuracy', '')} {run.result[name]:.1%}"
            for name in ("train_accuracy", "val_accuracy")
            if name in run.result
        )
        log.info(f"{stage.label}: {figures}, {run.seconds:.0f} s; saved {run.path.name}")
        return run

    def _trained(
        self,
        stage: Stage,
        parents: Mapping[str, Run],
        checkpoints: Checkpoints,
        listeners: Sequence[Listener],
    ) -> _Unsaved:
        Description(**stage.description)  # what cannot be kept is refused before the training
        made = provenance(self.machine, 0.0)
        told = [
            f"{name} {made[name]}" for name in ("code", "device", "precision", "threads", "ranks")
        ]
        checkpoints.conditions = [", ".join([*told, f"torch {made['versions']['torch']}"])]
        checkpoints.label = stage.label
        checkpoints.origin = [f"{role} {run.digest}" for role, run in sorted(parents.items())]
        finished = False
        tell(listeners, StageBegun(stage.title, stage.steps, stage.recipe.epochs))
        try:
            with (
                dead_workers_said(),
                self.machine.enough_memory(stage.label, stage.recipe.batch_size),
            ):
                trained = stage.train(Work(parents, self.machine, listeners, checkpoints))
                if not own_rank():
                    trained.files |= kept_files(
                        trained.model, stage.description, stage.dataset, trained.output_of_class
                    )
            finished = True
        except TrainingDiverged:
            if not own_rank():
                checkpoints.remove()  # it would diverge again
            raise
        finally:
            tell(listeners, StageEnded(stage.title, finished))
        made = {
            **provenance(self.machine, checkpoints.seconds_trained),
            "interruptions": checkpoints.interruptions,
            "conditions": checkpoints.conditions,
            "lineage": {key: s for run in parents.values() for key, s in run.lineage.items()},
            "command": stage.command,
            "public_command": stage.public_command,
            "images": stage.dataset.counts,
        }
        return _Unsaved(trained, made)

    def _saved(self, stage: Stage, unsaved: _Unsaved, checkpoints: Checkpoints) -> Run:
        trained = unsaved.trained
        last = trained.history[-1]
        shown: dict[str, float] = {
            name: last[name] for name in ("train_accuracy", "val_accuracy") if name in last
        }

        def save(without: str = "") -> Run:
            kept = {name: text for name, text in trained.files.items() if name != without}
            return self.store.save(
                stage.run_name,
                stage.identity,
                stage.about,
                trained.model.state_dict(),
                {
                    "history.csv": pd.DataFrame(trained.history).to_csv(index=False),
                    "classes.json": json.dumps(stage.dataset.class_names, ensure_ascii=False),
                    **kept,
                },
                shown | trained.result,
                unsaved.provenance,
            )

        try:
            return save()
        except OSError:
            checkpoints.make_room()
        with suppress(OSError):
            return save()
        try:  # a network without pictures is better than none
            run = save(without=THUMBNAILS)
            log.warning(f"{stage.label}: saved without its thumbnails, for which the disk is full.")
            return run
        except OSError as error:
            kept = "the trained network is kept in this process, and " * (world_size() == 1)
            raise InvalidInput(
                f"{stage.label}: trained, but cannot be saved in {str(self.store.folder)!r} "
                f"({first_line(error)}); mend that and run this cell again: {kept}on disk is what "
                f"it was at step {checkpoints.step} of {stage.steps}."
            ) from error
