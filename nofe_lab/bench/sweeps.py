"""How long a sweep takes, beside its trainings one after the other and in two processes by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nofe_lab.bench.tables import save_table
from nofe_lab.config import whole_number
from nofe_lab.files import writable_path
from nofe_lab.machine import cores

RUNS = 20
KNOBS: dict[str, Any] = {"dataset": "lookalikes", "K": 3, "epochs": 4, "device": "cpu"}
"""Of the small runs: base CNNs, each with a seed of its own."""

BY_HAND = """
import json, sys
from nofe_lab import Experiment
first, last = map(int, sys.argv[2:])
for seed in range(first, last):
    there = Experiment(**json.loads(sys.argv[1]), seed=seed)
    there.run(there.base())
"""


def measure(repeats: int, output: str | None, command: str) -> None:
    """Time RUNS trainings in three ways, in turn; print the table.

    output: a CSV file for the table; its first line is `command`.
    """
    whole_number("repeats", repeats, 1)
    target = writable_path("output", output) if output is not None else None
    half = RUNS // 2
    ways = {
        "one after the other": [(0, RUNS)],
        "two processes by hand": [(0, half), (half, RUNS)],
        "sweep": [],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    load: list[float] = []
    for _ in range(repeats):
        for way, parts in ways.items():
            load.append(os.getloadavg()[0])
            seconds[way].append(_seconds(parts))
    usual = float(np.median(seconds["one after the other"]))
    rows: list[dict[str, Any]] = [
        {
            "way": way,
            "runs": RUNS,
            "cores": cores(),
            "repeats": repeats,
            "seconds": round(float(np.median(found)), 1),
            "smallest": round(min(found), 1),
            "largest": round(max(found), 1),
            "ratio": round(usual / float(np.median(found)), 2),
        }
        for way, found in seconds.items()
    ]
    save_table(pd.DataFrame(rows), target, command, load_at_first=round(load[0], 2))


def _seconds(parts: list[tuple[int, int]]) -> float:
    """Of the trainings in a process for each part of the seeds; without parts, in a sweep."""
    own = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    with tempfile.TemporaryDirectory() as folder:
        knobs = KNOBS | {"runs_dir": f"{folder}/runs"}
        commands = [["-c", BY_HAND, json.dumps(knobs), *map(str, part)] for part in parts]
        if not parts:
            grid = Path(folder) / "grid.json"
            entries = {"experiment": knobs, "arms": ["base"], "seeds": list(range(RUNS))}
            grid.write_text(json.dumps(entries))
            commands = [["-m", "nofe_lab", "sweep", str(grid)]]
        begun = time.perf_counter()
        processes = [
            subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
            for words in commands
        ]
        codes = [process.wait() for process in processes]
        spent = time.perf_counter() - begun
        finished = len(list(Path(knobs["runs_dir"]).glob("*/run.json")))
    if any(codes) or finished != RUNS:
        raise RuntimeError(f"{finished} of {RUNS} runs were trained; the processes ended: {codes}")
    return spent
