"""Sources: labelled images by index, wherever they are stored.

Order, splits and resuming are lists of indices, so they work alike for every source.  `Resident`
keeps decoded images in memory; `nofe_lab.data.streaming.Streaming` decodes them when they are asked
for.  Another source sets `labels` and `groups` and overrides the members that `Resident` does.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nofe_lab.config import InvalidInput

KEY_BYTES = 16
"""Length of the digest that identifies an image in a fingerprint."""


def short_digest(*parts: bytes | str) -> bytes:
    """KEY_BYTES bytes of SHA-256 over `parts` and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode())
        digest.update(content)
    return digest.digest()[:KEY_BYTES]


def stack_keys(keys: Iterable[bytes]) -> Tensor:
    """Turn N keys into a tensor, uint8 [N, KEY_BYTES]."""
    found = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
    return torch.from_numpy(found.copy())


class Source(ABC):
    """N images with labels, or the features of a trunk in their place.

    labels: int64 [N], from 0 to C - 1.
    groups: int64 [N], equal for images that must stay in one split, such as photographs of one
    object; None: no groups.
    ``source[index]``, with an index tensor, a slice or a mask, is a smaller source.
    """

    labels: Tensor
    groups: Tensor | None = None
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.uint8,)
    """Types of what it streams: uint8 images, or features of one of several types."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) in pixels, of every image."""

    @property
    @abstractmethod
    def keys(self) -> Tensor:
        """The digest that identifies each image, uint8 [N, KEY_BYTES] (see `short_digest`)."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Source: ...

    @abstractmethod
    def to(self, device: torch.device) -> Source:
        """The same source, streaming to `device`."""

    @abstractmethod
    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each index tensor, uint8 [n, channels, height, width].

        Images and indices are on the source's device.
        """

    def joined(self, others: Sequence[Source]) -> Source:
        """These images and those of other splits of the data set; groups, of no use then, go."""
        parts = [self, *others]
        return Resident(
            torch.cat([part.sample(range(len(part))) for part in parts]),
            torch.cat([part.labels for part in parts]),
            keys=torch.cat([part.keys for part in parts]),
        )

    def with_boxes(self, drawn: Tensor) -> Source:
        """The same images as random resized crops: drawn, float64 [N, 4], see `box_within`.

        Subsets of them are whole again.  Raises InvalidInput where pictures are not kept as they
        were.
        """
        raise InvalidInput(
            "random_crops cuts boxes out of pictures as they were before they were resized; "
            "accepted: images that are streamed, which streaming=True asks for."
        )

    def measured(self, name: str, measure: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What `measure` finds in a pass over all images; a source that is slow to pass keeps it.

        name: of what is measured.
        """
        return dict(measure())

    def with_labels(self, labels: Tensor) -> Source:
        """The same images with other labels, int64 [N]."""
        other = copy.copy(self)
        other.labels = labels
        return other

    def sample(self, index: Tensor | Sequence[int]) -> Tensor:
        """Get the images at n indices: uint8 [n, channels, height, width]."""
        where = torch.as_tensor(index, dtype=torch.int64, device=self.labels.device)
        return next(self.stream([where]))

    def parts(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time."""
        return self.stream(torch.arange(len(self), device=self.labels.device).split(size))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{len(self):,} images"

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the images' keys and labels."""
        content = (self.keys.numpy().tobytes(), self.labels.cpu().numpy().tobytes())
        return short_digest(*content).hex()

    def of_class(self, label: int) -> Tensor:
        """Indices of the images of one class, int64 [n]."""
        return (self.labels == label).nonzero().flatten()

    def subset(self, size: int | None, seed: int) -> Source:
        """Draw a random subset of `size` images; None, or more than there are, keeps them all.

        Every class keeps at least one image, so the subset is larger than `size` if there are more
        classes.
        """
        if size is None or size >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        is_first = torch.zeros(len(self), dtype=torch.bool)
        is_first[np.unique(self.labels[order].numpy(), return_index=True)[1]] = True
        # the first image drawn of each class, then the others as drawn
        ranked = torch.cat([is_first.nonzero(), (~is_first).nonzero()]).flatten()
        kept = ranked[: max(size, int(is_first.sum()))].sort().values
        return self[order[kept]]


class Resident(Source):
    """Decoded images in the memory of the host or of a device.

    images: uint8 [N, channels, height, width]; labels: int64 [N]; both may be NumPy's arrays.
    groups: see `Source`.  keys: uint8 [N, KEY_BYTES], for images from files; None: digests of the
    pixels.
    Raises InvalidInput if images or labels have another type or shape.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        groups: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        images, labels = (
            torch.from_numpy(np.require(t, requirements="W")) if not isinstance(t, Tensor) else t
            for t in (images, labels)
        )
        if images.dtype not in self.dtypes or images.ndim != 4:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            raise InvalidInput(
                f"images must be {names} [N, channels, height, width]; "
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
        return stack_keys(
            short_digest(shape, image.tobytes()) for image in self.images.cpu().numpy()
        )

    def __getitem__(self, index: Tensor | slice) -> Resident:
        groups, keys = (None if t is None else t[index] for t in (self.groups, self._keys))
        return type(self)(self.images[index], self.labels[index], groups, keys)

    def to(self, device: torch.device) -> Resident:
        images, labels = self.images.to(device), self.labels.to(device)
        return type(self)(images, labels, self.groups, self._keys)

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        for index in indices:
            # many times faster than images[index] on a CPU
            yield self.images.index_select(0, index)
