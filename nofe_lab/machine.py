"""The machine that does the arithmetic: its device, and the precision it works in there.

Both are provenance of a run, never part of its identity: another machine takes up the same runs.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nofe_lab.config import InvalidInput, first_line, one_of

PRECISIONS = ("bf16", "fp32")
"""bf16: convolutions and matrix products in bfloat16, weights and all else in float32 (autocast);
fp32: everything in float32, without TF32."""


class OutOfMemory(InvalidInput):
    """The device has too little memory; the message says what to lower."""


@dataclass(frozen=True)
class Machine:
    """A device and a precision."""

    device: torch.device
    """As torch names it."""
    precision: str = "fp32"
    """Of PRECISIONS."""

    @classmethod
    def pick(cls, device: str = "auto", precision: str = "auto") -> Machine:
        """What is asked for.  Raises InvalidInput if the device is not to be had.

        device ``auto``: the CUDA device, else Apple's, else the CPU.  precision ``auto``: bf16
        where the device has instructions for it, else fp32.
        """
        available = ["cpu"]
        if torch.backends.mps.is_available():
            available.insert(0, "mps")
        if torch.cuda.is_available():
            available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        named = re.sub(r"^gpu(?=$|:)", "cuda", str(device))  # what people call it
        device = named if named in available else one_of("device", device, ["auto", *available])
        found = torch.device(available[0] if device == "auto" else device)
        if one_of("precision", precision, ["auto", *PRECISIONS]) == "auto":
            precision = "bf16" if _has_bf16(found) else "fp32"
        return cls(found, precision)

    @property
    def name(self) -> str:
        """What the device calls itself, e.g. "AMD EPYC (2 cores)"."""
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
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def enough_memory(self, what: str, batch_size: int | None = None) -> Iterator[None]:
        """Raise OutOfMemory, which says what to lower, where torch finds too little memory.

        what: the work that was going on.  batch_size: None where it is no training.  The device's
        memory is free again afterwards, so that a notebook can try something smaller at once.
        """
        shortage = None
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = first_line(error)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors
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
    """Whether an error of torch, on any device, speaks of too little memory."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error).lower() for sign in signs
    )


def exact_float32() -> None:
    """Let a GPU compute float32 as such: by default its convolutions round their inputs to TF32."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
