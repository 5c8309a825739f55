"""Batches of training images: their order and their augmentation.

Both are functions of (seed, epoch, image index) alone, never of earlier draws, so a resumed run or
another process sees the same samples.
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
    """The random augmentation of a batch of images."""

    flips: Tensor | None = None
    """bool [B]: which images are mirrored; None: no image."""
    corners: Tensor | None = None
    """int64 [B, 2]: row and column of the window's top left pixel; None: the window is centred."""
    padding: int = 0
    """Width of the border of zeros around each image: corners begin at -padding."""


@dataclass(frozen=True)
class Batch:
    """The input of a training step; all tensors are on one device."""

    images: Tensor
    """uint8 [B, channels, height, width], not augmented yet."""
    labels: Tensor
    """int64 [B]."""
    index: Tensor
    """int64 [B]: indices of the images in the training split."""
    drawn: Augmentation
    """How each image is augmented."""


def steps_per_epoch(source: Source, recipe: Recipe) -> int:
    """Count the full batches of a source.  Raises InvalidInput if there is none."""
    if len(source) < recipe.batch_size:
        raise InvalidInput(
            f"batch_size must be at most the {len(source)} training images; got "
            f"{recipe.batch_size}."
        )
    if torch.uint8 not in source.dtypes and (recipe.flips or recipe.padding or recipe.random_crops):
        raise InvalidInput(
            "flips, random_crops and padding need images; got features of a frozen trunk, which "
            "were made without them: accepted are flips=False, random_crops=False and a preset "
            "without padding."
        )
    if recipe.random_crops:
        source.with_boxes(torch.empty(0, 4))  # refuses where pictures are not kept
    return len(source) // recipe.batch_size


class Batches:
    """Batches of a source, shuffled and augmented differently in each epoch.

    ``epoch(e)`` yields a `Batch` per step, on `device`.  The last, incomplete batch is dropped.
    window: (height, width) that the network sees; None: the whole image.
    rank, world: this process is number `rank` of `world` processes that share each batch; it gets
    every `world`-th image.
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
        if not 0 <= rank < world <= recipe.batch_size:
            raise InvalidInput(
                f"rank must be below world, and world at most batch_size {recipe.batch_size}; got "
                f"rank {rank} of {world}."
            )
        self.steps = steps_per_epoch(source, recipe)
        self.source = source.to(device)
        self.labels = source.labels.to(device)
        self.batch_size = recipe.batch_size
        self.flips = recipe.flips
        self.crops = recipe.random_crops
        self.padding = recipe.padding
        size = source.image_shape[1:]
        self.positions = [
            full + 2 * self.padding - seen + 1
            for full, seen in zip(size, window or size, strict=True)
        ]
        self.seed = seed
        self.device = device
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `first` on; both count from 0."""
        order = self._draw("order", epoch).argsort().to(self.device)
        flips = (self._draw("flips", epoch) < 0.5).to(self.device) if self.flips else None
        corners = self._corners(epoch)
        source = self.source
        if self.crops:
            boxes = [self._draw(use, epoch) for use in ("area", "shape", "top", "left")]
            source = source.with_boxes(torch.stack(boxes, dim=1))
        rest = order[first * self.batch_size : len(self) * self.batch_size]
        indices = [index[self.rank :: self.world] for index in rest.split(self.batch_size)]
        for index, images in zip(indices, source.stream(indices), strict=True):
            drawn = Augmentation(
                None if flips is None else flips[index],
                None if corners is None else corners[index],
                self.padding,
            )
            yield Batch(images, self.labels[index], index, drawn)

    def _corners(self, epoch: int) -> Tensor | None:
        """Draw the top left pixels of all windows [N, 2]; None if only one position is possible."""
        if max(self.positions) == 1:
            return None
        corners = [
            (self._draw(use, epoch) * positions).long() - self.padding
            for use, positions in zip(("rows", "columns"), self.positions, strict=True)
        ]
        return torch.stack(corners, dim=1).to(self.device)

    def _draw(self, use: str, epoch: int) -> Tensor:
        """Draw a number in [0, 1) for each image, the same on every device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, use, epoch))
        return torch.rand(len(self.labels), generator=generator, dtype=torch.float64)
