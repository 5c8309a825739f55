"""The library's progress messages, through Python's logging (the logger ``nofe_lab``).

By default every message is a line on the standard output, as in a notebook or in papermill's log.
Control characters and characters that the output cannot encode are escaped.  A message that cannot
be written, because the disk is full or the pipe is closed, is dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from nofe_lab.config import printable


class _StdoutHandler(logging.Handler):
    """Writes to the current standard output, which notebooks and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(printable(record.getMessage()), sys.stdout)


def write_line(text: str, stream: TextIO | None) -> None:
    """Write a text and a newline; never raises if the stream cannot encode or take it."""
    if stream is None:  # a process without a terminal
        return
    line = "\n".join(map(printable, text.split("\n"))) + "\n"
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            redirect_to_devnull(stream)


def redirect_to_devnull(stream: TextIO) -> None:
    """Discard what is written to a stream, so that Python can exit without an error about it."""
    with suppress(OSError, ValueError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop this thread's messages below warnings: in a notebook they would land in any cell."""
    here = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.WARNING

    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)


log = logging.getLogger("nofe_lab")
log.setLevel(logging.INFO)
log.propagate = False
if not log.handlers:  # there is one if the module is reloaded
    log.addHandler(_StdoutHandler())
