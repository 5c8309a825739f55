"""Networks cut in two: where, what becomes of the stem, and how wide a branch is."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nofe_lab import InvalidInput, NofE, Specialties, backbone
from nofe_lab.machine import seeded
from nofe_lab.networks import CNN, Backbone
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.networks.tracing import assemble, trace

SMALL = (3, 16, 16)


@pytest.fixture(autouse=True)
def numbers() -> None:
    """The same random numbers for every test."""
    torch.manual_seed(0)


def split(network: Any, shape: tuple[int, int, int] = SMALL, **options: Any) -> SplitNetwork:
    made = backbone(network, **options).for_images(shape)
    assert isinstance(made, SplitNetwork)
    return made


class Tail(nn.Module):
    """A base class: a stem, what a subclass does to its features, and a classifier."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.begin(channels)
        self.fc = nn.Linear(channels, 10)

    def begin(self, channels: int) -> None:
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).relu()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.middle(self.stem(x)).mean((2, 3)))
        return logits


# --- where a network can be cut


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.one(x))))


class Residual(Tail):
    def begin(self, channels: int) -> None:
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def middle(self, x: Tensor) -> Tensor:
        return self.pool(self.blocks(x))  # type: ignore[no-any-return]


def test_a_residual_network_is_cut_before_and_behind_blocks_but_not_inside() -> None:
    made = split(Residual)
    assert made.split_points == ("blocks", "blocks.1", "pool", "fc")
    assert list(made.cuts) == [
        *("blocks", "blocks.0", "blocks.0.one"),
        *("blocks.1", "blocks.1.one", "pool", "fc"),
    ]


class Sized(Tail):
    """Takes the number of images along from before `one` to behind `two`."""

    def middle(self, x: Tensor) -> Tensor:
        images = x.shape[0]
        x = self.two(self.one(x))
        return x.reshape(images, 8, 16, 16)


class Tied(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.two.weight = self.one.weight


class Twice(Tail):
    def middle(self, x: Tensor) -> Tensor:
        return self.one(self.two(self.one(x)))  # type: ignore[no-any-return]


class Shared(Tail):
    """A parameter of its own, used before and behind `two`."""

    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return self.two(self.one(x) * self.scale) * self.scale  # type: ignore[no-any-return]


class Skipping(Tail):
    def middle(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two tensors leave it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.relu()


class Paired(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.pair = Pair()

    def middle(self, x: Tensor) -> Tensor:
        x, y = self.pair(self.one(x))
        return self.two(x) + y  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "places"),
    [
        (Tail, ("one", "two", "fc")),
        (Sized, ("fc",)),
        (Tied, ("one", "fc")),
        (Twice, ("fc",)),
        (Shared, ("one", "fc")),
        (Skipping, ("one", "fc")),
        (Paired, ("one", "pair", "fc")),
    ],
)
def test_one_tensor_crosses_a_cut_and_no_parameter_is_on_both_sides(
    network: type[Tail], places: tuple[str, ...]
) -> None:
    found = {split(network, split=place).plan.cut.module for place in places}
    assert found == set(places)
    assert split(network).split_points == places


@pytest.mark.parametrize("network", [Residual, Sized, Tied, Twice, Shared, Skipping, Paired])
def test_trunk_and_head_do_what_the_network_does_wherever_it_is_cut(network: type[Tail]) -> None:
    images = torch.randn(2, *SMALL)
    whole = network().eval()
    for place in split(network).split_points:
        made = split(whole, split=place)
        parts = made.make_trunk().eval(), made.make_head(10).eval()
        torch.testing.assert_close(parts[1](parts[0](images)), whole(images), msg=place)


def test_parts_have_the_names_of_the_network_s_own_layers() -> None:
    made = split(Residual, split="blocks.1")
    parts = (made.make_trunk(), made.make_branch(10, 0.5))
    names = [name for part in parts for name in part.state_dict()]
    assert names == list(Residual().state_dict())


def test_a_network_of_one_layer_cannot_be_split() -> None:
    sentence = "'Sequential' cannot be split: there is no module with one tensor crossing before it"
    with pytest.raises(InvalidInput, match=sentence):
        backbone(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


# --- branches that would change the features


class Shift(nn.Module):
    """Changes what it is given, without saying so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def added(x: Tensor) -> Tensor:
    x += 1
    return x


def half(x: Tensor) -> Tensor:
    x.narrow(1, 0, 4).mul_(2)
    return x


IN_PLACE: dict[str, Callable[[Tensor], Tensor] | nn.Module] = {
    "module": nn.Hardswish(inplace=True),
    "dropout": nn.Sequential(nn.Dropout(0.5), nn.Hardswish(inplace=True)),
    "view": nn.Sequential(nn.Flatten(), nn.Hardswish(inplace=True), nn.Unflatten(1, (8, 16, 16))),
    "module of one's own": Shift(),
    "method": lambda x: x.mul_(2),
    "function": lambda x: F.hardswish(x, inplace=True),
    "operator": added,
    "part": half,
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_branch_leaves_the_features_to_the_others(how: str) -> None:
    class Changing(Tail):
        def begin(self, channels: int) -> None:
            super().begin(channels)
            self.start = nn.Identity()
            self.change = IN_PLACE[how]

        def middle(self, x: Tensor) -> Tensor:
            return super().middle(self.change(self.start(x)))

    made = split(Changing, split="start")
    network = NofE(made, Specialties(tuple("abc"), (0, 1, 1), 2), "published", seed=0)
    for training in (False, True):
        network.train(training)
        features = network.trunk(torch.randn(2, *SMALL))
        before = features.detach().clone()
        logits = [branch(features) for branch in network.branches.values()]
        assert torch.equal(features, before)
        torch.cat(logits, 1).sum().backward()
    again = network.eval().branches["1"](features)
    torch.testing.assert_close(again, network.branches["1"](before))


@pytest.mark.parametrize("place", ["layer4", "layer3.1", "avgpool"])
def test_features_that_no_branch_would_change_are_not_copied(place: str) -> None:
    assert "clone" not in split("resnet18", split=place).make_branch(2).code
    assert "clone" in split("resnet18", split="relu").make_branch(2).code


# --- forwards that do different things


class Noise(nn.Module):
    """Different things in training and in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, training=self.training)


class Noisy(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.noise = Noise()

    def middle(self, x: Tensor) -> Tensor:
        return self.two(self.noise(self.one(x)))  # type: ignore[no-any-return]


class Tutorial(Tail):
    """Tells a function whether it is training, as in PyTorch's tutorials."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.dropout(self.one(x).relu(), training=self.training)
        return F.dropout2d(self.two(x), 0.3, self.training)


def test_a_module_that_does_other_things_in_training_is_one_node() -> None:
    graph = trace(Noisy(), "noisy").graph
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert called == ["stem", "one", "noise", "two", "fc"]
    assert split(Noisy).split_points == ("one", "noise", "two", "fc")


@pytest.mark.parametrize("network", [Noisy, Tutorial])
@pytest.mark.parametrize("place", ["one", "fc"])
def test_a_network_that_does_other_things_in_training_still_does(
    network: type[Tail], place: str
) -> None:
    images = torch.randn(2, *SMALL)
    whole = network()
    composed = CNN(split(whole, split=place), 10, "published", seed=0)
    for training in (True, False):
        outputs = []
        for each in (whole.train(training), composed.train(training)):
            torch.manual_seed(0)
            outputs.append(each(images))
        torch.testing.assert_close(*outputs)
    assert torch.equal(composed(images), composed(images))
    composed.train()
    assert not torch.equal(composed(images), composed(images))


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.mean() > 0 else -x  # type: ignore[no-any-return]


class Deciding(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.decides = Decides()

    def middle(self, x: Tensor) -> Tensor:
        return self.two(self.decides(self.one(x)))  # type: ignore[no-any-return]


class Undecided(Tail):
    def middle(self, x: Tensor) -> Tensor:
        return self.one(x) if x.mean() > 0 else self.two(x)  # type: ignore[no-any-return]


class Switches(Tail):
    def middle(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.two(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("of", [lambda: Deciding, Deciding], ids=["class", "module"])
def test_a_module_that_decides_on_values_is_kept_whole(of: Callable[[], Any]) -> None:
    made = split(of())
    assert made.split_points == ("one", "decides", "two", "fc")
    images = torch.randn(5, *SMALL)
    network = CNN(made, 10, "published", seed=0)
    bias = network.get_parameter(
        "trunk.one.bias" if made.plan.cut.module != "one" else "head.one.bias"
    )
    for value in (-100.0, 100.0):
        nn.init.constant_(bias, value)
        whole = Deciding()
        parts = (network.trunk.state_dict(), network.head.state_dict())
        whole.load_state_dict(parts[0] | parts[1])
        torch.testing.assert_close(network(images), whole(images))


class Options:
    """An argument that torch.fx cannot write down."""


class Optional(nn.Module):
    def forward(self, x: Tensor, options: Options) -> Tensor:
        return x


class Optioned(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.optional = Optional()

    def middle(self, x: Tensor) -> Tensor:
        return self.one(self.optional(x, Options()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Undecided, "decides on the values of images"),
        (Switches, "different things in training and evaluation"),
        (Optioned, "argument of type"),
    ],
)
def test_a_network_whose_own_forward_cannot_be_followed_is_refused(
    network: type[Tail], reason: str
) -> None:
    with pytest.raises(
        InvalidInput, match=f"cannot be split, torch.fx .*{reason}.*; accepted: a n"
    ):
        backbone(network)


@pytest.mark.parametrize("network", [Undecided, Switches, Optioned])
def test_the_same_inside_a_module_is_kept_whole(network: type[Tail]) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.inner = network()
            self.last = nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(self.inner(self.stem(x)))
            return logits

    assert backbone(Outer).split_points == ("inner", "last")  # type: ignore[attr-defined]


class Constant(Tail):
    """Makes a tensor on the way."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x - torch.arange(8.0)[:, None, None]) * torch.tensor([2.0])


@pytest.mark.parametrize("place", ["one", "fc"])
def test_constants_of_a_forward_come_along(place: str) -> None:
    images = torch.randn(2, *SMALL)
    whole = Constant()
    made = split(Constant, split=place)
    network = CNN(made, 10, "published", seed=0)
    for part in (network.trunk, network.head):
        part.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(network(images), whole(images))
    assert "one" in split(whole).split_points
    assert "stem" not in split(whole).split_points


# --- the split that is chosen


def convolutions(n: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(n)))


class Stages(nn.Module):
    """Stages of convolutions that cost the same, each."""

    def __init__(self, *stages: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stages = nn.Sequential(*map(convolutions, stages))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stages(self.stem(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("stages", "chosen"),
    [
        ((4, 4, 4, 4), "stages.3"),
        ((6, 4), "stages.1"),  # 40%: a tenth to a half is good enough for an outer module
        ((2, 8), "stages.1.5"),  # 80% is not: an inner one with 30%
        ((12,), "stages.0.9"),
        ((38, 2), "stages.0.30"),
    ],
)
def test_about_a_quarter_is_left_to_the_branches_of_the_outermost_modules_that_do(
    stages: tuple[int, ...], chosen: str
) -> None:
    made = split(lambda: Stages(*stages))
    assert made.plan.cut.module == chosen
    (note,) = made.notes
    share = made.plan.tail_macs / (made.plan.trunk_macs + made.plan.tail_macs)
    assert note.startswith(f"Stages: the branches begin at {chosen!r}, with {share:.0%} of its")


def test_what_was_asked_for_is_not_said() -> None:
    assert split(lambda: Stages(2, 2), split="stages.1").notes == ()


def test_the_note_names_the_places_to_split() -> None:
    (note,) = split(Residual).notes
    assert note.endswith("(split=... takes blocks, blocks.1, pool, fc).")


# --- the stem


RESNET = {"conv1": "stride 1", "maxpool": "left out"}


@pytest.mark.parametrize(
    ("name", "side", "stem", "edits"),
    [
        ("resnet18", 32, "auto", RESNET),
        ("resnet18", 63, "auto", RESNET),
        ("resnet18", 64, "auto", {}),
        ("resnet18", 32, "original", {}),
        ("resnet18", 64, "small", RESNET),
        ("vgg11_bn", 32, "auto", {}),
        ("vgg11_bn", 32, "small", {}),
        ("regnet_y_400mf", 32, "auto", {"stem.0": "stride 1"}),
        ("alexnet", 32, "auto", {"features.0": "stride 1"}),
    ],
)
def test_the_stem_keeps_the_size_of_small_images(
    name: str, side: int, stem: str, edits: dict[str, str]
) -> None:
    made = split(name, (3, side, side), stem=stem)
    assert made.plan.edits == edits
    said = [note for note in made.notes if "its stem keeps their size" in note]
    assert bool(said) == (bool(edits) and stem == "auto")
    for path, what in edits.items() if said else ():
        assert f"{path} ({what})" in said[0]


def test_a_small_stem_has_small_kernels_and_is_part_of_the_trunk() -> None:
    small = split("resnet18", (3, 32, 32))
    trunk = small.make_trunk()
    assert trunk.conv1.weight.shape == (64, 3, 3, 3)
    assert trunk.conv1.stride == (1, 1)
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 8, 8)
    original = split("resnet18", (3, 32, 32), stem="original").make_trunk()
    assert original.conv1.weight.shape == (64, 3, 7, 7)
    assert original(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 2, 2)


def test_pretrained_weights_keep_their_stem() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 7, 2, padding=3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 2, padding=1)),
        *(nn.Conv2d(4, 4, 3, 2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 5),
    )
    assert split(network).plan.edits == {}
    edits = {"0": "stride 1", "1": "left out"}
    assert split(lambda: network).plan.edits == edits
    assert split(network, stem="small").plan.edits == edits


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"stem 'smal' is unknown \(did you mean 'small'\?\)"):
        backbone(Tail, stem="smal")


# --- images of other kinds


@pytest.mark.parametrize("network", [Tail, Tail()])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_first_convolution_takes_the_images_channels(network: Any, channels: int) -> None:
    made = split(network, (channels, 16, 16))
    images = torch.randn(2, channels, 16, 16)
    assert made.make_branch(7)(made.make_trunk()(images)).shape == (2, 7)
    changed = made.make_trunk().stem.weight.shape != (8, 3, 3, 3)
    assert changed == (channels != 3)


def test_a_convolution_behind_other_layers_keeps_its_channels() -> None:
    class Unshuffled(Tail):
        def begin(self, channels: int) -> None:
            super().begin(channels)
            self.stem = nn.Conv2d(12, channels, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pixel_unshuffle(x, 2))

    assert split(Unshuffled).make_trunk().stem.in_channels == 12
    with pytest.raises(InvalidInput, match="cannot take images of 1 x 16 x 16"):
        split(Unshuffled, (1, 16, 16))


class Flattened(nn.Module):
    """Takes images of 16 x 16 and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(4 * 8 * 8, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.fc1(self.conv(x).flatten(1)).relu())
        return logits


def shrinking(n: int) -> nn.Module:
    """Halves maps n times with a pooling that refuses a single cell."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), *(nn.MaxPool2d(2) for _ in range(n))]
    return nn.Sequential(
        *layers, nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


@functools.cache
def refusal(network: Any, side: int) -> tuple[Backbone, str]:
    """What is said of images too small: to find out what else is taken may need seconds."""
    made = backbone(network)
    with pytest.raises(InvalidInput) as refused:
        made.for_images((3, side, side))
    return made, str(refused.value)


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (lambda: shrinking(3), 5),
        (lambda: shrinking(3), 1),
        (lambda: shrinking(5), 3),
        (lambda: shrinking(5), 31),
        ("vgg11", 16),
        ("alexnet", 8),
        pytest.param("inception_v3", 64, marks=pytest.mark.xdist_group("inception_v3")),
    ],
)
def test_images_too_small_are_refused_with_the_smallest_size_that_is_taken(
    network: Any, side: int
) -> None:
    made, refused = refusal(network, side)
    assert f"cannot take images of 3 x {side} x {side}" in refused
    (accepted,) = re.findall(r"accepted: at least (\d+) x \1 pixels", refused)
    taken = made.for_images((3, int(accepted), int(accepted)))
    assert taken.input_shape == (3, int(accepted), int(accepted))
    with pytest.raises(InvalidInput, match="cannot take images of"):
        made.for_images((3, int(accepted) - 1, int(accepted) - 1))


@pytest.mark.xdist_group("inception_v3")
def test_a_small_stem_is_offered_where_it_would_help() -> None:
    assert "or stem 'small'" in refusal("inception_v3", 64)[1]
    assert split("inception_v3", (3, 64, 64), stem="small").plan.edits


def test_a_network_for_one_size_says_why_others_do_not_fit() -> None:
    assert split(Flattened()).input_shape == SMALL
    with pytest.raises(InvalidInput, match=r"cannot take images of 3 x 20 x 20 \(mat1 and mat2 sh"):
        split(Flattened(), (3, 20, 20))


# --- the classifier


class Normalised(Tail):
    """An embedding: its last layer with weights is a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))  # type: ignore[no-any-return]


class TwoHeads(Tail):
    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x)).mean((2, 3))
        return self.fc(x) + x.sum(1, keepdim=True)  # type: ignore[no-any-return]


class Answers(Tail):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits.softmax(1)


class Ten(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(-1, 10)


class Pairs(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(-1, 2)


def features_only() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Normalised, "; its output comes from 'norm' \\(BatchNorm1d\\)"),
        (TwoHeads, "; its output comes from 'add'"),
        (Answers, "; its output comes from 2 places"),
        (Ten, ": with 7 outputs in 'fc' it gives an error for two images; accepted: .* \\[2, 7\\]"),
        (Pairs, ": with 7 outputs in 'fc' it gives \\[7, 2\\] for two images"),
        (features_only, ": with 7 outputs in '2' it gives \\[2, 7, 12, 12\\] for two images"),
    ],
)
def test_a_tail_without_a_classifier_to_resize_is_refused(network: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"no classifier to resize.*{reason}"):
        split(network)


def test_what_follows_the_classifier_stays() -> None:
    class Scaled(Tail):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * super().forward(x)

    made = split(Scaled)
    head, features = made.make_head(4), made.make_trunk()(torch.randn(2, *SMALL))
    logits = head(features)
    torch.nn.init.zeros_(head.get_parameter("fc.weight"))
    assert not torch.equal(head(features), logits)
    torch.testing.assert_close(head(features)[0], 5 * head.get_parameter("fc.bias"))


def test_a_convolution_can_be_the_classifier() -> None:
    made = split(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU()),
            *(nn.Conv2d(6, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        split="2",
    )
    assert made.classifier == "4"
    branch = made.make_branch(3, 0.5)
    assert branch.get_parameter("4.weight").shape == (3, 3, 1, 1)


# --- widths


class Step(nn.Module):
    """One step of a random tail, which may have channels of its own."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.outputs = channels
        self.layer: nn.Module = nn.Identity()
        match kind:
            case "conv":
                self.outputs = 12
                self.layer = nn.Conv2d(channels, 12, 3, padding=1)
            case "norm":
                self.layer = nn.BatchNorm2d(channels)
            case "group norm":
                self.layer = nn.GroupNorm(2, channels)
            case "depthwise":
                self.layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            case "grouped":
                self.outputs = 8
                self.layer = nn.Conv2d(channels, 8, 1, groups=4)
            case "residual":
                self.layer = nn.Sequential(
                    *(nn.Conv2d(channels, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
                    *(nn.Conv2d(6, channels, 3, padding=1), nn.BatchNorm2d(channels)),
                )
            case "dense":
                self.outputs = channels + 4
                self.layer = nn.Conv2d(channels, 4, 3, padding=1)
            case "squeeze":
                self.layer = nn.Sequential(
                    nn.Conv2d(channels, 2, 1), nn.SiLU(), nn.Conv2d(2, channels, 1)
                )
            case "scale":
                self.scale = nn.Parameter(torch.ones(channels, 1, 1))
            case "last":
                self.layer = nn.LayerNorm(channels)
            case "shuffle":
                self.layer = nn.ChannelShuffle(2)
            case "pool":
                self.layer = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "residual":
                return F.relu(x + self.layer(x))
            case "dense":
                return torch.cat([x, self.layer(x)], 1)
            case "squeeze":
                return x * torch.sigmoid(self.layer(F.adaptive_avg_pool2d(x, 1)))
            case "scale":
                return x * self.scale
            case "last":
                return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
            case "chunks":
                first, second = self.layer(x).chunk(2, dim=1)
                return torch.cat((second, first), dim=1)
            case "relu":
                return self.layer(x).relu()  # type: ignore[no-any-return]
        return F.gelu(self.layer(x))


STEPS = (
    *("conv", "norm", "group norm", "depthwise", "grouped", "residual", "dense", "squeeze"),
    *("scale", "last", "shuffle", "pool", "chunks", "relu"),
)


class Random(nn.Module):
    def __init__(self, kinds: Sequence[str], hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.steps = nn.Sequential()
        channels = 8
        for kind in kinds:
            self.steps.append(step := Step(kind, channels))
            channels = step.outputs
        self.start = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2 if hidden else 1)
        self.hidden = nn.Linear(4 * channels, hidden) if hidden else nn.Identity()
        self.fc = nn.Linear(hidden or channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.steps(self.start(self.stem(x))))
        logits: Tensor = self.fc(F.relu(self.hidden(torch.flatten(x, 1))))
        return logits


CHANNELS_OF_ITS_OWN = {"conv", "grouped", "residual", "dense", "squeeze"}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(STEPS), max_size=5),
    st.sampled_from([0, 5]),
    st.sampled_from([0.1, 0.25, 0.5, 1.5, 2.0]),
    st.integers(1, 4),
)
def test_whatever_a_tail_does_its_narrower_or_wider_copy_fits_together(
    kinds: list[str], hidden: int, width: float, n: int
) -> None:
    made = split(lambda: Random(kinds, hidden), split="start")
    features = made.make_trunk().eval()(torch.randn(2, *SMALL))
    tail = made.make_branch(n)
    try:
        branch = made.make_branch(n, width)
    except InvalidInput as error:
        refusal = str(error)
        assert "changes nothing" in refusal
        assert not hidden
        return
    assert hidden or CHANNELS_OF_ITS_OWN & set(kinds)
    logits = branch.eval()(features)
    assert logits.shape == (2, n)
    assert logits.isfinite().all()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (tail, branch)]
    assert (sizes[1] < sizes[0]) == (width < 1)
    assert list(branch.state_dict()) == list(tail.state_dict())
    assert repr(made.make_branch(n)) == repr(tail)


def shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in part.named_parameters() if n.endswith("weight")}


@pytest.mark.parametrize(
    ("kinds", "width", "expected"),
    [
        # a residual block on the trunk's 8 channels: only its inner 6 are free
        (["residual"], 0.5, {"0.layer.0": (3, 8, 1, 1), "0.layer.3": (8, 3, 3, 3)}),
        (["residual"], 2, {"0.layer.0": (12, 8, 1, 1), "0.layer.3": (8, 12, 3, 3)}),
        # behind a convolution of its own the block's channels are free as well
        (["conv", "residual"], 0.5, {"1.layer.0": (3, 6, 1, 1), "1.layer.3": (6, 3, 3, 3)}),
        # the trunk's 8 and 4 of its own
        (["dense", "conv"], 0.5, {"0.layer": (2, 8, 3, 3), "1.layer": (6, 10, 3, 3)}),
        (["conv", "depthwise"], 0.5, {"1.layer": (6, 1, 3, 3)}),
        (["depthwise", "conv"], 0.5, {"0.layer": (8, 1, 3, 3), "1.layer": (6, 8, 3, 3)}),
        # groups of 4 stay whole
        (["conv", "grouped"], 0.25, {"0.layer": (4, 8, 3, 3), "1.layer": (4, 1, 1, 1)}),
        # what is shuffled or cut into chunks keeps its channels
        (["conv", "shuffle", "conv"], 0.5, {"0.layer": (12, 8, 3, 3), "2.layer": (6, 12, 3, 3)}),
        (["conv", "chunks", "conv"], 0.5, {"0.layer": (12, 8, 3, 3), "2.layer": (6, 12, 3, 3)}),
        # never less than one
        (["conv", "conv"], 0.01, {"0.layer": (1, 8, 3, 3), "1.layer": (1, 1, 3, 3)}),
    ],
)
def test_channels_change_together_and_those_of_the_trunk_stay(
    kinds: list[str], width: float, expected: dict[str, tuple[int, ...]]
) -> None:
    branch = split(lambda: Random(kinds, 0), split="start").make_branch(3, width)
    found = shapes(branch)
    assert {name: found[f"steps.{name}.weight"] for name in expected} == expected


def test_a_branch_of_width_1_has_the_tail_s_own_layers() -> None:
    whole = Random(["conv", "residual", "dense"], 5)
    branch = split(lambda: Random(["conv", "residual", "dense"], 5), split="start").make_branch(10)
    own = {name: shape for name, shape in shapes(whole).items() if name != "stem.weight"}
    assert shapes(branch) == own


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_resized_layers_are_drawn_with_the_deviation_of_their_new_fan_in(width: float) -> None:
    class Wide(Tail):
        def begin(self, channels: int) -> None:
            self.one = nn.Conv2d(channels, 200, 3)
            self.two = nn.Conv2d(200, 200, 3)
            self.three = nn.Linear(200, channels)
            for layer in (self.one, self.two, self.three):
                nn.init.kaiming_normal_(layer.weight)  # 2 / fan-in
                nn.init.constant_(layer.bias, 0.5)

        def middle(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.one(x)).mean((2, 3)))[:, :, None, None]  # type: ignore[no-any-return]

    branch = split(Wide, split="one").make_branch(3, width)
    fan_ins = {"one": 72, "two": 200 * width * 9, "three": 200 * width}
    for name, fan_in in fan_ins.items():
        layer = branch.get_submodule(name)
        assert layer.weight[0].numel() == fan_in
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        assert (layer.bias == 0.5).all()


class Hidden(nn.Module):
    """Counts on eight channels without having a parameter that shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 8, *x.shape[2:])


class Counting(Tail):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.hidden = Hidden()

    def middle(self, x: Tensor) -> Tensor:
        return self.two(self.hidden(self.one(x)))  # type: ignore[no-any-return]


class Opaque(Counting):
    def begin(self, channels: int) -> None:
        super().begin(channels)
        self.hidden = nn.Sequential()
        self.hidden.forward = Hidden().forward  # type: ignore[method-assign]


def test_a_width_that_a_tail_cannot_have_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        InvalidInput, match=r"branch_width 0.5 changes nothing behind 'fc' of 'Tail'"
    ):
        split(Tail, split="fc").make_branch(3, 0.5)
    sentence = r"branch_width must be 1 behind 'one' of 'Counting', whose layers depend on their wi"
    with pytest.raises(InvalidInput, match=sentence):
        split(Counting, split="one").make_branch(3, 0.5)
    assert split(Counting, split="one").make_branch(3).hidden is not None


# --- weights


def test_base_generalist_and_nofe_of_one_seed_begin_with_the_same_trunk() -> None:
    made = split(Residual)
    specialties = Specialties(tuple("abc"), (0, 1, 0), 2)
    networks = [
        CNN(made, 10, "published", seed=1),
        CNN(made, 3, "published", seed=1),
        NofE(made, specialties, "published", seed=1, width=0.5),
    ]
    other = CNN(made, 10, "published", seed=2)
    for name, tensor in networks[0].trunk.state_dict().items():
        assert all(torch.equal(tensor, each.trunk.state_dict()[name]) for each in networks)
    assert not torch.equal(networks[0].trunk.stem.weight, other.trunk.stem.weight)


def test_branches_differ_from_each_other_and_from_the_head_and_come_again_with_the_seed() -> None:
    made = split(Residual, split="blocks.1")
    specialties = Specialties(tuple("abcd"), (0, 1, 0, 1), 2)
    first, again = (NofE(made, specialties, "published", seed=0) for _ in range(2))
    head = CNN(made, 2, "published", seed=0).head.state_dict()
    one, two = (first.branches[k].state_dict() for k in "01")
    for name in head:
        assert torch.equal(one[name], again.branches["0"].state_dict()[name])
        assert not torch.equal(one[name], two[name]), name
        assert not torch.equal(one[name], head[name]), name


@pytest.mark.parametrize("network", [Residual, Residual(), "resnet18"])
def test_a_branch_can_begin_with_all_of_the_head_but_its_classifier(network: Any) -> None:
    made = split(network)
    head = list(made.make_head(7).state_dict())
    assert made.tail == tuple(name for name in head if not name.startswith("fc."))


def test_a_module_of_one_s_own_brings_its_weights_for_all_parts() -> None:
    module = Residual()
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = split(module, split="blocks.1")
    nn.init.zeros_(module.stem.weight)  # what becomes of it later changes nothing
    parts = made.make_trunk().state_dict() | made.make_head(10).state_dict()
    assert all(torch.equal(parts[name], own[name]) for name in own)
    head = made.make_head(4).state_dict()
    assert all(torch.equal(head[name], own[name]) == (not name.startswith("fc")) for name in head)
    specialties = Specialties(tuple("abcd"), (0, 1, 0, 1), 2)
    network = NofE(made, specialties, "published", seed=0)
    one, two = (network.branches[k].state_dict() for k in "01")
    for name in one:
        is_classifier = name.startswith("fc")
        assert torch.equal(one[name], two[name]) != is_classifier, name
        assert torch.equal(one[name], own[name]) != is_classifier, name


def test_a_class_begins_afresh_with_every_seed() -> None:
    made = split(Residual)
    with seeded(3):
        first = made.make_trunk().stem.weight
    with seeded(3):
        assert torch.equal(made.make_trunk().stem.weight, first)
    with seeded(4):
        assert not torch.equal(made.make_trunk().stem.weight, first)


# --- names


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Residual, "Residual"),
        (Residual(), "Residual"),
        (lambda: Residual(16), "Residual"),
        ("resnet18", "resnet18"),
    ],
)
def test_a_backbone_is_called_as_its_network(network: Any, name: str) -> None:
    assert backbone(network).name == name


def test_equal_requests_have_one_identity() -> None:
    module = Residual()
    assert split(module).identity == split(module).identity
    assert split(Residual).identity == split(Residual).identity
    assert split("resnet18").identity == split("resnet18", split="layer4").identity


def test_other_requests_have_another_identity() -> None:
    torch.manual_seed(0)
    requests: list[dict[str, Any]] = [
        {"network": "resnet18"},
        {"network": "resnet18", "split": "layer3"},
        {"network": "resnet18", "stem": "original"},
        {"network": "resnet18", "shape": (3, 32, 32)},
        {"network": "resnet18", "shape": (1, 16, 16)},
        {"network": "resnet34"},
        {"network": Residual},
        {"network": lambda: Residual(16)},
        {"network": Residual()},
        {"network": Residual()},  # of other weights
        {"network": Skipping},
        {"network": Tail},
    ]
    identities = [split(**request).identity for request in requests]
    assert all(identities.count(each) == 1 for each in identities)
    own = {"name", "input", "split", "layers", "own", "weights"}
    for each in identities:
        of_weights = {"branches", "statistics"} if each["weights"] is not None else set()
        assert set(each) == own | of_weights


def test_the_parts_work_without_the_network_they_come_from() -> None:
    made = split(Residual)
    graph = trace(Residual(), "again").graph
    assert made.make_trunk()(torch.zeros(1, *SMALL)).shape == (1, *made.plan.features)
    assert assemble(Residual(), graph)(torch.zeros(1, *SMALL)).shape == (1, 10)
