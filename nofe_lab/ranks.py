"""Ranks: the processes, started by torchrun, that train one network together.

Each computes its images of every batch, and DistributedDataParallel adds up the gradients.  What
one must decide for all (maps, checkpoints, files), rank 0 does and tells the others.  The functions
here join the group when they are first called; in a process of its own they change nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import dropout, dropout1d, dropout2d, dropout3d
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from nofe_lab.config import InvalidInput
from nofe_lab.log import log

T = TypeVar("T")

LONGEST = timedelta(days=365)
"""How long ranks wait for each other: rank 0 may wait for another training.  torchrun ends them
when one has died."""

FROM_RANK_0 = "raised on rank 0"
"""Note of an error that rank 0 has told the others, and says itself."""


class RankLost(InvalidInput):
    """Another rank has ended."""


def world_size() -> int:
    """How many ranks there are; 1 unless torchrun has started this process beside others."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def own_rank() -> int:
    """The number of this rank, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def own_device(device: torch.device) -> torch.device:
    """The device of this rank: the CPU, or a GPU of its own.  Raises InvalidInput."""
    if world_size() > 1:
        check_ranks(device, int(os.environ["LOCAL_WORLD_SIZE"]))
        if device.type == "cuda":
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def check_ranks(device: torch.device, ranks: int) -> None:
    """Raise InvalidInput unless `ranks` processes of this machine can share `device`."""
    if str(device) not in ("cpu", "cuda"):
        raise InvalidInput(f"device must be cpu or cuda for {ranks} ranks; got {str(device)!r}.")
    gpus = torch.cuda.device_count() if dist.is_nccl_available() else 0
    if device.type == "cuda" and ranks > gpus:
        raise InvalidInput(
            f"{ranks} ranks need a GPU each, and NCCL, which has {gpus} here: accepted are fewer "
            "ranks, or device='cpu'."
        )


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, or raises there; the others do not call it.

    It must not exchange anything with other ranks itself.
    """
    if world_size() == 1:
        return function()
    _join()
    told: list[Any] = [None]
    if own_rank() == 0:
        try:
            told = [(function(), None)]
        except BaseException as raised:
            told = [(None, raised)]
    with together():
        dist.broadcast_object_list(told, device=torch.device("cpu"))
    result, error = told[0]
    if error is not None:
        if own_rank():
            error.add_note(FROM_RANK_0)
        raise error
    return result  # type: ignore[no-any-return]


def in_turn(function: Callable[[], T]) -> T:
    """Call `function` on rank 0, then on the others.

    What it refuses is said once, and what it writes is there for the others.  It must not exchange
    anything with other ranks itself.
    """
    found: list[T] = []
    from_first(lambda: found.append(function()))
    return found[0] if found else function()


def largest(*values: int) -> list[int]:
    """The largest of each value over all ranks."""
    if world_size() == 1:
        return list(values)
    _join()
    found = torch.tensor(values)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def gathered(part: Tensor, size: int) -> Tensor:
    """The rows of all ranks, [size, ...], in their order in the batch; `part`: this rank's.

    Gradients flow to `part` alone.
    """
    if world_size() == 1:
        return part
    _join()
    rows = part.new_zeros(size, *part.shape[1:])
    rows[own_rank() :: world_size()] = part.detach()
    dist.all_reduce(rows)
    rows[own_rank() :: world_size()] = part
    return rows


def parallel(model: nn.Module, example: Callable[[], Tensor]) -> nn.Module:
    """The model with gradients that are averaged over the ranks; example: makes an input.

    All ranks begin with rank 0's weights.  On GPUs batch normalisation takes its statistics over
    all ranks; on CPUs, where torch cannot, each rank normalises by its own images, and the running
    statistics are rank 0's.
    """
    if world_size() == 1:
        return model
    _join()
    images = example()
    if images.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    trained = [value for value in model.parameters() if value.requires_grad]
    output = model.eval()(images).sum()
    has_unused = any(
        each is None for each in torch.autograd.grad(output, trained, allow_unused=True)
    )
    return DistributedDataParallel(model, find_unused_parameters=has_unused)


@contextmanager
def whole_draws(size: int) -> Iterator[None]:
    """Within this context dropout draws for a whole batch of `size` images, as one process would.

    Each rank keeps the masks of its own images.
    """
    if world_size() == 1:
        yield
        return
    with _WholeDraws(size):
        yield


class _WholeDraws(TorchFunctionMode):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.own = slice(own_rank(), size, world_size())

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (dropout, dropout1d, dropout2d, dropout3d):
            return self._dropped(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _dropped(
        self, function: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        shape, images = list(x.shape), len(range(*self.own.indices(self.size)))
        if not training or images not in shape[:2]:
            dropped: Tensor = function(x, p, training, inplace)
            return dropped
        at = shape.index(images)  # 1 where grouped experts are in front of the images
        shape[at] = self.size
        ones = torch.ones(shape, dtype=x.dtype, device=x.device)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)
        mask = function(ones, p)
        return x * mask[(slice(None),) * at + (self.own,)]


@contextmanager
def together() -> Iterator[None]:
    """Turn the errors of a group that has lost a rank into RankLost."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1:
            raise
        signs = ("gloo", "nccl", "connection")
        if not any(sign in str(error).lower() for sign in signs):
            raise
        raise RankLost(
            f"rank {own_rank()} of {world_size()} has lost another rank, which has ended or was "
            "killed; what was saved before is kept. Give the same command again to go on."
        ) from error


def _join() -> None:
    """Join the other ranks, once."""
    if dist.is_initialized():
        return
    backend, local = "gloo", int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count() and dist.is_nccl_available():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # what Python tells goes from CPU to CPU
    with together():
        store, _, _ = next(dist.rendezvous("env://", timeout=LONGEST))  # type: ignore[no-untyped-call]
        if os.environ["GROUP_WORLD_SIZE"] == "1":
            # torchrun's store still has the addresses of ranks that died in an earlier attempt:
            # https://github.com/pytorch/pytorch/issues/135712
            store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        dist.init_process_group(
            backend, store=store, rank=own_rank(), world_size=world_size(), timeout=LONGEST
        )
    atexit.register(_leave)
    if own_rank():
        log.setLevel(logging.ERROR)  # rank 0 says the rest


def _leave() -> None:
    """End the group's threads before Python ends: one that needs it then aborts the process."""
    gc.collect()  # DistributedDataParallel, which is part of cycles, holds the group
    dist.destroy_process_group()
