"""Batches of training images: in which order they come, and how each is augmented.

Both are functions of (seed, epoch, image index) alone, never of what was drawn before, so a run
that is resumed in the middle, or another process, sees the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nofe_lab.config import InvalidInput, derive_seed
from nofe_lab.data.source import Source
from nofe_lab.recipes import Recipe

Window = tuple[int, int]
"""(height, width) of the part of an image that a network sees, in pixels."""


class Augmentation(NamedTuple):
    """What was drawn for the images of a batch."""

    flips: Tensor | None = None
    """bool [B]: which images are mirrored; None: none."""
    corners: Tensor | None = None
    """int64 [B, 2]: row and column where the image's window begins; None: in the middle."""
    padding: int = 0
    """Zeros around the image: corners begin at -padding."""


@dataclass(frozen=True)
class Batch:
    """What a training step sees; all tensors are on one device."""

    images: Tensor
    """uint8 [B, channels, height, width], as they are stored."""
    labels: Tensor
    """int64 [B]."""
    index: Tensor
    """int64 [B]: their numbers in the training split."""
    drawn: Augmentation
    """How each is augmented."""


def steps_per_epoch(source: Source, recipe: Recipe) -> int:
    """Whole batches in a source.  Raises InvalidInput if it holds fewer images than one."""
    if len(source) < recipe.batch_size:
        raise InvalidInput(
            f"batch_size must be at most the {len(source)} training images; got "
            f"{recipe.batch_size}."
        )
    return len(source) // recipe.batch_size


class Batches:
    """Batches of a source, in an order and with an augmentation drawn anew for each epoch.

    ``epoch(e)`` gives a `Batch` a step, on `device`.  The last, incomplete batch is dropped.
    window: (height, width) that the network sees; None: the whole image.
    rank, world: of `world` processes that share each batch, this one gets every `world`-th image
    from number `rank` on.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        window: Window | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.steps = steps_per_epoch(source, recipe)
        self.source = source.to(device)
        self.labels = source.labels.to(device)
        self.batch_size = recipe.batch_size
        self.flips = recipe.flips
        self.padding = recipe.padding
        size = source.image_shape[1:]
        self.places = [
            full + 2 * self.padding - seen + 1
            for full, seen in zip(size, window or size, strict=True)
        ]
        self.seed = seed
        self.device = device
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, both counted from 0, from batch `first` on."""
        order = self._draw("order", epoch).argsort().to(self.device)
        flips = (self._draw("flips", epoch) < 0.5).to(self.device) if self.flips else None
        corners = self._corners(epoch)
        whole = order[first * self.batch_size : len(self) * self.batch_size]
        indices = [index[self.rank :: self.world] for index in whole.split(self.batch_size)]
        for index, images in zip(indices, self.source.stream(indices), strict=True):
            drawn = Augmentation(
                None if flips is None else flips[index],
                None if corners is None else corners[index],
                self.padding,
            )
            yield Batch(images, self.labels[index], index, drawn)

    def _corners(self, epoch: int) -> Tensor | None:
        """Where each image's window begins [N, 2], from -padding on; None if there is one place."""
        if max(self.places) == 1:
            return None
        corners = [
            (self._draw(use, epoch) * places).long() - self.padding
            for use, places in zip(("rows", "columns"), self.places, strict=True)
        ]
        return torch.stack(corners, dim=1).to(self.device)

    def _draw(self, use: str, epoch: int) -> Tensor:
        """One number in [0, 1) for each image, the same on every device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, use, epoch))
        return torch.rand(len(self.labels), generator=generator, dtype=torch.float64)
