"""Streaming: images that are read and decoded while a network trains, for data beyond memory.

Which images a batch has, and how they are cut and mirrored, is drawn in the main process.  Workers
of torch's DataLoader are told numbers and return pixels, so what a network sees depends neither on
how many there are nor on when they answer.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import DataLoader

from nofe_lab.config import InvalidInput, first_line, some_of
from nofe_lab.data.listing import Encoded, keep, kept
from nofe_lab.data.pictures import PixelBudget, UnreadableImage, decode, only_bombs_reported
from nofe_lab.data.source import Source
from nofe_lab.files import available_memory
from nofe_lab.log import log
from nofe_lab.machine import cores

RESIDENT_SHARE = 1 / 3
"""The largest share of the memory that is available which resident images may take."""

MAX_WORKERS = 8
"""Most workers that are started unasked."""

_SHARED_MEMORY = "/dev/shm"


class Request(NamedTuple):
    """What a worker is told: n images."""

    rows: NDArray[np.int64]
    """[n]."""
    boxes: NDArray[np.float64] | None
    """[n, 4], see `box_within`; None: the centre square of each."""


class Answer(NamedTuple):
    """What a worker returns."""

    images: Tensor | NDArray[np.uint8]
    """uint8 [n, 3, height, width]; an array where memory cannot be shared."""
    failed: dict[int, str]
    """Row -> why it could not be decoded."""


class Pictures:
    """Encoded images of all splits of a data set, and the processes that decode them.

    workers: processes that decode; None: as many as there are cores or, if fewer, threads of this
    process, at most MAX_WORKERS; 0: this one, as always where this is a daemon of multiprocessing,
    which may start none.
    """

    def __init__(self, decoder: Decoder, workers: int | None = None) -> None:
        self.decoder = decoder
        # a training of a sweep, or a rank, has its share of the cores as threads
        usual = min(cores(), torch.get_num_threads(), MAX_WORKERS)
        self.workers = usual if workers is None else workers
        self._idle: list[_Loader] = []
        self._choosing = threading.Lock()

    def __reduce__(self) -> tuple[type[Pictures], tuple[Decoder, int]]:
        return Pictures, (self.decoder, self.workers)

    def decoded(self, requests: Sequence[Request], pinned: bool = False) -> Iterator[Tensor]:
        """Yield the images of each request, in their order.

        Raises InvalidInput if an image has changed or cannot be decoded, or a worker was killed.
        """
        if len(requests) < 2:  # a look at some images is not worth a process
            with ThreadPoolExecutor() as pool:
                for request in requests:
                    yield self._images(self.decoder.in_threads(request, pool))
            return
        if self.workers == 0 or multiprocessing.current_process().daemon:
            for request in requests:
                yield self._images(self.decoder.__getitems__(request))
            return
        with self._loader(pinned) as loader:
            loader.requests.given = requests
            # ended while an answer, a handle of shared memory, was fetched from it
            with dead_workers_said(EOFError, ConnectionError):
                for answer in loader:
                    yield self._images(answer)

    @contextmanager
    def _loader(self, pinned: bool) -> Iterator[_Loader]:
        """A loader that is not in use: while a network trains, it may be evaluated."""
        with self._choosing:
            for loader in [each for each in self._idle if not each.is_sound]:
                self._idle.remove(loader)
                loader.stop()
            fitting = [loader for loader in self._idle if loader.pin_memory == pinned]
            if fitting:
                self._idle.remove(fitting[0])
        loader = fitting[0] if fitting else _Loader(self.decoder, self.workers, pinned)
        if loader._iterator is None:  # it starts its workers now
            # they are told to end before multiprocessing closes their queues (10), and kills by a
            # signal that they do not hear
            Finalize(None, _stop_all, exitpriority=100)
        try:
            yield loader
        except GeneratorExit:  # nobody wants the rest: it is dropped when the next requests come
            self._idle.append(loader)
            raise
        except BaseException:
            loader.stop()
            raise
        self._idle.append(loader)

    def _images(self, answer: Answer) -> Tensor:
        if answer.failed:
            listed = [f"{self.decoder.name(row)} ({why})" for row, why in answer.failed.items()]
            raise InvalidInput(
                f"images cannot be read: {some_of(listed, 10, '; ')}; what was saved before is "
                "kept.  skip_unreadable=True would find damaged ones before the training."
            )
        return torch.as_tensor(answer.images)


class Decoder(torch.utils.data.Dataset[Answer]):
    """What a worker knows and does.

    parts: images of each split; rows are counted through all of them.  image_shape: (3, height,
    width) of every image once decoded.  image_size, bit_depth: see `decode`.
    """

    def __init__(
        self,
        parts: Sequence[Encoded],
        image_shape: tuple[int, int, int],
        image_size: int | None,
        bit_depth: int,
    ) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.image_shape = image_shape
        self.image_size = image_size
        self.bit_depth = bit_depth

    def __getitems__(self, request: Request) -> Answer:
        with only_bombs_reported():
            return self._decoded(request, map)

    def in_threads(self, request: Request, pool: ThreadPoolExecutor) -> Answer:
        with only_bombs_reported():
            return self._decoded(request, pool.map)

    def _decoded(self, request: Request, apply: Callable[..., Iterable[str]]) -> Answer:
        n = len(request.rows)
        images = _room((n, *self.image_shape))
        pixels = images.numpy() if isinstance(images, Tensor) else images
        budget = PixelBudget()

        def fill(i: int) -> str:
            try:
                box = None if request.boxes is None else request.boxes[i].tolist()
                encoded = self.encoded(int(request.rows[i]))
                found = decode(encoded, self.image_size, self.bit_depth, budget, box).pixels
                if found.shape[:2] != self.image_shape[1:]:
                    raise UnreadableImage(f"it has {found.shape[1]} x {found.shape[0]} pixels")
                pixels[i] = found.transpose(2, 0, 1)
            except UnreadableImage as error:
                return str(error)
            return ""

        reasons = list(apply(fill, range(n)))
        return Answer(images, {int(request.rows[i]): why for i, why in enumerate(reasons) if why})

    def _place(self, row: int) -> tuple[Encoded, int]:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part], row - (int(self.ends[part - 1]) if part else 0)

    def encoded(self, row: int) -> Any:
        part, index = self._place(row)
        return part[index]

    def name(self, row: int) -> str:
        part, index = self._place(row)
        return part.name(index)


def _room(shape: tuple[int, ...]) -> Tensor | NDArray[np.uint8]:
    """Room for images: in a worker shared memory, or an array where there is too little of it.

    Containers often allow 64 MB, beyond which a process that shares memory dies of a bus error.
    Memory that is shared only when it is sent is never freed by torch 2.13.
    """
    size = int(np.prod(shape))
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    is_limited = os.path.isdir(_SHARED_MEMORY)
    if is_limited and shutil.disk_usage(_SHARED_MEMORY).free < size * 4 * MAX_WORKERS:
        return np.empty(shape, dtype=np.uint8)
    shared = torch.UntypedStorage._new_shared(size)  # as torch's own collation does
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


class _Requests:
    """The batch sampler of a `_Loader`: what is asked for next."""

    def __init__(self) -> None:
        self.given: Sequence[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


class _Loader(DataLoader[Answer]):
    """A DataLoader that lives on, with its workers, from one list of requests to the next."""

    def __init__(self, decoder: Decoder, workers: int, pinned: bool) -> None:
        self.requests: _Requests
        requests = _Requests()
        super().__init__(
            decoder,
            batch_sampler=requests,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            persistent_workers=True,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        self.requests = requests
        _OPEN.add(self)

    def check_worker_number_rationality(self) -> None:
        """More workers than cores are the user's choice, not a reason to warn."""

    @property
    def is_sound(self) -> bool:
        """Whether none of its workers, if it has started any, has died."""
        workers = () if self._iterator is None else self._iterator._workers  # type: ignore[attr-defined]
        return all(worker.is_alive() for worker in workers)

    def stop(self) -> None:
        """End the workers, also if some have died."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            with suppress(InvalidInput), dead_workers_said():
                try:
                    iterator._shutdown_workers()  # type: ignore[attr-defined]
                finally:  # one that lives on would keep this process from ending
                    for worker in iterator._workers:  # type: ignore[attr-defined]
                        worker.kill()


@contextmanager
def dead_workers_said(*also: type[Exception]) -> Iterator[None]:
    """Raise InvalidInput where a worker of a loader dies.

    torch notices in the main thread, whatever that is doing.  also: what else means it here.
    """
    noticed: tuple[type[Exception], ...] = (RuntimeError, *also)
    try:
        yield
    except noticed as error:
        torch_says_so = "DataLoader worker (pid" in str(error)
        raised_by_worker = "in DataLoader worker process" in str(error)
        if raised_by_worker or not (torch_says_so or isinstance(error, also)):
            raise
        raise InvalidInput(
            f"a process that reads images has died ({first_line(error)}): it may have been "
            "killed for lack of memory, of which fewer workers take less; where processes "
            "are not forked, a script must do its work under if __name__ == '__main__'.  "
            "What was saved before is kept."
        ) from error


_OPEN: WeakSet[_Loader] = WeakSet()


def _stop_all() -> None:
    for loader in list(_OPEN):
        loader.stop()


_INHERITED: list[object] = []
"""Iterators of the process that this one was forked from: to end them would end its workers."""


def _leave_workers() -> None:
    for loader in list(_OPEN):
        _INHERITED.append(loader._iterator)
        loader._iterator = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_workers)


def _as_it_is(answer: Any) -> Any:
    return answer


def _begin(worker: int) -> None:
    """Begin a worker: signals that stop a training are for the process that trains."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def is_streamed(
    name: str, images: int, size: tuple[int, int], streaming: bool | None, packed: int = 0
) -> bool:
    """Whether a data set's images are streamed: if asked for, or if they would fill the memory.

    images: their number; size: (width, height) of each, in pixels; packed: bytes of what is read
    before they are decoded.  Says so if nobody has asked.
    """
    if streaming is not None:
        return streaming
    needed, there = images * 3 * size[0] * size[1] + packed, available_memory()
    if needed <= RESIDENT_SHARE * there:
        return False
    log.info(
        f"{name}: {images:,} images of {size[0]} x {size[1]} pixels take {needed / 1e9:.1f} GB, "
        f"more than a third of the available memory ({there / 1e9:.1f} GB): they are decoded while "
        "networks train (streaming=False keeps them in memory)."
    )
    return True


class Streaming(Source):
    """Images that are decoded when they are asked for, in workers of torch's DataLoader.

    pictures: where they are.  rows: int64 [N], their numbers there.  labels: int64 [N].  groups,
    keys: see `Source`.
    """

    def __init__(
        self,
        pictures: Pictures,
        rows: Tensor,
        labels: Tensor,
        groups: Tensor | None,
        keys: Tensor,
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.labels = labels
        self.groups = groups
        self._keys = keys
        self.device = torch.device("cpu")
        self.boxes: Tensor | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.pictures.decoder.image_shape

    @property
    def keys(self) -> Tensor:
        return self._keys

    def __getitem__(self, index: Tensor | slice) -> Streaming:
        groups = None if self.groups is None else self.groups[index]
        found = Streaming(
            self.pictures, self.rows[index], self.labels[index], groups, self._keys[index]
        )
        found.device = self.device
        return found

    def to(self, device: torch.device) -> Streaming:
        other = copy.copy(self)
        other.labels, other.device = self.labels.to(device), device
        return other

    def joined(self, others: Sequence[Source]) -> Source:
        if not all(isinstance(o, Streaming) and o.pictures is self.pictures for o in others):
            return super().joined(others)
        parts = [self, *(other for other in others if isinstance(other, Streaming))]
        rows, labels, keys = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("rows", "labels", "keys")
        )
        return Streaming(self.pictures, rows, labels, None, keys)

    def with_boxes(self, drawn: Tensor) -> Streaming:
        """The same images as random resized crops: float64 [N, 4], see `box_within`."""
        other = copy.copy(self)
        other.boxes = drawn.cpu()
        return other

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        requests = []
        for index in indices:
            there = index.cpu()
            boxes = None if self.boxes is None else self.boxes[there].numpy()
            requests.append(Request(self.rows[there].numpy(), boxes))
        pinned = self.device.type == "cuda"
        for images in self.pictures.decoded(requests, pinned):
            yield images.to(self.device, non_blocking=pinned)

    def measured(self, name: str, measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        file = f"{name}-{self.fingerprint}.safetensors"
        if (content := kept(file)) is not None:
            return load(content)
        found = dict(measure())
        keep(file, save(found))
        return found
