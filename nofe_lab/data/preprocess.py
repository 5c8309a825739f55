"""Preprocessing: turns raw images into network inputs; saved with a network's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nofe_lab.config import INPUTS, InvalidInput, one_of
from nofe_lab.data.batches import Augmentation, Window
from nofe_lab.data.dataset import Dataset
from nofe_lab.machine import PRECISIONS, autocast
from nofe_lab.recipes import Statistics

MEASURED_VALUES = 2**20
"""Pixel values that are summed at once, in float64, when statistics are measured."""


class Preprocess(nn.Module):
    """Normalises raw images, (pixels - mean) * scale, and crops them to the network's window.

    Its statistics come from the training images and are saved with the network's weights, so a
    saved network takes raw images.  window: (height, width) of the crop; None: the whole image.
    image_shape: accepted (channels, height, width); None: any.
    dtypes: accepted types; those of features (see `nofe_lab.data.features`), or of images.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        window: Window | None = None,
        image_shape: tuple[int, int, int] | None = None,
        dtypes: tuple[torch.dtype, ...] = (torch.uint8,),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.window = window
        self.image_shape = image_shape
        self.dtypes = dtypes

    @classmethod
    def measure(
        cls,
        dataset: Dataset,
        inputs: str,
        window: Window | None = None,
        statistics: Statistics | None = None,
    ) -> Preprocess:
        """Measure the statistics of the training images, or take those of pretrained weights.

        inputs: ``standardised`` (mean 0 and deviation 1 in each channel), ``mean_image`` (0..255
        minus the mean of each pixel, as in Caffe) or ``pretrained``, which takes `statistics`: the
        mean and deviation of each channel for pixels from 0 to 1.  Images with other channels get
        their averages.
        """
        one_of("inputs", inputs, INPUTS)
        train, (channels, height, width) = dataset.train, dataset.image_shape
        if torch.uint8 not in train.dtypes:  # features stay as they are
            shape = train.image_shape if inputs == "mean_image" else (channels, 1, 1)
            scale = torch.ones(1, 1, 1) if inputs == "mean_image" else torch.ones(shape)
            return cls(torch.zeros(shape), scale, window, train.image_shape, train.dtypes)
        if inputs == "pretrained":
            if statistics is None:
                raise InvalidInput(
                    "inputs 'pretrained' are for weights whose input statistics are known; "
                    "accepted: 'standardised' or 'mean_image'."
                )
            mean, deviation = (torch.tensor(each).double()[:, None, None] for each in statistics)
            if len(mean) != channels:
                mean, deviation = (
                    each.mean().expand(channels, 1, 1).clone() for each in (mean, deviation)
                )
            scaled = (255 * mean).float(), (1 / (255 * deviation)).float()
            return cls(*scaled, window, (channels, height, width))

        def sums() -> dict[str, Tensor]:
            total = torch.zeros(train.image_shape, dtype=torch.float64)
            squares = torch.zeros_like(total)
            for images in train.parts(max(MEASURED_VALUES // total.numel(), 1)):
                pixels = images.double()  # sums of whole numbers are exact in any order
                total += pixels.sum(0)
                squares += pixels.square().sum(0)
            return {"total": total, "squares": squares}

        measured = train.measured("pixels", sums)
        total, squares = measured["total"], measured["squares"]
        mean = total / len(train)
        scale = torch.ones(1, 1, 1, dtype=torch.float64)
        if inputs == "standardised":
            mean = mean.mean((1, 2), keepdim=True)
            variance = (squares / len(train)).mean((1, 2), keepdim=True) - mean.square()
            scale = variance.clamp(min=1.0).rsqrt()
        return cls(mean.float(), scale.float(), window, (channels, height, width))

    def check(self, images: object) -> None:
        """Raise InvalidInput unless these are raw images of the accepted type and shape.

        Never reads pixels, so that a network can be exported with its preprocessing.
        """
        shape = self.image_shape or ("channels", "height", "width")
        wanted = f"images uint8 [N, {', '.join(map(str, shape))}] with values from 0 to 255"
        if torch.uint8 not in self.dtypes:
            wanted = f"features of floating point [N, {', '.join(map(str, shape))}]"
        if not isinstance(images, Tensor):
            raise InvalidInput(
                f"a network takes {wanted}; got {type(images).__name__}: predict takes files and "
                "pictures of any size."
            )
        if self.mean.dtype != torch.float32:
            raise InvalidInput(
                f"a network's weights and statistics must be torch.float32; got {self.mean.dtype}: "
                "precision='bf16' computes in bfloat16 without changing them."
            )
        fits = images.ndim == 4 and (
            self.image_shape is None or tuple(images.shape[1:]) == self.image_shape
        )
        if images.dtype not in self.dtypes or not fits or images.layout != torch.strided:
            kind = "" if images.layout == torch.strided else f" {images.layout}"
            raise InvalidInput(
                f"a network takes {wanted}; got {images.dtype}{kind} {list(images.shape)}."
            )
        if images.is_meta and not self.mean.is_meta:
            raise InvalidInput(f"a network takes {wanted}; got images without values (meta).")

    def forward(self, images: Tensor, drawn: Augmentation | None = None) -> Tensor:
        """uint8 [N, c, H, W] -> float32 [N, c, h, w].  Raises InvalidInput for anything else.

        Images are padded, cropped and flipped after the mean is subtracted, as in Caffe: the
        padding equals the mean, and the mean image is not mirrored.
        """
        self.check(images)
        drawn = drawn or Augmentation()
        x = (images.to(self.mean.device).float() - self.mean) * self.scale
        height, width = self.window or (x.shape[2], x.shape[3])
        if drawn.corners is not None:
            x = _windows(pad(x, (drawn.padding,) * 4), drawn.corners + drawn.padding, height, width)
        elif x.shape[2:] != (height, width):
            top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
            x = x[:, :, top : top + height, left : left + width]
        if drawn.flips is not None:
            x = _mirrored(x, drawn.flips)
        return x


def _windows(x: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Crop images [N, c, H, W] to [N, c, height, width], each at its own corner [N, 2]."""
    all_windows = x.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, c, places, places, ...]
    image = torch.arange(len(x), device=x.device)
    return all_windows[image, :, corners[:, 0], corners[:, 1]]


def _mirrored(x: Tensor, flips: Tensor) -> Tensor:
    """Mirror the images [N, c, h, w] for which `flips` [N] is true."""
    forwards = torch.arange(x.shape[3], device=x.device)
    columns = torch.where(flips[:, None], forwards.flip(0), forwards)
    return x.gather(3, columns[:, None, None].expand(x.shape))


def _is_frozen(network: nn.Module, path: str) -> bool:
    """Whether a module's parameters are all frozen; if it has none, those of its parent."""
    while True:
        parameters = list(network.get_submodule(path).parameters())
        if parameters or not path:
            return bool(parameters) and not any(p.requires_grad for p in parameters)
        path = path.rpartition(".")[0]


class ImageNetwork(nn.Module):
    """A network with its preprocessing: raw images -> logits.

    uint8 [N, c, h, w] (and, in training, their augmentation) -> float32 [N, n].
    Images and weights are channels-last inside, which is faster for convolutions.
    precision: of the computation; weights are always float32 (see `machine`).
    """

    def __init__(self, preprocess: Preprocess, network: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = one_of("precision", precision, PRECISIONS)
        self.preprocess = preprocess
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._in_evaluation: list[str] = []
        """Paths of modules that are never in training mode."""

    def freeze(self, path: str) -> None:
        """Keep a part of the network as it is: without gradients, always in evaluation mode."""
        self.network.get_submodule(path).requires_grad_(False)
        self._in_evaluation.append(path)

    def keep_statistics(self) -> None:
        """Let batch normalisations use and keep the statistics that they have, in training too."""
        for path, module in self.network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._in_evaluation.append(path)

    def forward(self, images: Tensor, drawn: Augmentation | None = None) -> Tensor:
        return self._run(self.network, images, drawn)

    def logits(self, images: Tensor, experts: int | None = None) -> Tensor:
        """Logits [N, n] of raw images, uint8 [N, c, h, w].

        experts: how many experts a network of experts with a gate runs for each image.  Raises
        InvalidInput for any other network.
        """
        if experts is None:
            logits: Tensor = self(images)
            return logits
        self.check_experts(experts)
        own_logits: Any = self.network.logits
        return self._run(own_logits, images, None, experts)

    def check_experts(self, experts: int) -> None:
        """Raise InvalidInput unless the network can choose so many experts for an image."""
        own_check: Any = getattr(self.network, "check_experts", None)
        if own_check is None:
            raise InvalidInput(
                f"experts can be chosen (experts={experts}) by a network of experts with a gate; "
                f"got {type(self.network).__name__}, which has no experts."
            )
        own_check(experts)

    def train(self, mode: bool = True) -> ImageNetwork:
        """Set training mode, but keep frozen batch normalisations in evaluation mode."""
        super().train(mode)
        for path, module in self.network.named_modules() if mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_frozen(
                self.network, path
            ):
                module.eval()
        for path in self._in_evaluation if mode else ():
            self.network.get_submodule(path).eval()
        return self

    def _run(
        self,
        network: Callable[..., Tensor],
        images: Tensor,
        drawn: Augmentation | None,
        *arguments: object,
    ) -> Tensor:
        x = self.preprocess(images, drawn).contiguous(memory_format=torch.channels_last)
        with autocast(x.device, self.precision):
            return network(x, *arguments).float()
