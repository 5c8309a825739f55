"""Stopping a training by a signal, between two steps, so that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that ask a training to stop; a terminal that is closed sends SIGHUP."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by hand and is kept; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class StopNow(BaseException):
    """A request to stop has come during work that can be broken off and done again."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Mark work in a task's `after_step` that a request to stop breaks off.

    The work must not change the task's state: it is done again when the training goes on.
    """
    stop = listening()
    if stop is None:
        yield
        return
    stop.may_raise = True
    try:
        if stop.requested is not None:
            raise StopNow
        yield
    finally:
        stop.may_raise = False


_THREAD = threading.local()


def listening() -> StopRequests | None:
    """What takes note of requests to stop the training of this thread, if there is one."""
    return getattr(_THREAD, "listening", None)


def ask_to_stop() -> None:
    """Stop the training of this thread after the current step, as SIGINT would.

    For listeners, which are called between steps.
    """
    if (stop := listening()) is not None:
        stop.requested = signal.SIGINT


class StopRequests:
    """Takes note of SIGINT, SIGTERM and SIGHUP, so that training stops between steps.

    A second SIGINT is obeyed at once.  Outside the main thread, where Python delivers no signals,
    `ask_to_stop` alone is heard.
    """

    def __init__(self, listen: bool) -> None:
        self.listens = listen
        is_main = threading.current_thread() is threading.main_thread()
        self.signals = STOPPING if listen and is_main else []
        self.requested: int | None = None
        self.may_raise = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        for number in self.signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)
        if self.listens:
            _THREAD.listening = self
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        if self.listens:
            _THREAD.listening = None
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.before = {}
        if self.signals and self.requested is not None and kind is None:  # came after the last step
            os.kill(os.getpid(), self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            handler = self.before[number]
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        self.requested = number
        if self.may_raise:
            self.may_raise = False
            raise StopNow

    def end(self, step: int, steps: int, saved: bool) -> NoReturn:
        """Stop, now that everything is saved: by the signal that asked for it, or a sentence."""
        number, self.requested = self.requested, None
        self.__exit__()
        if number is not None and number != signal.SIGINT:
            os.kill(os.getpid(), number)
            # still here: the process handles the signal itself, so only this cell ends
        state = "all of it is kept" if saved else "what was saved before is kept"
        raise Interrupted(
            f"stopped after step {step} of {steps}; {state}. Run this cell, or the same command, "
            "again to go on."
        )
