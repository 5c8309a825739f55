"""How images reach the network: the whole split resident on the device, augmented there.

Order and augmentation are functions of (seed, epoch, image index) alone, never of what was drawn
before, so a run that is taken up in the middle, or another process, sees the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, Recipe, derive_seed, one_of
from nofe_lab.data.dataset import Dataset, Split


class Preprocess(nn.Module):
    """From pixels to what a network reads: (pixels - mean) * scale.

    Its statistics come from the training images and travel with the network's weights, so that a
    saved network takes raw images.  `inputs` is ``standardised`` (mean 0 and deviation 1 for each
    channel) or ``mean_image`` (0..255 minus the mean of each pixel, as Caffe does it).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def measure(cls, dataset: Dataset, inputs: str) -> Preprocess:
        """The statistics of a data set's training images."""
        one_of("inputs", inputs, ("standardised", "mean_image"))
        images = dataset.train.images
        total = torch.zeros(images.shape[1:], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for chunk in images.split(4096):
            pixels = chunk.double()
            total += pixels.sum(0)
            squares += pixels.square().sum(0)
        mean = total / len(images)
        scale = torch.ones(1, 1, 1, dtype=torch.float64)
        if inputs == "standardised":
            mean = mean.mean((1, 2), keepdim=True)
            variance = (squares / len(images)).mean((1, 2), keepdim=True) - mean.square()
            scale = variance.clamp(min=1.0).rsqrt()
        return cls(mean.float(), scale.float())

    def forward(self, images: Tensor, flips: Tensor | None = None) -> Tensor:
        """uint8 [N, c, h, w] -> float32 [N, c, h, w]; images where `flips` [N] holds are mirrored.

        Flipping comes after the subtraction, as in Caffe: the mean image is not mirrored with it.
        """
        x = (images.to(self.mean.device).float() - self.mean) * self.scale
        if flips is not None:
            flips = flips.to(x.device)
            x = torch.where(flips[:, None, None, None], x.flip(3), x)
        return x


def steps_per_epoch(split: Split, recipe: Recipe) -> int:
    """Whole batches in a split.  Raises InvalidInput if it holds fewer images than one."""
    if len(split) < recipe.batch_size:
        raise InvalidInput(
            f"batch_size must be at most the {len(split)} training images; got {recipe.batch_size}."
        )
    return len(split) // recipe.batch_size


class Batches:
    """Batches of a training split, in an order and with flips drawn anew each epoch.

    Iterating ``epoch(e)`` gives (images uint8 [B, c, h, w], labels int64 [B], flips bool [B] or
    None), all on `device`.  The last, smaller batch is left out.
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int, device: torch.device) -> None:
        self.steps = steps_per_epoch(split, recipe)
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.batch_size = recipe.batch_size
        self.flips = recipe.flips
        self.seed = seed
        self.device = device

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.steps

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The batches of one epoch, counted from 0."""
        order = self._draw("order", epoch).argsort().to(self.device)
        flips = (self._draw("flips", epoch) < 0.5).to(self.device) if self.flips else None
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield (
                self.images[index],
                self.labels[index],
                None if flips is None else flips[index],
            )

    def _draw(self, use: str, epoch: int) -> Tensor:
        """One number in [0, 1) for each image, the same on every device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, use, epoch))
        return torch.rand(len(self.labels), generator=generator, dtype=torch.float64)


class ImageNetwork(nn.Module):
    """A network together with the preprocessing it was trained with: raw images -> logits.

    uint8 [N, c, h, w] (and, in training, flips bool [N]) -> float32 [N, n].
    Inside, images and weights lie channels-last, which convolutions on CPUs and GPUs prefer.
    """

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, flips: Tensor | None = None) -> Tensor:
        x = self.preprocess(images, flips).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(x)
        return logits
