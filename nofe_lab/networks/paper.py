"""The six published networks and their published recipes.

From the layer and solver files of the paper's authors (Caffe).  Two habits of Caffe matter: pooling
rounds the output size up (``ceil_mode``) and averages only over cells inside the feature map, and
biases have their own learning-rate and decay multipliers.

No base-CNN schedule was published: each base CNN uses the NofE stage's, with flips.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from nofe_lab.networks.backbone import Backbone
from nofe_lab.recipes import NetworkConfig, Preset, Recipe, quick_preset

FIRST_CHANNELS = 3
"""Input channels of the first convolution."""


class WithinChannelLRN(nn.Module):
    """Caffe's local response normalisation within channels; torch's is across channels.

    [N, c, h, w] -> the same: x / (1 + alpha * mean of x^2)^beta, the mean over a zero-padded
    size x size window around each cell.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        mean = avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x / (1 + self.alpha * mean) ** self.beta

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, inputs, h, w] -> [N, outputs, h/stride, w/stride].

    If the shape changes, the shortcut subsamples by `stride` and appends channels of zeros; it has
    no parameters.  hidden: channels between the convolutions, by default `outputs`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden or outputs
        self.stride, self.extra = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, hidden, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = pad(shortcut, (0, 0, 0, 0, 0, self.extra))
        result: Tensor = self.relu2(y + shortcut)
        return result


class _PublishedBackbone(Backbone):
    """Base class of the published networks."""

    hidden: tuple[int, ...]
    """Published channels of a branch's layers, from front to back, without its classifier."""
    multiple: int = 1
    """Scaled channels are multiples of this."""

    def pass_on(self, branch: nn.Module) -> None:
        for name in self.added:
            _pass_on(branch.get_submodule(name))

    @abstractmethod
    def branch(self, n: int, *hidden: int) -> nn.Module:
        """A branch with these numbers of hidden channels: features -> [N, n]."""

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return self.branch(n, *(_scaled(h, width, self.multiple) for h in self.hidden))

    def make_control(self, n: int, K: int, width: float = 1.0) -> nn.Module:
        """Every other layer, from the first on, is K times as wide.

        The weights between a wide and a narrow layer then number as many as those of K experts.
        Only a classifier after a wide layer has K times as many.
        """
        hidden = [_scaled(h, width, self.multiple) for h in self.hidden]
        return self.branch(n, *(h if i % 2 else K * h for i, h in enumerate(hidden)))

    def quick_preset(self) -> Preset:
        """Kaiming initialisation: with some of the published ones, training starts slowly."""
        return quick_preset("kaiming")


class AlexNetQuick(_PublishedBackbone):
    """AlexNet-Quick-C100: three convolutions, made for 32x32 images and quick experiments."""

    name = "alexnet_quick"
    fixed_deviations = True
    hidden = (64, 64)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 32, 32] -> [N, 64, 4, 4]."""
        return _stack(
            conv1=nn.Conv2d(3, 32, 5, padding=2),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            relu3=nn.ReLU(),
            pool3=nn.AvgPool2d(3, 2, ceil_mode=True),
        )

    def make_head(self, n: int) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]."""
        return _stack(flatten=nn.Flatten(), fc1=nn.Linear(64 * 4 * 4, 64), fc2=nn.Linear(64, n))

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]; hidden: conv4, fc1."""
        conv4, fc1 = hidden
        return _stack(
            conv4=nn.Conv2d(64, conv4, 5, padding=2),
            relu4=nn.ReLU(),
            pool4=nn.AvgPool2d(3, 2, ceil_mode=True),
            flatten=nn.Flatten(),
            fc1=nn.Linear(conv4 * 2 * 2, fc1),
            fc2=nn.Linear(fc1, n),
        )

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Gaussian, deviation 1e-4 for the first convolution, .01 others, .1 for fc."""
        if scheme != "published":
            return super().initialise(part, scheme)
        return _gaussian(part, first=1e-4, conv=0.01, fc=0.1)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train at twice the learning rate, with the same decay as weights."""
        return (2.0, 1.0) if parameter_name.endswith("bias") else (1.0, 1.0)

    def published_preset(self) -> Preset:
        """8 epochs at 1e-3, the map updated every 2; NofE 8 epochs at 1e-3 and 2 at 1e-4."""
        recipe = Recipe(10, 1e-3, weight_decay=4e-3, drops=(0.8,), multipliers=True)
        return _preset(
            generalist=replace(recipe, epochs=8, drops=(), flips=True),
            nofe=recipe,  # the one published network whose NofE trains without flips
            update_every=2.0,
            affinity_images=10_000,
        )


class AlexNetC100(_PublishedBackbone):
    """AlexNet-C100: AlexNet-Quick's convolutions, with response normalisation, and one fc layer."""

    name = "alexnet_c100"
    fixed_deviations = True
    hidden = (64,)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 32, 32] -> [N, 64, 4, 4]."""
        return _stack(
            conv1=nn.Conv2d(3, 32, 5, padding=2),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            relu1=nn.ReLU(),
            norm1=WithinChannelLRN(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
            norm2=WithinChannelLRN(),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            relu3=nn.ReLU(),
            pool3=nn.AvgPool2d(3, 2, ceil_mode=True),
        )

    def make_head(self, n: int) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]."""
        return _stack(flatten=nn.Flatten(), fc=nn.Linear(64 * 4 * 4, n))

    def make_shared(self) -> nn.Module:
        """[N, 64, 4, 4] -> the same: one normalisation for all experts."""
        return _stack(norm3=WithinChannelLRN())

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]; hidden: conv4."""
        (conv4,) = hidden
        return _stack(
            conv4=nn.Conv2d(64, conv4, 5, padding=2),
            relu4=nn.ReLU(),
            pool4=nn.AvgPool2d(3, 2, ceil_mode=True),
            flatten=nn.Flatten(),
            fc=nn.Linear(conv4 * 2 * 2, n),
        )

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Gaussian, deviation 1e-4 for the first convolution and .01 for the others."""
        if scheme != "published":
            return super().initialise(part, scheme)
        return _gaussian(part, first=1e-4, conv=0.01, fc=0.01)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train twice as fast, not in conv3 and conv4; fc decays x250, its bias not."""
        layer, kind = _layer_and_kind(parameter_name)
        if layer == "fc":
            return (1.0, 250.0) if kind == "weight" else (2.0, 0.0)
        return (2.0, 1.0) if kind == "bias" and layer in ("conv1", "conv2") else (1.0, 1.0)

    def published_preset(self) -> Preset:
        """120 epochs at 1e-3; NofE 120 epochs at 1e-3, 10 at 1e-4, 10 at 1e-5."""
        recipe = Recipe(120, 1e-3, weight_decay=4e-3, flips=True, multipliers=True)
        return _preset(
            generalist=recipe,
            nofe=replace(recipe, epochs=140, drops=(120 / 140, 130 / 140)),
            update_every=1.0,
            affinity_images=20_000,
        )


class VGG11C100(_PublishedBackbone):
    """VGG11-C100: eight 3x3 convolutions in the trunk, two more in every branch."""

    name = "vgg11_c100"
    hidden = (256, 256, 512, 512)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 32, 32] -> [N, 256, 4, 4]."""
        layers: dict[str, nn.Module] = {}
        inputs, number = FIRST_CHANNELS, 0
        for group, channels in enumerate(([64, 64], [128, 128], [256] * 4), start=1):
            for outputs in channels:
                number += 1
                layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers[f"relu{number}"] = nn.ReLU()
                inputs = outputs
            layers[f"pool{group}"] = nn.MaxPool2d(2, 2)
        return _stack(**layers)

    def make_head(self, n: int) -> nn.Module:
        """[N, 256, 4, 4] -> [N, n]."""
        return _stack(**self._classifier(256 * 4 * 4, 1024, 1024, n))

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 256, 4, 4] -> [N, n]; hidden: conv9, conv10, fc1, fc2."""
        conv9, conv10, fc1, fc2 = hidden
        return _stack(
            conv9=nn.Conv2d(256, conv9, 3, padding=1),
            relu9=nn.ReLU(),
            conv10=nn.Conv2d(conv9, conv10, 3, padding=1),
            relu10=nn.ReLU(),
            pool4=nn.MaxPool2d(2, 2),
            **self._classifier(conv10 * 2 * 2, fc1, fc2, n),
        )

    @staticmethod
    def _classifier(inputs: int, fc1: int, fc2: int, n: int) -> dict[str, nn.Module]:
        return {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(inputs, fc1),
            "fc1_relu": nn.ReLU(),
            "fc1_drop": nn.Dropout(0.5),
            "fc2": nn.Linear(fc1, fc2),
            "fc2_relu": nn.ReLU(),
            "fc2_drop": nn.Dropout(0.5),
            "fc3": nn.Linear(fc2, n),
        }

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Xavier in Caffe's sense, uniform with variance 1 / fan-in."""
        if scheme != "published":
            return super().initialise(part, scheme)
        for module in _layers_to_draw(part):
            limit = sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -limit, limit)
        return None

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train twice as fast, without decay in fc layers; fc1 and fc2 decay x2."""
        layer, kind = _layer_and_kind(parameter_name)
        if kind == "bias":
            return 2.0, 0.0 if layer.startswith("fc") else 1.0
        return 1.0, 2.0 if layer in ("fc1", "fc2") else 1.0

    def published_preset(self) -> Preset:
        """154 epochs at 1e-2; NofE 1e-2 to epoch 307, 1e-3 to 333, 1e-4 to 358; padded crops."""
        recipe = Recipe(
            154, 1e-2, batch_size=128, weight_decay=5e-4, flips=True, padding=4, multipliers=True
        )
        return _preset(
            generalist=recipe,
            nofe=replace(recipe, epochs=358, drops=(307 / 358, 333 / 358)),
            update_every=1.0,
            affinity_images=20_000,
        )


class NINC100(_PublishedBackbone):
    """NIN-C100, Network in Network: every convolution is followed by 1x1 ones (cccp)."""

    name = "nin_c100"
    fixed_deviations = True
    hidden = (192, 192)
    added = ("conv4", "cccp6")
    input_shape = (3, 26, 26)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 26, 26] -> [N, 192, 6, 6]."""
        return _stack(
            conv1=nn.Conv2d(3, 192, 5, padding=2),
            relu1=nn.ReLU(),
            cccp1=nn.Conv2d(192, 160, 1),
            cccp1_relu=nn.ReLU(),
            cccp2=nn.Conv2d(160, 96, 1),
            cccp2_relu=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            drop1=nn.Dropout(0.5),
            conv2=nn.Conv2d(96, 192, 5, padding=2),
            relu2=nn.ReLU(),
            cccp3=nn.Conv2d(192, 192, 1),
            cccp3_relu=nn.ReLU(),
            cccp4=nn.Conv2d(192, 192, 1),
            cccp4_relu=nn.ReLU(),
            # the published NofE file has max pooling here, but trunks must match to be copied
            pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
            drop2=nn.Dropout(0.5),
            conv3=nn.Conv2d(192, 192, 3, padding=1),
            relu3=nn.ReLU(),
            cccp5=nn.Conv2d(192, 192, 1),
            cccp5_relu=nn.ReLU(),
        )

    def make_head(self, n: int) -> nn.Module:
        """[N, 192, 6, 6] -> [N, n]."""
        return _stack(**self._classifier(192, n))

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 192, 6, 6] -> [N, n]; hidden: conv4, cccp6."""
        conv4, cccp6 = hidden
        return _stack(
            conv4=nn.Conv2d(192, conv4, 3, padding=1),
            relu4=nn.ReLU(),
            cccp6=nn.Conv2d(conv4, cccp6, 1),
            cccp6_relu=nn.ReLU(),
            **self._classifier(cccp6, n),
        )

    @staticmethod
    def _classifier(inputs: int, n: int) -> dict[str, nn.Module]:
        return {
            "cccp_out": nn.Conv2d(inputs, n, 1),
            "cccp_out_relu": nn.ReLU(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
        }

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Gaussian, deviation .05."""
        if scheme != "published":
            return super().initialise(part, scheme)
        return _gaussian(part, first=0.05, conv=0.05, fc=0.05)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train at twice the learning rate, without decay."""
        return (2.0, 0.0) if parameter_name.endswith("bias") else (1.0, 1.0)

    def quick_preset(self) -> Preset:
        """A lower learning rate: at the usual one the ReLU on the outputs dies."""
        return super().quick_preset().override(learning_rate=0.01)

    def published_preset(self) -> Preset:
        """237 epochs at 1e-2; NofE 1e-2 to epoch 125, 1e-3 to 154, 1e-4 to 166, 1e-5 to 256."""
        recipe = Recipe(237, 1e-2, batch_size=128, weight_decay=1e-4, flips=True, multipliers=True)
        drops = (125 / 256, 154 / 256, 166 / 256)
        return _preset(
            generalist=recipe,
            nofe=replace(recipe, epochs=256, weight_decay=1e-3, drops=drops),
            update_every=1.3,
            affinity_images=10_000,
        )


class ResNet56C100(_PublishedBackbone):
    """ResNet56-C100, wide: 64, 128 and 256 channels, four times those of He et al."""

    name = "resnet56_c100"
    hidden = (256,)
    added = ("block",)
    input_shape = (3, 28, 28)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 28, 28] -> [N, 256, 7, 7]."""
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 64, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu1": nn.ReLU(),
        }
        inputs = 64
        for group, outputs in enumerate((64, 128, 256), start=1):
            blocks = []
            for number in range(9):
                stride = 2 if group > 1 and number == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
            layers[f"group{group}"] = nn.Sequential(*blocks)
        return _stack(**layers)

    def make_head(self, n: int) -> nn.Module:
        """[N, 256, 7, 7] -> [N, n]."""
        return _stack(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(256, n))

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 256, 7, 7] -> [N, n]: one more block; hidden: the channels inside it."""
        return _stack(
            block=BasicBlock(256, 256, hidden=hidden[0]),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(256, n),
        )

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: MSRA (Gaussian on fan-out, with ReLU's gain), fc Gaussian, deviation .01."""
        if scheme != "published":
            return super().initialise(part, scheme)
        for module in _layers_to_draw(part):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
        return None

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """No decay of batch normalisation's parameters, nor of fc's bias."""
        layer, kind = _layer_and_kind(parameter_name)
        return 1.0, 0.0 if kind == "bias" or layer.startswith("bn") else 1.0

    def published_preset(self) -> Preset:
        """64 epochs at 1e-2; NofE .1 to epoch 77, 1e-2 to 115, 1e-3 to 261, in batches of 256."""
        recipe = Recipe(64, 1e-2, batch_size=128, weight_decay=1e-4, flips=True, multipliers=True)
        drops = (77 / 261, 115 / 261)
        return _preset(
            generalist=recipe,
            nofe=replace(recipe, epochs=261, learning_rate=0.1, batch_size=256, drops=drops),
            update_every=1.0,
            affinity_images=20_000,
        )


class AlexNetImageNet(_PublishedBackbone):
    """AlexNet as in Caffe, with its grouped convolutions; for 227x227 windows of ImageNet."""

    name = "alexnet_imagenet"
    fixed_deviations = True
    hidden = (256, 1024, 1024)
    multiple = 2
    input_shape = (3, 227, 227)

    def make_trunk(self) -> nn.Module:
        """[N, 3, 227, 227] -> [N, 256, 6, 6]."""
        return _stack(
            conv1=nn.Conv2d(3, 96, 11, 4),
            relu1=nn.ReLU(),
            norm1=nn.LocalResponseNorm(5, 1e-4, 0.75),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, 1e-4, 0.75),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2, ceil_mode=True),
        )

    def make_head(self, n: int) -> nn.Module:
        """[N, 256, 6, 6] -> [N, n]."""
        return _stack(**self._classifier(256 * 6 * 6, 4096, 4096, n))

    def branch(self, n: int, *hidden: int) -> nn.Module:
        """[N, 256, 6, 6] -> [N, n]; hidden: conv6, fc6, fc7."""
        conv6, fc6, fc7 = hidden
        return _stack(
            conv6=nn.Conv2d(256, conv6, 3, padding=1, groups=2),
            relu_conv6=nn.ReLU(),
            pool6=nn.MaxPool2d(3, 2, ceil_mode=True),
            **self._classifier(conv6 * 3 * 3, fc6, fc7, n),
        )

    @staticmethod
    def _classifier(inputs: int, fc6: int, fc7: int, n: int) -> dict[str, nn.Module]:
        return {
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(inputs, fc6),
            "relu6": nn.ReLU(),
            "drop6": nn.Dropout(0.5),
            "fc7": nn.Linear(fc6, fc7),
            "relu7": nn.ReLU(),
            "drop7": nn.Dropout(0.5),
            "fc8": nn.Linear(fc7, n),
        }

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Caffe's reference AlexNet.

        Gaussian, deviation .01, in fc6 and fc7 .005; biases .1 in grouped convolutions, fc6, fc7.
        """
        if scheme != "published":
            return super().initialise(part, scheme)
        for name, module in part.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                hidden = name.rpartition(".")[2] in ("fc6", "fc7")
                grouped = isinstance(module, nn.Conv2d) and module.groups > 1
                nn.init.normal_(module.weight, std=0.005 if hidden else 0.01)
                assert module.bias is not None
                nn.init.constant_(module.bias, 0.1 if hidden or grouped else 0.0)
        return None

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train at twice the learning rate, without decay, as in Caffe's reference."""
        return (2.0, 0.0) if parameter_name.endswith("bias") else (1.0, 1.0)

    def published_preset(self) -> Preset:
        """Caffe's reference recipe for all stages: 90 epochs at 1e-2, divided by 10 every 20.

        Only the layers of this network were published; the map is updated as for the larger
        CIFAR-100 networks.
        """
        recipe = Recipe(
            90,
            1e-2,
            batch_size=256,
            weight_decay=5e-4,
            drops=(20 / 90, 40 / 90, 60 / 90, 80 / 90),
            flips=True,
            multipliers=True,
        )
        return _preset(generalist=recipe, nofe=recipe, update_every=1.0, affinity_images=20_000)


PAPER: dict[str, type[Backbone]] = {
    network.name: network  # type: ignore[type-abstract]
    for network in (
        AlexNetQuick,
        AlexNetC100,
        VGG11C100,
        NINC100,
        ResNet56C100,
        AlexNetImageNet,
    )
}
"""The published networks by name."""

PUBLISHED = {
    "alexnet_quick": (37.94, 45.58),
    "alexnet_c100": (54.04, 56.24),
    "vgg11_c100": (68.48, 69.27),
    "nin_c100": (64.73, 67.96),
    "resnet56_c100": (73.52, 76.24),
    "alexnet_imagenet": (58.71, 61.29),
}
"""Published top-1 accuracy in per cent of base CNN and network of experts with K = 10, on CIFAR-100
(the last on ImageNet)."""


def _stack(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _scaled(channels: int, width: float, multiple: int = 1) -> int:
    return max(round(channels * width / multiple), 1) * multiple


def _pass_on(layer: nn.Module) -> None:
    """Make a layer give features that are not negative back unchanged, before a ReLU.

    A convolution becomes the identity, a residual block adds nothing to its shortcut.
    """
    with torch.no_grad():
        if isinstance(layer, BasicBlock):
            nn.init.zeros_(layer.bn2.weight)
            nn.init.zeros_(layer.bn2.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _layers_to_draw(part: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions and fc layers, after setting their biases to zero."""
    layers = [m for m in part.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in layers:
            if layer.bias is not None:
                layer.bias.zero_()
    return layers


def _gaussian(part: nn.Module, first: float, conv: float, fc: float) -> None:
    """Draw weights with one deviation for the first convolution, one for others, one for fc."""
    for module in _layers_to_draw(part):
        deviation = fc
        if isinstance(module, nn.Conv2d):
            deviation = first if module.in_channels == FIRST_CHANNELS else conv
        nn.init.normal_(module.weight, std=deviation)


def _layer_and_kind(parameter_name: str) -> tuple[str, str]:
    """network.branches.3.fc1.bias -> ("fc1", "bias")."""
    *_, layer, kind = parameter_name.split(".")
    return layer, kind


def _preset(generalist: Recipe, nofe: Recipe, update_every: float, affinity_images: int) -> Preset:
    """A preset with what all published recipes share."""
    return Preset(
        network=NetworkConfig("published", "mean_image"),
        val_fraction=0.0,
        rule="greedy",
        generalist=generalist,
        nofe=nofe,
        flat=replace(nofe, flips=True),
        update_every=update_every,
        affinity="counts",
        affinity_images=affinity_images,
    )
