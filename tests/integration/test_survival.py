"""Training survives what happens to it: kills, interruptions, full disks, rivals.

The faults are real wherever this machine can make them: processes are killed with SIGKILL, disks
are small file systems that fill up, memory is limited by the operating system.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nofe_lab import Experiment, InvalidInput, load_specialties, predict
from nofe_lab.files import read_tensors, write_tensors
from nofe_lab.machine import Machine, OutOfMemory, seeded
from nofe_lab.networks import backbone
from nofe_lab.runs import Run, RunStore, locks
from nofe_lab.runs.checkpoint import _digest
from nofe_lab.stages import Stage, generalist
from nofe_lab.training import loop
from nofe_lab.training.events import Event, StepDone
from nofe_lab.training.interrupts import Interrupted, ask_to_stop

STAGES = ("base", "generalist", "nofe")


class Restless(nn.Module):
    """A CNN with all that an interruption could upset: dropout, statistics, Python's chance."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout2d(0.2)
        self.tail = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.end = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.pool(self.tail(self.drop(self.trunk(x)))))


def experiment(runs_dir: Path, **changes: Any) -> Experiment:
    """Of a minute's hundredth, with a checkpoint after every step."""
    small = {"K": 5, "epochs": 8, "batch_size": 30, "flips": True, "map_updates": 19}
    where = {"device": "cpu", "runs_dir": str(runs_dir), "checkpoint_seconds": 0.0}
    return Experiment("glyphs:4", backbone=Restless, split="drop", **{**small, **where, **changes})


def stage_of(found: Experiment, kind: str) -> Stage:
    stage: Stage = getattr(found, kind)()
    return stage


def hear_signals() -> None:
    """Listen as in a terminal: what is started with nohup or in the background ignores some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signals() -> None:
    hear_signals()


def train(
    kind: str, runs_dir: Path, log: Path | None = None, lease: float | None = None, **changes: Any
) -> None:
    """What a process of its own does; lease: as without flock, with a lease of so many seconds."""
    if lease is not None:
        locks.LEASE = lease
        locks.Lock._new_flock = lambda _: None  # type: ignore[method-assign,return-value]
    if threading.current_thread() is threading.main_thread():
        hear_signals()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        if log is not None:
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(log.open("w", buffering=1)))
            )
        found = experiment(runs_dir, **changes)
        found.run(stage_of(found, kind))


@pytest.fixture(scope="session")
def start() -> Callable[..., BaseProcess]:
    """Starts `train` in a process, without the seconds that imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("nofe_lab.stages", "nofe_lab.data.glyphs"),
            # what these import when they need it: three times as long as the training
            *("torch._dynamo", "sklearn.cluster", "sklearn.metrics"),
            *("scipy.special", "scipy.optimize"),
        ]
    )

    def begin(*arguments: Any, **changes: Any) -> BaseProcess:
        process = context.Process(target=train, args=arguments, kwargs=changes, daemon=True)
        process.start()
        return process

    return begin


def only_run(runs_dir: Path, kind: str) -> Run:
    found = experiment(runs_dir)
    run = RunStore(runs_dir).find(stage_of(found, kind).id)
    assert run is not None
    return run


def bits(run: Run) -> dict[str, bytes | str]:
    """All that a run has learned and written down, without its clock."""
    found: dict[str, bytes | str] = {
        path.name: path.read_bytes()
        for path in run.path.iterdir()
        if path.name not in ("run.json", "history.csv", "reports.json")
    }
    history = pd.read_csv(run.path / "history.csv", dtype=str)
    return {**found, "history": history.drop(columns="seconds").to_csv()}


@pytest.fixture(scope="module")
def undisturbed(
    filled_once: Callable[[str, Callable[[Path], None]], Path], start: Callable[..., BaseProcess]
) -> tuple[Path, dict[str, float]]:
    """A folder with a run of every kind that was never interrupted, and how long they trained."""

    def fill(runs_dir: Path) -> None:
        for kind in STAGES:
            process = start(kind, runs_dir)
            process.join()
            assert process.exitcode == 0

    runs_dir = filled_once("undisturbed", fill)
    return runs_dir, {kind: only_run(runs_dir, kind).seconds for kind in STAGES}


def wait_until(found: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that comes soon."""
    for _ in range(int(seconds / 0.01)):
        if found():
            return
        time.sleep(0.01)
    pytest.fail(f"waited for {seconds} s in vain")


def wait_for_training(runs_dir: Path, process: BaseProcess) -> None:
    """Wait until a process has the right to train."""

    def trains() -> bool:
        found = [path.read_text() for path in runs_dir.glob(".locks/*.lease-*")]
        return any(text.startswith(f"process {process.pid} ") for text in found)

    wait_until(lambda: trains() or not process.is_alive())


def with_parents(kind: str, source: Path, runs_dir: Path) -> set[str]:
    """Make a folder with the runs that a stage builds on; returns their names."""
    runs_dir.mkdir()
    if kind == "nofe":
        parent = only_run(source, "generalist")
        shutil.copytree(parent.path, runs_dir / parent.path.name)
        return {parent.path.name}
    return set()


@pytest.mark.parametrize("kills", [pytest.param(50, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("kind", STAGES)
def test_a_run_that_was_killed_at_random_moments_ends_with_the_same_bits(
    kind: str,
    kills: int,
    undisturbed: tuple[Path, dict[str, float]],
    start: Callable[..., BaseProcess],
    tmp_path: Path,
) -> None:
    source, seconds = undisturbed
    expected = bits(only_run(source, kind))
    chance = random.Random(f"{kind} {kills}")
    began, done, finished, steps = time.perf_counter(), 0, 0, set()
    runs_dir = tmp_path / "0"
    before = with_parents(kind, source, runs_dir)
    stage = stage_of(experiment(runs_dir), kind)
    checkpoints = RunStore(runs_dir).checkpoints(stage.run_name, stage.id)
    while True:
        process = start(kind, runs_dir)
        if done < kills:
            if done % 4:  # else also while it imports, reads and times its first steps
                wait_for_training(runs_dir, process)
            process.join(chance.uniform(0, 0.9) * seconds[kind])
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            done += 1
            steps.add(checkpoints.step)
            continue
        assert process.exitcode == 0
        run = only_run(runs_dir, kind)
        assert bits(run) == expected
        finished += 1
        left = {path.name for path in runs_dir.iterdir()} - before - {".locks"}
        assert left == {run.path.name}
        if done >= kills:
            break
        runs_dir = tmp_path / str(finished)
        with_parents(kind, source, runs_dir)
        checkpoints = RunStore(runs_dir).checkpoints(stage.run_name, stage.id)
    print(
        f"{kind}: {done} kills at {len(steps)} different steps of {stage.steps}, {finished} "
        f"finished runs, {time.perf_counter() - began:.0f} s"
    )
    assert len(steps) >= min(kills, stage.steps) // 4


def ask(runs_dir: Path, *more: str, prelude: str = "", **changes: Any) -> list[str]:
    """A command that trains in a process of its own, and says ready before it does."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_survival
{prelude}
test_survival.train("base", Path({str(runs_dir)!r}), **{changes!r})
"""
    return [*more, sys.executable, "-c", code]


# --- interruptions


def test_an_interrupted_training_stops_after_its_step_and_goes_on_when_asked_again(
    runs_dir: Path,
    undisturbed: tuple[Path, dict[str, float]],
    start: Callable[..., BaseProcess],
    tmp_path: Path,
) -> None:
    slow = "import time; from nofe_lab.training import loop; seeded = loop.seeded\n"
    slow += "loop.seeded = lambda *of, **on: time.sleep(0.05) or seeded(*of, **on)\n"
    process = subprocess.Popen(
        ask(runs_dir, prelude=slow), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(runs_dir.glob("*.unfinished/step-00000003*")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    last = errors.strip().splitlines()[-1]
    found = re.fullmatch(
        r"nofe_lab.training.interrupts.Interrupted: stopped after step (\d+) of 80; all of it is "
        r"kept. Run this cell, or the same command, again to go on.",
        last,
    )
    assert found, errors
    (folder,) = runs_dir.glob("*.unfinished")
    assert (folder / f"step-{int(found[1]):08}.safetensors").is_file()
    again = start("base", runs_dir, tmp_path / "log")
    again.join()
    assert again.exitcode == 0
    assert f"resumes from step {found[1]} of 80" in (tmp_path / "log").read_text()
    run = only_run(runs_dir, "base")
    assert bits(run) == bits(only_run(undisturbed[0], "base"))
    assert run.provenance["interruptions"] == 1


def test_a_training_in_a_thread_is_stopped_by_its_listener_and_two_threads_take_turns(
    runs_dir: Path, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """As the board trains, while a cell trains something else."""
    ended: list[BaseException | None] = []

    def stop_once(event: Event) -> None:
        if not ended and isinstance(event, StepDone) and event.step == 7:
            ask_to_stop()

    def in_a_thread() -> None:
        torch.set_num_threads(1)
        found = experiment(runs_dir)
        try:
            found.run(found.base(), watch=stop_once)
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    for seed in (1, 2):
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        train("base", tmp_path / "other", seed=seed)
        thread.join()
    stopped, finished = ended
    assert isinstance(stopped, Interrupted)
    assert "stopped after step 7 of 80; all of it is kept" in str(stopped)
    assert finished is None
    assert bits(only_run(runs_dir, "base")) == bits(only_run(undisturbed[0], "base"))
    for seed in (1, 2):
        train("base", tmp_path / "alone", seed=seed)
    other, alone = (
        {run.id: bits(run) for run in RunStore(tmp_path / name)} for name in ("other", "alone")
    )
    assert other == alone


def test_a_network_can_be_taken_apart_while_another_thread_trains(runs_dir: Path) -> None:
    """torch.fx, while it traces, takes the calls of all threads for its own."""
    ended: list[BaseException | None] = []

    def in_a_thread() -> None:
        torch.set_num_threads(1)
        try:
            found = experiment(runs_dir)
            found.run(found.base())
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    own = set()
    while thread.is_alive():
        own.add(backbone(Restless, split="drop").for_images((3, 32, 32)).identity["own"])
    assert ended == [None]
    assert len(own) == 1


def test_an_interrupted_gate_learns_the_same_answers(
    runs_dir: Path,
    undisturbed: tuple[Path, dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in (runs_dir, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        for kind in ("generalist", "nofe"):
            parent = only_run(undisturbed[0], kind)
            shutil.copytree(parent.path, folder / parent.path.name)
    train("gate", tmp_path / "other")
    seeded, steps = loop.seeded, []

    def interrupt_once(*of: Any, **on: Any) -> AbstractContextManager[None]:
        steps.extend(of[1:2])  # timing is seeded too, by 0 alone
        if of[1:] and len(steps) == 23:
            signal.raise_signal(signal.SIGINT)
        return seeded(*of, **on)

    monkeypatch.setattr(loop, "seeded", interrupt_once)
    with pytest.raises(Interrupted, match="stopped after step 23 of 80"):
        train("gate", runs_dir)
    train("gate", runs_dir)
    assert len(steps) == 80
    assert bits(only_run(runs_dir, "gate")) == bits(only_run(tmp_path / "other", "gate"))


@pytest.mark.parametrize(
    "changes",
    [
        {"affinity_from": "evaluation"},
        {"affinity_from": "training"},
        {"affinity_from": "training", "fine_head": True},
    ],
)
def test_an_update_of_the_map_is_broken_off_and_done_when_training_goes_on(
    changes: dict[str, Any], runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop was only noted, and an update that does not end could not be ended."""
    train("generalist", tmp_path / "other", **changes)
    real, updates = generalist.assign, []

    def stopped_once(*given: Any, **options: Any) -> Any:
        updates.append(given)
        if len(updates) == 3:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the update went on")
        return real(*given, **options)

    monkeypatch.setattr(generalist, "assign", stopped_once)
    ends: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    try:
        with pytest.raises(Interrupted, match="all of it is kept"):
            train("generalist", runs_dir, **changes)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ends == [signal.SIGTERM]
    train("generalist", runs_dir, **changes)
    found = [next(iter(RunStore(folder))) for folder in (runs_dir, tmp_path / "other")]
    assert len(updates) == len(found[0].table("map_updates")) + 1
    assert bits(found[0]) == bits(found[1])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_polite_end_is_kept_too(
    runs_dir: Path, name: str, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    process = start("base", runs_dir, log, checkpoint_seconds=3600.0, epochs=400)
    # past the first checkpoint, at the end of epoch 1, and not yet past the next one
    wait_until(lambda: "epoch 2/400" in log.read_text())
    assert process.pid is not None
    os.kill(process.pid, getattr(signal, name))
    process.join()
    assert process.exitcode == -getattr(signal, name)
    assert len(list(runs_dir.glob("*.unfinished/step-*"))) == 2


# --- one run, several processes


@pytest.mark.parametrize("lease", [None, 60.0])
@pytest.mark.parametrize("count", [pytest.param(20, marks=pytest.mark.long), 3])
def test_of_several_processes_one_trains_and_the_others_wait(
    count: int,
    lease: float | None,
    runs_dir: Path,
    start: Callable[..., BaseProcess],
    tmp_path: Path,
) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(count)]
    processes = [start("base", runs_dir, log, lease, epochs=60) for log in logs]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    texts = [log.read_text() for log in logs]
    assert sum("; saved flat" in text for text in texts) == 1
    for text in texts:
        waited = re.search(r"process \d+ on .* is training it; waiting for the result", text)
        loaded = re.search(r"loaded flat.*|which has been trained meanwhile", text)
        assert "; saved flat" in text or loaded, text
        assert not waited or "meanwhile" in text
    assert sum("is training it; waiting" in text for text in texts) > 0
    assert {path.name for path in runs_dir.iterdir()} == {
        ".locks",
        next(RunStore(runs_dir).folder.glob("flat-*")).name,
    }


@pytest.mark.parametrize("lease", [None, 3.0])
def test_the_lock_of_a_dead_process_does_not_hold_the_living(
    lease: float | None, runs_dir: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    first = start("base", runs_dir, None, lease, epochs=400)
    wait_until(lambda: list(runs_dir.glob("*.unfinished/step-*")))
    log = tmp_path / "second.log"
    log.touch()
    second = start("base", runs_dir, log, lease, epochs=400)
    wait_until(lambda: "waiting" in log.read_text())
    first.kill()
    wait_until(lambda: "resumes from step" in log.read_text())
    second.kill()
    second.join()


def test_a_training_that_slept_beyond_its_lease_leaves_the_run_to_who_has_taken_it_over(
    runs_dir: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    first = start("base", runs_dir, None, 3.0, epochs=60)
    assert first.pid is not None
    wait_until(lambda: list(runs_dir.glob("*.unfinished/step-*")))
    os.kill(first.pid, signal.SIGSTOP)
    log = tmp_path / "second.log"
    second = start("base", runs_dir, log, 3.0, epochs=60)
    wait_until(lambda: log.exists() and "resumes from step" in log.read_text())
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 1  # of LockLost
    second.join()
    assert second.exitcode == 0
    assert "; saved flat" in log.read_text()
    (run,) = RunStore(runs_dir)
    assert run.provenance["interruptions"] == 1
    assert {path.name for path in runs_dir.iterdir()} == {".locks", run.path.name}


# --- disks


def in_a_file_system_of(mebibytes: float, runs_dir: Path, *commands: str) -> tuple[str, str]:
    """Run commands, one after the other, on a disk so small; returns what they said."""
    mount = f"mount -t tmpfs -o size={int(mebibytes * 2**20)} tmpfs {shlex.quote(str(runs_dir))}"
    script = "; ".join([mount, *commands])
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine mounts no file systems for tests: {done.stderr.strip()}")
    return done.stdout, done.stderr


FILLED = """
from nofe_lab.runs import checkpoint
from nofe_lab.training import loop
place = Path({place!r}) / "filler"
def fill():
    try:
        with place.open("ab", buffering=0) as file:
            while file.write(bytes(1000)): pass
    except OSError: pass
def full(*of, seeded=loop.seeded, **on):
    timed = not of[1:]  # seeded by 0 alone
    if not timed and not place.exists() and list(place.parent.glob("*.unfinished/step-00000012*")):
        fill()
    return seeded(*of, **on)
loop.seeded = full
def make_room(self, make_room=checkpoint.Checkpoints.make_room):
    make_room(self)
    if {again}: fill()
checkpoint.Checkpoints.make_room = make_room
def twice(*given, train=test_survival.train, **changes):
    try: train(*given, **changes)
    except ValueError as error:
        print(f"SAID {{error}}")
        place.unlink()
        train(*given, **changes)
    print("FINISHED", *sorted(p.name for p in place.parent.iterdir() if p != place))
test_survival.train = twice
"""


def test_on_a_full_disk_training_goes_on_and_the_result_takes_a_checkpoint_s_place(
    runs_dir: Path,
) -> None:
    fill = FILLED.format(place=str(runs_dir), again=False)
    out, errors = in_a_file_system_of(2, runs_dir, shlex.join(ask(runs_dir, prelude=fill)))
    assert not errors
    assert "cannot be saved (" in out
    assert "training goes on, and the next one is tried when it is due" in out
    assert "SAID" not in out
    assert re.search(r"FINISHED .locks flat-\S+$", out.strip())


def test_what_a_full_disk_has_no_room_for_waits_in_memory(runs_dir: Path) -> None:
    fill = FILLED.format(place=str(runs_dir), again=True)
    out, errors = in_a_file_system_of(2, runs_dir, shlex.join(ask(runs_dir, prelude=fill)))
    assert not errors
    first, _, second = out.partition("SAID")
    assert "epoch 8/8" in first
    said = second.splitlines()[0]
    assert "trained, but cannot be saved in" in said
    assert "No space left on device" in said
    assert "the trained network is kept in this process" in said
    assert "epoch 1/8" not in second  # it is not trained again
    assert re.search(r"FINISHED .locks flat-\S+$", out.strip())


def test_a_full_disk_is_refused_before_training(runs_dir: Path) -> None:
    command = f"head -c 1M /dev/zero > {shlex.quote(str(runs_dir))}/filler 2> /dev/null"
    out, errors = in_a_file_system_of(0.1, runs_dir, command, shlex.join(ask(runs_dir)))
    assert "cannot be written (No space left on device" in errors
    assert "To train" not in out


def test_a_read_only_folder_gives_its_runs_and_takes_no_new_ones(
    runs_dir: Path, undisturbed: tuple[Path, dict[str, float]]
) -> None:
    copy = f"cp -r {undisturbed[0]}/flat-* {runs_dir}"
    remount = f"mount -o remount,ro {runs_dir}"
    report = f"experiment = test_survival.experiment(Path({str(runs_dir)!r}))\n"
    report += "print(experiment.final_report({'base': experiment.base()}))\n"
    out, errors = in_a_file_system_of(
        4,
        runs_dir,
        copy,
        remount,
        shlex.join(ask(runs_dir, prelude=report)),
        shlex.join(ask(runs_dir, epochs=2)),
    )
    assert "base CNN, 8 epochs, seed 0: loaded flat-" in out
    assert "reports.json of flat-glyphs" in out
    assert "was not written ([Errno 30] Read-only file system" in out
    assert "cannot be written (Read-only file system" in errors
    assert "To train" not in out


# --- checkpoints that cannot be used


def unfinished(runs_dir: Path, start: Callable[..., BaseProcess]) -> list[Path]:
    """Kill a training of the base CNN; returns its checkpoints, the older first."""
    process = start("base", runs_dir)
    wait_until(lambda: list(runs_dir.glob("*.unfinished/step-0000002*")))
    process.kill()
    process.join()
    return sorted(runs_dir.glob("*.unfinished/step-*"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    save_file({"model.w": torch.zeros(3)}, path, {"nofe_lab": "{}", "digest": "0"})


@pytest.mark.parametrize("which", ["last", "all"])
@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, empty, exchange])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], None],
    which: str,
    runs_dir: Path,
    undisturbed: tuple[Path, dict[str, float]],
    start: Callable[..., BaseProcess],
    tmp_path: Path,
) -> None:
    found = unfinished(runs_dir, start)
    damaged = found[-1:] if which == "last" else found
    for path in damaged:
        damage(path)
    start("base", runs_dir, tmp_path / "log").join()
    text = (tmp_path / "log").read_text()
    assert text.count("cannot be used: ") == len(damaged)
    assert f"checkpoint {found[-1].name} of " in text
    assert ("training begins anew" in text) == (which == "all")
    run = only_run(runs_dir, "base")
    assert bits(run) == bits(only_run(undisturbed[0], "base"))
    assert run.provenance["interruptions"] == (which == "last")


def test_an_unfinished_run_of_another_format_is_refused_with_both_versions(
    runs_dir: Path, start: Callable[..., BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in unfinished(runs_dir, start)}
    monkeypatch.setattr("nofe_lab.runs.checkpoint.FORMAT", 99)
    with pytest.raises(InvalidInput, match="is of format 2, this library goes on with format 99"):
        train("base", runs_dir)
    assert {path: path.read_bytes() for path in before} == before


def test_a_later_format_of_other_fields_is_left_alone(
    runs_dir: Path, start: Callable[..., BaseProcess]
) -> None:
    paths = unfinished(runs_dir, start)
    for path in paths:
        tensors, _ = read_tensors(path)
        text = json.dumps({"format": 3, "secs": 1})
        write_tensors(path, tensors, {"nofe_lab": text, "digest": _digest(tensors, text)})
    before = {path: path.read_bytes() for path in paths}
    with pytest.raises(InvalidInput, match="is of format 3, this library goes on with format 2"):
        train("base", runs_dir)
    assert {path: path.read_bytes() for path in before} == before


def test_what_was_begun_on_other_specialties_is_not_gone_on_with(
    runs_dir: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    train("generalist", runs_dir)
    process = start("nofe", runs_dir)
    wait_until(lambda: list(runs_dir.glob("nofe-*.unfinished/step-0000002*")))
    process.kill()
    process.join()
    # the same generalist once more, from another machine so to speak: it has other specialties
    found, store = experiment(runs_dir), RunStore(runs_dir)
    stage, old = found.generalist(), only_run(runs_dir, "generalist")
    specialties = load_specialties(old)
    turned = replace(specialties, of=(*specialties.of[1:], specialties.of[0]))
    kept = [file for file in old.record["files"] if "weights" not in file]
    files: dict[str, str | bytes] = {file: old.file(file).read_bytes() for file in kept}
    weights = old.weights()
    store.remove(old.id)
    store.save(
        stage.run_name,
        stage.identity,
        old.about,
        weights,
        files | {"specialties.json": turned.to_json()},
        old.result,
        old.provenance,
    )
    start("nofe", runs_dir, tmp_path / "log").join()
    text = (tmp_path / "log").read_text()
    assert "the runs that it builds on have been trained anew since" in text
    assert "training begins anew" in text
    nofe = only_run(runs_dir, "nofe")
    assert load_specialties(nofe) == turned
    answers = predict(found.model(found.nofe()), found.data.train)
    assert answers.accuracy == pytest.approx(nofe.history["train_accuracy"].iloc[-1], abs=0.2)


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_said_in_one_sentence_with_what_to_lower(
    error: Exception, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[object] = []

    def step(*of: object, device: torch.device) -> AbstractContextManager[None]:
        steps.extend(of[1:2])  # timing is seeded too, by 0 alone
        if of[1:] and len(steps) == 7:
            raise error
        return seeded(*of, device=device)

    monkeypatch.setattr("nofe_lab.training.loop.seeded", step)
    with pytest.raises(OutOfMemory, match=r"lower batch_size \(it is 30\), image_size or branch_w"):
        train("base", runs_dir)
    assert list(runs_dir.glob("*.unfinished/step-00000006*"))  # what was done is kept


def test_a_report_that_finds_too_little_memory_says_so(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    found = experiment(runs_dir, epochs=1)
    monkeypatch.setattr("nofe_lab.stages.report.predict", refuse)
    sentence = "the report of base CNN.* has too little memory .*; lower image_size or branch_width"
    with pytest.raises(OutOfMemory, match=sentence):
        found.final_report({"base": found.base()})
    assert list(runs_dir.glob("flat-*/weights.safetensors"))


def test_a_process_that_may_have_no_more_memory_says_so(runs_dir: Path) -> None:
    wide = """
import resource
from torch import nn
class Wide(test_survival.Restless):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4096, 3, 1, 1), nn.BatchNorm2d(4096), nn.ReLU())
        self.tail[0] = nn.Conv2d(4096, 16, 3, 2, 1)
test_survival.Restless = Wide
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
"""
    command = ask(runs_dir, prelude=wide, batch_size=300)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "too little memory" in done.stderr.splitlines()[-1], done.stderr[-2000:]
    assert "lower batch_size (it is 300)" in done.stderr


def test_what_filled_the_memory_is_given_back() -> None:
    class Large:
        pass

    kept: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise MemoryError

    with pytest.raises(OutOfMemory), Machine.pick("cpu").enough_memory("work", 1):
        work()
    assert kept[0]() is None


def test_a_folder_that_becomes_read_only_in_training_keeps_the_network_in_the_process(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    steps: list[object] = []

    def step(*of: object, device: torch.device) -> AbstractContextManager[None]:
        steps.extend(of[1:2])  # timing is seeded too, by 0 alone
        if of[1:] and len(steps) == 9:
            for name in ("unlink", "rename", "replace"):
                monkeypatch.setattr(Path, name, refuse)
        return seeded(*of, device=device)

    monkeypatch.setattr("nofe_lab.training.loop.seeded", step)
    with pytest.raises(InvalidInput, match=r"trained, but cannot be saved in .*this cell again"):
        train("base", runs_dir)
    assert "cannot be saved ([Errno 13] Permission denied); training goes on" in (
        capsys.readouterr().out
    )
    monkeypatch.undo()
    train("base", runs_dir)
    assert only_run(runs_dir, "base").history["epoch"].iloc[-1] == 8
