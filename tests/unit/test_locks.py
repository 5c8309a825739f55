"""Locks: one holder, whatever flock does, and none for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from nofe_lab import InvalidInput
from nofe_lab.runs import locks
from nofe_lab.runs.locks import Held, Lock, LockLost, locked

LEASE = 3.0


pytestmark = pytest.mark.usefixtures("short")
soft = pytest.mark.parametrize("flock", ["missing", "deaf"], indirect=True)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and of those that it forks."""
    monkeypatch.setattr(locks, "LEASE", LEASE)
    monkeypatch.setattr(locks, "POLL", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".locks" / "a"


@pytest.fixture
def fork() -> Iterator[Callable[..., BaseProcess]]:
    """Runs a function in a process of its own, which is over after the test."""
    begun: list[BaseProcess] = []

    def begin(function: Callable[..., None], *arguments: object) -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.join()


def hold(path: Path) -> None:
    """Hold the lock until killed."""
    with locked(path):
        path.with_name("held").touch()
        time.sleep(600)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def holding(fork: Callable[..., BaseProcess], path: Path) -> BaseProcess:
    process = fork(hold, path)
    wait_for(path.with_name("held"))
    return process


def look(_: str) -> None:
    """Wait for a lock."""


def increase(path: Path, times: int) -> None:
    number = path.with_name("number")
    for _ in range(times):
        with locked(path, look) as lock:
            before = int(number.read_text())
            time.sleep(0.002)
            lock.check()
            number.write_text(str(before + 1))


@pytest.mark.usefixtures("flock")
def test_of_several_processes_one_has_the_lock(
    path: Path, fork: Callable[..., BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 60.0)
    path.parent.mkdir()
    path.with_name("number").write_text("0")
    processes = [fork(increase, path, 25) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert path.with_name("number").read_text() == "100"
    assert len(list(path.parent.glob("a.lease-*"))) == 1


@pytest.mark.usefixtures("flock")
def test_who_holds_it_is_named_while_it_lives(path: Path, fork: Callable[..., BaseProcess]) -> None:
    process = holding(fork, path)
    name = f"process {process.pid} on {socket.gethostname()}"
    for patient in (False, True):
        with pytest.raises(Held, match=name), locked(path, patient=patient):
            pass
    told: list[str] = []

    def wait(who: str) -> None:
        told.append(who)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(path, wait):
        pass
    assert told == [name]


def test_the_lock_of_a_killed_process_is_free_at_once_where_flock_works(
    path: Path, fork: Callable[..., BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holding(fork, path)
    process.kill()
    process.join()
    with locked(path, patient=False):
        pass
    monkeypatch.setattr(locks, "LEASE", 0.3)
    second = path.with_name("b")  # of another host, whose flock tells us nothing
    second.with_name("b.lease-7").write_text("process 1 on elsewhere\nanother kernel 39\n")
    with pytest.raises(Held, match="process 1 on elsewhere"), locked(second, patient=False):
        pass
    with locked(second):
        assert [each.name for each in path.parent.glob("b.lease-*")] == ["b.lease-8"]


@soft
@pytest.mark.usefixtures("flock")
def test_the_lock_of_a_killed_process_is_free_after_its_lease(
    path: Path, fork: Callable[..., BaseProcess]
) -> None:
    process = holding(fork, path)
    process.kill()
    process.join()
    with pytest.raises(Held), locked(path, patient=False):
        pass
    with locked(path):
        pass


@soft
@pytest.mark.usefixtures("flock")
def test_who_was_stopped_beyond_its_lease_notices_before_it_writes(
    path: Path, fork: Callable[..., BaseProcess]
) -> None:
    result, lost = path.with_name("result"), path.with_name("lost")

    def write_slowly() -> None:
        with locked(path) as lock:
            lock.check()
            path.with_name("held").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                lock.check()
                result.write_text("late")
            except LockLost as error:
                lost.write_text(str(error))

    process = fork(write_slowly)
    assert process.pid is not None
    wait_for(path.with_name("held"))
    with locked(path, look) as lock:
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        lock.check()  # the other has given nothing back
    assert not result.exists()
    assert f"the lock of 'a' is lost: process {os.getpid()} on" in lost.read_text()


@pytest.mark.parametrize("flock", ["works"], indirect=True)
@pytest.mark.usefixtures("flock")
def test_where_flock_works_who_is_stopped_keeps_its_lock(
    path: Path, fork: Callable[..., BaseProcess]
) -> None:
    process = holding(fork, path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2 * LEASE)
    with pytest.raises(Held), locked(path):
        pass


@soft
@pytest.mark.usefixtures("flock")
@pytest.mark.parametrize("skew", [-3600, 3600])
def test_clocks_of_hosts_are_not_compared(
    path: Path, skew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    lease, now = path.with_name("a.lease-1"), time.time()
    lease.write_text("process 1 on elsewhere\n\n")
    waiting = Lock(path)
    for second in range(10):  # renewed each second, by a clock that is wrong
        os.utime(lease, (now + skew + second,) * 2)
        monkeypatch.setattr(time, "monotonic", lambda second=second: second)
        assert not waiting._take()
    monkeypatch.setattr(time, "monotonic", lambda: 9 + LEASE)
    assert waiting._take()


@soft
@pytest.mark.usefixtures("flock")
def test_who_looked_long_ago_withdraws(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(path):
        pass
    late = Lock(path)
    before = late._newest()
    with ExitStack() as stack:
        for _ in range(3):
            with locked(path):
                pass
        holder = stack.enter_context(locked(path))
        monkeypatch.setattr(late, "_newest", lambda: before)
        assert not late._take()
        holder.check()
    assert [each.name for each in path.parent.glob("a.lease-*")] == ["a.lease-5"]


@pytest.mark.usefixtures("flock")
def test_a_lock_whose_file_was_removed_is_lost(path: Path) -> None:
    with locked(path) as lock:
        for file in path.parent.glob("a.lease-*"):
            file.unlink()
        with pytest.raises(LockLost, match="the lock of 'a' is lost: its file was removed"):
            lock.check()


def test_a_folder_of_locks_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match=r"'\.locks' is a link"), locked(path):
        pass
