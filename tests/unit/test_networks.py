"""The backbone contract, and what makes a network of experts one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nofe_lab import Backbone, InvalidInput, NofE, Specialties
from nofe_lab.networks import CNN, backbone, preset
from nofe_lab.networks.backbone import expert_macs, matching_width
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.networks.paper import AlexNetQuick
from nofe_lab.recipes import Recipe


class Flat(Backbone):
    """A backbone of one linear layer a part, to build networks of experts in no time."""

    name = "flat"
    input_shape = (1, 2, 2)

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 5))

    def make_head(self, n: int) -> nn.Module:
        return nn.Linear(5, n)

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return nn.Linear(5, n)


class Says(nn.Module):
    """A branch whose logits are the given numbers, whatever it sees."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = torch.tensor(numbers, dtype=torch.float32)

    def forward(self, features: Tensor) -> Tensor:
        return self.numbers.expand(len(features), -1)


def partition(of: Sequence[int], K: int) -> Specialties:
    return Specialties(tuple(str(c) for c in range(len(of))), tuple(of), K)


def balanced(C: int = 100, K: int = 10) -> Specialties:
    return partition([c % K for c in range(C)], K)


# --- counts


def test_frozen_parameters_are_not_counted() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_counting_leaves_a_network_in_training_mode() -> None:
    network = CNN(Flat(), 3, "kaiming", seed=0).train()
    assert count_macs(network, (1, 2, 2)) == 4 * 5 + 5 * 3
    assert network.training


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(InvalidInput, match="initialisation 'xavier' is unknown"):
        CNN(Flat(), 3, "xavier", seed=0)


# --- widths of equal cost


@pytest.mark.parametrize("K", [4, 10])
def test_the_experts_arithmetic_is_that_of_their_layers(K: int) -> None:
    network = backbone("alexnet_quick")
    nofe = NofE(network, balanced(100, K), "kaiming", 0, 0.5)
    counted = sum(count_macs(branch, (64, 4, 4)) for branch in nofe.branches.values())
    assert expert_macs(network, 100, K, 0.5) == counted


@pytest.mark.parametrize("name", ["alexnet_quick", "nin_c100"])
@pytest.mark.parametrize("branches", [1, 5, 50])
def test_other_numbers_of_branches_get_the_same_arithmetic(name: str, branches: int) -> None:
    network = backbone(name)
    width = matching_width(network, 100, 10, branches=branches)
    expected = pytest.approx(expert_macs(network, 100, 10), rel=0.05)
    assert expert_macs(network, 100, branches, width) == expected


# --- the contract


class Mine(Backbone):
    """As little as a user has to write."""

    name = "mine"
    input_shape = (1, 8, 8)

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def make_head(self, n: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, n))

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        hidden = round(10 * width)
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, hidden), nn.Linear(hidden, n))


def test_a_backbone_needs_a_name_an_input_shape_and_three_makers() -> None:
    maker = Mine()
    assert backbone(maker) is maker
    images = torch.randn(3, 1, 8, 8)
    assert CNN(maker, 6, "kaiming", seed=0)(images).shape == (3, 6)
    network = NofE(maker, balanced(6, 2), "kaiming", seed=0)
    assert network(images).shape == (3, 6)
    recipe = Recipe(1, 0.1, weight_decay=0.1, multipliers=True)
    (group,) = maker.parameter_groups(network, recipe)
    assert (group["rate_multiplier"], group["weight_decay"]) == (1, 0.1)
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert preset("quick", maker).nofe.epochs > 0
    assert maker.tail is None
    assert maker.notes == ()


@pytest.mark.parametrize("missing", ["make_trunk", "make_head", "make_branch"])
def test_a_backbone_without_one_of_the_makers_cannot_be_made(missing: str) -> None:
    incomplete = type("Incomplete", (Mine,), {missing: getattr(Backbone, missing)})
    with pytest.raises(TypeError, match=missing):
        incomplete()


def test_nothing_was_published_for_a_backbone_of_one_s_own() -> None:
    sentence = r"preset 'paper' is for the published networks \(alexnet_quick, .*'mine' accepts 'q"
    with pytest.raises(InvalidInput, match=sentence):
        preset("paper", Mine())


def test_unknown_backbones_and_presets_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"'alexnet-quick' is unknown \(did you mean 'alexnet_"):
        backbone("alexnet-quick")
    with pytest.raises(InvalidInput, match=r"preset 'papper' is unknown \(did you mean 'paper'"):
        preset("papper", Mine())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 9), (1, 500, 8), (1, 32, 32)])
def test_images_of_at_least_the_input_s_size_are_taken(shape: tuple[int, int, int]) -> None:
    maker = Mine()
    assert maker.for_images(shape).input_shape == (1, 8, 8)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (1, 7, 100), (3, 8, 8), (2, 32, 32)])
def test_smaller_images_and_other_channels_are_refused(shape: tuple[int, int, int]) -> None:
    size = " x ".join(map(str, shape))
    sentence = f"backbone 'mine' takes images of 1 x 8 x 8 or larger; got {size}"
    with pytest.raises(InvalidInput, match=sentence):
        Mine().for_images(shape)


class OtherName(Mine):
    name = "other"


class OtherInput(Mine):
    input_shape = (1, 8, 9)


class OtherTrunk(Mine):
    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU())


class OtherHead(Mine):
    def make_head(self, n: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, n, bias=False))


class OtherBranch(Mine):
    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, n))


class OtherShared(Mine):
    def make_shared(self) -> nn.Module:
        return nn.Dropout(0.1)


OTHERS = (OtherName, OtherInput, OtherTrunk, OtherHead, OtherBranch, OtherShared)


def test_equal_backbones_have_one_identity_and_others_another() -> None:
    assert Mine().identity == Mine().identity
    for other in OTHERS:
        assert other().identity == other().identity
        assert other().identity != Mine().identity, other


@pytest.mark.parametrize("name", ["alexnet_quick", "alexnet_c100", "nin_c100"])
def test_the_identity_of_a_published_network_is_the_same_each_time(name: str) -> None:
    assert backbone(name) is not backbone(name)
    assert backbone(name).identity == backbone(name).identity
    assert backbone(name).identity["name"] == name


class Twins(Mine):
    """Branches have the layers of the head."""

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return self.make_head(n)

    def make_head(self, n: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(4 * 6 * 6, 7), fc2=nn.Linear(7, n))
        )


def test_a_branch_with_the_layers_of_the_head_can_begin_with_all_but_its_classifier() -> None:
    assert Twins().tail == ("fc1.weight", "fc1.bias")


# --- the network of experts


@given(st.integers(1, 5), st.data())
def test_logits_come_in_the_original_class_order(K: int, data: st.DataObject) -> None:
    of = data.draw(st.lists(st.integers(0, K - 1), min_size=K, max_size=12))
    specialties = partition(of, K)
    network = NofE(Flat(), specialties, "kaiming", seed=0)
    for k in specialties.nonempty:
        network.branches[str(k)] = Says(specialties.members(k))
    logits = network(torch.zeros(2, 1, 2, 2))
    assert logits.tolist() == [list(range(len(of)))] * 2


def test_a_branch_has_one_output_for_each_class_of_its_specialty() -> None:
    network = NofE(Flat(), partition([0, 1, 1, 2, 1, 2], 3), "kaiming", seed=0)
    outputs = {name: branch.out_features for name, branch in network.branches.items()}
    assert outputs == {"0": 1, "1": 3, "2": 2}


def test_an_empty_specialty_has_no_branch() -> None:
    network = NofE(Flat(), partition([0, 2, 0, 2], 4), "kaiming", seed=0)
    names = {name.rsplit(".", 1)[0] for name in network.state_dict()}
    assert names == {"trunk.1", "branches.0", "branches.2"}
    assert network(torch.zeros(3, 1, 2, 2)).shape == (3, 4)


def test_more_than_ten_branches_keep_to_the_class_order() -> None:
    specialties = partition([c * 5 % 12 for c in range(12)], 12)
    network = NofE(Flat(), specialties, "kaiming", seed=0)
    for k in range(12):
        network.branches[str(k)] = Says(specialties.members(k))
    assert network(torch.zeros(1, 1, 2, 2)).tolist() == [list(range(12))]


def test_one_softmax_sends_every_branch_a_gradient_for_every_image() -> None:
    network = NofE(Flat(), partition([0, 0, 1, 1], 2), "kaiming", seed=0)
    logits = network(torch.ones(1, 1, 2, 2))
    nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    for branch in network.branches.values():
        assert branch.weight.grad.abs().sum() > 0  # type: ignore[operator, union-attr]


class Doubling(nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x


class Sharing(Flat):
    """A shared part between trunk and branches."""

    name = "sharing"

    def make_shared(self) -> nn.Module:
        return Doubling()


def test_all_branches_see_what_the_shared_part_makes_of_the_trunk_s_features_once() -> None:
    images = torch.randn(3, 1, 2, 2)
    network = NofE(Sharing(), partition([0, 0, 1, 2], 3), "kaiming", seed=0)
    features = 2 * network.trunk(images)
    expected = torch.cat([branch(features) for branch in network.branches.values()], dim=1)
    torch.testing.assert_close(network(images), expected)
    assert network.shared.calls == 1


def test_a_base_cnn_has_no_shared_part() -> None:
    network = CNN(Sharing(), 3, "kaiming", seed=0)
    assert [name for name, _ in network.named_children()] == ["trunk", "head"]


@pytest.mark.parametrize(("width", "hidden"), [(0.5, 5), (1.0, 10), (2.0, 20)])
def test_width_scales_the_hidden_channels_of_every_branch_and_of_nothing_else(
    width: float, hidden: int
) -> None:
    network = NofE(Mine(), balanced(6, 3), "kaiming", seed=0, width=width)
    for branch in network.branches.values():
        assert [tuple(p.shape) for p in branch.parameters()] == [
            (hidden, 4 * 6 * 6),
            (hidden,),
            (2, hidden),
            (2,),
        ]
    for name, tensor in NofE(Mine(), balanced(6, 3), "kaiming", seed=0).trunk.state_dict().items():
        assert torch.equal(tensor, network.trunk.state_dict()[name])
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 6)


# --- initial weights are functions of the seed and of the part


def test_base_generalist_and_nofe_of_one_seed_begin_with_the_same_trunk() -> None:
    maker = AlexNetQuick()
    trunks = [
        network.trunk.state_dict()
        for network in (
            CNN(maker, 100, "kaiming", seed=5),
            CNN(maker, 10, "kaiming", seed=5),
            NofE(maker, balanced(), "kaiming", seed=5),
            CNN(maker, 100, "kaiming", seed=6),
        )
    ]
    for name, tensor in trunks[0].items():
        assert torch.equal(tensor, trunks[1][name])
        assert torch.equal(tensor, trunks[2][name])
    assert not torch.equal(trunks[0]["conv1.weight"], trunks[3]["conv1.weight"])


def test_branches_begin_with_different_weights() -> None:
    network = NofE(Flat(), balanced(4, 2), "kaiming", seed=0)
    first, second = (branch.weight for branch in network.branches.values())
    assert not torch.equal(first, second)


def test_making_a_network_leaves_torch_s_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    NofE(Flat(), balanced(4, 2), "kaiming", seed=0)
    assert torch.equal(torch.get_rng_state(), before)
