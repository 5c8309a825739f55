"""The six published networks by hand, layer by layer, and their published recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from math import ceil, prod, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nofe_lab.networks import CNN, PAPER, Backbone, FlatControl, NofE, backbone, preset
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.networks.paper import BasicBlock, WithinChannelLRN
from nofe_lab.recipes import NetworkConfig, Preset, Recipe
from nofe_lab.specialties import Specialties

# --- sizes, derived by hand


Parts = dict[str, dict[str, nn.Module]]
"""trunk, shared, head and branch of each network."""


@dataclass(frozen=True)
class Size:
    """Trainable parameters, and multiply-accumulates of one image."""

    parameters: int
    macs: int

    def __rmul__(self, times: int) -> Size:
        return Size(times * self.parameters, times * self.macs)


def total(*sizes: Size) -> Size:
    return Size(sum(size.parameters for size in sizes), sum(size.macs for size in sizes))


def conv(
    inputs: int, outputs: int, kernel: int, to: int, groups: int = 1, bias: bool = True
) -> Size:
    """A convolution whose output has `to` x `to` places."""
    weights = inputs * outputs * kernel**2 // groups
    return Size(weights + bias * outputs, weights * to**2)


def fc(inputs: int, outputs: int) -> Size:
    return Size(inputs * outputs + outputs, inputs * outputs)


def bn(channels: int) -> Size:
    return Size(2 * channels, 0)


def block(inputs: int, hidden: int, outputs: int, to: int) -> Size:
    """A ResNet block; neither of its shortcuts has parameters or multiplies."""
    return total(
        conv(inputs, hidden, 3, to, bias=False),
        bn(hidden),
        conv(hidden, outputs, 3, to, bias=False),
        bn(outputs),
    )


def three_fc(inputs: int, hidden: int, n: int) -> Size:
    return total(fc(inputs, hidden), fc(hidden, hidden), fc(hidden, n))


@dataclass(frozen=True)
class ByHand:
    """One network's sizes.  Those of a branch: of its outputs and of what divides its channels."""

    image: tuple[int, int, int]
    features: tuple[int, int, int]
    trunk: Size
    head: Callable[[int], Size]
    branch: Callable[[int, int], Size]
    C: int = 100

    @property
    def base(self) -> Size:
        return total(self.trunk, self.head(self.C))

    @property
    def nofe(self) -> Size:
        return total(self.trunk, 10 * self.branch(self.C // 10, 1))


# Pooling rounds up: a kernel of 3 and a stride of 2 lead from s cells to 1 + ceil((s - 3) / 2).

BY_HAND = {
    # 32 -> 1 + ceil(29 / 2) = 16 -> 1 + ceil(13 / 2) = 8 -> 1 + ceil(5 / 2) = 4;
    # in the branch -> 1 + ceil(1 / 2) = 2
    "alexnet_quick": ByHand(
        image=(3, 32, 32),
        features=(64, 4, 4),
        trunk=total(conv(3, 32, 5, 32), conv(32, 32, 5, 16), conv(32, 64, 5, 8)),
        head=lambda n: total(fc(64 * 4 * 4, 64), fc(64, n)),
        branch=lambda n, d: total(
            conv(64, 64 // d, 5, 4),
            fc(64 // d * 2 * 2, 64 // d),
            fc(64 // d, n),
        ),
    ),
    # 32 -> 16 -> 8 -> 4; in the branch -> 2
    "alexnet_c100": ByHand(
        image=(3, 32, 32),
        features=(64, 4, 4),
        trunk=total(conv(3, 32, 5, 32), conv(32, 32, 5, 16), conv(32, 64, 5, 8)),
        head=lambda n: fc(64 * 4 * 4, n),
        branch=lambda n, d: total(conv(64, 64 // d, 5, 4), fc(64 // d * 2 * 2, n)),
    ),
    # halved by each pooling: 32 -> 16 -> 8 -> 4; in the branch -> 2
    "vgg11_c100": ByHand(
        image=(3, 32, 32),
        features=(256, 4, 4),
        trunk=total(
            conv(3, 64, 3, 32),
            conv(64, 64, 3, 32),
            conv(64, 128, 3, 16),
            conv(128, 128, 3, 16),
            conv(128, 256, 3, 8),
            conv(256, 256, 3, 8),
            conv(256, 256, 3, 8),
            conv(256, 256, 3, 8),
        ),
        head=lambda n: three_fc(256 * 4 * 4, 1024, n),
        branch=lambda n, d: total(
            conv(256, 256 // d, 3, 4),
            conv(256 // d, 256 // d, 3, 4),
            three_fc(256 // d * 2 * 2, 512 // d, n),
        ),
    ),
    # 26 -> 1 + ceil(23 / 2) = 13 -> 1 + 10 / 2 = 6
    "nin_c100": ByHand(
        image=(3, 26, 26),
        features=(192, 6, 6),
        trunk=total(
            conv(3, 192, 5, 26),
            conv(192, 160, 1, 26),
            conv(160, 96, 1, 26),
            conv(96, 192, 5, 13),
            conv(192, 192, 1, 13),
            conv(192, 192, 1, 13),
            conv(192, 192, 3, 6),
            conv(192, 192, 1, 6),
        ),
        head=lambda n: conv(192, n, 1, 6),
        branch=lambda n, d: total(
            conv(192, 192 // d, 3, 6),
            conv(192 // d, 192 // d, 1, 6),
            conv(192 // d, n, 1, 6),
        ),
    ),
    # 28, halved by the strides of the second and the third group: 14, 7
    "resnet56_c100": ByHand(
        image=(3, 28, 28),
        features=(256, 7, 7),
        trunk=total(
            conv(3, 64, 3, 28, bias=False),
            bn(64),
            9 * block(64, 64, 64, 28),
            block(64, 128, 128, 14),
            8 * block(128, 128, 128, 14),
            block(128, 256, 256, 7),
            8 * block(256, 256, 256, 7),
        ),
        head=lambda n: fc(256, n),
        branch=lambda n, d: total(block(256, 256 // d, 256, 7), fc(256, n)),
    ),
    # 227 -> 1 + (227 - 11) / 4 = 55 -> 1 + 52 / 2 = 27 -> 1 + 24 / 2 = 13 -> 1 + 10 / 2 = 6;
    # in the branch -> 1 + ceil(3 / 2) = 3
    "alexnet_imagenet": ByHand(
        image=(3, 227, 227),
        features=(256, 6, 6),
        trunk=total(
            conv(3, 96, 11, 55),
            conv(96, 256, 5, 27, groups=2),
            conv(256, 384, 3, 13),
            conv(384, 384, 3, 13, groups=2),
            conv(384, 256, 3, 13, groups=2),
        ),
        head=lambda n: three_fc(256 * 6 * 6, 4096, n),
        branch=lambda n, d: total(
            conv(256, 256 // d, 3, 6, groups=2),
            three_fc(256 // d * 3 * 3, 1024 // d, n),
        ),
        C=1000,
    ),
}

every_network = pytest.mark.parametrize("name", BY_HAND)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its weights: shapes are all that a count needs."""
    with torch.device("meta"):
        return make()


def cnn(name: str, n: int) -> nn.Module:
    return on_meta(lambda: CNN(backbone(name), n, "kaiming", seed=0))


def nofe(name: str, C: int, width: float = 1.0) -> nn.Module:
    """Ten experts on equally many classes."""
    specialties = Specialties(
        tuple(str(c) for c in range(C)), tuple(c % 10 for c in range(C)), K=10
    )
    return on_meta(lambda: NofE(backbone(name), specialties, "kaiming", seed=0, width=width))


def parts_of(name: str, n: int = 10) -> dict[str, nn.Module]:
    """The parts of a network, with torch's own initial weights."""
    maker = backbone(name)
    return {
        "trunk": maker.make_trunk(),
        "shared": maker.make_shared(),
        "head": maker.make_head(n),
        "branch": maker.make_branch(n),
    }


def size_of(network: nn.Module, name: str) -> Size:
    return Size(count_parameters(network), count_macs(network, BY_HAND[name].image))


def test_the_six_published_networks_are_there_by_name() -> None:
    assert set(PAPER) == set(BY_HAND)
    for name, hand in BY_HAND.items():
        assert (backbone(name).name, backbone(name).input_shape) == (name, hand.image)


@every_network
def test_a_base_cnn_has_the_size_of_its_layers(name: str) -> None:
    hand = BY_HAND[name]
    assert size_of(cnn(name, hand.C), name) == hand.base


@every_network
def test_a_generalist_has_the_size_of_its_layers(name: str) -> None:
    hand = BY_HAND[name]
    assert size_of(cnn(name, 10), name) == total(hand.trunk, hand.head(10))


@every_network
def test_ten_balanced_experts_have_the_size_of_their_layers(name: str) -> None:
    hand = BY_HAND[name]
    assert size_of(nofe(name, hand.C), name) == hand.nofe


@every_network
def test_half_the_width_halves_a_branch_s_hidden_channels_and_nothing_else(name: str) -> None:
    hand = BY_HAND[name]
    halved = total(hand.trunk, 10 * hand.branch(hand.C // 10, 2))
    assert size_of(nofe(name, hand.C, width=0.5), name) == halved


@pytest.mark.parametrize(
    ("name", "base", "experts"),
    [("alexnet_quick", 151_428, 1_274_948), ("alexnet_c100", 181_828, 1_129_668)],
)
def test_the_parameters_are_as_many_as_published(name: str, base: int, experts: int) -> None:
    assert count_parameters(cnn(name, 100)) == base
    assert count_parameters(nofe(name, 100)) == experts


def test_alexnet_quick_multiplies_as_often_as_published() -> None:
    assert count_macs(cnn("alexnet_quick", 100), (3, 32, 32)) == 12_359_936
    assert count_macs(nofe("alexnet_quick", 100), (3, 32, 32)) == 28_842_240


def test_the_experts_for_imagenet_have_fewer_parameters_than_their_base() -> None:
    base = count_parameters(cnn("alexnet_imagenet", 1000))
    experts = count_parameters(nofe("alexnet_imagenet", 1000))
    assert round(experts / base, 2) == 0.66


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("alexnet_quick", 0.43),
        ("alexnet_c100", 0.43),
        ("vgg11_c100", 0.54),
        ("nin_c100", 0.52),
        ("resnet56_c100", 0.73),
    ],
)
def test_the_trunk_has_its_share_of_the_experts_multiply_accumulates(
    name: str, share: float
) -> None:
    image = BY_HAND[name].image
    network = nofe(name, 100)
    trunk = network.get_submodule("trunk")
    assert round(count_macs(trunk, image) / count_macs(network, image), 2) == share


# --- layers

KINDS = {
    nn.Conv2d: "conv",
    nn.Linear: "fc",
    nn.ReLU: "relu",
    nn.MaxPool2d: "max",
    nn.AvgPool2d: "avg",
    nn.AdaptiveAvgPool2d: "mean",
    nn.Dropout: "drop",
    nn.BatchNorm2d: "bn",
    BasicBlock: "block",
    WithinChannelLRN: "within",
    nn.LocalResponseNorm: "across",
}

LAYERS = {
    "alexnet_quick": {
        "trunk": "conv max relu, conv relu avg, conv relu avg",
        "head": "fc fc",
        "branch": "conv relu avg, fc fc",
    },
    "alexnet_c100": {
        "trunk": "conv max relu within, conv relu avg within, conv relu avg",
        "shared": "within",
        "head": "fc",
        "branch": "conv relu avg, fc",
    },
    "vgg11_c100": {
        "trunk": "conv relu conv relu max, conv relu conv relu max,"
        "conv relu conv relu conv relu conv relu max",
        "head": "fc relu drop, fc relu drop, fc",
        "branch": "conv relu conv relu max, fc relu drop, fc relu drop, fc",
    },
    "nin_c100": {
        "trunk": "conv relu conv relu conv relu max drop, conv relu conv relu conv relu avg drop,"
        "conv relu conv relu",
        "head": "conv relu mean",
        "branch": "conv relu, conv relu, conv relu mean",
    },
    "resnet56_c100": {
        "trunk": "conv bn relu" + ", block" * 27,
        "head": "mean fc",
        "branch": "block mean fc",
    },
    "alexnet_imagenet": {
        "trunk": "conv relu across max, conv relu across max,conv relu, conv relu, conv relu max",
        "head": "fc relu drop, fc relu drop, fc",
        "branch": "conv relu max, fc relu drop, fc relu drop, fc",
    },
}


def layers_of(part: nn.Module) -> Iterator[nn.Module]:
    """The layers of a part, those of a group one by one, blocks whole."""
    for layer in part.children():
        if type(layer) is nn.Sequential:
            yield from layers_of(layer)
        elif not isinstance(layer, nn.Flatten):
            yield layer


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The parts of all six, without memory for their weights."""
    with torch.device("meta"):
        return {name: parts_of(name) for name in BY_HAND}


@every_network
def test_the_layers_come_in_the_published_order(name: str, parts: Parts) -> None:
    for part, module in parts[name].items():
        expected = LAYERS[name].get(part, "").replace(",", " ").split()
        assert [KINDS[type(layer)] for layer in layers_of(module)] == expected, part


@every_network
def test_every_dropout_leaves_out_half(name: str, parts: Parts) -> None:
    drops = [
        layer
        for part in parts[name].values()
        for layer in part.modules()
        if isinstance(layer, nn.Dropout)
    ]
    assert all(layer.p == 0.5 for layer in drops)


@every_network
def test_the_parts_have_the_published_shapes(name: str, parts: Parts) -> None:
    hand, made = BY_HAND[name], parts[name]
    features = made["trunk"](torch.zeros(2, *hand.image, device="meta"))
    assert features.shape == (2, *hand.features)
    assert made["shared"](features).shape == features.shape
    assert made["head"](features).shape == (2, 10)
    assert made["branch"](features).shape == (2, 10)


@every_network
@pytest.mark.parametrize("width", [0.001, 0.3, 0.5, 2])
def test_a_branch_of_any_width_gives_a_logit_a_class(name: str, width: float) -> None:
    branch = backbone(name).make_branch(7, width).eval()
    logits = branch(torch.randn(2, *BY_HAND[name].features))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@every_network
def test_no_branch_has_the_layers_of_its_head(name: str) -> None:
    with torch.device("meta"):
        assert backbone(name).tail is None


def test_the_convolutions_of_alexnet_imagenet_are_grouped_as_published(
    parts: Parts,
) -> None:
    groups = {
        layer: module.groups
        for part in parts["alexnet_imagenet"].values()
        for layer, module in part.named_children()
        if isinstance(module, nn.Conv2d)
    }
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2, "conv6": 2}


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "alexnet_imagenet"])
def test_no_other_network_has_grouped_convolutions(name: str, parts: Parts) -> None:
    for part in parts[name].values():
        for layer in part.modules():
            assert not isinstance(layer, nn.Conv2d) or layer.groups == 1


def pooled(x: Tensor, kernel: int, stride: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Caffe's pooling of a map [s, s], window by window; windows end where the map does."""
    places = range(1 + ceil((len(x) - kernel) / stride))
    rows = [
        [
            reduce(x[i * stride : i * stride + kernel, j * stride : j * stride + kernel])
            for j in places
        ]
        for i in places
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("name", "part", "layer", "kernel", "stride", "before", "after"),
    [
        ("alexnet_quick", "trunk", "pool1", 3, 2, 32, 16),
        ("alexnet_quick", "trunk", "pool2", 3, 2, 16, 8),
        ("alexnet_quick", "trunk", "pool3", 3, 2, 8, 4),
        ("alexnet_quick", "branch", "pool4", 3, 2, 4, 2),
        ("alexnet_c100", "trunk", "pool1", 3, 2, 32, 16),
        ("alexnet_c100", "trunk", "pool2", 3, 2, 16, 8),
        ("alexnet_c100", "trunk", "pool3", 3, 2, 8, 4),
        ("alexnet_c100", "branch", "pool4", 3, 2, 4, 2),
        ("vgg11_c100", "trunk", "pool1", 2, 2, 32, 16),
        ("vgg11_c100", "trunk", "pool2", 2, 2, 16, 8),
        ("vgg11_c100", "trunk", "pool3", 2, 2, 8, 4),
        ("vgg11_c100", "branch", "pool4", 2, 2, 4, 2),
        ("nin_c100", "trunk", "pool1", 3, 2, 26, 13),
        ("nin_c100", "trunk", "pool2", 3, 2, 13, 6),
        ("nin_c100", "head", "pool", 6, 1, 6, 1),
        ("nin_c100", "branch", "pool", 6, 1, 6, 1),
        ("resnet56_c100", "head", "pool", 7, 1, 7, 1),
        ("resnet56_c100", "branch", "pool", 7, 1, 7, 1),
        ("alexnet_imagenet", "trunk", "pool1", 3, 2, 55, 27),
        ("alexnet_imagenet", "trunk", "pool2", 3, 2, 27, 13),
        ("alexnet_imagenet", "trunk", "pool5", 3, 2, 13, 6),
        ("alexnet_imagenet", "branch", "pool6", 3, 2, 6, 3),
    ],
)
def test_pooling_rounds_up_and_looks_only_at_cells_inside_the_map(
    name: str,
    part: str,
    layer: str,
    kernel: int,
    stride: int,
    before: int,
    after: int,
    parts: Parts,
) -> None:
    pool = parts[name][part].get_submodule(layer)
    x = torch.randn(before, before, generator=torch.Generator().manual_seed(0)) - 3
    expected = pooled(x, kernel, stride, torch.amax if type(pool) is nn.MaxPool2d else torch.mean)
    assert expected.shape == (after, after)
    torch.testing.assert_close(pool(x[None, None])[0, 0], expected)


def normalised(x: Tensor, neighbours: Callable[[tuple[int, ...]], list[float]]) -> Tensor:
    """x / (1 + alpha * mean of the neighbours' squares)^0.75, cell by cell."""
    y = torch.empty_like(x)
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        y[tuple(cell)] = x[tuple(cell)] / (1 + sum(neighbours(tuple(cell)))) ** 0.75
    return y


def test_alexnet_c100_normalises_within_channels(
    parts: Parts,
) -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 200

    def neighbours(cell: tuple[int, ...]) -> list[float]:
        image, channel, row, column = cell
        return [
            5e-5 * x[image, channel, i, j].item() ** 2 / 9
            for i in range(row - 1, row + 2)
            for j in range(column - 1, column + 2)
            if 0 <= i < 5 and 0 <= j < 4
        ]

    expected = normalised(x, neighbours)
    for part, layer in (("trunk", "norm1"), ("trunk", "norm2"), ("shared", "norm3")):
        found = parts["alexnet_c100"][part].get_submodule(layer)(x)
        torch.testing.assert_close(found, expected)


def test_alexnet_imagenet_normalises_across_five_channels(
    parts: Parts,
) -> None:
    x = torch.randn(1, 7, 2, 2, generator=torch.Generator().manual_seed(0)) * 200

    def neighbours(cell: tuple[int, ...]) -> list[float]:
        image, channel, row, column = cell
        return [
            1e-4 * x[image, c, row, column].item() ** 2 / 5
            for c in range(channel - 2, channel + 3)
            if 0 <= c < 7
        ]

    expected = normalised(x, neighbours)
    for layer in ("norm1", "norm2"):
        found = parts["alexnet_imagenet"]["trunk"].get_submodule(layer)(x)
        torch.testing.assert_close(found, expected)


def block_by_hand(made: BasicBlock, x: Tensor, shortcut: Tensor) -> Tensor:
    return (made.bn2(made.conv2(made.bn1(made.conv1(x)).relu())) + shortcut).relu()


def test_a_shortcut_that_changes_the_shape_is_a_frozen_convolution_with_identity_weights() -> None:
    stored = 0
    for inputs, outputs in ((64, 128), (128, 256)):
        frozen = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False).requires_grad_(False)
        frozen.weight.copy_(torch.eye(outputs, inputs)[:, :, None, None])
        stored += frozen.weight.numel()
        made = BasicBlock(inputs, outputs, stride=2)
        x = torch.randn(2, inputs, 14, 14)
        torch.testing.assert_close(made(x), block_by_hand(made, x, frozen(x)))
    assert stored == 40_960


def test_a_block_that_keeps_the_shape_adds_its_input() -> None:
    for hidden in (None, 3):
        made = BasicBlock(8, 8, hidden=hidden)
        x = torch.randn(2, 8, 7, 7)
        torch.testing.assert_close(made(x), block_by_hand(made, x, x))


def test_resnet56_changes_the_shape_twice_and_has_no_other_biases_than_fc(
    parts: Parts,
) -> None:
    trunk = parts["resnet56_c100"]["trunk"]
    blocks = [layer for layer in layers_of(trunk) if isinstance(layer, BasicBlock)]
    shapes = [(made.conv1.in_channels, made.conv2.out_channels, made.stride) for made in blocks]
    assert shapes == [
        *[(64, 64, 1)] * 9,
        (64, 128, 2),
        *[(128, 128, 1)] * 8,
        (128, 256, 2),
        *[(256, 256, 1)] * 8,
    ]
    for part in parts["resnet56_c100"].values():
        for layer in part.modules():
            assert not isinstance(layer, nn.Conv2d) or layer.bias is None


# --- initial weights

Deviation = float | Callable[[Tensor], float]


def fan_in(weight: Tensor) -> int:
    return prod(weight.shape[1:])


def fan_out(weight: Tensor) -> int:
    return weight.shape[0] * prod(weight.shape[2:])


DEVIATIONS: dict[str, dict[str, Deviation]] = {
    "alexnet_quick": {"conv1": 1e-4, "conv*": 0.01, "fc*": 0.1},
    "alexnet_c100": {"conv1": 1e-4, "*": 0.01},
    "vgg11_c100": {"*": lambda weight: sqrt(1 / fan_in(weight))},
    "nin_c100": {"*": 0.05},
    "resnet56_c100": {"fc": 0.01, "*": lambda weight: sqrt(2 / fan_out(weight))},
    "alexnet_imagenet": {"fc[67]": 0.005, "*": 0.01},
}
"""Of the published weights, by layer; the first that fits."""

BIASES = {"alexnet_imagenet": {"conv[2456]": 0.1, "fc[67]": 0.1, "*": 0.0}}
"""Where they do not all begin at zero."""


def first_that_fits(table: dict[str, Any], name: str) -> Any:
    return next(value for pattern, value in table.items() if fnmatchcase(name, pattern))


@pytest.fixture(scope="module", params=list(BY_HAND))
def network_with_parts(request: pytest.FixtureRequest) -> tuple[str, dict[str, nn.Module]]:
    """A network's name and its parts, in memory."""
    return request.param, parts_of(request.param, n=100)


def initialised(
    network_with_parts: tuple[str, dict[str, nn.Module]], scheme: str
) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """The layers with weights by name, drawn by `scheme` in place of whatever they were."""
    name, made = network_with_parts
    torch.manual_seed(0)
    for part in made.values():
        for parameter in part.parameters():
            nn.init.constant_(parameter, 1.0)
        backbone(name).initialise(part, scheme)
        for layer, module in part.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                yield layer.rsplit(".", 1)[-1], module


def check_deviation(layer: str, weight: Tensor, expected: float) -> None:
    assert weight.std().item() == pytest.approx(expected, rel=0.05), layer
    assert abs(weight.mean().item()) < 0.1 * expected, layer


def test_weights_and_biases_begin_as_published(
    network_with_parts: tuple[str, dict[str, nn.Module]],
) -> None:
    name, _ = network_with_parts
    for layer, module in initialised(network_with_parts, "published"):
        weight = module.weight.detach()
        deviation = first_that_fits(DEVIATIONS[name], layer)
        expected = deviation if isinstance(deviation, float) else deviation(weight)
        check_deviation(layer, weight, expected)
        extreme = weight.abs().max().item() / expected
        if name == "vgg11_c100":
            assert 1.7 < extreme <= sqrt(3) * (1 + 1e-6), f"{layer} is not uniform"
        else:
            assert extreme > 2.5, f"{layer} is not Gaussian"
        if module.bias is not None:
            bias = first_that_fits(BIASES.get(name, {"*": 0.0}), layer)
            assert torch.equal(module.bias, torch.full_like(module.bias, bias))


@pytest.mark.parametrize("name", list(BY_HAND))
def test_wide_layers_begin_with_the_signal_of_the_published_ones(name: str) -> None:
    made = {
        (kind, scheme): CNN(each, 100, scheme, 0).state_dict()
        for kind, each in (("control", FlatControl(backbone(name), 10)), ("base", backbone(name)))
        for scheme in ("published", "fan_in")
    }
    fixed = name not in ("vgg11_c100", "resnet56_c100")  # whose deviations follow a layer's size
    narrow = {f"head.1.{k}": t for k, t in backbone(name).make_branch(100).state_dict().items()}
    wider = 0
    for key, tensor in made["control", "fan_in"].items():
        ratio = 1.0
        if key in narrow and key.endswith("weight"):
            ratio = tensor[0].numel() / narrow[key][0].numel()
        wider += ratio > 1
        drawn = made["control", "published"][key]
        assert torch.allclose(tensor, drawn / sqrt(ratio) if fixed else drawn), key
    assert wider
    for key, tensor in made["base", "fan_in"].items():
        assert torch.equal(tensor, made["base", "published"][key]), key


def test_kaiming_weights_have_the_gain_of_a_relu_behind_convolutions_only(
    network_with_parts: tuple[str, dict[str, nn.Module]],
) -> None:
    for layer, module in initialised(network_with_parts, "kaiming"):
        weight = module.weight.detach()
        gain = 2 if isinstance(module, nn.Conv2d) else 1
        check_deviation(layer, weight, sqrt(gain / fan_in(weight)))
        assert module.bias is None or not module.bias.any()


# --- multipliers

MULTIPLIERS = {
    "alexnet_quick": {"*.weight": (1, 1), "*.bias": (2, 1)},
    "alexnet_c100": {
        "conv?.weight": (1, 1),
        "conv[12].bias": (2, 1),
        "conv[34].bias": (1, 1),
        "fc.weight": (1, 250),
        "fc.bias": (2, 0),
    },
    "vgg11_c100": {
        "conv*.weight": (1, 1),
        "conv*.bias": (2, 1),
        "fc[12].weight": (1, 2),
        "fc3.weight": (1, 1),
        "fc?.bias": (2, 0),
    },
    "nin_c100": {"*.weight": (1, 1), "*.bias": (2, 0)},
    "resnet56_c100": {
        "conv?.weight": (1, 1),
        "bn?.*": (1, 0),
        "fc.weight": (1, 1),
        "fc.bias": (1, 0),
    },
    # Caffe's reference
    "alexnet_imagenet": {"*.weight": (1, 1), "*.bias": (2, 0)},
}
"""(learning-rate, decay) multipliers by parameter."""


def networks_of(name: str) -> list[nn.Module]:
    """A base CNN and a network of experts, as training sees them: within another module."""
    hand = BY_HAND[name]
    return [
        on_meta(lambda network=network: nn.ModuleDict({"network": network}))
        for network in (cnn(name, hand.C), nofe(name, hand.C))
    ]


def groups_by_parameter(
    maker: Backbone, network: nn.Module, recipe: Recipe
) -> dict[str, tuple[float, float]]:
    """(rate multiplier, decay) of each parameter by name; each has to be in exactly one group."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in maker.parameter_groups(network, recipe):
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = (group["rate_multiplier"], group["weight_decay"])
    assert not names
    return found


@every_network
def test_every_parameter_learns_and_decays_as_published(name: str) -> None:
    recipe = Recipe(1, 0.1, weight_decay=0.004, multipliers=True)
    for network in networks_of(name):
        for parameter, found in groups_by_parameter(backbone(name), network, recipe).items():
            layer_and_kind = ".".join(parameter.split(".")[-2:])
            rate, decay = first_that_fits(MULTIPLIERS[name], layer_and_kind)
            assert found == (rate, decay * 0.004), parameter


@every_network
def test_without_multipliers_all_parameters_learn_and_decay_alike(name: str) -> None:
    recipe = Recipe(1, 0.1, weight_decay=0.004)
    for network in networks_of(name):
        found = groups_by_parameter(backbone(name), network, recipe)
        assert set(found.values()) == {(1, 0.004)}


# --- recipes


@dataclass(frozen=True)
class Stage:
    """One stage's optimisation: its learning rates, each with the epoch that it lasts to."""

    rates: tuple[tuple[float, int], ...]
    batch_size: int
    weight_decay: float
    flips: bool = True
    padding: int = 0

    def check(self, recipe: Recipe) -> None:
        assert (recipe.batch_size, recipe.weight_decay) == (self.batch_size, self.weight_decay)
        assert (recipe.flips, recipe.padding) == (self.flips, self.padding)
        assert (recipe.momentum, recipe.nesterov, recipe.multipliers) == (0.9, False, True)
        assert recipe.epochs == self.rates[-1][1]
        per_epoch = 50_000 // self.batch_size
        steps = recipe.epochs * per_epoch
        for (_, start), (rate, end) in pairwise([(0.0, 0), *self.rates]):
            assert recipe.rate(start * per_epoch, steps) == pytest.approx(rate)
            assert recipe.rate(end * per_epoch - 1, steps) == pytest.approx(rate)


REFERENCE = Stage(((1e-2, 20), (1e-3, 40), (1e-4, 60), (1e-5, 80), (1e-6, 90)), 256, 5e-4)

STAGES = {
    "alexnet_quick": (
        Stage(((1e-3, 8),), 100, 4e-3),
        Stage(((1e-3, 8), (1e-4, 10)), 100, 4e-3, flips=False),
    ),
    "alexnet_c100": (
        Stage(((1e-3, 120),), 100, 4e-3),
        Stage(((1e-3, 120), (1e-4, 130), (1e-5, 140)), 100, 4e-3),
    ),
    "vgg11_c100": (
        Stage(((1e-2, 154),), 128, 5e-4, padding=4),
        Stage(((1e-2, 307), (1e-3, 333), (1e-4, 358)), 128, 5e-4, padding=4),
    ),
    "nin_c100": (
        Stage(((1e-2, 237),), 128, 1e-4),
        Stage(((1e-2, 125), (1e-3, 154), (1e-4, 166), (1e-5, 256)), 128, 1e-3),
    ),
    "resnet56_c100": (
        Stage(((1e-2, 64),), 128, 1e-4),
        Stage(((0.1, 77), (1e-2, 115), (1e-3, 261)), 256, 1e-4),
    ),
    "alexnet_imagenet": (REFERENCE, REFERENCE),
}
"""Of the generalist and of the network of experts."""


def paper(name: str) -> Preset:
    return preset("paper", backbone(name))


@every_network
def test_generalist_and_experts_train_by_the_published_recipes(name: str) -> None:
    generalist, experts = STAGES[name]
    generalist.check(paper(name).generalist)
    experts.check(paper(name).nofe)


@every_network
def test_a_base_cnn_trains_by_the_experts_recipe_with_flips(name: str) -> None:
    assert paper(name).flat == replace(paper(name).nofe, flips=True)


@pytest.mark.parametrize(
    ("name", "every", "images"),
    [
        ("alexnet_quick", 2, 10_000),
        ("alexnet_c100", 1, 20_000),
        ("vgg11_c100", 1, 20_000),
        ("nin_c100", 1.3, 10_000),
        ("resnet56_c100", 1, 20_000),
        ("alexnet_imagenet", 1, 20_000),  # not published: as the larger ones for CIFAR-100
    ],
)
def test_the_map_is_updated_as_published(name: str, every: float, images: int) -> None:
    found = paper(name)
    assert (found.update_every, found.affinity_images) == (every, images)


@every_network
def test_all_published_recipes_share_rule_inputs_and_the_use_of_all_training_images(
    name: str,
) -> None:
    found = paper(name)
    assert (found.rule, found.affinity, found.val_fraction) == ("greedy", "counts", 0)
    assert found.network == NetworkConfig("published", "mean_image")


# --- flat controls


@pytest.mark.parametrize("K", [5, 10])
@pytest.mark.parametrize("name", [name for name in PAPER if name != "alexnet_imagenet"])
def test_a_flat_control_costs_what_its_network_of_experts_does(name: str, K: int) -> None:
    made = PAPER[name]()
    classes = Specialties.random([str(c) for c in range(100)], K, 0)
    nofe, control = NofE(made, classes, "kaiming", 0), CNN(FlatControl(made, K), 100, "kaiming", 0)
    costs = [count_macs(each, made.input_shape) for each in (nofe, control)]
    assert costs[1] == pytest.approx(costs[0], rel=0.02)
    sizes = [count_parameters(each) for each in (nofe, control)]
    # one layer behind a wide one is K times as large: the classifier of the network with one fc
    assert sizes[1] == pytest.approx(sizes[0], rel=0.25 if name == "alexnet_c100" else 0.02)
    kinds = [
        [type(layer) for layer in part.modules() if not list(layer.children())]
        for part in (nofe.branches["0"], control.head[1])  # type: ignore[index]
    ]
    assert kinds[0] == kinds[1]  # as deep as an expert


def test_a_control_begins_with_the_trunk_of_its_base_cnn() -> None:
    made = PAPER["alexnet_quick"]()
    base, control = (CNN(b, 100, "published", 3) for b in (made, FlatControl(made, 10)))
    for name, tensor in base.trunk.state_dict().items():
        assert torch.equal(tensor, control.trunk.state_dict()[name])


def test_the_control_of_narrow_experts_is_narrow() -> None:
    made = PAPER["alexnet_quick"]()
    classes = Specialties.random([str(c) for c in range(100)], 10, 0)
    nofe = NofE(made, classes, "kaiming", 0, 0.5)
    control = CNN(FlatControl(made, 10, 0.5), 100, "kaiming", 0)
    assert count_macs(control, made.input_shape) == count_macs(nofe, made.input_shape)


def test_controls_of_other_networks_are_other_networks() -> None:
    made = PAPER["alexnet_quick"]()
    controls = [FlatControl(made, 10), FlatControl(made, 5), FlatControl(made, 10, 0.5)]
    digests = [repr(each.identity) for each in (made, *controls)]
    assert len(set(digests)) == 4
