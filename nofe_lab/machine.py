"""The machine that computes: its device, and its precision.

Both are provenance of a run, not part of its identity: another machine can continue the same run.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nofe_lab.config import InvalidInput, first_line, one_of

PRECISIONS = ("bf16", "fp32")
"""bf16: convolutions and matrix products in bfloat16, weights and all else in float32 (autocast);
fp32: everything in float32, without TF32."""


class OutOfMemory(InvalidInput):
    """The device ran out of memory; the message says what to lower."""


@dataclass(frozen=True)
class Machine:
    """A device and a precision."""

    device: torch.device
    """As torch names it."""
    precision: str = "fp32"
    """Of PRECISIONS."""

    @classmethod
    def pick(cls, device: str = "auto", precision: str = "auto") -> Machine:
        """Choose a machine.  Raises InvalidInput if the device is not available.

        device ``auto``: CUDA, else Apple's GPU, else the CPU.  precision ``auto``: bf16 if the
        device has instructions for it, else fp32.
        """
        available = ["cpu"]
        if torch.backends.mps.is_available():
            available.insert(0, "mps")
        if torch.cuda.is_available():
            available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        named = re.sub(r"^gpu(?=$|:)", "cuda", str(device))  # a common name for it
        device = named if named in available else one_of("device", device, ["auto", *available])
        found = torch.device(available[0] if device == "auto" else device)
        if one_of("precision", precision, ["auto", *PRECISIONS]) == "auto":
            precision = "bf16" if _has_bf16(found) else "fp32"
        return cls(found, precision)

    @property
    def name(self) -> str:
        """The name of the hardware, e.g. "AMD EPYC (2 cores)"."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        model = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.is_file():
            lines = cpuinfo.read_text().splitlines()
            named = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
            model = named[0] if named else model
        label = f"{model} ({os.cpu_count()} cores)"
        return label if self.device.type == "cpu" else f"{self.device.type} of {label}"

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def enough_memory(self, what: str, batch_size: int | None = None) -> Iterator[None]:
        """Turn torch's errors about too little memory into OutOfMemory, which says what to lower.

        what: the work in progress.  batch_size: that of a training, else None.  The device's memory
        is freed, so that a notebook can try something smaller at once.
        """
        shortage = None
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = first_line(error)
            traceback.clear_frames(error.__traceback__)  # its frames hold the tensors
            error.__traceback__ = None
        if shortage is not None:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            batch = f"batch_size (it is {batch_size}), " if batch_size is not None else ""
            raise OutOfMemory(
                f"{what}: {self.device} has too little memory ({shortage}); lower {batch}"
                "image_size or branch_width, or take a smaller backbone. What was saved before is "
                "kept."
            )

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context in which networks on `device` compute in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, of any kind, ran out of memory."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error).lower() for sign in signs
    )


def exact_float32() -> None:
    """Turn TF32 off, to which a GPU's convolutions round float32 inputs by default."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def in_turn(machine: Machine, repeats: int, sides: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each side.  They run in turn, after one round that warms up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for each, side in zip(seconds, sides, strict=True):
            machine.synchronize()
            started = time.perf_counter()
            side()
            machine.synchronize()
            if repeat:
                each.append(time.perf_counter() - started)
    return [statistics.median(each) for each in seconds]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
