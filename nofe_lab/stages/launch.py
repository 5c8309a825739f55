"""Trains stages on several ranks for a process of its own, such as a notebook's.

`train` starts torchrun as a subprocess (a fork would break CUDA), whose ranks read the stages from
a file and carry them out.  They tell events, messages and errors as lines on the standard output;
whoever asked listens to them as if it trained itself, and can interrupt.
"""

from __future__ import annotations

import base64
import copyreg
import io
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import torch

from nofe_lab.config import InvalidInput, first_line
from nofe_lab.log import log
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.ranks import FROM_RANK_0, RankLost, check_ranks, world_size
from nofe_lab.stages.stage import Stage
from nofe_lab.training.events import Listener, tell
from nofe_lab.training.interrupts import StopRequests, ask_to_stop

MARK = b"nofe_lab:"
"""What a line that tells something begins with."""


def check(device: torch.device, number: int) -> None:
    """Raise InvalidInput unless `number` ranks can be started for `device`."""
    if number > 1 and world_size() > 1:
        raise InvalidInput(
            f"ranks must be 1 where torchrun has started {world_size()} already; got {number}."
        )
    if number > 1:
        check_ranks(device, number)


def train(
    number: int,
    make_runner: Callable[[], Any],
    stages: Sequence[Stage],
    listeners: Sequence[Listener],
) -> None:
    """Train what is missing of `stages` on several ranks of this machine.

    make_runner: makes each rank's `Runner`.
    Raises what the ranks raise; InvalidInput, before any work, if another process cannot import
    what the stages are made of.
    """
    for each in (each for stage in stages for each in stage.lineage.values()):
        if number > (size := each.recipe.batch_size):
            raise InvalidInput(
                f"ranks must be at most the {size} images of a batch of {each.label}; got {number}."
            )
    asked = _pickled(make_runner, stages)
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(number), "-m", "nofe_lab", "dev", "rank"]
    threads = max(torch.get_num_threads() // number, 1)
    path = os.pathsep.join(filter(None, sys.path))  # what can be imported here, can be there
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+b") as errors:
        written = Path(folder) / "stages.pickle"
        written.write_bytes(asked)
        started = subprocess.Popen(
            [sys.executable, *torchrun, str(written)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
            start_new_session=True,  # a terminal's Ctrl-C reaches the ranks once: from here
        )
        with started as process, StopRequests(listen=True) as stop:
            try:
                problem = _relay(process, listeners, stop)
            finally:
                if process.poll() is None:
                    process.terminate()
            if problem is not None and stop.requested == signal.SIGINT:
                stop.requested = None  # that is the problem
        if problem is None and process.returncode:
            errors.seek(0)
            problem = InvalidInput(
                f"the {number} ranks have ended (status {process.returncode}); what was saved "
                f"before is kept: run this cell again to go on. {_why(errors)}"
            )
    if problem is not None:
        raise problem


def _why(errors: IO[bytes]) -> str:
    """What torchrun says of a rank that has died."""
    lines = errors.read().decode(errors="replace").splitlines()
    told = [line for line in lines if "exitcode" in line or "Signal" in line]
    return f"torchrun says: {' '.join((told or lines or ['nothing'])[-1].split())}"


def _relay(
    process: subprocess.Popen[bytes], listeners: Sequence[Listener], stop: StopRequests
) -> BaseException | None:
    """Pass on what the ranks tell until they end; returns the error that they end with."""
    assert process.stdout is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    source = process.stdout

    def read() -> None:
        for line in source:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    problem: BaseException | None = None
    is_asked = False
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            line = b""
        if line is None:
            return problem
        if line.startswith(MARK):
            what, content = pickle.loads(base64.b64decode(line.removeprefix(MARK)))
            if what == "event":
                tell(listeners, content)
            elif what == "log":
                log.log(*content)
            elif problem is None or isinstance(problem, RankLost):
                problem = content
        elif line.strip():
            log.info(line.decode(errors="replace").rstrip())
        if stop.requested is not None and not is_asked:
            is_asked = True
            process.send_signal(signal.SIGINT)


class _Pickler(pickle.Pickler):
    """Refuses what only this process knows, and leaves out what a network finds out of itself."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, SplitNetwork):  # its graphs do not pickle
            kind = type(value)
            kept = {
                name: each
                for name, each in vars(value).items()
                if not isinstance(getattr(kind, name, None), cached_property)
            }
            return copyreg.__newobj__, (kind,), {**kept, "_for_images": {}}  # type: ignore[attr-defined]
        if isinstance(value, (type, FunctionType)) and value.__module__ == "__main__":
            raise InvalidInput(
                f"several ranks are processes of their own, which cannot import {value.__name__!r} "
                "from a notebook or a script: put it into a file of its own and import it, or use "
                "ranks=1."
            )
        return NotImplemented


def _pickled(*content: object) -> bytes:
    written = io.BytesIO()
    try:
        _Pickler(written).dump(content)
    except InvalidInput:
        raise
    except Exception as error:  # whatever objects of others raise
        raise InvalidInput(
            "several ranks are processes of their own, to which this network or data set cannot be "
            f"handed ({first_line(error)}): accepted is ranks=1."
        ) from error
    return written.getvalue()


# --- in each of the ranks


def carry_out(path: Path) -> None:
    """Carry out, as a rank, the stages of a file that `train` has written."""
    try:
        make_runner, stages = pickle.loads(path.read_bytes())
        log.handlers = [_Teller()]
        make_runner().carry_out(stages, [lambda event: _say("event", event)])
    except BaseException as error:
        if FROM_RANK_0 not in getattr(error, "__notes__", ()):
            _say("error", error)
        if isinstance(error, RankLost):
            raise


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say("log", (record.levelno, record.getMessage()))


def _say(what: str, content: object) -> None:
    """Tell who has asked; if it is gone, stop."""
    line = MARK + base64.b64encode(pickle.dumps((what, content))) + b"\n"
    try:
        os.write(1, line)  # at once, so that lines of several ranks do not mix
    except OSError:
        ask_to_stop()
