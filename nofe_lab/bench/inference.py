"""How long `Classifier.predict` takes, and how much memory, with all experts and with two."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from nofe_lab.bench.tables import save_table
from nofe_lab.config import whole_number
from nofe_lab.files import writable_path
from nofe_lab.inference import Classifier, load
from nofe_lab.machine import Machine, median_seconds
from nofe_lab.runs import Run
from nofe_lab.stages import Experiment

BATCHES = (1, 256)
EXPERTS = (None, 2)
PHOTO = (480, 640, 3)
"""Of the photographs that are read from files."""

NETWORKS: dict[str, dict[str, Any]] = {"alexnet_quick": {}, "resnet18": {"branch_width": 0.25}}
"""K = 10 and a gate each; they are hardly trained, which changes no time."""

_MEMORY = """
import sys
from nofe_lab.bench.inference import pictures
from nofe_lab.inference import load

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

run, kind, batch, experts = sys.argv[1:]
model, what = load(run), pictures(kind, int(batch))
model.predict(what[:1])
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = status("VmRSS")
model.predict(what, experts=int(experts) or None)
print((status("VmHWM") - before) / 1024)
"""


def measure(repeats: int, output: str | None, command: str) -> None:
    """Time `predict` on arrays of the network's size and on JPEG files; print the table.

    One row a network, kind of picture, batch and number of experts.  ms: the median over `repeats`
    of the whole batch, measured in turn with the other numbers of experts.  peak_mb: what the
    process grew by while it answered, in a process of its own (Linux).
    output: a CSV file for the table; its first line is `command`.
    """
    whole_number("repeats", repeats, 1)
    target = writable_path("output", output) if output is not None else None
    machine = Machine.pick("cpu", "fp32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            model = hardly_trained(network, folder, **NETWORKS[network])
            for kind in ("arrays", "files"):
                for batch in BATCHES:
                    what = pictures(kind, batch)
                    asked = [partial(_answer, model, what, m) for m in EXPERTS]
                    seconds = median_seconds(machine, repeats, asked)
                    for m, each in zip(EXPERTS, seconds, strict=True):
                        rows.append(
                            {
                                "network": network,
                                "pictures": kind,
                                "batch": batch,
                                "experts": m or "all",
                                "ms": 1000 * each,
                                "peak_mb": _peak(model.run, kind, batch, m),
                            }
                        )
    save_table(pd.DataFrame(rows), target, command, repeats=repeats)


def pictures(kind: str, n: int) -> list[np.ndarray | Path]:
    """n pictures of noise: arrays 32 x 32, or one JPEG photograph n times."""
    rng = np.random.default_rng(0)
    if kind == "arrays":
        return list(rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8))
    path = Path(tempfile.gettempdir()) / "nofe_lab_bench.jpg"
    Image.fromarray(rng.integers(256, size=PHOTO, dtype=np.uint8)).save(path)
    return [path] * n


def _answer(model: Classifier, what: list[np.ndarray | Path], experts: int | None) -> None:
    model.predict(what, experts)


def hardly_trained(network: str, folder: str, **knobs: Any) -> Classifier:
    """A network of ten experts with a gate, which has seen every image once; changes no time."""
    usual: dict[str, Any] = {
        "dataset": "glyphs:2",
        "K": 10,
        "epochs": 1,
        "batch_size": 50,
        "trunk": "scratch",
        "specialties": "random",
        "device": "cpu",
    }
    experiment = Experiment(backbone=network, runs_dir=folder, **(usual | knobs))
    (run,) = experiment.run(experiment.gate())
    return load(run)


def _peak(run: Run, kind: str, batch: int, experts: int | None) -> float:
    words = [str(run.path), kind, str(batch), str(experts or 0)]
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, *words], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])
