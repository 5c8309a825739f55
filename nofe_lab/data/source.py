"""Where images come from: a source gives images by their numbers, wherever they lie.

Order, splits and resuming are lists of numbers, so they are the same for every form of source.
`Resident` keeps decoded images in memory.  A form that reads files while training is to override
the same five members.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nofe_lab.config import InvalidInput

KEY_BYTES = 16
"""Of the digest that stands for an image in a fingerprint."""


def key_of(*parts: bytes | str) -> bytes:
    """The digest that stands for an image: of its file and its preparation, or of its pixels."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode())
        digest.update(content)
    return digest.digest()[:KEY_BYTES]


def stacked(keys: Iterable[bytes]) -> Tensor:
    """Keys as uint8 [N, KEY_BYTES]."""
    found = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
    return torch.from_numpy(found.copy())


class Source(ABC):
    """N images with labels.

    labels: int64 [N], from 0 to C - 1.
    groups: int64 [N], equal for images that must stay in one split, such as photographs of one
    object; None: each stands alone.
    ``source[index]`` gives a smaller source for an index tensor, a slice or a mask.
    """

    labels: Tensor
    groups: Tensor | None = None

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) in pixels, of every image."""

    @property
    @abstractmethod
    def keys(self) -> Tensor:
        """A digest of each image, uint8 [N, KEY_BYTES] (see `key_of`)."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Source: ...

    @abstractmethod
    def to(self, device: torch.device) -> Source:
        """The same images, for batches that are wanted on `device`."""

    @abstractmethod
    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each index tensor in turn, uint8 [n, channels, height, width].

        They are on the device that the source was made for, and so are the indices.
        """

    def sample(self, index: Tensor | Sequence[int]) -> Tensor:
        """The images of n indices: uint8 [n, channels, height, width]."""
        return next(self.stream([torch.as_tensor(index, dtype=torch.int64)]))

    def parts(self, size: int) -> Iterator[Tensor]:
        """All images in their order, `size` at a time."""
        return self.stream(torch.arange(len(self)).split(size))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{len(self):,} images"

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the images' keys and labels."""
        content = (self.keys.numpy().tobytes(), self.labels.numpy().tobytes())
        return key_of(*content).hex()

    def of_class(self, label: int) -> Tensor:
        """Indices int64 [n] of the images of one class."""
        return (self.labels == label).nonzero().flatten()

    def subset(self, size: int | None, seed: int) -> Source:
        """A random subset of `size` images, drawn by `seed`; all of them if None or too few.

        Every class of the split has at least one image in it, which takes the place of the image
        drawn last; the subset is larger than `size` only where there are more classes than that.
        """
        if size is None or size >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        is_first = torch.zeros(len(self), dtype=torch.bool)
        is_first[np.unique(self.labels[order].numpy(), return_index=True)[1]] = True
        # of each class the image drawn first, then others as they were drawn; a plain draw of
        # `size` images if that leaves no class out
        places = torch.cat([is_first.nonzero(), (~is_first).nonzero()]).flatten()
        kept = places[: max(size, int(is_first.sum()))].sort().values
        return self[order[kept]]


class Resident(Source):
    """Images in memory, of the host or of a device.

    images: uint8 [N, channels, height, width].  labels, groups: see `Source`.  keys: uint8
    [N, KEY_BYTES], where the images come from files; None: digests of their pixels.
    Raises InvalidInput unless types and shapes are these.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        groups: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InvalidInput(
                "images must be uint8 [N, channels, height, width]; "
                f"got {images.dtype} {list(images.shape)}."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise InvalidInput(
                f"labels must be int64 [{len(images)}]; got {labels.dtype} {list(labels.shape)}."
            )
        self.images = images
        self.labels = labels
        self.groups = groups
        self._keys = keys

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def keys(self) -> Tensor:
        if self._keys is not None:
            return self._keys
        shape = repr(self.image_shape)
        return stacked(key_of(shape, image.tobytes()) for image in self.images.cpu().numpy())

    def __getitem__(self, index: Tensor | slice) -> Resident:
        groups, keys = (None if t is None else t[index] for t in (self.groups, self._keys))
        return Resident(self.images[index], self.labels[index], groups, keys)

    def to(self, device: torch.device) -> Resident:
        return Resident(self.images.to(device), self.labels.to(device), self.groups, self._keys)

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        for index in indices:
            # many times faster than images[index] on a CPU
            yield self.images.index_select(0, index)
