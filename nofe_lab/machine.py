"""The machine: a device and a precision.

Both are provenance of a run, not part of its identity: another machine can continue the same run.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import re
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nofe_lab.config import InvalidInput, derive_seed, first_line, one_of
from nofe_lab.ranks import own_device

PRECISIONS = ("bf16", "fp32")
"""bf16: convolutions and matrix products in bfloat16, everything else in float32 (autocast);
fp32: everything in float32, without TF32."""


class OutOfMemory(InvalidInput):
    """The device ran out of memory; the message says which settings to lower."""


@dataclass(frozen=True)
class Machine:
    """A device and a precision."""

    device: torch.device
    precision: str = "fp32"
    """One of PRECISIONS."""

    @classmethod
    def pick(cls, device: str = "auto", precision: str = "auto") -> Machine:
        """Choose a device and a precision.  Raises InvalidInput if the device is not available.

        device ``auto``: CUDA, else Apple's GPU, else the CPU.  precision ``auto``: bf16 if the
        device supports it natively, else fp32.  On several ranks, CUDA is a GPU for each.
        """
        available = ["cpu"]
        if torch.backends.mps.is_available():
            available.insert(0, "mps")
        if torch.cuda.is_available():
            available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        named = re.sub(r"^gpu(?=$|:)", "cuda", str(device))  # a common alias
        device = named if named in available else one_of("device", device, ["auto", *available])
        found = own_device(torch.device(available[0] if device == "auto" else device))
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
        """Turn out-of-memory errors into OutOfMemory, which says which settings to lower.

        what: the work in progress.  batch_size: of the training, else None.  Frees the device's
        memory, so that a notebook can try smaller settings at once.
        """
        shortage = None
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
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


def cores() -> int:
    """How many cores this process may use, of the machine's or its container's."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max 100000" where there is no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        n = min(n, max(int(quota) // int(period), 1))
    return n


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Make networks on `device` compute in `precision` within a context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of any device ran out."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error).lower() for sign in signs
    )


_DRAWING = threading.RLock()
"""Held from the seeding of the process's random generators to the last draw: threads take turns."""


@contextmanager
def seeded(*parts: object, device: torch.device | None = None) -> Iterator[None]:
    """Seed the random generators of torch, NumPy and Python by `parts`; restore them afterwards.

    device: a GPU whose generator is seeded and restored too.
    """
    seed = derive_seed(*parts)
    kind = "cpu" if device is None else device.type
    with _DRAWING, torch.random.fork_rng([device] if kind == "cuda" else []):
        of_mps = torch.mps.get_rng_state() if kind == "mps" else None
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would look for all devices
        if kind == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif kind == "mps":
            torch.mps.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            if of_mps is not None:
                torch.mps.set_rng_state(of_mps)


def exact_float32() -> None:
    """Turn off TF32, to which GPUs round the float32 inputs of convolutions by default."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def median_seconds(
    machine: Machine, repeats: int, functions: Sequence[Callable[[], object]]
) -> list[float]:
    """Time functions, run in turn after a warm-up round: the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for times, function in zip(seconds, functions, strict=True):
            machine.synchronize()
            started = time.perf_counter()
            function()
            machine.synchronize()
            if repeat:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
