"""The published network by hand, layer by layer, and what makes a network of experts one."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nofe_lab import Backbone, InvalidInput, NofE, Specialties
from nofe_lab.config import Recipe
from nofe_lab.networks import CNN, backbone, preset
from nofe_lab.networks.backbone import count_macs, count_parameters
from nofe_lab.networks.paper import AlexNetQuick

IMAGE = (3, 32, 32)


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


# --- AlexNet-Quick, derived by hand


def conv(inputs: int, outputs: int, kernel: int = 5) -> int:
    """Weights of a convolution; also its multiply-accumulates at one place."""
    return inputs * outputs * kernel**2


TRUNK_PARAMETERS = (conv(3, 32) + 32) + (conv(32, 32) + 32) + (conv(32, 64) + 64)
TRUNK_MACS = conv(3, 32) * 32**2 + conv(32, 32) * 16**2 + conv(32, 64) * 8**2


def head_parameters(n: int) -> int:
    return (64 * 4 * 4 * 64 + 64) + (64 * n + n)


def head_macs(n: int) -> int:
    return 64 * 4 * 4 * 64 + 64 * n


def branch_parameters(n: int) -> int:
    return (conv(64, 64) + 64) + (64 * 2 * 2 * 64 + 64) + (64 * n + n)


def branch_macs(n: int) -> int:
    return conv(64, 64) * 4**2 + 64 * 2 * 2 * 64 + 64 * n


@pytest.mark.parametrize(
    ("n", "parameters", "macs"), [(100, 151_428, 12_359_936), (10, 145_578, 12_354_176)]
)
def test_base_cnn_and_generalist_have_the_published_size(
    n: int, parameters: int, macs: int
) -> None:
    network = CNN(AlexNetQuick(), n, "kaiming", seed=0)
    assert count_parameters(network) == TRUNK_PARAMETERS + head_parameters(n) == parameters
    assert count_macs(network, IMAGE) == TRUNK_MACS + head_macs(n) == macs


def test_the_network_of_ten_balanced_experts_has_the_published_size() -> None:
    network = NofE(AlexNetQuick(), balanced(), "kaiming", seed=0)
    parameters = TRUNK_PARAMETERS + 10 * branch_parameters(10)
    macs = TRUNK_MACS + 10 * branch_macs(10)
    assert count_parameters(network) == parameters == 1_274_948
    assert count_macs(network, IMAGE) == macs == 28_842_240


def test_frozen_parameters_are_not_counted() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_counting_leaves_a_network_in_training_mode() -> None:
    network = CNN(Flat(), 3, "kaiming", seed=0).train()
    assert count_macs(network, (1, 2, 2)) == 4 * 5 + 5 * 3
    assert network.training


def test_the_parts_have_the_published_shapes() -> None:
    maker = AlexNetQuick()
    features = maker.make_trunk()(torch.zeros(2, *IMAGE))
    assert features.shape == (2, 64, 4, 4)
    assert maker.make_head(7)(features).shape == (2, 7)
    assert maker.make_branch(7)(features).shape == (2, 7)


def test_the_width_of_a_branch_scales_its_hidden_channels() -> None:
    branch = AlexNetQuick().make_branch(7, width=0.5)
    expected = (conv(64, 32) + 32) + (32 * 2 * 2 * 32 + 32) + (32 * 7 + 7)
    assert count_parameters(branch) == expected
    assert branch(torch.zeros(2, 64, 4, 4)).shape == (2, 7)


@pytest.mark.parametrize(
    ("scheme", "deviations"),
    [
        ("published", [1e-4, 0.01, 0.01, 0.01, 0.1, 0.1]),
        (
            "kaiming",
            # convolutions feed a ReLU, which halves the variance; the fc layers of Quick do not
            [sqrt(2 / fan_in) for fan_in in (75, 800, 800, 1600)] + [sqrt(1 / 256), sqrt(1 / 64)],
        ),
    ],
)
def test_weights_begin_with_the_scheme_s_deviations_and_biases_at_zero(
    scheme: str, deviations: list[float]
) -> None:
    network = NofE(AlexNetQuick(), balanced(200, 2), scheme, seed=0)
    layers = [*network.trunk.modules(), *network.branches["0"].modules()]
    layers = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    found = [layer.weight.detach().std().item() for layer in layers]  # type: ignore[union-attr]
    assert found == pytest.approx(deviations, rel=0.1)
    assert all(not layer.bias.any() for layer in layers)  # type: ignore[operator, union-attr]


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(InvalidInput, match="initialisation 'xavier' is unknown"):
        CNN(Flat(), 3, "xavier", seed=0)


def groups_by_parameter(multipliers: bool) -> dict[str, tuple[float, float]]:
    """(rate multiplier, decay) of each parameter of an AlexNet-Quick, by name."""
    network = CNN(AlexNetQuick(), 10, "kaiming", seed=0)
    recipe = Recipe(1, 0.1, weight_decay=0.004, multipliers=multipliers)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in AlexNetQuick().parameter_groups(network, recipe):
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = (group["rate_multiplier"], group["weight_decay"])
    assert not names, "every parameter belongs to one group"
    return found


def test_biases_learn_twice_as_fast_with_the_same_decay() -> None:
    found = groups_by_parameter(multipliers=True)
    assert len(found) == 10
    for name, rates in found.items():
        assert rates == ((2.0, 0.004) if name.endswith(".bias") else (1.0, 0.004))


def test_without_multipliers_all_parameters_learn_alike() -> None:
    assert set(groups_by_parameter(multipliers=False).values()) == {(1.0, 0.004)}


def test_the_published_recipe_is_the_papers() -> None:
    paper = preset("paper", "alexnet_quick")
    assert (paper.generalist.epochs, paper.update_every, paper.affinity_images) == (8, 2, 10_000)
    assert (paper.generalist.flips, paper.nofe.flips, paper.flat.flips) == (True, False, True)
    assert (paper.rule, paper.affinity, paper.val_fraction) == ("greedy", "counts", 0)
    rates = [paper.nofe.rate(epoch, 10) for epoch in range(10)]
    assert rates == pytest.approx([1e-3] * 8 + [1e-4] * 2)
    for recipe in (paper.generalist, paper.nofe, paper.flat):
        assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (100, 0.9, 4e-3)
        assert (recipe.nesterov, recipe.multipliers) == (False, True)


def test_unknown_backbones_and_presets_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"'alexnet-quick' is unknown \(did you mean 'alexnet_"):
        backbone("alexnet-quick")
    with pytest.raises(InvalidInput, match=r"preset 'papper' is unknown \(did you mean 'paper'"):
        preset("papper", "alexnet_quick")


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
    assert not torch.equal(trunks[0]["0.weight"], trunks[3]["0.weight"])


def test_branches_begin_with_different_weights() -> None:
    network = NofE(Flat(), balanced(4, 2), "kaiming", seed=0)
    first, second = (branch.weight for branch in network.branches.values())
    assert not torch.equal(first, second)


def test_making_a_network_leaves_torch_s_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    NofE(Flat(), balanced(4, 2), "kaiming", seed=0)
    assert torch.equal(torch.get_rng_state(), before)
