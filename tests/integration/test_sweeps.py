"""Sweeps: what several processes train together is what one trains alone, every run once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from nofe_lab import Arm, Experiment, InvalidInput, Specialties
from nofe_lab.__main__ import main
from nofe_lab.runs import RunStore
from nofe_lab.sweeps import FIXED, FOLDER, JobFailed, Sweep, carry_out, sweep
from nofe_lab.training.interrupts import Interrupted  # noqa: F401  for SCRIPT

ARMS = [Arm("nofe"), Arm("base"), Arm("nofe", "random", trunk="generalist", trunk_rule="optimal")]
PATIENCE = 300
"""Seconds after which something that was expected has not happened."""


def small(folder: Path, **changes: Any) -> Experiment:
    tiny = {"K": 2, "epochs": 1, "batch_size": 16, "device": "cpu", "precision": "fp32"}
    return Experiment("glyphs:12:OQ0CG6", runs_dir=str(folder), **{**tiny, **changes})


def long(folder: Path, **changes: Any) -> Experiment:
    """Of a few seconds, with a checkpoint after every step."""
    return small(folder, **{"epochs": 25, "checkpoint_seconds": 0.0, **changes})


def bits(folder: Path) -> dict[str, bytes]:
    return {run.id: (run.path / "weights.safetensors").read_bytes() for run in RunStore(folder)}


def alone(experiment: Experiment, arms: list[Arm], changes: list[dict[str, Any]]) -> None:
    """What a sweep over the seeds 0 and 1 trains, one after the other in this process."""
    for change in changes:
        for seed in (0, 1):
            there = replace(experiment, **change, seed=seed)
            there.run(*(there.stage(arm) for arm in arms))


def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until something holds; returns it."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.05)
    return found


def processes(folder: Path) -> list[int]:
    """The processes that train in a folder, by the locks that they hold."""
    found = []
    for lease in folder.glob(".locks/*.lease-*"):
        with suppress(OSError):
            if holder := re.match(r"process (\d+) on ", lease.read_text()):
                words = Path(f"/proc/{holder[1]}/cmdline").read_bytes().split(b"\0")
                found += [int(holder[1])] if b"nofe_lab.sweeps" in words else []
    return found


def trainings(folder: Path) -> Counter[str]:
    """How often each run of a folder was trained to its end, as the logs of all jobs say."""
    said = "\n".join(path.read_text() for path in folder.glob(f"{FOLDER}/*.log"))
    return Counter(re.findall(r"; saved \S+-([0-9a-f]{12})$", said, re.MULTILINE))


# --- as one after the other


@pytest.mark.slow
def test_a_sweep_trains_what_one_after_the_other_trains_each_run_once(tmp_path: Path) -> None:
    table = sweep(small(tmp_path / "swept"), ARMS[:2], {"K": [2, 3]}, [0, 1], at_once=2)
    assert set(table["state"]) == {"done"}
    assert table["val_accuracy"].between(0, 1).all()
    assert list(table.columns) == ["network", "K", "seed", "state", "val_accuracy", "run"]
    alone(small(tmp_path / "alone"), ARMS[:2], [{"K": 2}, {"K": 3}])
    assert bits(tmp_path / "swept") == bits(tmp_path / "alone")
    assert set(trainings(tmp_path / "swept").values()) == {1}


def test_what_may_not_change_in_a_sweep_are_knobs_of_an_experiment() -> None:
    assert set(FIXED) <= {each.name for each in fields(Experiment) if each.init}


def test_rows_share_the_stages_that_they_build_on(tmp_path: Path) -> None:
    planned = Sweep(small(tmp_path), ARMS, seeds=[0, 1])
    assert len(planned.rows) == 6
    assert len(planned._wanted(set())) == 8  # two generalists, each for two rows


def test_finished_runs_are_loaded(tmp_path: Path) -> None:
    class Refuses(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
            raise AssertionError("nothing is to be trained")

    experiment = small(tmp_path, val_fraction=0.2)
    (run,) = experiment.run(experiment.stage(Arm("base")))
    table = sweep(experiment, [Arm("base")], executor=Refuses())
    assert list(table["run"]) == [run.id]
    assert table["val_accuracy"][0] == run.result["val_accuracy"]
    assert not (tmp_path / FOLDER).exists()


# --- what goes wrong


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once() -> None:
        until(lambda: list(tmp_path.glob("*.unfinished/step-*")))
        killed.extend(processes(tmp_path))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_once, daemon=True).start()
    planned = Sweep(long(tmp_path), [Arm("base")])
    table = planned.run(at_once=1)
    assert list(table["state"]) == ["done"]
    (run,) = RunStore(tmp_path)
    assert run.provenance["interruptions"] == 1
    assert planned.log(run.id).count("-- on ") == 2


def test_a_job_that_dies_every_time_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "nofe_lab"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise SystemError('no such luck')")
    planned = Sweep(small(tmp_path / "runs"), [Arm("base")])
    next(iter(planned._orders.values()))["cwd"] = str(tmp_path)  # found there first
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    table = planned.run(at_once=1)
    assert "ended with 1" in table["state"][0]
    assert "SystemError: no such luck" in table["state"][0]
    assert planned.log(table["run"][0]).count("-- on ") == 3


@pytest.mark.slow
def test_a_row_that_diverges_does_not_hold_up_the_others(tmp_path: Path) -> None:
    changes = [{"learning_rate": 1e9}, {}]
    table = sweep(small(tmp_path), [Arm("nofe"), Arm("base")], changes, at_once=2)
    assert "diverged" in table["state"][1]
    assert "has failed" in table["state"][0]
    assert list(table["state"][2:]) == ["done", "done"]
    assert table["learning_rate"].isna().tolist() == [False, False, True, True]


def test_data_that_are_not_there_are_missed_in_a_sentence(tmp_path: Path) -> None:
    planned = Sweep(small(tmp_path), [Arm("base")])
    (order,) = planned._orders.values()
    order["experiment"]["dataset"] = "folder:/not/on/this/host"
    table = planned.run(at_once=1)
    assert "/not/on/this/host" in table["state"][0]
    assert "\n" not in table["state"][0]


def test_other_data_of_the_same_name_are_refused(tmp_path: Path) -> None:
    planned = Sweep(small(tmp_path), [Arm("base")])
    (order,) = planned._orders.values()
    order["experiment"]["dataset"] = "glyphs:13:OQ0CG6"
    assert "not here what it is" in planned.run(at_once=1)["state"][0]


def test_a_host_that_does_not_share_the_folder_says_so(tmp_path: Path) -> None:
    planned = Sweep(small(tmp_path), [Arm("base")])
    (order,) = planned._orders.values()
    elsewhere = {"folder": str(tmp_path / "elsewhere"), "sweep": "s", "is_here": False}
    with pytest.raises(JobFailed, match=r"there is no folder .*elsewhere") as failure:
        carry_out(json.dumps(order | elsewhere))
    assert failure.value.is_final


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda e: Sweep(e, []), "at least 1 arm"),
        (lambda e: Sweep(e, ARMS, [{"k": 2}]), "change 'k' is unknown"),
        (lambda e: Sweep(e, ARMS, [{"seed": 2}]), "change 'seed' is unknown"),
        (lambda e: Sweep(e, ARMS, [{"K": 1}]), "K must be"),
        (lambda e: Sweep(e, ARMS).run(at_once=0), "at_once must be"),
        (lambda e: Sweep(e, ARMS).run(threads=0), "threads must be"),
        (lambda e: Sweep(e, ARMS).run(executor=3), "executor must be the address"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_trained(
    make: Callable[[Experiment], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=said):
        make(small(tmp_path))
    assert not list(tmp_path.glob("*-*"))


# --- what another process is told


def test_networks_of_a_file_and_partitions_are_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),\n"
        "                         nn.Flatten(), nn.Linear(32, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from my_networks import Mine  # type: ignore[import-not-found]

    experiment = small(tmp_path, backbone=Mine, split="2", branch_start="fresh")
    names = experiment.data.class_names
    given = Specialties(names, (0, 0, 0, 1, 1, 1), 2, ("round", "open"))
    arm = Arm("nofe", given, trunk="scratch", label="mine")
    table = sweep(experiment, [arm], at_once=1)
    assert list(table["state"]) == ["done"]
    assert list(table["run"]) == [experiment.stage(arm).id]


def test_objects_that_no_other_process_knows_are_refused(tmp_path: Path) -> None:
    data = small(tmp_path).data
    with pytest.raises(InvalidInput, match="by name what to train"):
        Sweep(Experiment(data, K=2, runs_dir=str(tmp_path)), [Arm("base")])


# --- stop and go on


def test_a_sweep_that_is_cancelled_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    planned = Sweep(long(tmp_path / "swept"), [Arm("base")])
    seen: list[str] = []

    def cancel() -> None:
        until(lambda: list((tmp_path / "swept").glob("*.unfinished/step-*")))
        planned.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    table = planned.run(at_once=1, watch=lambda it: seen.append(it.progress))
    assert list(table["state"]) == ["waiting"]
    assert "1 training" in seen
    assert not processes(tmp_path / "swept")
    assert list(planned.run(at_once=1)["state"]) == ["done"]
    (run,) = RunStore(tmp_path / "swept")
    assert run.provenance["interruptions"] == 1
    there = long(tmp_path / "alone")
    there.run(there.stage(Arm("base")))
    assert bits(tmp_path / "swept") == bits(tmp_path / "alone")
    assert [path.suffix for path in (tmp_path / "swept" / FOLDER).iterdir()] == [".log"]


def test_one_sweep_of_two_in_a_process_is_cancelled_alone(tmp_path: Path) -> None:
    one, two = (Sweep(long(tmp_path / name), [Arm("base")]) for name in ("one", "two"))
    work = [threading.Thread(target=each.run, kwargs={"at_once": 1}) for each in (one, two)]
    for thread in work:
        thread.start()
    until(lambda: processes(tmp_path / "one") and processes(tmp_path / "two"))
    one.cancel()
    for thread in work:
        thread.join()
    assert list(one.table["state"]) == ["waiting"]
    assert list(two.table["state"]) == ["done"]


SCRIPT = """
import sys, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
import test_sweeps as t
try:
    t.sweep(t.long(Path(sys.argv[2])), [t.Arm("base")], at_once=1)
except t.Interrupted as stop:
    print(stop)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_has_started_them(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    begun = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    (child,) = until(lambda: list(tmp_path.glob("*.unfinished/step-*")) and processes(tmp_path))
    os.kill(begun.pid, number)
    said, _ = begun.communicate(timeout=PATIENCE)
    if number == signal.SIGINT:
        assert "1 of 1 trainings are left" in said
        assert not Path(f"/proc/{child}").exists()
    until(lambda: not Path(f"/proc/{child}").exists())
    assert list(tmp_path.glob("*.unfinished/step-*"))
    assert list(sweep(long(tmp_path), [Arm("base")], at_once=1)["state"]) == ["done"]
    (run,) = RunStore(tmp_path)
    assert run.provenance["interruptions"] == 1


# --- other executors


class Submitted:
    """The shape of submitit's jobs, which are no futures of concurrent.futures."""

    def __init__(self, function: Callable[[str], None], order: str) -> None:
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._call, args=(function, order), daemon=True)
        self.thread.start()

    def _call(self, function: Callable[[str], None], order: str) -> None:
        try:
            function(order)
        except Exception as error:
            self.error = error

    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self) -> None:
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        pass


class Submits:
    def submit(self, function: Callable[[str], None], order: str) -> Submitted:
        return Submitted(function, order)


def test_an_executor_whose_jobs_are_no_futures_will_do(tmp_path: Path) -> None:
    table = sweep(small(tmp_path), [Arm("base")], executor=Submits())
    assert list(table["state"]) == ["done"]


def test_an_executor_that_takes_no_more_work_is_reported(tmp_path: Path) -> None:
    class Closed(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
            raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(InvalidInput, match=r"takes no more work .*after shutdown"):
        sweep(small(tmp_path), [Arm("base")], executor=Closed())


def test_work_that_an_executor_loses_before_its_turn_is_handed_over_again(tmp_path: Path) -> None:
    class Forgets(Submits):
        lost = 0

        def submit(self, function: Callable[[str], None], order: str) -> Any:
            if self.lost == 5:
                return super().submit(function, order)
            self.lost += 1
            future: Future[None] = Future()
            future.cancel()
            return future

    table = sweep(small(tmp_path), [Arm("base")], executor=Forgets())
    assert list(table["state"]) == ["done"]


def test_a_folder_that_fills_up_ends_the_sweep_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Sweep(small(tmp_path), [Arm("base")])
    looks = iter([None])  # there is room at first

    def full(*_: object) -> None:
        if next(looks, "full"):
            raise InvalidInput("it cannot be written")

    monkeypatch.setattr(RunStore, "check_writable", full)
    with pytest.raises(InvalidInput, match="cannot be written"):
        planned.run(at_once=1)
    assert not list((tmp_path / FOLDER).iterdir())


class Cluster:
    """A Dask scheduler and its workers, each a process of its own, as in a terminal."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.schedule(port)

    def schedule(self, port: int) -> None:
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"
        )
        until(lambda: self.file.exists() and self.file.read_text().strip().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]

    def worker(self, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        usual = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder))
        return self._start("worker", *usual, *more, **environment)

    def _start(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(self.file)]
        log = (self.folder / "dask.log").open("ab")
        with log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self.processes.append(process)
        return process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[], Cluster]]:
    """Starts a Dask scheduler."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    begun: list[Cluster] = []

    def start() -> Cluster:
        folder = tmp_path / "dask"
        folder.mkdir()
        begun.append(Cluster(folder))
        return begun[0]

    yield start
    for each in begun:
        for process in each.processes:  # a worker that is to end while its scheduler does may hang
            process.kill()
            process.wait(PATIENCE)


def waiting(seconds: int) -> AbstractContextManager[object]:
    """Clients made in this context wait so long for a scheduler."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    import dask.config

    return dask.config.set({"distributed.comm.timeouts.connect": f"{seconds}s"})


@pytest.mark.slow
def test_two_dask_workers_train_what_one_after_the_other_trains(
    cluster: Callable[[], Cluster], tmp_path: Path
) -> None:
    dask = cluster()
    for _ in range(2):
        dask.worker()
    planned = Sweep(small(tmp_path / "swept"), ARMS, seeds=[0, 1])
    assert set(planned.run(dask.address)["state"]) == {"done"}
    alone(small(tmp_path / "alone"), ARMS, [{}])
    assert bits(tmp_path / "swept") == bits(tmp_path / "alone")
    assert set(trainings(tmp_path / "swept").values()) == {1}


@pytest.mark.slow
def test_jobs_with_a_tag_go_to_the_workers_that_have_it(
    cluster: Callable[[], Cluster], tmp_path: Path
) -> None:
    from distributed import Client

    dask = cluster()
    dask.worker()
    # two threads, which runs say of themselves; a nanny would set them to one
    dask.worker("--resources", "GPU=1", "--no-nanny", OMP_NUM_THREADS="2")
    with Client(dask.address) as client:
        planned = Sweep(small(tmp_path / "runs"), [Arm("base")], seeds=[0, 1])
        table = planned.run(client.get_executor(resources={"GPU": 1}))
    assert set(table["state"]) == {"done"}
    more = Sweep(small(tmp_path / "runs"), [Arm("base")], seeds=[2, 3])
    assert set(more.run(dask.address, resources={"GPU": 1})["state"]) == {"done"}
    assert {run.provenance["threads"] for run in RunStore(tmp_path / "runs")} == {2}


@pytest.mark.slow
def test_a_training_ends_with_its_dask_worker_and_when_its_sweep_is_cancelled(
    cluster: Callable[[], Cluster], tmp_path: Path
) -> None:
    dask, runs = cluster(), tmp_path / "runs"
    worker = dask.worker("--no-nanny")
    planned = Sweep(long(runs, epochs=60), [Arm("base")])
    thread = threading.Thread(target=planned.run, args=(dask.address,))
    thread.start()
    (first,) = until(lambda: list(runs.glob("*.unfinished/step-*")) and processes(runs))
    worker.kill()
    until(lambda: not Path(f"/proc/{first}").exists())
    assert not list(RunStore(runs))
    dask.worker("--no-nanny")
    (second,) = until(lambda: processes(runs))
    until(lambda: "step" in planned.log(planned.rows[0].stage.id))
    planned.cancel()
    thread.join()
    assert list(planned.table["state"]) == ["waiting"]
    until(lambda: not Path(f"/proc/{second}").exists())
    assert list(sweep(long(runs, epochs=60), [Arm("base")], at_once=1)["state"]) == ["done"]
    assert set(trainings(runs).values()) == {1}


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    patient = waiting(2)
    said = r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"
    with patient, pytest.raises(InvalidInput, match=said):
        sweep(small(tmp_path), [Arm("base")], executor="tcp://127.0.0.1:9")


MANY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_sweeps as t
t.many(Path(sys.argv[2]), int(sys.argv[3])).run(at_once=1)
"""


def many(folder: Path, seeds: int) -> Sweep:
    """For each seed four networks, and a generalist that two of them share."""
    arms = [*ARMS, Arm("control")]
    return Sweep(small(folder, val_fraction=0.0), arms, seeds=range(seeds))


@pytest.mark.parametrize(
    "seeds", [pytest.param(5, marks=pytest.mark.slow), pytest.param(40, marks=pytest.mark.long)]
)
def test_two_sweeps_over_one_folder_train_every_run_once_whatever_dies(
    seeds: int, cluster: Callable[[], Cluster], tmp_path: Path
) -> None:
    dask, runs = cluster(), tmp_path / "runs"
    worker = dask.worker("--no-nanny")

    def trained(n: int) -> None:
        until(lambda: len(list(runs.glob("*-s*-*/run.json"))) >= n, 3 * PATIENCE)

    planned = many(runs, seeds)
    thread = threading.Thread(target=planned.run, args=(dask.address,), daemon=True)
    with waiting(PATIENCE):  # a scheduler that is started again needs its time on a busy machine
        thread.start()
        trained(1)
    words = [sys.executable, "-c", MANY, str(Path(__file__).parent), str(runs), str(seeds)]
    with (tmp_path / "other.log").open("wb") as said:
        other = subprocess.Popen(words, stdout=said, stderr=said)
    trained(seeds)
    worker.kill()
    worker = dask.worker("--no-nanny")
    trained(2 * seeds)
    dask.scheduler.kill()
    worker.wait(PATIENCE)  # it goes with its scheduler
    dask.schedule(int(dask.address.rpartition(":")[2]))
    dask.worker("--no-nanny")
    assert other.wait(6 * PATIENCE) == 0
    thread.join()
    assert set(planned.table["state"]) == {"done"}
    assert len(planned.table) == 4 * seeds
    assert len(list(RunStore(runs))) == 5 * seeds
    found = trainings(runs)
    left = (path.name.removesuffix(".unfinished") for path in runs.glob("*.unfinished"))
    for name in left:  # killed when it had saved the run, before it could say so
        found.setdefault(name.rpartition("-")[2], 1)
    assert found == Counter(dict.fromkeys((run.id for run in RunStore(runs)), 1))
    takers = [path.read_text().count("-- on ") for path in runs.glob(f"{FOLDER}/*.log")]
    assert max(takers) > 1  # some were begun again


# --- as a command


def grid(folder: Path, **entries: Any) -> str:
    """The path of a file that describes a sweep."""
    knobs = {"dataset": "glyphs:12:OQ0CG6", "K": 2, "epochs": 1, "batch_size": 16}
    usual = {
        "experiment": {**knobs, "device": "cpu", "runs_dir": str(folder / "runs")},
        "arms": ["base"],
        "changes": {"learning_rate": ["1e-2", 0.02]},
        "seeds": [0],
        "at_once": 2,
    }
    found = {name: value for name, value in (usual | entries).items() if value is not None}
    (folder / "grid.yaml").write_text(yaml.safe_dump(found))
    return str(folder / "grid.yaml")


def test_a_file_describes_a_sweep(tmp_path: Path) -> None:
    arms = ["base", {"kind": "nofe", "partition": "random"}]
    planned, how = Sweep.of_file(grid(tmp_path, arms=arms, threads=1))
    assert how == {"at_once": 2, "threads": 1}
    assert [(row.arm, row.changes) for row in planned.rows] == [
        (arm, {"learning_rate": rate})
        for rate in (0.01, 0.02)
        for arm in (Arm("base"), Arm("nofe", "random"))
    ]
    one_by_one, _ = Sweep.of_file(grid(tmp_path, changes=[{"K": 2}, {"K": 3, "flips": True}]))
    assert [row.changes for row in one_by_one.rows] == [{"K": 2}, {"K": 3, "flips": True}]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"arm": ["base"]}, "entry 'arm' is unknown (did you mean 'arms'?)"),
        ({"arms": "base"}, "arms must be such as [nofe, base"),
        ({"arms": ["nofee"]}, "kind 'nofee' is unknown (did you mean 'nofe'?)"),
        ({"arms": [{"partition": "random"}]}, "an arm needs a kind"),
        ({"arms": [{"kind": "nofe", "part": 1}]}, "field of an arm 'part' is unknown"),
        ({"arms": None}, "a sweep needs at least 1 arm"),
        ({"changes": {"K": 5}}, "change 'K' must be a list of values; got 5"),
        ({"changes": ["K"]}, "changes must be such as {K: [5, 10]}"),
        ({"changes": {"k": [5]}}, "parameter 'k' is unknown"),
        ({"changes": {"K": ["many"]}}, "K must be a whole number"),
        ({"seeds": [-1]}, "seed must be a whole number"),
        ({"seeds": 3}, "seeds must be such as [0, 1, 2]; got 3"),
        ({"experiment": {"dataset": "glyph"}}, "dataset 'glyph' is unknown"),
        ({"at_once": 0}, "at_once must be a whole number"),
        ({"resources": {"GPU": 1}}, "resources are for the address of a Dask scheduler"),
    ],
)
def test_a_file_that_describes_no_sweep_gets_one_sentence(
    entries: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", grid(tmp_path, **entries)]) == 2
    sentence = capsys.readouterr().err
    assert said in sentence
    assert sentence.count("\n") == 1
    assert not list(tmp_path.glob("runs/*-*"))


def test_a_file_that_is_no_yaml_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text("arms: [nofe\nseeds: ]")
    assert main(["sweep", str(tmp_path / "grid.yaml")]) == 2
    sentence = capsys.readouterr().err
    assert "'grid.yaml' is not YAML" in sentence
    assert "line 2" in sentence
    assert sentence.count("\n") == 1


@pytest.mark.slow
def test_the_command_sweep_stops_at_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    experiment = {"dataset": "glyphs:12:OQ0CG6", "K": 2, "epochs": 25, "batch_size": 16}
    experiment |= {"device": "cpu", "checkpoint_seconds": 0, "runs_dir": str(tmp_path / "runs")}
    path = grid(tmp_path, experiment=experiment, at_once=1)
    command = [sys.executable, "-m", "nofe_lab", "sweep", path]
    command += ["--output", str(tmp_path / "table.csv")]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: list((tmp_path / "runs").glob("*.unfinished/step-*")))
    begun.send_signal(signal.SIGINT)
    out, said = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 130
    assert said.startswith("stopped; 2 of 2 trainings are left")
    assert out.count("waiting") >= 2
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 done" in done.stdout
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["state"]) == ["done", "done"]
    assert sum(run.provenance["interruptions"] for run in RunStore(tmp_path / "runs")) == 1
    assert set(trainings(tmp_path / "runs").values()) == {1}
