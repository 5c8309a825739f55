"""What the library says: one line a message, harmless, and never the end of the work."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

import pytest

from nofe_lab.log import log, quiet, write_line

TRAIN = """
import sys, nofe_lab
experiment = nofe_lab.Experiment("glyphs:4", K=5, epochs=2, batch_size=60, device="cpu",
                                 precision="fp32", runs_dir=sys.argv[1])
experiment.run(experiment.base())
"""


def test_a_message_is_a_line_on_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("50 % of größe")
    log.warning("two\nlines")
    assert capsys.readouterr() == ("50 % of größe\ntwo\\nlines\n", "")


def test_controls_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("a\x1b[31mb \u202ecat")
    assert capsys.readouterr().out == "a\\x1b[31mb \\u202ecat\n"


def test_others_can_listen(capsys: pytest.CaptureFixture[str]) -> None:
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        log.info("said")
    finally:
        log.removeHandler(handler)
    assert heard == ["said"]


def test_what_an_output_cannot_spell_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    write_line("größe", stream)
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Full(), closed()])
def test_what_cannot_be_written_is_dropped(stream: TextIO | None) -> None:
    write_line("lost", stream)


def test_a_thread_can_be_quiet_and_still_warns(capsys: pytest.CaptureFixture[str]) -> None:
    def other() -> None:
        log.info("of another thread")

    with quiet():
        log.info("unheard")
        log.warning("a warning")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    log.info("heard again")
    said = capsys.readouterr().out.splitlines()
    assert said == ["a warning", "of another thread", "heard again"]


@pytest.mark.parametrize("output", ["full", "pipe", "closed"])
def test_a_training_whose_output_is_lost_is_saved(output: str, tmp_path: Path) -> None:
    """Each of these ended the training with a traceback while messages were printed."""
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    if output == "full":
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, env=environment, check=False, timeout=120)
    elif output == "closed":
        shell = ["bash", "-c", 'exec "$@" >&-', "bash", *command]
        done = subprocess.run(shell, env=environment, check=False, timeout=120)
    else:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 0
        done = None
    assert done is None or done.returncode in (0, 120)  # 120: Python could not flush its output
    assert len(list((tmp_path / "runs").glob("flat-*/run.json"))) == 1
