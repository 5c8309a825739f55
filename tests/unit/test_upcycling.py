"""Upcycling: a network of experts that begins with the logits of its base CNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nofe_lab import Experiment, InvalidInput
from nofe_lab.machine import seeded
from nofe_lab.networks import CNN, PAPER, Backbone, NofE, backbone
from nofe_lab.specialties import Specialties
from tests.unit.test_experiment_networks import Own, OwnBackbone

Make = Callable[..., Experiment]

NAMES = tuple("abcdef")
PARTITION = Specialties(NAMES, (0, 2, 1, 0, 1, 1), 3)

TORCHVISION = (
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "densenet121",
)
TIMM = ("timm:resnet10t", "timm:mobilenetv3_small_050", "timm:regnety_002")
PUBLISHED = ("nin_c100", "resnet56_c100")


def trained(found: Backbone, seed: int = 0) -> CNN:
    """A base CNN whose every tensor, statistics too, is another than a fresh network's."""
    base = CNN(found, len(NAMES), "published", seed)
    with seeded("weights of a base CNN"), torch.no_grad():
        for name, tensor in base.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.rand_like(tensor)
                tensor.mul_(1 + 0.2 * drawn)
                if tensor.ndim == 1 and "var" not in name:
                    tensor.add_(0.02 * drawn)
    return base.eval()


def logits_of(found: Backbone, start: str, width: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of a base CNN and of the network of experts that begins as it, for the same images."""
    base = trained(found)
    nofe = NofE(found, PARTITION, "published", 1, width).eval()
    nofe.begin_as(base, found, start, width)
    with seeded("images"), torch.no_grad():
        images = torch.randn(3, *found.input_shape)
        return base(images), nofe(images)


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM, *PUBLISHED])
def test_an_upcycled_network_of_experts_begins_with_the_logits_of_its_base_cnn(name: str) -> None:
    found = backbone(name)
    shape = found.input_shape if name in PAPER else (3, 32, 32)
    before, after = logits_of(found.for_images(shape), "upcycled")
    assert before.std() > 1e-3
    assert before.unique(dim=0).shape[0] == 3
    assert torch.allclose(after, before, rtol=0, atol=1e-5 * float(before.abs().max().clamp(min=1)))


def test_the_tail_alone_does_not_keep_the_logits() -> None:
    before, after = logits_of(backbone("resnet18").for_images((3, 32, 32)), "tail")
    assert not torch.allclose(before, after, atol=1e-2)


OTHER_LAYERS = ("alexnet_quick", "alexnet_c100", "vgg11_c100", "alexnet_imagenet")


@pytest.mark.parametrize("name", OTHER_LAYERS[:3])  # the fourth is like the third, and large
def test_published_branches_with_other_layers_than_the_head_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"'upcycled' needs .* {name!r} has branches of other"):
        logits_of(PAPER[name](), "upcycled")


def test_every_published_network_is_among_them() -> None:
    assert {*PUBLISHED, *OTHER_LAYERS} == set(PAPER)


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 0.25), ("mobilenet_v3_small", 0.5), ("timm:regnety_002", 0.5)]
)
def test_a_narrow_upcycled_branch_keeps_channels_of_the_trained_tail(
    name: str, width: float
) -> None:
    found = backbone(name).for_images((3, 32, 32))
    base = trained(found)
    nofe = NofE(found, PARTITION, "published", 1, width).eval()
    nofe.begin_as(base, found, "upcycled", width)
    head = base.head.state_dict()
    for branch in nofe.branches.values():
        for key, tensor in branch.state_dict().items():
            assert torch.isin(tensor, head[key]).all(), key


class Grouped(nn.Module):
    """A tail with a grouped convolution, a sum, a concatenation and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.first = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.other = nn.Conv2d(8, 6, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(14 * 4, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        joined = torch.cat([x + self.norm(self.grouped(x)), self.other(x)], 1)
        logits: Tensor = self.fc(torch.flatten(self.pool(joined), 1))
        return logits


def test_the_channels_that_a_narrow_branch_keeps_are_the_same_in_every_layer() -> None:
    """Where those that it lacks are silent in the base CNN, it gives the base CNN's logits."""
    found = backbone(Grouped, split="first").for_images((3, 32, 32))
    base = trained(found)
    silent = {"first": [2, 3, 6, 7], "norm": [2, 3, 6, 7], "other": [3, 4, 5]}
    with torch.no_grad():
        for layer, channels in silent.items():
            for tensor in base.head.get_submodule(layer).parameters():
                tensor[channels] = 0
    nofe = NofE(found, PARTITION, "published", 1, 0.5).eval()
    assert nofe.branches["0"].get_submodule("grouped").weight.shape == (4, 2, 3, 3)
    nofe.begin_as(base, found, "upcycled", 0.5)
    with torch.no_grad():
        images = torch.randn(3, 3, 32, 32)
        assert torch.allclose(nofe(images), base(images), atol=1e-5)


def test_pretrained_weights_are_those_of_the_branches_too() -> None:
    """Narrow ones keep those between their channels, wide ones have fresh ones in addition."""
    module = Grouped()
    found = backbone(module, split="first").for_images((3, 32, 32))
    assert torch.equal(found.make_branch(4).get_submodule("other").weight, module.other.weight)
    narrow, wide = (found.make_branch(4, width).state_dict() for width in (0.5, 2.0))
    kept = torch.tensor([0, 1, 4, 5])
    assert torch.equal(narrow["other.weight"], module.other.weight[:3][:, kept])
    assert torch.equal(narrow["grouped.weight"], module.grouped.weight[kept][:, :2])
    there = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(wide["grouped.weight"][there][:, :4], module.grouped.weight)
    assert not torch.equal(wide["grouped.weight"][4:8, :4], module.grouped.weight[:4])


def test_a_width_needs_a_tail_that_can_be_narrowed() -> None:
    with pytest.raises(InvalidInput, match=r"'nin_c100' has branches of width 0\.5 of o"):
        logits_of(PAPER["nin_c100"](), "upcycled", 0.5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"trunk": "generalist"}, r"'upcycled' needs trunk 'base' .*; got trunk 'generalist'"),
        ({"trunk": "scratch"}, r"'upcycled' needs trunk 'base'"),
        ({"trunk": "base", "branch_width": 2.0}, r"branch_width of at most 1; got .* 2\."),
    ],
)
def test_upcycling_needs_a_base_cnn_and_branches_no_wider_than_its_tail(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Experiment(backbone=Own, branch_start="upcycled", **given)


@pytest.mark.parametrize("network", [OwnBackbone(), "alexnet_quick"])
def test_branches_of_their_own_layers_are_refused_before_training(
    network: Any, tiny_experiment: Make
) -> None:
    with pytest.raises(InvalidInput, match="'upcycled' needs branches that can begin as"):
        tiny_experiment(backbone=network, trunk="base", branch_start="upcycled").nofe()


def test_an_upcycled_run_begins_as_the_run_of_its_base_cnn(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(
        backbone=Own, split="stage3", trunk="base", branch_start="upcycled", specialties="random"
    )
    stage = experiment.nofe()
    base = experiment.base("generalist")
    (run,) = experiment.run(base)
    network = stage.untrained_network()
    stage.start_from(run, network)
    images = experiment.data.test.images
    trained = experiment.model(base)
    with torch.no_grad():
        x = trained.preprocess(images)
        assert torch.allclose(network.eval()(x), trained.network(x), atol=1e-5)
    plain = tiny_experiment(backbone=Own, split="stage3", trunk="base", specialties="random")
    assert stage.id != plain.nofe().id
    experiment.run(stage)


def test_a_comparison_upcycles_what_begins_as_a_base_cnn(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(
        backbone=Own, split="stage3", trunk="base", branch_start="upcycled"
    )
    starts = {(arm.trunk, arm.branch_start) for arm in experiment.arms() if arm.kind == "nofe"}
    assert starts == {("generalist", "tail"), ("base", "upcycled"), ("scratch", "fresh")}
    assert "branches: upcycled" in experiment.nofe().title


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_upcycled_experts_are_compared_with_the_same_opponents(
    tiny_experiment: Make, width: float
) -> None:
    upcycled = tiny_experiment(
        backbone=Own, trunk="base", branch_start="upcycled", branch_width=width, rule="optimal"
    )
    fresh = tiny_experiment(backbone=Own, trunk="base", branch_width=width, rule="optimal")
    assert upcycled.base("arithmetic").id == fresh.base("arithmetic").id
    assert list(upcycled.opponents()) == list(fresh.opponents())
