"""Networks as people bring them: right, or refused in one sentence; none is changed silently.

Every test here failed while settings of one's own layers went unseen, softmax outputs were cut like
logits, and forwards with a flag or a check of the image's size were refused.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from nofe_lab import Experiment, InvalidInput, NofE, Specialties, backbone
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.networks import CNN
from nofe_lab.networks.surgery import SplitNetwork

SMALL = (3, 16, 16)
IMAGES = torch.randn(3, *SMALL, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions and a classifier; subclasses change what happens in between."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)
        for name, value in settings.items():
            setattr(self, name, value)

    def features(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


def made(network: Any, shape: tuple[int, int, int] = SMALL, **options: Any) -> SplitNetwork:
    found = backbone(network, **options).for_images(shape)
    assert isinstance(found, SplitNetwork)
    return found


def check_right(network: nn.Module, shape: tuple[int, int, int] = SMALL) -> SplitNetwork:
    """Cut anywhere, the parts do what the network does."""
    images = torch.randn(3, *shape)
    reference = copy.deepcopy(network).eval()
    for point in made(network, shape).split_points:
        found = made(network, shape, split=point)
        with torch.no_grad():
            both = found.make_head(10).eval()(found.make_trunk().eval()(images))
            torch.testing.assert_close(both, reference(images))
    return found


# --- identity


class Holder(nn.Module):
    """A layer with a setting, which says nothing about it in its repr."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Config:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


def closure(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def identity(network: Any) -> object:
    torch.manual_seed(0)
    found = made(network() if isinstance(network, functools.partial) else network)
    return found.identity["own"], found.identity["weights"]


def seeded(value: int) -> random.Random:
    return random.Random(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (F.relu, torch.tanh),
        (functools.partial(F.leaky_relu, negative_slope=0.01),
         functools.partial(F.leaky_relu, negative_slope=0.9)),
        ([1.0], [9.0]),
        ((1.0,), (9.0,)),
        ({"a": 1}, {"a": 2}),
        ({"a", "b"}, {"a", "c"}),
        (torch.tensor([1.0]), torch.tensor([9.0])),
        (np.array([1.0]), np.array([9.0])),
        (Config(p=0.0), Config(p=0.9)),
        (Config(inner=Config(p=[0.0])), Config(inner=Config(p=[0.9]))),
        (Slotted(0.0), Slotted(0.9)),
        (closure(1.0), closure(2.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (None, False),
        (1, True),
        (torch.float32, torch.float64),
        (seeded(0), seeded(1)),
        (Path("a"), Path("b")),
        (nn.ReLU, nn.GELU),
    ],
    ids=["function", "partial", "list", "tuple", "dict", "set", "tensor", "array", "config",
         "nested config", "slots", "closure", "lambda", "None", "bool", "dtype", "generator",
         "path", "class"],
)  # fmt: skip
@pytest.mark.parametrize("factory", [False, True])
def test_a_setting_of_a_layer_is_a_part_of_the_run(one: Any, other: Any, factory: bool) -> None:
    def network(value: Any) -> Any:
        torch.manual_seed(0)
        found = Net(act=Holder(value))
        return (lambda: found) if factory else found

    first, again, second = (identity(network(value)) for value in (one, copy.copy(one), other))
    assert first != second
    if not isinstance(one, random.Random):
        assert first == again


def test_hooks_and_frozen_weights_are_a_part_of_the_run() -> None:
    torch.manual_seed(0)
    plain = Net()
    hooked, frozen = copy.deepcopy(plain), copy.deepcopy(plain)
    hooked.two.register_forward_hook(lambda module, given, output: 2 * output)
    frozen.one.requires_grad_(False)
    assert len({str(identity(each)) for each in (plain, hooked, frozen)}) == 3
    assert identity(plain) == identity(copy.deepcopy(plain))


class Apart(nn.Module):
    """A layer that keeps a network where PyTorch does not look for one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.kept = [network]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.kept[0](x)
        return out


def test_a_network_in_a_setting_counts_with_its_frozen_weights_and_its_buffers() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(8)
    plain.register_buffer("factor", torch.ones(1), persistent=False)
    frozen, buffered = copy.deepcopy(plain), copy.deepcopy(plain)
    frozen.requires_grad_(False)
    buffered.get_buffer("factor").fill_(2)
    outer = Net()

    def kept(network: nn.Module) -> str:
        outer.act = Apart(network)
        return str(identity(copy.deepcopy(outer)))

    assert len({kept(each) for each in (plain, frozen, buffered)}) == 3
    assert kept(plain) == kept(copy.deepcopy(plain))


SLOPE = 0.1


def sloped(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def test_what_a_function_finds_outside_of_itself_is_a_part_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = Net(act=Holder(sloped))
    before = identity(network)
    monkeypatch.setitem(globals(), "SLOPE", 0.9)
    assert identity(network) != before


def test_a_setting_whose_content_cannot_be_told_is_never_used_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers = (i for i in range(3))
    network = Net(act=Holder(lambda x: x * next(numbers)))
    found = [backbone(lambda: network) for _ in range(2)]
    assert found[0].identity["own"] != found[1].identity["own"]
    assert (
        "The content of value.numbers of Holder 'act' cannot be determined: runs of this"
        in found[0].notes[0]
    )


def test_a_logger_is_no_setting() -> None:
    torch.manual_seed(0)
    network = Net(log=logging.getLogger("mine"))
    assert identity(network) == identity(copy.deepcopy(network))


# --- frozen layers


def test_branches_learn_and_frozen_statistics_stay(tmp_path: Path) -> None:
    network = Net()
    network.requires_grad_(False)
    network.fc = nn.Linear(8, 10)
    experiment = Experiment("digits", backbone=network, split="two", K=5, epochs=1, batch_size=50,
                            train_per_class=20, precision="fp32",
                            runs_dir=str(tmp_path))  # fmt: skip
    stage = experiment.nofe("random", "scratch")
    before, after = stage.network(stage.given), experiment.model(stage).network
    assert isinstance(before, NofE)
    assert isinstance(after, NofE)
    for name, tensor in before.trunk.state_dict().items():
        assert torch.equal(tensor, after.trunk.state_dict()[name]), name
    for branch in before.branches:
        old, new = before.branches[branch].state_dict(), after.branches[branch].state_dict()
        assert not torch.equal(old["two.weight"], new["two.weight"])


def test_a_network_of_which_nothing_learns_is_refused(tmp_path: Path) -> None:
    experiment = Experiment("digits", backbone=Net().requires_grad_(False), K=5, epochs=1,
                            train_per_class=20, batch_size=50, runs_dir=str(tmp_path))  # fmt: skip
    with pytest.raises(InvalidInput, match="has nothing to learn, all of its parameters are froz"):
        experiment.run(experiment.base())


@pytest.mark.parametrize("affine", [True, False])
def test_only_frozen_normalisations_stay(affine: bool) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine))
    trunk.requires_grad_(False)
    tail = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=affine))
    model = ImageNetwork(Preprocess(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)),
                         nn.Sequential(trunk, tail))  # fmt: skip
    model.train()
    assert [m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [False, True]


# --- what cutting would change


class Softmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class LogSoftmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class OwnSoftmax(Net):
    class Share(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            exp = x.exp()
            return exp / exp.sum(1, keepdim=True)

    def __init__(self) -> None:
        super().__init__(share=OwnSoftmax.Share())

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.share(super().forward(x))
        return shares


class Unit(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


def parametrised(normalise: Callable[..., Any], layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = Net()
        normalise(network.get_submodule(layer))
        return network

    return make


def pruned(layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = Net()
        prune.l1_unstructured(network.get_submodule(layer), "weight", 0.5)
        return network

    return make


def hooked() -> nn.Module:
    network = Net()
    network.register_forward_hook(lambda module, given, output: output)
    return network


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x) + torch.rand(1))
        return logits


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        logits: Tensor = self.fc(x if random.random() < 0.5 else 2 * x)
        return logits


class Lottery(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x) * np.random.rand())  # noqa: NPY002
        return logits


class Ungraded(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.norm(self.one(x))
        logits: Tensor = self.fc(self.two(x).mean((2, 3)))
        return logits


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__(two=nn.LazyConv2d(8, 3, padding=1))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Softmax, "ends in 'softmax', behind which its outputs depend on each other"),
        (LogSoftmax, "ends in 'log_softmax', behind which"),
        (OwnSoftmax, "ends in 'share' .Share., behind which"),
        (lambda: nn.Sequential(Net(), nn.Softmax(1)), r"ends in '1' \(Softmax\), behind which"),
        (Unit, "behind which its outputs depend on each other"),
        (parametrised(parametrizations.weight_norm, "fc"), "'fc' of backbone .* cannot be resized"),
        (parametrised(parametrizations.spectral_norm, "fc"), "'fc' of backbone .* cannot be res"),
        (pruned("fc"), "'fc' of backbone 'Net' cannot be resized: its weights are computed from"),
        (hooked, "hooks on the network itself would be lost"),
        (Noisy, "it draws random numbers itself"),
        (Dropping, "it draws random numbers itself"),
        (Lottery, "it draws random numbers itself"),
        (Ungraded, "without gradients or in autocast"),
        (Lazy, "has lazy layers without weights .two"),
    ],
)
def test_a_network_that_cutting_would_change_is_refused_every_time(
    network: Any, sentence: str
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        random.seed(seed)
        with pytest.raises(InvalidInput, match=sentence) as refused:
            made(network)
        assert "\n" not in str(refused.value)


def test_following_a_network_that_draws_leaves_the_random_states_alone() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x) + random.random()

    class Noised(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.features(self.noise(x)))
            return logits

    network = Noised(noise=Noise())
    states = torch.get_rng_state(), random.getstate()
    made(network)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_a_pruned_module_that_cannot_be_copied_is_refused() -> None:
    network = pruned("two")()
    network(IMAGES)
    with pytest.raises(InvalidInput, match=r"'Net' cannot be copied .*prune\.remove"):
        made(network)


@pytest.mark.parametrize(
    "normalise", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_layers_that_keep_their_size_may_compute_their_weights(
    normalise: Callable[..., Any],
) -> None:
    network = parametrised(normalise, "two")()
    for _ in range(3):
        network(IMAGES)
    found = check_right(network)
    branch = made(network, split="two").make_branch(7)
    weights = dict(network.named_parameters())
    for name, parameter in branch.named_parameters():
        assert torch.equal(parameter, weights[name]) == ("two" in name), name
    assert found.plan.classifier == "fc"


def test_noise_in_a_module_of_its_own_is_drawn_anew() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * torch.rand(1)  # type: ignore[no-any-return]

    for layer in (Noise(), Layer()):
        torch.manual_seed(0)
        found = made(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 3), nn.Flatten(),
                                   nn.Linear(4 * 12 * 12, 10)))  # fmt: skip
        trunk, head = found.make_trunk(), found.make_head(10)
        assert not torch.equal(head(trunk(IMAGES)), head(trunk(IMAGES)))


def test_hooks_on_a_branch_s_layer_keep_experts_from_running_as_one() -> None:
    network = Net()
    network.two.register_forward_hook(lambda module, given, output: 2 * output)
    check_right(network)
    found = made(network, split="two")
    experts = NofE(found, Specialties(tuple("abcd"), (0, 1, 0, 1), 2), "published", seed=0)
    one_by_one = experts.eval()(IMAGES)
    experts.grouped = True
    torch.testing.assert_close(experts(IMAGES), one_by_one)
    assert "a layer has hooks" in str(experts.why_not_grouped)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_pretrained_first_layer_is_adapted_and_said(channels: int) -> None:
    network = Net()
    found = made(network, (channels, 16, 16))
    grey = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        kept = network.one(grey.expand(-1, 3, -1, -1))
        adapted = found.make_trunk().get_submodule("one")(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(adapted, kept)
    assert f"one takes {channels} channels with the mean of its weights for 3" in found.notes[0]
    plain = made(network, (3, 16, 16))
    assert not [note for note in plain.notes if "mean of its weights" in note]


def test_the_kernels_of_a_pretrained_small_stem_are_averaged_and_said() -> None:
    network = backbone("resnet18").for_images((3, 224, 224)).build()  # type: ignore[attr-defined]
    found = made(network, (3, 32, 32), stem="small")
    kept = network.conv1.weight
    weight = found.make_trunk().get_parameter("conv1.weight")
    assert weight.shape[2:] == (3, 3)
    torch.testing.assert_close(weight.sum((2, 3)), kept.sum((2, 3)), atol=1e-5, rtol=1e-4)
    assert "the kernels of conv1 are resampled to 3 x 3" in found.notes[0]


# --- harmless forwards


class Flag(Net):
    def forward(self, x: Tensor, features: bool = False, *, scale: float = 2.0) -> Tensor:
        x = self.features(x)
        return x if features else scale * self.fc(x)


class Length(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).reshape(len(x), -1))
        return logits


class Asserts(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three channels"
        if x.shape[-1] < 8:
            raise ValueError("too small")
        return super().forward(x)


class Sized(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x) if x.shape[-1] > 20 else 2 * self.features(x)
        logits: Tensor = self.fc(x)
        return logits


class Mode(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.training:
            x = F.dropout(x, 0.5)
        x = 2 * x
        if self.training:
            x = F.dropout(x, 0.1)
        logits: Tensor = self.fc(x)
        return logits


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        x = self.two(self.norm(self.one(x)).relu()).relu()
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).view(n, -1))
        return logits


class CountsByShape(Net):
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.two(self.norm(self.one(x)).relu()).relu()
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).reshape(n, -1))
        return logits


@pytest.mark.parametrize("network", [Flag, Length, Asserts, Sized, Mode, Counts, CountsByShape])
@pytest.mark.parametrize("side", [16, 24])
def test_a_harmless_forward_is_followed(network: type[Net], side: int) -> None:
    torch.manual_seed(0)
    found = check_right(network(), (3, side, side))
    assert {"norm", "two", "fc"} <= set(found.split_points)


def test_what_happens_in_training_alone_happens_there() -> None:
    found = made(Mode(), split="two")
    network = CNN(found, 10, "published", seed=0)
    network.train()
    assert not torch.equal(network(IMAGES), network(IMAGES))
    network.eval()
    assert torch.equal(network(IMAGES), network(IMAGES))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        AveragedModel,
        lambda n: torch.compile(nn.DataParallel(n)),
    ],
)
def test_wrappers_are_opened(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = Net()
    found = backbone(wrap(network))
    assert found.name == "Net"
    assert found.identity == backbone(network).identity


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_of_one_s_own_may_call_view(inside: bool) -> None:
    flat = nn.Sequential(Flatten()) if inside else Flatten()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), flat, nn.Linear(576, 10))
    for point in made(network).split_points:
        found = made(network, split=point)
        model = nn.Sequential(found.make_trunk(), found.make_head(10))
        model.to(memory_format=torch.channels_last)
        model(IMAGES.contiguous(memory_format=torch.channels_last)).sum().backward()


def test_a_view_that_cannot_be_helped_is_named(tmp_path: Path) -> None:
    class Reshaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.mean((2, 3), keepdim=True) + x.permute(0, 1, 3, 2)).as_view()  # type: ignore[attr-defined, no-any-return]

    def as_view(self: Tensor) -> Tensor:
        return self.contiguous(memory_format=torch.channels_last).view(len(self), -1)

    Tensor.as_view = as_view  # type: ignore[attr-defined]
    try:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), Reshaped(),
                                nn.Flatten(), nn.Linear(4 * 28 * 28, 10))  # fmt: skip
        experiment = Experiment("digits", backbone=lambda: network, K=5, epochs=1, batch_size=50,
                                train_per_class=20, split="1", runs_dir=str(tmp_path))  # fmt: skip
        with pytest.raises(InvalidInput, match="Reshaped of 'Sequential' calls view"):
            experiment.run(experiment.base())
    finally:
        del Tensor.as_view  # type: ignore[attr-defined]


def test_normalising_one_value_names_the_batch_size(tmp_path: Path) -> None:
    class Squeezed(Net):
        def __init__(self) -> None:
            super().__init__(last=nn.BatchNorm1d(8))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.last(self.features(x)))
            return logits

    experiment = Experiment("digits", backbone=Squeezed, K=5, epochs=1, batch_size=1,
                            train_per_class=4, runs_dir=str(tmp_path))  # fmt: skip
    with pytest.raises(InvalidInput, match="batch_size must be at least 2 for 'Squeezed', whose"):
        experiment.run(experiment.base())


@pytest.mark.parametrize(("side", "hint"), [(32, "48 x 48 pixels"), (64, "48 x 48 pixels")])
def test_a_network_for_one_size_names_it(side: int, hint: str) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1), nn.Flatten(),
                             nn.Linear(2 * 12 * 12, 10))  # fmt: skip

    with pytest.raises(InvalidInput, match=f"cannot take images of .*; accepted: {hint}"):
        made(network, (3, side, side), stem="original")


# --- at the model's door

DOOR = ImageNetwork(Preprocess(torch.zeros(3, 1, 1), torch.ones(3, 1, 1), None, (3, 8, 8)),
                    nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))  # fmt: skip
RAW = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (RAW.float() / 255, r"torch.float32 \[2, 3, 8, 8\]"),
        (RAW.float(), r"torch.float32 \[2, 3, 8, 8\]"),
        (RAW.long(), r"torch.int64 \[2, 3, 8, 8\]"),
        (RAW[0], r"torch.uint8 \[3, 8, 8\]"),
        (RAW.permute(0, 2, 3, 1), r"torch.uint8 \[2, 8, 8, 3\]"),
        (torch.cat([RAW, RAW[:, :1]], 1), r"torch.uint8 \[2, 4, 8, 8\]"),
        (RAW[..., :7], r"torch.uint8 \[2, 3, 8, 7\]"),
        (RAW.repeat(1, 1, 2, 2), r"torch.uint8 \[2, 3, 16, 16\]"),
        (RAW.numpy(), "ndarray"),
        ("rose.png", "str"),
    ],
)
def test_a_network_says_what_it_takes(images: Any, got: str) -> None:
    for ask in (DOOR, DOOR.logits):
        with pytest.raises(InvalidInput, match=rf"takes images uint8 \[N, 3, 8, 8\] .*; got {got}"):
            ask(images)


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_a_network_of_another_type_says_so(convert: str) -> None:
    with pytest.raises(InvalidInput, match=r"weights and statistics must be torch\.float32; got"):
        getattr(copy.deepcopy(DOOR), convert)()(RAW)


def test_a_flat_network_predicts_too_and_has_no_experts_to_choose() -> None:
    assert torch.equal(DOOR.logits(RAW), DOOR(RAW))
    with pytest.raises(InvalidInput, match=r"experts=2.* got Sequential, which has no experts"):
        DOOR.logits(RAW, experts=2)


def test_the_door_does_not_keep_a_network_from_being_exported() -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        DOOR.eval(),
        (RAW,),
        dynamic_shapes=(
            {0: batch},
            None,
        )[:1],
    )
    more = RAW.repeat(3, 1, 1, 1)
    torch.testing.assert_close(program.module()(more), DOOR(more))


# --- checkpoint files as people have them


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, "keeps as 'state_dict'"),
        (lambda s: {"model": s, "optimizer": {"state": {}}}, "keeps as 'model'"),
        (lambda s: {"net": s, "acc": 0.5}, "keeps as 'net'"),
        (lambda s: {"model_state_dict": s}, "keeps as 'model_state_dict'"),
        (lambda s: {"model_ema": s}, "keeps as 'model_ema'"),
        (lambda s: prefixed("module.", s), "begin with 'module.', which is cut"),
        (lambda s: prefixed("_orig_mod.", s), "begin with '_orig_mod.'"),
        (lambda s: prefixed("model.", s), "begin with 'model.'"),
        (lambda s: prefixed("module._orig_mod.", s), "begin with '_orig_mod.'"),
        (lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)}, "'module.'"),
        (
            lambda s: {**prefixed("backbone.", s), "criterion.weight": torch.ones(2)},
            "begin with 'backbone.', which is cut, without 1 others such as 'criterion.weight'",
        ),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("fc.")},
            "have no classifier; it is initialised",
        ),
    ],
)
def test_a_checkpoint_is_unwrapped_and_said(
    wrap: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    network = Net()
    torch.save(wrap(network.state_dict()), tmp_path / "w.pth")
    found = backbone(Net, weights=tmp_path / "w.pth").for_images(SMALL)
    assert said in " ".join(found.notes)
    weight = found.make_trunk().state_dict()["one.weight"]
    assert torch.equal(weight, network.one.weight)
    assert found.make_head(10).state_dict()["fc.weight"].shape == (10, 8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda s: {"model": s, "model_ema": s}, "hold 'model', 'model_ema'; accepted"),
        (lambda s: {"epoch": 1, "args": "x"}, "hold 'epoch', 'args'; accepted"),
        (lambda s: prefixed("student.", s), "these begin with 'student.'"),
        (lambda s: [s], "hold list; accepted"),
    ],
)
def test_a_checkpoint_that_is_ambiguous_names_what_it_holds(
    content: Callable[[Any], Any], sentence: str, tmp_path: Path
) -> None:
    torch.save(content(Net().state_dict()), tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match=sentence):
        backbone(Net, weights=tmp_path / "w.pth")


# --- what a hostile tester found


class Constant(Net):
    def forward(self, x: Tensor) -> Tensor:
        factor = torch.tensor(0.5) if self.training else torch.tensor(1.0)
        logits: Tensor = self.fc(self.features(x) * factor)
        return logits


class Counting(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = getattr(self, "steps", 0) + 1
        logits: Tensor = self.fc(self.features(x) + torch.tensor(float(self.steps)))
        return logits


class OwnGenerator(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "generator"):
            self.generator = torch.Generator().manual_seed(0)
        logits: Tensor = self.fc(self.features(x) + torch.rand(1, generator=self.generator))
        return logits


class Sliced(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :10]


class SoftmaxInTraining(Net):
    class Share(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1) if self.training else x

    def __init__(self) -> None:
        super().__init__(share=SoftmaxInTraining.Share())

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.share(super().forward(x))
        return shares


class Replacing(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean * 0.9 + 0.1 * x.mean().detach()
        logits: Tensor = self.fc(self.features(x))
        return logits


def overridden() -> nn.Module:
    network = Net()
    old = network.two.forward
    network.two.forward = lambda x: 3 * old(x)  # type: ignore[method-assign]
    return network


def without_numbers() -> nn.Module:
    with torch.device("meta"):
        return Net()


def failing() -> nn.Module:
    raise ZeroDivisionError("of mine")


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Constant, "a tensor that it makes of numbers is another one each time"),
        (Counting, "a tensor that it makes of numbers is another one each time"),
        (OwnGenerator, "a tensor that it makes of numbers is another one each time"),
        (Sliced, "no classifier to resize: with 15 outputs in 'fc' it gives .2, 10. for two"),
        (SoftmaxInTraining, "ends in 'share' .Share., behind which its outputs depend on each"),
        (Replacing, "it replaces its buffer 'mean': change it in place|cannot assign"),
        (overridden, "'two' has a forward of its own that is not its class's"),
        (overridden(), "'two' has a forward of its own that is not its class's"),
        (without_numbers(), "has no weights: the network is on torch's meta device|meta device"),
        (failing, "without arguments .ZeroDivisionError: of mine"),
    ],
)
def test_further_networks_that_would_be_changed_are_refused(network: Any, sentence: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match=sentence):
            made(network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused() -> None:
    network = Net(two=torch.jit.script(nn.Conv2d(8, 8, 3, padding=1)))
    with pytest.raises(InvalidInput, match="the module 'two' is compiled by TorchScript"):
        made(network)


def test_a_frozen_first_layer_stays_frozen_for_other_channels() -> None:
    network = Net()
    network.one.requires_grad_(False)
    trunk = made(network, (1, 16, 16), split="two").make_trunk()
    assert not any(p.requires_grad for n, p in trunk.named_parameters() if n.startswith("one"))


def test_an_orthogonal_layer_keeps_its_weights_in_a_branch() -> None:
    network = Net(two=parametrizations.orthogonal(nn.Conv2d(8, 8, 1)))
    branch = made(network, split="two").make_branch(10)
    assert torch.allclose(branch.get_submodule("two").weight, network.two.weight)


class Factored(nn.Module):
    factors: ClassVar[list[float]] = [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors[0]


CONFIG = Config(k=1.0)


def configured(x: Tensor) -> Tensor:
    return x * CONFIG.k


def test_class_attributes_and_globals_of_any_kind_are_a_part_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    networks = (Net(act=Factored()), Net(act=Holder(configured)))
    before = [identity(network) for network in networks]
    monkeypatch.setattr(Factored, "factors", [3.0, 2.0])
    monkeypatch.setattr(CONFIG, "k", 2.0)
    assert all(identity(n) != b for n, b in zip(networks, before, strict=True))


def test_a_file_of_one_s_own_is_a_part_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ops_of_mine.py").write_text("K = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, Any] = {}
    exec("import ops_of_mine\ndef act(x):\n    return x * ops_of_mine.K\n", scope)
    torch.manual_seed(0)
    network = Net(act=Holder(scope["act"]))
    before = identity(network)
    monkeypatch.setattr(scope["ops_of_mine"], "K", 2.0)
    assert identity(network) != before


def test_names_of_attributes_are_no_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, Any] = {"results": [1]}
    exec("def act(x):\n    return x.results\n", scope)
    torch.manual_seed(0)
    network = Net(act=Holder(scope["act"]))
    before = identity(network)
    scope["results"].append(2)
    assert identity(network) == before


HASHED = """
import sys, torch
from nofe_lab.networks.digests import Digest
class Slots:
    __slots__ = ("names",)
    def __init__(self): self.names = {"a", "b", "c"}
digest = Digest()
digest.add("all", [Slots(), {frozenset("ab"): 1}, lambda m: m in {"aa", "bb", "cc"},
                   torch.distributions.Normal(0.0, 1.0), torch.Generator().manual_seed(3)])
print(digest.hexdigest())
"""


def test_equal_settings_have_one_digest_in_every_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exec(HASHED, {"__name__": "__main__"})
    found = {capsys.readouterr().out} | {
        subprocess.run(
            [sys.executable, "-c", HASHED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {**s, "fc.weight": torch.ones(0, 8), "fc.bias": torch.ones(0)},
        lambda s: {**s, "fc.weight": torch.ones(10, 8) + 1j},
        lambda s: {**s, "fc.weight": torch.ones(10, 8).to_sparse()},
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(
    content: Callable[[Any], Any], tmp_path: Path
) -> None:
    torch.save(content(Net().state_dict()), tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match="holds no plain real numbers"):
        backbone(Net, weights=tmp_path / "w.pth")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match=r"weights .* hold dict; accepted"):
        backbone(Net, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("images", [RAW.to("meta"), RAW.to_sparse()])
def test_images_without_plain_values_are_refused(images: Tensor) -> None:
    with pytest.raises(InvalidInput, match="a network takes images uint8"):
        DOOR(images)
