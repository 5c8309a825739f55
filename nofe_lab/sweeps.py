"""Sweeps: many networks, trained by several processes that share one folder of runs.

A row of a sweep is an arm of an experiment with some changed knobs and a seed.  Rows share the
stages that they build on: each generalist is trained once.  A stage becomes a job when its parents
are trained.  Each job is a process of its own (``python -m nofe_lab.sweeps``), wherever it runs, so
that seeds, checkpoints and stop signals are those of a single training.

An executor decides where: by default threads of this process, each of which starts one process at a
time; else Dask's, submitit's, or any other with `submit`.  Everything else goes through the folder
of the runs, which all hosts share: finished runs, checkpoints, locks, and in ``.sweeps`` a log of
every job and a file for each sweep that goes on.  Where that file is removed, the sweep's processes
save what they have and end.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from nofe_lab.config import InvalidInput, first_line, one_of, printable, shown, whole_number
from nofe_lab.files import read_text, user_path
from nofe_lab.knobs import KNOBS, understood
from nofe_lab.log import log, write_line
from nofe_lab.machine import cores
from nofe_lab.runs import Run, RunStore
from nofe_lab.runs.locks import Held, locked
from nofe_lab.runs.store import LOCKS
from nofe_lab.specialties import Specialties
from nofe_lab.stages import Arm, Experiment, Stage
from nofe_lab.training.interrupts import Interrupted

TRIES = 3
"""How often a job is begun whose process dies; it goes on from its checkpoint."""

FOLDER = ".sweeps"
"""In a folder of runs: logs of jobs, and the sweeps that go on."""

REFUSED = 3
"""How a process ends that refuses its job; the last line of its log says why."""

PERIOD = 0.1
"""Seconds between two looks at what has ended."""

FIXED = (
    "seed",
    "runs_dir",
    "device",
    "precision",
    "checkpoint_seconds",
    "streaming",
    "loader_workers",
)
"""Knobs that do not tell the rows of a sweep apart, or do as its seeds."""


class Promise(Protocol):
    """What an executor returns: the part of `concurrent.futures.Future` that others have too."""

    def done(self) -> bool:
        """Whether the work has ended."""

    def result(self) -> object:
        """What it returned; raises what it raised."""

    def cancel(self) -> object:
        """Do not begin the work."""


class AnyExecutor(Protocol):
    """The part of `concurrent.futures.Executor` that a sweep needs."""

    def submit(self, function: Callable[[str], None], order: str, /) -> Promise:
        """Call a function somewhere else."""


class JobFailed(Exception):
    """A job has ended without a run; the message says why, `is_final` whether to try it again."""

    def __init__(self, why: str, is_final: bool) -> None:
        super().__init__(why, is_final)  # both, so that it can be pickled
        self.is_final = is_final

    def __str__(self) -> str:
        return str(self.args[0])


LOST = JobFailed("its executor has lost it", False)
"""Of work that was cancelled, but not by its sweep."""


@dataclass(frozen=True)
class Row:
    """One network of a sweep."""

    arm: Arm
    changes: Mapping[str, Any]
    """Knobs of the experiment that differ in this row."""
    seed: int
    stage: Stage


class Sweep:
    """Every arm with every change of the experiment's knobs and every seed.

    >>> sweep = Sweep(experiment, [Arm("nofe"), Arm("base")], {"K": [5, 10]}, range(5))
    >>> sweep.run(at_once=2)

    changes: knobs with their values, of which all combinations are taken, or a list of such
    combinations.  Building a sweep trains nothing.  Raises InvalidInput for arms, knobs and seeds
    that the experiment does not admit, and for objects that another process cannot be told of.
    """

    def __init__(
        self,
        experiment: Experiment,
        arms: Iterable[Arm],
        changes: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]] = ({},),
        seeds: Iterable[int] = (0,),
    ) -> None:
        known = [each.name for each in fields(experiment) if each.init and each.name not in FIXED]
        arms, seeds = list(arms), list(seeds)
        planned = []
        for change in _combinations(changes) if isinstance(changes, Mapping) else changes:
            for name in change:
                one_of("change", name, known)
            for seed in seeds:
                there = replace(experiment, **change, seed=seed)
                planned += [(there, arm, dict(change)) for arm in arms]
        if not planned:
            raise InvalidInput("a sweep needs at least 1 arm, 1 change and 1 seed; one has none.")
        self._plan(planned)
        for name in dict.fromkeys(name for row in self.rows for name in row.changes):
            self._check_change(name)

    def _check_change(self, name: str) -> None:
        """Raise InvalidInput if the values of a changed knob make the same networks of all arms."""
        ids: dict[str, set[str]] = defaultdict(set)
        values: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            others = {key: value for key, value in row.changes.items() if key != name}
            alike = repr((row.arm, row.seed, others))
            ids[alike].add(row.stage.id)
            values[alike].add(repr(row.changes.get(name)))
        compared = [each for each in values if len(values[each]) > 1]
        if compared and all(len(ids[each]) == 1 for each in compared):
            raise InvalidInput(
                f"changes of {name} make no other network of any arm: what an arm says itself is "
                "changed by further arms."
            )

    def _plan(self, planned: Sequence[tuple[Experiment, Arm, dict[str, Any]]]) -> None:
        self.runner = planned[0][0].runner
        self.rows: list[Row] = []
        self._stages: dict[str, Stage] = {}
        self._orders: dict[str, dict[str, Any]] = {}
        self._state: dict[str, str] = {}
        self._runs: dict[str, Run] = {}
        self._stopped = threading.Event()
        for there, arm, change in planned:
            stage = there.stage(arm)
            self.rows.append(Row(arm, change, there.seed, stage))
            for run_id, each in stage.lineage.items():
                if run_id not in self._stages:
                    self._stages[run_id] = each
                    self._orders[run_id] = _order(there, arm, run_id)

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[Experiment, Arm]]) -> Sweep:
        """A sweep of networks of several experiments, whose runs are in one folder; at least 1."""
        sweep = object.__new__(cls)
        sweep._plan([(experiment, arm, {}) for experiment, arm in rows])
        return sweep

    @classmethod
    def of_file(cls, path: Path | str) -> tuple[Sweep, dict[str, Any]]:
        """The sweep that a YAML or JSON file describes, and arguments of `run` for it.

        ::

            experiment: {dataset: glyphs, epochs: 10}
            arms: [nofe, base, {kind: nofe, partition: random}]
            changes: {K: [5, 10]}
            seeds: [0, 1, 2]
            at_once: 2

        Only arms have to be there; `executor`, `threads` and `resources` are those of `run`.
        Raises InvalidInput.
        """
        found = _read(user_path(path))
        knobs = [each.name for each in fields(Experiment) if each.init]
        changes = found.get("changes", [{}])
        changes = _combinations(changes) if isinstance(changes, dict) else changes
        planned = cls(
            Experiment(**understood(found.get("experiment", {}), knobs)),
            [_arm(each) for each in found.get("arms", [])],
            [understood(each, knobs) for each in changes],
            [KNOBS["seed"].parse(each) for each in found.get("seeds", [0])],
        )
        how = ("executor", "at_once", "threads", "resources")
        return planned, {name: found[name] for name in how if name in found}

    @property
    def table(self) -> pd.DataFrame:
        """One row a network: network, the changed knobs, seed, state, val_accuracy, run.

        state: see `state`.
        """
        found = []
        for row in self.rows:
            run = self._run(row.stage.id)
            result = {} if run is None else run.result
            found.append(
                {
                    "network": row.arm.name,
                    **row.changes,
                    "seed": row.seed,
                    "state": self.state(row),
                    "val_accuracy": result.get("val_accuracy", math.nan),
                    "run": row.stage.id,
                }
            )
        return pd.DataFrame(found)

    def state(self, row: Row) -> str:
        """done, training, waiting, or why there is no run."""
        if self._run(row.stage.id) is not None:
            return "done"
        return self._state.get(row.stage.id, "waiting")

    @property
    def progress(self) -> str:
        """How far it is, in words, with the stages that the rows build on."""
        states = list(self._state.values())
        counts = {name: states.count(name) for name in ("done", "training", "waiting")}
        counts["failed"] = len(states) - sum(counts.values())
        return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "nothing to train"

    def run(
        self,
        executor: AnyExecutor | str | None = None,
        at_once: int | None = None,
        threads: int | None = None,
        resources: Mapping[str, float] | None = None,
        watch: Callable[[Sweep], object] | None = None,
    ) -> pd.DataFrame:
        """Train what is missing; returns the `table`.

        executor: where: None for this machine, the address of a Dask scheduler
        (``tcp://host:8786``), or an object with `submit`, such as ``client.get_executor()`` of a
        Dask client (see docs/scale.md).
        at_once: how many trainings at once; None: on this machine one for each core, or one on a
        GPU; of another executor as many as it does.
        threads: of each training; None: on this machine its share of the cores, but not more than
        this process has; elsewhere it is left as it is there.  Another number of threads rounds
        differently.
        resources: tags that a Dask worker must have for a training, such as ``{"GPU": 1}``.
        watch: called with this sweep when a state has changed.

        What was trained is kept, however this ends: run it again to go on.  A row whose training is
        refused or diverges does not hold up the others.  Raises Interrupted if the kernel is
        interrupted.
        """
        if at_once is not None:
            at_once = whole_number("at_once", at_once, 1)
        elif executor is None:
            at_once = cores() if self.runner.machine.device.type == "cpu" else 1
        if threads is not None:
            threads = whole_number("threads", threads, 1)
        elif executor is None and at_once is not None:
            threads = max(min(cores() // at_once, torch.get_num_threads()), 1)
        if resources and not isinstance(executor, str):
            raise InvalidInput(
                "resources are for the address of a Dask scheduler, otherwise for get_executor; "
                f"got {dict(resources)} for {shown(executor)}."
            )
        self._runs.clear()  # some may have been removed
        done = {run_id for run_id in self._stages if self._run(run_id) is not None}
        wanted = self._wanted(done)
        self._state = dict.fromkeys(done, "done") | dict.fromkeys(wanted, "waiting")
        self._stopped.clear()
        if not wanted:
            return self.table
        self.runner.store.check_writable()
        log.info(
            f"{len(self.rows)} networks: {len(wanted)} trainings to do, {len(done)} done before; "
            f"each has a log in {os.path.relpath(self._folder)}"
        )
        with (
            _pool(executor, at_once, resources or {}) as (pool, is_here),
            self._going_on() as token,
        ):
            more = {"sweep": token, "threads": threads, "is_here": is_here}
            if any(path.suffix != ".log" for path in self._folder.iterdir() if path.name != token):
                random.shuffle(wanted)  # two sweeps in one order would begin the same jobs
            try:
                self._work(pool, at_once or len(wanted), wanted, more, watch or (lambda _: None))
            except KeyboardInterrupt:
                left = sum(state != "done" for state in self._state.values())
                raise Interrupted(
                    f"stopped; {left} of {len(self._state)} trainings are left. Run this cell, or "
                    "the same command, again to go on: what was trained is kept."
                ) from None
        return self.table

    def cancel(self) -> None:
        """Begin nothing more and stop what is being trained; all of it is kept."""
        self._stopped.set()

    def _run(self, run_id: str) -> Run | None:
        """The finished run, if there is one; it is read once."""
        if run_id not in self._runs and (run := self.runner.store.find(run_id)) is not None:
            self._runs[run_id] = run
        return self._runs.get(run_id)

    @property
    def _folder(self) -> Path:
        return self.runner.store.folder / FOLDER

    def log(self, run_id: str) -> str:
        """What the training of a run has printed, in all its tries."""
        with suppress(OSError):
            return (self._folder / f"{run_id}.log").read_text("utf-8", "replace")
        return ""

    def _log_size(self, run_id: str) -> int:
        with suppress(OSError):
            return (self._folder / f"{run_id}.log").stat().st_size
        return 0

    @contextmanager
    def _going_on(self) -> Iterator[str]:
        """The name of a file that is there as long as the sweep goes on."""
        self._folder.mkdir(exist_ok=True)
        token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        file = self._folder / token
        file.touch()
        try:
            yield token
        finally:
            file.unlink(missing_ok=True)

    def _work(
        self,
        pool: AnyExecutor,
        at_once: int,
        wanted: list[str],
        more: dict[str, Any],
        watch: Callable[[Sweep], object],
    ) -> None:
        tries = dict.fromkeys(wanted, 0)
        size: dict[str, int] = {}
        working: dict[Promise, str] = {}
        shown: dict[str, str] = {}
        try:
            while not self._stopped.is_set():
                for run_id in self._next(wanted, at_once - len(working), working.values()):
                    size[run_id] = self._log_size(run_id)
                    order = self._orders[run_id] | more | {"token": secrets.token_hex(4)}
                    working[_submitted(pool, json.dumps(order))] = run_id
                for run_id in working.values():  # an executor may let it wait for its turn
                    if self._state[run_id] == "waiting" and self._log_size(run_id) > size[run_id]:
                        self._state[run_id] = "training"
                if shown != self._state:
                    shown = dict(self._state)
                    watch(self)
                if not self._is_left(wanted):
                    break
                self._stopped.wait(PERIOD)
                for future in [each for each in working if each.done()]:
                    run_id, failure = working.pop(future), _failure(future)
                    # what has waited for its turn with an executor that went away was not tried
                    tries[run_id] += failure is not LOST or self._log_size(run_id) > size[run_id]
                    self._end(run_id, failure, tries[run_id])
        finally:
            self._stopped.set()
            (self._folder / str(more["sweep"])).unlink(missing_ok=True)
            for future, run_id in working.items():
                future.cancel()
                self._state[run_id] = "waiting"
            if more["is_here"]:  # they save what they have
                for future in working:
                    _failure(future)
            watch(self)

    def _end(self, run_id: str, failure: JobFailed | None, tries: int) -> None:
        """Take note that a job has ended, however it did."""
        label = self._stages[run_id].label
        if self._run(run_id) is not None:
            self._state[run_id] = "done"
            log.info(f"{label}: done; {self.progress}")
            return
        if failure is None:  # its folder may be seen later here than where it was written
            failure = JobFailed(
                f"it was trained, but is not in {str(self.runner.store.folder)!r}: a sweep needs a "
                "folder that all hosts share.",
                False,
            )
        if failure.is_final or tries >= TRIES:
            self._state[run_id] = str(failure)
        else:
            self._state[run_id] = "waiting"
        again = "" if self._state[run_id] != "waiting" else "; it is begun again"
        log.warning(f"{label}: {failure}{again}")

    def _wanted(self, done: set[str]) -> list[str]:
        """The ids of the missing stages that the rows need, parents first."""
        found: dict[str, None] = {}

        def need(stage: Stage) -> None:
            if stage.id not in done and stage.id not in found:
                for parent in stage.parents.values():
                    need(parent)
                found[stage.id] = None

        for row in self.rows:
            need(row.stage)
        return list(found)

    def _is_left(self, wanted: Iterable[str]) -> bool:
        """Whether anything is still to be trained, here or by others."""
        return any(self._state[run_id] in ("waiting", "training") for run_id in wanted)

    def _next(self, wanted: Iterable[str], n: int, working: Iterable[str]) -> Iterator[str]:
        """Up to n jobs to begin now: their parents are trained, and nobody else trains them.

        Where others train all that is left, it is one of these.
        """
        busy, held, begun = set(working), [], 0
        for run_id in wanted:
            if begun >= n:
                return
            if self._state[run_id] not in ("waiting", "training") or run_id in busy:
                continue
            stage = self._stages[run_id]
            states = {each.id: self._state.get(each.id, "done") for each in stage.parents.values()}
            lost = [each for each in states if states[each] not in ("waiting", "training", "done")]
            if lost:
                self._state[run_id] = f"{self._stages[lost[0]].label} has failed"
            elif set(states.values()) <= {"done"}:
                if self._run(run_id) is not None:
                    self._state[run_id] = "done"
                elif self._is_free(run_id):
                    begun += 1
                    yield run_id
                else:
                    self._state[run_id] = "training"
                    held.append(run_id)
        if not busy and not begun:  # waits for its lock, whose holder may be dead
            yield from held[:1]

    def _is_free(self, run_id: str) -> bool:
        """Whether no other process trains a stage now, as far as is known at once."""
        self.runner.store.check_writable()
        try:
            with locked(self.runner.store.folder / LOCKS / run_id, patient=False):
                return True
        except Held:
            return False


def _combinations(values: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every value of each knob with every one of the others."""
    for name, each in values.items():
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise InvalidInput(f"change {name!r} must be a list of values; got {shown(each)}.")
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def sweep(
    experiment: Experiment,
    arms: Iterable[Arm],
    changes: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]] = ({},),
    seeds: Iterable[int] = (0,),
    executor: AnyExecutor | str | None = None,
    at_once: int | None = None,
) -> pd.DataFrame:
    """Train every arm with every change of the experiment's knobs and every seed.

    >>> nofe_lab.sweep(experiment, [Arm("nofe"), Arm("base")], {"K": [5, 10]}, range(5))

    changes: see `Sweep`.  executor, at_once: see `Sweep.run`.  Returns its table.
    """
    return Sweep(experiment, arms, changes, seeds).run(executor, at_once)


# --- a sweep in a file

ENTRIES: dict[str, tuple[Any, str]] = {
    "experiment": (dict, "{dataset: glyphs, epochs: 10}"),
    "arms": (list, "[nofe, base, {kind: nofe, partition: random}]"),
    "changes": ((dict, list), "{K: [5, 10]} or [{K: 5}, {K: 10, rule: greedy}]"),
    "seeds": (list, "[0, 1, 2]"),
    "executor": (str, "tcp://host:8786"),
    "at_once": (int, "2"),
    "threads": (int, "1"),
    "resources": (dict, "{GPU: 1}"),
}
"""What a file of a sweep may have: the types of each entry, and an example."""


def _read(path: Path) -> dict[str, Any]:
    """The entries of a sweep's file."""
    import yaml  # JSON is YAML, too

    try:
        found = yaml.safe_load(read_text(path, links=True))
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise InvalidInput(f"{path.name!r} is not YAML ({why}).") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name!r} must have entries ({', '.join(ENTRIES)}).")
    for name, value in found.items():
        kind, example = ENTRIES[one_of(f"{path.name!r}: entry", name, ENTRIES)]
        parts = value if name == "changes" and isinstance(value, list) else []
        if not isinstance(value, kind) or not all(isinstance(each, dict) for each in parts):
            raise InvalidInput(
                f"{path.name!r}: {name} must be such as {example}; got {shown(value)}."
            )
    return found


def _arm(given: object) -> Arm:
    """An arm by its kind alone, or by its fields."""
    values = given if isinstance(given, dict) else {"kind": given}
    for name in ("kind", *values):
        one_of("field of an arm", name, Arm.__dataclass_fields__)
    if "kind" not in values:
        raise InvalidInput(f"an arm needs a kind: base, control or nofe; got {shown(given)}.")
    return Arm(**values)


# --- executors


@contextmanager
def _pool(
    executor: AnyExecutor | str | None, at_once: int | None, resources: Mapping[str, float]
) -> Iterator[tuple[AnyExecutor, bool]]:
    """The executor, and whether it starts the processes here."""
    if executor is None:
        with ThreadPoolExecutor(at_once) as pool:
            yield pool, True
    elif isinstance(executor, str):
        with _dask(executor) as client:
            yield client.get_executor(resources=dict(resources)), False
    elif callable(getattr(executor, "submit", None)):
        yield executor, False
    else:
        raise InvalidInput(
            "executor must be the address of a Dask scheduler, or have `submit`, as those of "
            "concurrent.futures, submitit and a Dask client's get_executor() have; got "
            f"{shown(executor)}."
        )


def _dask(address: str) -> Any:
    """A client of the Dask scheduler at an address."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidInput(
            f"executor {address!r} is a Dask scheduler, which needs the extra cluster: "
            "pip install 'nofe_lab[cluster]'."
        ) from error
    try:
        return Client(address)  # Dask's settings say how long it waits, also for one begun again
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"no Dask scheduler answers at {address!r} ({first_line(error)}); accepted: an "
            "address such as 'tcp://host:8786'."
        ) from error


def _submitted(pool: AnyExecutor, order: str) -> Promise:
    try:
        return pool.submit(carry_out, order)
    except Exception as error:
        raise InvalidInput(
            f"the executor takes no more work ({type(error).__name__}: {first_line(error)}); what "
            "was trained is kept: run the sweep again with a new one to go on."
        ) from error


def _failure(future: Promise) -> JobFailed | None:
    """Why a job has failed, if it has."""
    try:
        future.result()
    except JobFailed as error:
        return error
    except CancelledError:
        return LOST
    except Exception as error:
        return JobFailed(f"{type(error).__name__}: {first_line(error)}", False)
    return None


# --- a job: what it is told, and who carries it out


def _order(experiment: Experiment, arm: Arm, run_id: str) -> dict[str, Any]:
    """What another process is told: to train one stage of an arm.  It is JSON."""
    store = experiment.runner.store
    order = {
        "experiment": _given(experiment) | {"runs_dir": str(store.folder)},
        "arm": _given(arm),
        "run": run_id,
        "folder": str(store.folder / FOLDER),
        "cwd": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("NOFE_")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(order, default=_told))
    return plain


def _given(value: Experiment | Arm) -> dict[str, Any]:
    """The fields that differ from their defaults, by name."""
    found = {each: getattr(value, each.name) for each in fields(value) if each.init}
    return {each.name: it for each, it in found.items() if it != each.default}


def _told(value: object) -> object:
    """A form in JSON of a value that has none."""
    if isinstance(value, Specialties):
        return {"specialties": value.to_json()}
    if isinstance(value, Path):
        return str(value)
    place = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if place[0] != "__main__" and place[1].isidentifier():
        with suppress(ImportError, AttributeError):
            if getattr(import_module(place[0]), place[1]) is value:
                return {"module": place[0], "name": place[1]}
    raise InvalidInput(
        "a sweep tells other processes by name what to train; accepted: the name of a data set, "
        "such as 'folder:DIR', and a backbone by its name, or a class or function of a file that "
        f"can be imported; got {shown(value)}."
    )


def _understood(told: dict[str, Any]) -> Any:
    """The inverse of `_told`."""
    if set(told) == {"specialties"}:
        return Specialties.from_json(told["specialties"])
    if set(told) == {"module", "name"}:
        return getattr(import_module(told["module"]), told["name"])
    return told


def carry_out(order: str) -> None:
    """Carry an order out in a process of its own, as long as its sweep goes on.

    Executors call this, on this host or another.  Raises JobFailed.
    """
    told = json.loads(order)
    folder, host = Path(told["folder"]), "" if told["is_here"] else f"{socket.gethostname()}: "
    going_on = folder / told["sweep"]
    if not folder.is_dir():
        raise JobFailed(
            f"{host}there is no folder {str(folder)!r}; a sweep needs a folder of runs that all "
            "hosts share.",
            True,
        )
    if not going_on.exists() or RunStore(folder.parent).find(told["run"]) is not None:
        return  # it has waited for its turn meanwhile
    environment = {**os.environ, **told["environment"]}
    if told["threads"] is not None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment |= dict.fromkeys(names, str(told["threads"]))
    path = folder / f"{told['run']}.log"
    with (
        path.open("ab", buffering=0) as said,
        subprocess.Popen(
            [sys.executable, "-m", "nofe_lab.sweeps"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=environment,
            cwd=told["cwd"] if os.path.isdir(told["cwd"]) else None,
            start_new_session=True,  # the sweep hears Ctrl-C, and stops it
        ) as process,
    ):
        said.write(f"-- on {socket.gethostname()}\n".encode())
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(order.encode() + b"\n")
            process.stdin.flush()
        while not process.stdin.closed:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PERIOD)
                break
            if not going_on.exists():
                process.stdin.close()
        code = process.wait()
    if code and going_on.exists():
        lines = path.read_text("utf-8", "replace").strip().splitlines()
        last = printable(lines[-1].strip()) if lines else "it has said nothing"
        ended = f"its process has ended with {code}; the last of {path.name}: "
        raise JobFailed(f"{host}{'' if code == REFUSED else ended}{last}", code == REFUSED)


def main() -> int:
    """Carry out the order on the standard input's first line; stop when that is closed."""
    told = json.loads(sys.stdin.readline(), object_hook=_understood)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        experiment = Experiment(**told["experiment"])
        stage = experiment.stage(Arm(**told["arm"])).lineage.get(told["run"])
        if stage is None:
            raise InvalidInput(
                f"{experiment.data.name} is not here what it is where the sweep was begun: other "
                "files, or another version of nofe_lab."
            )
        experiment.run(stage)
    except InvalidInput as error:
        write_line(str(error), sys.stdout)
        return REFUSED
    return 0


def _stop_at_end_of_input() -> None:
    """Stop this process, as SIGTERM does, when the one that has started it goes or asks for it."""
    while os.read(0, 1):
        pass
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    atexit._run_exitfuncs()  # such as those that end a data set's workers
    os._exit(ended)  # all is saved; to take torch's modules apart would take a second
