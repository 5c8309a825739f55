"""From raw images to what a network reads; statistics and window travel with its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nofe_lab.config import InvalidInput, one_of
from nofe_lab.data.batches import Augmentation, Window
from nofe_lab.data.dataset import Dataset
from nofe_lab.machine import PRECISIONS, autocast

MEASURED_VALUES = 2**20
"""Values of the training images whose statistics are taken at once, in float64."""


class Preprocess(nn.Module):
    """From pixels to what a network reads: (pixels - mean) * scale, and the network's window of it.

    Its statistics come from the training images and travel with the network's weights, so that a
    saved network takes raw images.  `inputs` is ``standardised`` (mean 0 and deviation 1 for each
    channel) or ``mean_image`` (0..255 minus the mean of each pixel, as Caffe does it).
    window: (height, width) that is cut out; None: the whole image.  image_shape:
    (channels, height, width) of the images that it takes; None: any.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        window: Window | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.window = window
        self.image_shape = image_shape

    @classmethod
    def measure(cls, dataset: Dataset, inputs: str, window: Window | None = None) -> Preprocess:
        """The statistics of a data set's training images."""
        one_of("inputs", inputs, ("standardised", "mean_image"))
        train, (channels, height, width) = dataset.train, dataset.image_shape
        total = torch.zeros(train.image_shape, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for images in train.parts(max(MEASURED_VALUES // total.numel(), 1)):
            pixels = images.double()  # whole numbers, whose sums are exact in any order
            total += pixels.sum(0)
            squares += pixels.square().sum(0)
        mean = total / len(train)
        scale = torch.ones(1, 1, 1, dtype=torch.float64)
        if inputs == "standardised":
            mean = mean.mean((1, 2), keepdim=True)
            variance = (squares / len(train)).mean((1, 2), keepdim=True) - mean.square()
            scale = variance.clamp(min=1.0).rsqrt()
        return cls(mean.float(), scale.float(), window, (channels, height, width))

    def check(self, images: object) -> None:
        """Raise InvalidInput unless these are raw images as a trained network takes them.

        Looks at types and shapes alone, so that a network can be exported with its preprocessing.
        """
        shape = self.image_shape or ("channels", "height", "width")
        wanted = f"images uint8 [N, {', '.join(map(str, shape))}] with values from 0 to 255"
        if not isinstance(images, Tensor):
            raise InvalidInput(f"a network takes {wanted}; got {type(images).__name__}.")
        if self.mean.dtype != torch.float32:
            raise InvalidInput(
                f"a network's weights and statistics must be torch.float32; got {self.mean.dtype}: "
                "precision='bf16' computes in bfloat16 without changing them."
            )
        fits = images.ndim == 4 and (
            self.image_shape is None or tuple(images.shape[1:]) == self.image_shape
        )
        if images.dtype != torch.uint8 or not fits or images.layout != torch.strided:
            kind = "" if images.layout == torch.strided else f" {images.layout}"
            raise InvalidInput(
                f"a network takes {wanted}; got {images.dtype}{kind} {list(images.shape)}."
            )
        if images.is_meta and not self.mean.is_meta:
            raise InvalidInput(f"a network takes {wanted}; got images without values (meta).")

    def forward(self, images: Tensor, drawn: Augmentation | None = None) -> Tensor:
        """uint8 [N, c, H, W] -> float32 [N, c, h, w].  Raises InvalidInput for anything else.

        Padding, cropping and flipping come after the subtraction, as in Caffe: zeros are then the
        mean, and the mean image is not mirrored.
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
    """Windows [N, c, height, width] of images [N, c, H, W], each from its own corner [N, 2]."""
    all_windows = x.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, c, places, places, ...]
    image = torch.arange(len(x), device=x.device)
    return all_windows[image, :, corners[:, 0], corners[:, 1]]


def _mirrored(x: Tensor, flips: Tensor) -> Tensor:
    """Images [N, c, h, w], those of `flips` [N] from right to left."""
    forwards = torch.arange(x.shape[3], device=x.device)
    columns = torch.where(flips[:, None], forwards.flip(0), forwards)
    return x.gather(3, columns[:, None, None].expand(x.shape))


def _is_frozen(network: nn.Module, path: str) -> bool:
    """Whether no parameter of a module learns; of the module around it, if it has none itself."""
    while True:
        parameters = list(network.get_submodule(path).parameters())
        if parameters or not path:
            return bool(parameters) and not any(p.requires_grad for p in parameters)
        path = path.rpartition(".")[0]


class ImageNetwork(nn.Module):
    """A network together with the preprocessing it was trained with: raw images -> logits.

    uint8 [N, c, h, w] (and, in training, what was drawn for them) -> float32 [N, n].
    Inside, images and weights lie channels-last, which convolutions on CPUs and GPUs prefer.
    precision: what the network computes in; its weights are float32 in any (see `machine`).
    """

    def __init__(self, preprocess: Preprocess, network: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = one_of("precision", precision, PRECISIONS)
        self.preprocess = preprocess
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, drawn: Augmentation | None = None) -> Tensor:
        return self._run(self.network, images, drawn)

    def predict(self, images: Tensor, experts: int | None = None) -> Tensor:
        """Logits [N, n] of raw images; a network of experts with a gate can run a few of them.

        Raises InvalidInput if the network cannot choose among experts.
        """
        chooses: Any = getattr(self.network, "predict", None)
        if chooses is not None:
            return self._run(chooses, images, None, experts)
        if experts is not None:
            raise InvalidInput(
                f"experts can be chosen (experts={experts}) by a network of experts with a gate; "
                f"got {type(self.network).__name__}, which has no experts."
            )
        logits: Tensor = self(images)
        return logits

    def train(self, mode: bool = True) -> ImageNetwork:
        """Training mode, except for frozen batch normalisations: their statistics stay as well."""
        super().train(mode)
        for path, module in self.network.named_modules() if mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_frozen(
                self.network, path
            ):
                module.eval()
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
