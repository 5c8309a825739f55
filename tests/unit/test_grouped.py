"""Experts that run as one: outputs, gradients and statistics are those of experts run in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nofe_lab import Backbone, Experiment, NofE, Specialties, backbone
from nofe_lab.machine import Machine
from nofe_lab.networks import grouped
from nofe_lab.networks.counting import count_macs
from nofe_lab.networks.grouped import CannotGroup, GroupedBranches, Groups
from nofe_lab.networks.paper import PAPER
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.stages import load_model

close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)

UNEQUAL = Specialties(tuple("abcdefghijk"), (0, 1, 2, 4, 5, 4, 0, 2, 0, 2, 0), 6)
"""Five experts for 4, 1, 3, 2 and 1 of eleven classes; specialty 3 is empty."""

ONE_GROUP, GROUPS_OF_1_AND_2 = 5, 2
"""How many of these five run at once."""


@pytest.fixture(autouse=True)
def numbers() -> None:
    """The same random numbers for every test."""
    torch.manual_seed(0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how many experts a CPU runs as one, for features of this shape."""

    def set_number(branch: nn.Module, features: Tensor, number: float) -> None:
        macs = count_macs(branch, tuple(features.shape[1:])) * len(features)
        affordable = (number + 0.5) * macs / torch.get_num_threads()
        monkeypatch.setattr(grouped, "GROUP_MACS", affordable)

    return set_number


def without_chance(network: nn.Module) -> nn.Module:
    """In float64, with nothing that is drawn."""
    for layer in network.modules():
        if isinstance(layer, nn.Dropout) or type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0  # type: ignore[assignment]
    return network.double()


def results(function: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor) -> dict[str, Any]:
    """Outputs, and what a backward pass leaves: gradients, statistics of normalisations."""
    x = x.clone().requires_grad_()
    network.zero_grad()
    logits = function(x * 1)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).view_as(logits)).sum().backward()
    assert x.grad is not None
    found: dict[str, Any] = {"logits": logits.detach(), "features": x.grad}
    found |= {f"gradient {name}": p.grad for name, p in network.named_parameters()}
    return found | {name: tensor.clone() for name, tensor in network.state_dict().items()}


def check_grouping_changes_nothing(network: NofE, x: Tensor) -> None:
    """Grouped or not, a network does the same with x, in training and then in evaluation."""
    one_by_one = copy.deepcopy(network)
    network.grouped = True
    for training in (True, False):
        expected = results(one_by_one.train(training), one_by_one, x)
        close(results(network.train(training), network, x), expected)


# --- the published networks


def experts_of(name: str, specialties: Specialties = UNEQUAL, width: float = 0.1) -> NofE:
    """A network of experts that takes the features: its trunk is left out."""
    kind = type("Headed", (PAPER[name],), {"make_trunk": lambda self: nn.Identity()})
    network = NofE(kind(), specialties, "kaiming", seed=0, width=width)
    without_chance(network)
    return network


FEATURES = {
    "alexnet_quick": (64, 4, 4),
    "alexnet_c100": (64, 4, 4),
    "vgg11_c100": (256, 4, 4),
    "nin_c100": (192, 6, 6),
    "resnet56_c100": (256, 7, 7),
}


@pytest.mark.parametrize("number", [ONE_GROUP, GROUPS_OF_1_AND_2])
@pytest.mark.parametrize("name", FEATURES)
def test_published_experts_do_the_same_in_groups(
    name: str, number: int, at_once: Callable[..., None]
) -> None:
    network = experts_of(name)
    features = torch.randn(3, *FEATURES[name]).double()
    at_once(network.branches["0"], features, number)
    check_grouping_changes_nothing(network, features)
    assert network.why_not_grouped is None


def test_a_whole_network_of_experts_does_the_same_in_groups(at_once: Callable[..., None]) -> None:
    network = NofE(backbone("alexnet_quick"), UNEQUAL, "kaiming", seed=0).double()
    at_once(network.branches["0"], torch.zeros(2, *FEATURES["alexnet_quick"]), GROUPS_OF_1_AND_2)
    check_grouping_changes_nothing(network, torch.randn(2, 3, 32, 32).double())


def train(network: NofE, shape: tuple[int, ...], steps: int = 10) -> None:
    """By SGD, on features and labels that are always the same."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        features = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
        labels = torch.randint(11, (4,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(network(features), labels).backward()
        optimiser.step()


@pytest.mark.parametrize("number", [ONE_GROUP, GROUPS_OF_1_AND_2])
@pytest.mark.parametrize("name", FEATURES)
def test_after_ten_steps_of_training_the_weights_are_those_of_the_loop(
    name: str, number: int, at_once: Callable[..., None]
) -> None:
    network = experts_of(name)
    begun, one_by_one = copy.deepcopy(network.state_dict()), copy.deepcopy(network)
    at_once(network.branches["0"], torch.zeros(4, *FEATURES[name]), number)
    network.grouped = True
    for each in (network, one_by_one):
        train(each, FEATURES[name])
    found = network.state_dict()
    assert list(found) == list(begun)
    close(dict(found), dict(one_by_one.state_dict()))
    assert not any(torch.equal(tensor, begun[name]) for name, tensor in found.items())


def test_weights_keep_the_names_of_their_branches() -> None:
    network = experts_of("alexnet_quick")
    network.grouped = True
    network(torch.randn(2, 64, 4, 4).double())
    assert list(network.state_dict()) == [
        f"branches.{k}.{layer}.{kind}"
        for k in (0, 1, 2, 4, 5)
        for layer in ("conv4", "fc1", "fc2")
        for kind in ("weight", "bias")
    ]


# --- groups


def sizes(groups: Sequence[GroupedBranches | nn.Module]) -> list[int]:
    return [group.K if isinstance(group, GroupedBranches) else 1 for group in groups]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(100, [5]), (5, [5]), (4, [2, 3]), (3, [2, 3]), (2, [2, 1, 2]), (1, [1] * 5), (-0.4, [1] * 5)],
)
def test_a_cpu_runs_as_many_experts_as_one_as_it_can_afford(
    number: float, expected: list[int], at_once: Callable[..., None]
) -> None:
    network, features = experts_of("alexnet_quick"), torch.zeros(6, 64, 4, 4)
    branches = [*network.branches.values()]
    at_once(branches[0], features, number)
    groups = Groups(branches).groups(features)
    assert sizes(groups) == expected
    in_groups = [g.branches if isinstance(g, GroupedBranches) else (g,) for g in groups]
    assert [branch for group in in_groups for branch in group] == branches


def test_smaller_batches_run_in_larger_groups(at_once: Callable[..., None]) -> None:
    network, features = experts_of("alexnet_quick"), torch.zeros(6, 64, 4, 4)
    at_once(network.branches["0"], features, 1)
    groups = Groups([*network.branches.values()])
    assert [len(groups.groups(features[:n])) for n in (6, 3, 1, 6)] == [5, 2, 1, 5]


def test_elsewhere_all_experts_are_one_group(at_once: Callable[..., None]) -> None:
    network, features = experts_of("alexnet_quick"), torch.zeros(6, 64, 4, 4)
    at_once(network.branches["0"], features, 1)
    groups = Groups([*network.branches.values()])
    assert sizes(groups.groups(features.to("meta"))) == [5]


# --- networks that were split


@pytest.mark.parametrize(
    ("name", "side", "apart"),
    [
        ("resnet18", 32, set()),
        ("mobilenet_v3_small", 64, set()),
        ("shufflenet_v2_x0_5", 32, set()),
        ("squeezenet1_1", 64, set()),
        ("convnext_tiny", 32, {"LayerNorm2d", "Permute", "StochasticDepth"}),
        ("timm:repvgg_a0", 32, {"BatchNormAct2d"}),
        pytest.param("densenet121", 64, set(), marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 32, {"StochasticDepth"}, marks=pytest.mark.slow),
        pytest.param("timm:res2net50_26w_4s", 64, {"split", "getitem"}, marks=pytest.mark.slow),
    ],
)
def test_split_networks_do_the_same_in_groups(name: str, side: int, apart: set[str]) -> None:
    made = backbone(name).for_images((3, side, side))
    assert isinstance(made, SplitNetwork)
    branches = nn.ModuleList(without_chance(made.make_branch(n, 0.25)) for n in (2, 3, 2))
    features = torch.randn(3, *made.plan.features).double()
    check_branches(branches, features, apart)


def check_branches(branches: nn.ModuleList, features: Tensor, apart: set[str]) -> None:
    """As one, branches do what they do in turn; kinds that ran once for each: `apart`."""
    in_turn = copy.deepcopy(branches)
    as_one = GroupedBranches([*branches])
    for training in (True, False):
        for part in (branches, in_turn):
            part.train(training)
        expected = results(lambda x: torch.cat([b(x) for b in in_turn], 1), in_turn, features)
        close(results(as_one, branches, features), expected)
        assert set(as_one.per_expert.values()) == apart


# --- single layers and operations


class Branch(nn.Module):
    """A base class: what a subclass does to the features, and a classifier."""

    apart: frozenset[str] = frozenset()
    """Kinds of what runs once for each expert."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.begin()
        self.classify(n)

    def begin(self) -> None:
        """Layers of a subclass."""

    def classify(self, n: int) -> None:
        self.fc = nn.Linear(8, n)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.middle(x).mean((2, 3)))
        return logits


class Channelwise(Branch):
    """A grouped convolution of what all share has no one form; behind another it has."""

    apart = frozenset({"Conv2d"})

    def begin(self) -> None:
        self.groups = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.more = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.groups(x) + self.more(self.conv(x))  # type: ignore[no-any-return]


class Channels(Branch):
    def begin(self) -> None:
        self.depthwise = nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, groups=8)
        self.narrow = nn.Conv2d(16, 8, 1, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.narrow(self.depthwise(self.conv(x)))  # type: ignore[no-any-return]


class Reflecting(Branch):
    apart = frozenset({"Conv2d"})

    def begin(self) -> None:
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")

    def middle(self, x: Tensor) -> Tensor:
        return self.reflect(x) * self.reflect(self.conv(x))  # type: ignore[no-any-return]


class Same(Branch):
    def begin(self) -> None:
        self.same = nn.Conv2d(8, 8, (3, 1), padding="same", bias=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.same(self.same(x))  # type: ignore[no-any-return]


class Residual(Branch):
    def middle(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class Shortcut(Branch):
    """Every second cell, with more channels, as the published residual network does it."""

    def begin(self) -> None:
        self.wide = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.last = nn.Conv2d(12, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        for y in (x, self.conv(x)):
            x = self.last(self.wide(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)))
            x = F.pad(x, (0, 3, 3, 0))
        return x


class Excite(Branch):
    def begin(self) -> None:
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(8, 2, 1), nn.SiLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x * self.gate(self.pool(x)) + y * self.gate(y.mean((2, 3), keepdim=True))


class Concatenate(Branch):
    def begin(self) -> None:
        self.both = nn.Conv2d(16, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat((x, F.relu(x)), 1)[:, 4:12]
        return self.both(torch.cat([x, self.conv(x)], dim=1))  # type: ignore[no-any-return]


class GroupNormed(Branch):
    def begin(self) -> None:
        self.before, self.behind = nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.behind(self.conv(self.before(x)))  # type: ignore[no-any-return]


class LayerNormed(Branch):
    """Of the channels, which go to the end and come back."""

    def begin(self) -> None:
        self.before, self.behind = nn.LayerNorm(8), nn.LayerNorm((6, 8), eps=1e-3)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)

    def middle(self, x: Tensor) -> Tensor:
        x = self.plain(self.before(x.permute(0, 2, 3, 1))).permute((0, 3, 1, 2))
        return self.behind(self.conv(x).permute(0, 2, -1, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Scaled(Branch):
    """Parameters of its own, used directly."""

    apart = frozenset({"pow"})

    def begin(self) -> None:
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))
        self.shift = nn.Parameter(torch.randn(()))
        self.register_buffer("mean", torch.randn(1, 8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.gamma + self.gamma * self.conv(x).tanh() / (2 + self.shift**2)


class Reshaped(Branch):
    def middle(self, x: Tensor) -> Tensor:
        images, height = x.size(0), x.shape[2]
        y = self.conv(x).reshape(images, 8, -1)
        return (y + x.reshape(-1, 8, height * x.size(-1))).view((images, 8, height, -1))


class Chunks(Branch):
    def begin(self) -> None:
        self.wide = nn.Conv2d(8, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        one, other = self.wide(x).chunk(2, dim=1)
        upper, lower = x.chunk(2, -2)
        return one * other.sigmoid() + torch.cat([lower, upper], 2)


class Shuffle(Branch):
    """Channels of different groups in turn, as in ShuffleNet."""

    def middle(self, x: Tensor) -> Tensor:
        x = x * 2
        for y in (x, self.conv(x)):
            n, c, h, w = y.size()
            y = y.view(n, 2, c // 2, h, w)
            x = x + torch.transpose(y, 1, 2).contiguous().reshape(n, c, h, w)
        return x


class Tokens(Branch):
    """An fc layer for each cell."""

    def begin(self) -> None:
        self.one, self.two = nn.Linear(8, 5), nn.Linear(5, 8, bias=False)

    def middle(self, x: Tensor) -> Tensor:
        for y in (x, self.conv(x)):
            tokens = y.flatten(2).transpose(1, 2)
            x = x + self.two(F.gelu(self.one(tokens))).transpose(-1, -2).reshape(x.shape)
        return x


class Pools(Branch):
    def begin(self) -> None:
        self.largest = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)

    def middle(self, x: Tensor) -> Tensor:
        for y in (x, self.conv(x)):
            x = self.average(y) + self.largest(y) + F.adaptive_max_pool2d(y, 3) + F.max_pool2d(y, 2)
            x = F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, 1), 6)
        return x


class Normalised(Branch):
    """Shared features, too, are normalised by each expert."""

    def begin(self) -> None:
        self.before, self.behind = nn.BatchNorm2d(8, eps=0.1), nn.BatchNorm2d(8, momentum=0.3)
        self.plain = nn.BatchNorm2d(8, affine=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.plain(F.relu(self.behind(self.conv(self.before(x)))))  # type: ignore[no-any-return]


class Averaging(Branch):
    """Running statistics that are means of all batches, or there are none."""

    apart = frozenset({"BatchNorm2d"})

    def begin(self) -> None:
        self.mean = nn.BatchNorm2d(8, momentum=None)
        self.none = nn.BatchNorm2d(8, track_running_stats=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.none(self.conv(self.mean(x)))  # type: ignore[no-any-return]


class Own(nn.Module):
    """A layer that the library does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw", self.weight, x)


class Unknown(Branch):
    apart = frozenset({"Own", "softmax", "where", "gt"})

    def begin(self) -> None:
        self.own = Own()

    def middle(self, x: Tensor) -> Tensor:
        x = self.own(self.conv(self.own(x)))
        return torch.where(x > 0, x, torch.softmax(x, 1))


class Numbers(Branch):
    def middle(self, x: Tensor) -> Tensor:
        y = 1 - 2 * self.conv(x)
        y *= x
        y = torch.add(y, 0.5).sub(x).mul(3)
        return 2 + (x + y) / 4 - x / (9 + F.silu(y))


class Pointwise(Branch):
    def begin(self) -> None:
        layers = (nn.ReLU6(), nn.Hardswish(inplace=True), nn.LeakyReLU(0.2, True), nn.Softplus(2))
        self.layers = nn.Sequential(*layers, nn.Identity(), nn.GELU("tanh"), nn.ReLU(inplace=True))

    def middle(self, x: Tensor) -> Tensor:
        x = self.layers(x.clone())
        return self.layers(F.leaky_relu(self.conv(x), 0.3)).clone().relu_()  # type: ignore[no-any-return]


class Wanted(nn.Module):
    """Changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class InPlace(Branch):
    """Nobody reads what was changed."""

    apart = frozenset({"Wanted", "add_"})

    def begin(self) -> None:
        self.wanted = Wanted()

    def middle(self, x: Tensor) -> Tensor:
        return self.wanted(self.conv(self.wanted(x + 1)).add_(x))  # type: ignore[no-any-return]


class ConvolvedClasses(Branch):
    """Logits of each cell, whose padding goes through all that follows."""

    apart = frozenset({"add"})

    def classify(self, n: int) -> None:
        self.fc = nn.Sequential(
            *(nn.Conv2d(8, n, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0), nn.AvgPool2d(3)),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.fc(self.middle(x))  # type: ignore[no-any-return]


class MeanOfClasses(ConvolvedClasses):
    apart = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = F.relu(self.fc[0](self.middle(x))).mean([3, 2])
        return logits


class SharedClassifier(Branch):
    """A classifier of what all experts share."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class TokenClassifier(Branch):
    apart = frozenset({"Linear", "mean"})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.middle(x).flatten(2).permute(0, 2, 1)).mean(1)
        return logits


class ScaledLogits(Branch):
    """Something that padding would change."""

    apart = frozenset({"normalize"})

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1)


BRANCHES = (
    *(Channelwise, Channels, Reflecting, Same, Residual, Shortcut, Excite, Concatenate),
    *(GroupNormed, LayerNormed, Scaled, Reshaped, Chunks, Shuffle, Tokens, Pools, Normalised),
    *(Averaging, Unknown, Numbers, Pointwise, InPlace, ConvolvedClasses, MeanOfClasses),
    *(SharedClassifier, TokenClassifier, ScaledLogits),
)


@pytest.mark.parametrize("kind", BRANCHES, ids=lambda kind: kind.__name__)
def test_branches_do_as_one_what_they_do_in_turn(kind: type[Branch]) -> None:
    branches = nn.ModuleList(kind(n) for n in (2, 3, 1)).double()
    check_branches(branches, torch.randn(4, 8, 6, 6).double(), set(kind.apart))


@pytest.mark.parametrize("kind", BRANCHES, ids=lambda kind: kind.__name__)
def test_experts_for_as_many_classes_do_so_too(kind: type[Branch]) -> None:
    branches = nn.ModuleList(kind(2) for _ in range(2)).double()
    x = torch.randn(3, 8, 6, 6).double()
    expected = torch.cat([branch(x) for branch in copy.deepcopy(branches)], dim=1)
    close(GroupedBranches([*branches])(x), expected)


def test_branches_without_weights_say_the_same_each() -> None:
    branches = [nn.Sequential(nn.AvgPool2d(6), nn.Flatten()) for _ in range(3)]
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(GroupedBranches(branches)(x), x.mean((2, 3)).repeat(1, 3))


# --- whatever a branch of one's own does, grouping changes nothing


class Maker(Backbone):
    """A backbone of branches of one kind, and no trunk."""

    name = "maker"
    input_shape = (8, 6, 6)

    def __init__(self, kind: Callable[[int], nn.Module]) -> None:
        self.kind = kind

    def make_trunk(self) -> nn.Module:
        return nn.Identity()

    def make_head(self, n: int) -> nn.Module:
        return self.kind(n)

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return self.kind(n)


def own_experts(kind: Callable[[int], nn.Module]) -> NofE:
    return NofE(Maker(kind), UNEQUAL, "published", seed=0).double()


class Functional(Branch):
    """Dropout as a function, as in PyTorch's tutorials."""

    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(F.dropout(x, 0.0)), p=0.0, training=self.training)


class Named(Branch):
    """Arguments by their names."""

    def begin(self) -> None:
        self.flatten = nn.Flatten()

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(input=x).transpose(dim0=2, dim1=3).permute(dims=(0, 1, 3, 2))
        return torch.add(y, x, alpha=2) + y.mean((2, 3), keepdim=True, dtype=torch.float64)


class Picked(Branch):
    """Picks cells by lists, which move dimensions to the front."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + y[:, [0, 1, 2], :, [0, 1, 2]].mean() + y[:, 1:2, ..., None][..., 0]


class LaidOut(Branch):
    """Says how its maps are to lie in memory."""

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x).contiguous(memory_format=torch.channels_last)


class NamedAlone(Branch):
    """No argument but by name, for what has no rule."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.softmax(input=self.conv(x), dim=1)


class Ordered(Branch):
    """Channels in the order of a buffer."""

    def begin(self) -> None:
        self.register_buffer("order", torch.randperm(8))

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x[:, self.order])[:, self.order]  # type: ignore[no-any-return]


class Constant(Branch):
    """Makes a tensor on the way."""

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.tensor([2.0])  # type: ignore[no-any-return]


class ReadAgain(Branch):
    """Reads its own maps after they were changed in place, where every expert has its own."""

    def begin(self) -> None:
        self.own, self.relu = Own(), nn.ReLU(inplace=True)

    def middle(self, x: Tensor) -> Tensor:
        own = self.own(x)
        return own + self.conv(self.relu(own))  # type: ignore[no-any-return]


class DroppedOut(Branch):
    """Reads again what its dropout has changed."""

    def begin(self) -> None:
        self.drop = nn.Dropout(1, inplace=True)

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.drop(y) + 2 * y


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


class Changing(Branch):
    """Reads what all share after it was changed in place."""

    def begin(self) -> None:
        self.norm, self.shift = nn.BatchNorm2d(8), Shift()

    def middle(self, x: Tensor) -> Tensor:
        shared = x * 2
        y = self.norm(self.conv(x))
        return y * self.shift(shared) + shared  # type: ignore[no-any-return]


class Deciding(Branch):
    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0 else x


@pytest.mark.parametrize(
    "kind",
    [
        *(Functional, Named, NamedAlone, LaidOut, Ordered, Picked, Constant),
        *(ReadAgain, DroppedOut, Changing, Deciding),
    ],
)
def test_grouping_changes_nothing_whatever_a_branch_does(kind: type[Branch]) -> None:
    check_grouping_changes_nothing(own_experts(kind), torch.randn(4, 8, 6, 6).double())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Changing, "'shift' may change 'mul', which is read again"),
        (Deciding, "torch.fx cannot follow its forward"),
    ],
)
def test_experts_that_cannot_be_grouped_run_in_turn_and_say_why(
    kind: type[Branch], reason: str
) -> None:
    x = torch.randn(4, 8, 6, 6).double()
    network = own_experts(kind)
    with pytest.raises(CannotGroup, match=reason):
        GroupedBranches([*network.branches.values()])(x)
    assert network.why_not_grouped is None
    network.grouped = True
    network(x)
    assert reason in str(network.why_not_grouped)


def test_experts_of_unequal_size_can_train_after_they_have_only_predicted() -> None:
    network = own_experts(Ordered)
    network.grouped = True
    x = torch.randn(4, 8, 6, 6).double()
    with torch.inference_mode():
        network(x)
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.branches.parameters())


def test_what_a_branch_does_in_place_is_the_same_without_gradients() -> None:
    network = own_experts(Changing).eval()
    x = torch.randn(4, 8, 6, 6).double()
    with torch.inference_mode():
        expected = network(x)
        network.grouped = True
        close(network(x), expected)


class Frozen(Branch):
    def begin(self) -> None:
        self.norm = nn.BatchNorm2d(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("part", ["norm", ""], ids=["one layer", "whole experts"])
@pytest.mark.parametrize("frozen", [("0", "1", "2", "4", "5"), ("1", "4")], ids=["all", "some"])
def test_layers_in_evaluation_mode_stay_so_amid_training(part: str, frozen: Sequence[str]) -> None:
    network = own_experts(Frozen).train()
    for k in frozen:
        network.branches[k].get_submodule(part).eval()
    modes = [layer.training for layer in network.modules()]
    one_by_one = copy.deepcopy(network)
    network.grouped = True
    x = torch.randn(4, 8, 6, 6).double()
    found = results(network, network, x)
    assert [layer.training for layer in network.modules()] == modes
    close(found, results(one_by_one, one_by_one, x))


def test_a_batch_without_images_has_no_logits() -> None:
    network = own_experts(Residual)
    network.grouped = True
    assert network(torch.zeros(0, 8, 6, 6).double()).shape == (0, 11)


def test_experts_without_weights_can_be_grouped() -> None:
    network = own_experts(
        lambda n: nn.Sequential(nn.AvgPool2d(6), nn.Flatten(), nn.ZeroPad1d((0, n - 8)))
    )
    x = torch.randn(2, 8, 6, 6).double()
    expected = network(x)
    network.grouped = True
    close(network(x), expected)


# --- what is not alike


def with_bias(n: int, bias: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, n, 1, bias=bias), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (Residual(2), nn.Sequential(Residual(2)), "different layers"),
        (nn.Linear(8, 2), nn.Linear(9, 2), "'the forward' differs"),
        (nn.Sequential(nn.Linear(8, 2)), nn.Sequential(nn.Linear(9, 2)), "'0' differs"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU6()), "'0' differs"),
        (nn.Sequential(nn.LeakyReLU(0.1)), nn.Sequential(nn.LeakyReLU(0.2)), "'0' differs"),
        (Residual(2), Concatenate(2), "different layers"),
        (Residual(2), Numbers(2), "'the forward' differs"),
        (with_bias(2, False), with_bias(2, True), "differ"),
        (with_bias(2, True), with_bias(2, False), "differ"),
    ],
)
def test_branches_that_are_not_alike_cannot_be_grouped(
    one: nn.Module, other: nn.Module, reason: str
) -> None:
    with pytest.raises(CannotGroup, match=reason):
        GroupedBranches([one, other])


def test_tails_that_are_not_alike_cannot_be_grouped() -> None:
    made = backbone(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), Residual(5)), split="1")
    other = backbone(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), Numbers(5)), split="1")
    branches = [each.for_images((8, 6, 6)).make_branch(2) for each in (made, made, other)]
    assert GroupedBranches(branches[:2])(torch.zeros(2, 8, 6, 6)).shape == (2, 4)
    with pytest.raises(CannotGroup, match="'the forward' differs"):
        GroupedBranches(branches)


# --- dropout


def masks(drop: Callable[[], nn.Module], K: int = 3) -> list[Tensor]:
    """What each of K experts makes of ones."""
    branches = [nn.Sequential(drop(), nn.Flatten()) for _ in range(K)]
    drawn = GroupedBranches(branches)(torch.ones(4, 25, 5, 4))
    return [*drawn.chunk(K, dim=1)]


def test_every_expert_draws_a_mask_of_its_own_for_what_all_share() -> None:
    drawn = masks(lambda: nn.Dropout(0.5))
    for mask in drawn:
        assert set(mask.flatten().tolist()) == {0.0, 2.0}
        assert mask.mean().item() == pytest.approx(1, abs=0.11)  # 5 standard deviations
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = (drawn[one] * drawn[other]).mean().item()
        assert both == pytest.approx(1, abs=0.2)  # independent of each other


def test_masks_come_from_torch_s_random_state() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.cat(masks(lambda: nn.Dropout(0.3))))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


class Dropping(Branch):
    """Before its own weights, on its own maps and on its logits."""

    def begin(self) -> None:
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.drop(self.fc(self.drop(self.conv(self.drop(x))).mean((2, 3))))
        return logits


def test_experts_of_equal_weights_differ_in_training_and_not_in_evaluation() -> None:
    branches = [Dropping(4) for _ in range(2)]
    branches[1].load_state_dict(branches[0].state_dict())
    as_one, x = GroupedBranches(branches), torch.randn(3, 8, 6, 6)
    first, second = as_one(x).chunk(2, dim=1)
    assert not torch.isclose(first, second).all(dim=1).any()
    for branch in branches:
        branch.eval()
    first, second = as_one(x).chunk(2, dim=1)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, branches[0](x))
    assert torch.equal(as_one(x), as_one(x))


# --- bf16


@pytest.mark.parametrize("name", ["alexnet_c100", "resnet56_c100"])
def test_in_bf16_groups_agree_with_the_loop_within_its_rounding(name: str) -> None:
    network = experts_of(name).float()
    features = torch.randn(4, *FEATURES[name])
    exact = network(features)
    found = []
    for run_grouped in (False, True):
        network.grouped = run_grouped
        with torch.autocast("cpu", torch.bfloat16):
            found.append(network(features))
    assert network.why_not_grouped is None
    for logits in found:
        assert logits.shape == (4, 11)
        assert logits.dtype == torch.bfloat16
        difference = (logits - exact).norm() / exact.norm()
        assert 1e-4 < difference < 0.05


# --- an execution form, no more


def test_a_fresh_network_of_experts_runs_in_turn_and_its_hooks_see_every_layer() -> None:
    network = own_experts(Residual)
    assert network.grouped is False
    seen: list[nn.Module] = []
    for branch in network.branches.values():
        branch.get_submodule("conv").register_forward_hook(lambda layer, *_: seen.append(layer))
    network(torch.zeros(2, 8, 6, 6).double())
    assert len(seen) == 5


def test_stages_train_in_groups_and_loaded_networks_run_in_turn(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment()
    stage = experiment.nofe("random", "scratch")
    trained = stage.image_network(stage.untrained_network(), Machine(torch.device("cpu")))
    assert trained.network.grouped is True
    (run,) = experiment.run(stage)
    assert load_model(stage, run).network.grouped is False


@pytest.fixture
def used() -> NofE:
    """A network that has run in groups."""
    network = own_experts(Normalised)
    network.grouped = True
    network(torch.randn(4, 8, 6, 6).double())
    return network.eval()


def in_turn(network: NofE, x: Tensor) -> Tensor:
    """Its logits, one branch after another."""
    logits = torch.cat([branch(x) for branch in network.branches.values()], dim=1)
    return logits[:, network.to_class_order]


def test_running_in_groups_leaves_names_and_weights_alone() -> None:
    network = own_experts(Scaled)
    before = copy.deepcopy(network.state_dict())
    network.grouped = True
    network(torch.randn(4, 8, 6, 6).double())
    close(dict(network.state_dict()), dict(before))
    assert list(network.state_dict()) == list(before)
    assert {name.split(".")[1] for name in before} == {"0", "1", "2", "4", "5"}
    assert "branches.0.fc.weight" in before


@pytest.mark.parametrize("split", [False, True])
def test_a_copy_runs_with_its_own_weights(used: NofE, split: bool) -> None:
    x = torch.randn(4, 8, 6, 6).double()
    if split:
        tails = backbone(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), Normalised(5)), split="1")
        used = NofE(tails.for_images((8, 6, 6)), UNEQUAL, "published", seed=0).double().eval()
        used.grouped = True
    expected = used(x)
    copied = copy.deepcopy(used)
    assert copied.grouped is True
    close(copied(x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    changed = copied(x)
    assert (changed - expected).abs().max() > 0.1
    copied.grouped = False
    close(changed, copied(x))
    close(used(x), expected)


def test_another_branch_in_the_place_of_one_is_noticed(used: NofE) -> None:
    x = torch.randn(4, 8, 6, 6).double()
    before = used(x)
    used.branches["2"] = Normalised(3).double().eval()
    close(used(x), in_turn(used, x))
    assert (used(x) - before).abs().max() > 0.01


def test_another_layer_inside_the_branches_is_noticed(used: NofE) -> None:
    x = torch.randn(4, 8, 6, 6).double()
    before = used(x)
    for branch in used.branches.values():
        branch.conv = nn.Conv2d(8, 8, 3, padding=1).double()
    close(used(x), in_turn(used, x))
    assert (used(x) - before).abs().max() > 0.01


def test_weights_that_are_loaded_take_effect(used: NofE) -> None:
    x = torch.randn(4, 8, 6, 6).double()
    before, other = used(x), NofE(Maker(Normalised), UNEQUAL, "published", seed=1).double().eval()
    used.load_state_dict(other.state_dict())
    close(used(x), other(x))
    assert (used(x) - before).abs().max() > 0.01


def test_running_in_groups_can_be_switched_off_again(used: NofE) -> None:
    seen: list[nn.Module] = []
    for branch in used.branches.values():
        branch.register_forward_hook(lambda layer, *_: seen.append(layer))
    x = torch.randn(4, 8, 6, 6).double()
    together = used(x)
    assert not seen
    used.grouped = False
    close(used(x), together)
    assert seen == [*used.branches.values()]
