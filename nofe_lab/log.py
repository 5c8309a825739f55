"""What the library says while it works, through Python's logging (the logger ``nofe_lab``).

By default every message is one line on the standard output, as in a notebook or in papermill's log.
Nothing that is said can do harm: controls in strangers' names are written out, what an output
cannot spell is escaped, and what cannot be written at all, on a full disk or into a pipe that
nobody reads any more, is dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

from nofe_lab.config import printable


class _Output(logging.Handler):
    """Writes to whatever the standard output is at the moment: notebooks and tests change it."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(printable(record.getMessage()), sys.stdout)


def write_line(text: str, stream: TextIO | None) -> None:
    """Write a text, or what the stream can take of it; never raises for the stream's sake."""
    if stream is None:  # a process without a terminal
        return
    line = "\n".join(map(printable, text.split("\n"))) + "\n"
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            give_up(stream)


def give_up(stream: TextIO) -> None:
    """Let what is written to a stream vanish: else Python ends with an error about what is left."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


log = logging.getLogger("nofe_lab")
log.setLevel(logging.INFO)
log.propagate = False
if not log.handlers:  # else the module was loaded anew
    log.addHandler(_Output())
