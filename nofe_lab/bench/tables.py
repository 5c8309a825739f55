"""What every benchmark does with its table: say where it was measured, print it, save it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nofe_lab.data import Dataset, Resident
from nofe_lab.log import write_line
from nofe_lab.machine import Machine
from nofe_lab.runs.provenance import provenance


def save_table(
    found: pd.DataFrame,
    target: Path | None,
    command: str,
    machine: Machine | None = None,
    **also: Any,
) -> None:
    """Print a table with the machine and the revision of its measurements, and save it as CSV.

    target: the file, whose first line is `command`; None: none.  machine: None: the CPU in fp32.
    also: further columns.
    """
    about = provenance(machine or Machine.pick("cpu", "fp32"), 0.0)
    found = found.assign(
        **also,
        hardware=about["device"],
        threads=about["threads"],
        torch=about["versions"]["torch"],
        revision=about["revision"],
    )
    write_line(found.to_string(index=False), sys.stdout)
    if target is not None:
        target.write_text(f"# {command}\n{found.to_csv(index=False)}", "utf-8")


def noise(C: int, per_class: int = 10, side: int = 32) -> Dataset:
    """A data set of noise with C classes, the same images in all splits."""
    rng = np.random.default_rng(0)
    labels = torch.arange(C).repeat(per_class)
    pixels = rng.integers(256, size=(len(labels), 3, side, side), dtype=np.uint8)
    split = Resident(torch.from_numpy(pixels), labels)
    return Dataset("noise", tuple(f"class {c}" for c in range(C)), split, split, split)
