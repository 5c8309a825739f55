"""Which networks there are, which pretrained weights they take, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nofe_lab
from nofe_lab import Dataset, Experiment, InvalidInput, NofE, Specialties, backbone
from nofe_lab.compat import import_torchvision
from nofe_lab.networks import CNN, PAPER, Backbone, preset
from nofe_lab.networks.catalogue import torchvision_names
from nofe_lab.networks.counting import count_macs, count_parameters, layer_table
from nofe_lab.networks.surgery import SplitNetwork

SMALL = (3, 32, 32)
State = dict[str, Tensor]


class Net(nn.Module):
    """A network of one's own."""

    def __init__(self, outputs: int = 10, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.mid = nn.Conv2d(channels, channels, 3)
        self.fc = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.mid(self.norm(self.conv(x)).relu()).mean((2, 3)))
        return logits


def split(network: Any, **options: Any) -> SplitNetwork:
    made = backbone(network, **options).for_images(SMALL)
    assert isinstance(made, SplitNetwork)
    return made


# --- names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("denset121", "densenet121"),
        ("alexnet-quick", "alexnet_quick"),
        ("efficientnetb0", "efficientnet_b0"),
        ("ResNet18", "resnet18"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_name_and_all_others(
    name: str, nearest: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        backbone(name)
    sentence = str(refused.value)
    assert sentence.startswith(
        f"backbone {name!r} is unknown (did you mean {nearest!r}?); accepted"
    )
    assert all(repr(known) in sentence for known in (*PAPER, *torchvision_names()))
    assert sentence.endswith("or 'timm:NAME'.")


@pytest.mark.parametrize(
    "name", ["vit_b_16", "swin_t", "maxvit_t", "fcn_resnet50", "raft_small", ""]
)
def test_networks_that_are_no_classification_cnns_are_unknown(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"backbone '{name}' is unknown"):
        backbone(name)


def test_there_are_the_families_of_torchvision() -> None:
    families = (
        *("alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121"),
        *("googlenet", "inception_v3", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small"),
        *("shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s"),
        *("convnext_tiny", "regnet_y_400mf", "regnet_x_400mf"),
    )
    assert set(families) <= set(torchvision_names())


@pytest.mark.parametrize(
    ("network", "split", "nearest", "place"),
    [
        ("resnet18", "layer5", "layer4", "layer2.1"),
        (Net, "nid", "mid", "norm"),
        (Net(), "nid", "mid", "norm"),
        ("timm:test_resnet", "layer9", "layer4", "layer3"),
    ],
)
def test_an_unknown_split_is_refused_with_the_nearest_and_all_others(
    network: Any, split: str, nearest: str, place: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        backbone(network, split=split)
    sentence = str(refused.value)
    assert f"{split!r} is unknown (did you mean {nearest!r}?); accepted: " in sentence
    assert repr(place) in sentence


@pytest.mark.parametrize("inside", ["layer1.0.conv2", "layer1.0.bn1", "conv1", ""])
def test_a_place_where_more_than_one_tensor_crosses_is_no_split(inside: str) -> None:
    with pytest.raises(InvalidInput, match=f"split of resnet18 '{inside}' is unknown"):
        backbone("resnet18", split=inside)


@pytest.mark.parametrize(
    "option", [{"split": "layer4"}, {"stem": "small"}, {"stem": "original"}, {"weights": "DEFAULT"}]
)
@pytest.mark.parametrize("network", ["alexnet_quick", PAPER["nin_c100"]()])
def test_networks_with_parts_of_their_own_are_not_split(
    network: str | Backbone, option: dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    sentence = f"^{name} is for networks of torchvision, timm or your own.*; got '{value}'.$"
    with pytest.raises(InvalidInput, match=sentence):
        backbone(network, **option)


def test_only_what_makes_a_torch_module_is_a_network() -> None:
    with pytest.raises(InvalidInput, match="'int'> must make a torch module; it made int"):
        backbone(int)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"backbone must be a name, .*; got 18"):
        backbone(18)  # type: ignore[arg-type]


def test_nothing_was_published_for_a_network_that_is_split() -> None:
    sentence = r"preset 'paper' is for the published networks \(.*\); 'resnet18' accepts 'quick'"
    with pytest.raises(InvalidInput, match=sentence):
        preset("paper", backbone("resnet18"))
    assert preset("quick", backbone("resnet18")).network.initialisation == "published"


def test_a_further_classifier_is_left_out() -> None:
    for name in ("googlenet", "inception_v3"):
        names = [name for name, _ in split(name).skeleton.named_children()]
        assert not [each for each in names if "aux" in each.lower()]


# --- timm


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    sentence = r"^'timm:NAME' needs timm \(.*\): pip install timm\.$"
    with pytest.raises(InvalidInput, match=sentence):
        backbone("timm:resnet18")


def test_an_unknown_network_of_timm_is_refused_with_the_nearest() -> None:
    sentence = (
        r"^backbone 'timm:resnt18' is unknown; the nearest are resnet18, .*\) lists all \d{4}.$"
    )
    with pytest.raises(InvalidInput, match=sentence):
        backbone("timm:resnt18")


def test_a_name_of_timm_that_names_weights_is_refused_with_what_to_say() -> None:
    sentence = "take backbone 'timm:resnet18' with weights 'a1_in1k'.$"
    with pytest.raises(InvalidInput, match=sentence):
        backbone("timm:resnet18.a1_in1k")


def test_a_transformer_of_timm_whose_shapes_are_known_can_be_split() -> None:
    assert "blocks.4" in backbone("timm:test_vit").split_points  # type: ignore[attr-defined]


# --- weights from a file


def numbered(network: nn.Module) -> State:
    """Weights that are not those of any fresh network."""
    return {
        name: torch.full_like(tensor, i + 1)
        for i, (name, tensor) in enumerate(network.state_dict().items())
    }


def parts(maker: SplitNetwork, n: int = 10) -> State:
    """What trunk and head begin with."""
    return {**maker.make_trunk().state_dict(), **maker.make_head(n).state_dict()}


def save_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def save_torch(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def save_checkpoint(state: State, folder: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint")
    return folder / "checkpoint"


SAVES = (save_safetensors, save_torch, save_checkpoint)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("network", [Net, Net(), "timm:test_resnet"])
def test_weights_of_a_file_land_in_trunk_head_and_branches(
    network: Any, save: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    state = numbered(split(network).build())
    maker = split(network, weights=save(state, tmp_path))
    outputs = state[f"{maker.classifier}.weight"].shape[0]
    found = parts(maker, outputs)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
    for name, tensor in maker.make_branch(outputs).state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_path_can_be_a_string_and_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = numbered(Net())
    save_torch(state, tmp_path)
    found = parts(split(Net, weights="~/weights.pth"))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("outputs", [3, 25])
def test_weights_of_the_network_with_another_number_of_classes_are_its_own(
    outputs: int, tmp_path: Path
) -> None:
    state = numbered(Net(outputs))
    maker = split(Net, weights=save_torch(state, tmp_path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in parts(maker, outputs).items())
    other = parts(maker, 7)
    assert all(torch.equal(other[name], state[name]) for name in state if not name.startswith("fc"))
    assert other["fc.weight"].shape == (7, 4)


def test_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    one = save_torch(numbered(Net()), tmp_path)
    (tmp_path / "other").mkdir()
    two = save_safetensors(numbered(Net()), tmp_path / "other")
    three = save_torch(
        {name: tensor + 1 for name, tensor in numbered(Net()).items()}, tmp_path / "other"
    )
    identities = [split(Net, weights=weights).identity for weights in (one, two, three, None)]
    assert identities[0] == identities[1]  # by its content, wherever it lies
    assert identities[0]["weights"] not in (identities[2]["weights"], identities[3]["weights"])
    assert identities[3]["weights"] is None


def without(name: str) -> State:
    return {key: tensor for key, tensor in numbered(Net()).items() if key != name}


def not_finite() -> State:
    state = numbered(Net())
    state["mid.weight"][0, 0, 0, 0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            numbered(Net(channels=5)),
            r"'conv.weight' is \[5, 3, 3, 3\], not \[4, 3, 3, 3\] and \d more",
        ),
        (without("norm.bias"), r"'norm.bias' is missing\.$"),
        (
            numbered(nn.Sequential(nn.Linear(2, 2))),
            r"none of its .*; these begin with '0\.'",
        ),
        ({**numbered(Net()), "fc2.bias": torch.ones(3)}, "'fc2.bias' is not one of its tensors"),
        (
            {**numbered(Net()), "fc.weight": torch.ones(10, 5)},
            r"'fc.weight' is \[10, 5\], not \[10, 4",
        ),
        ({**numbered(Net()), "fc.bias": torch.ones(3)}, r"'fc.bias' is \[3\], not \[10\]"),
        ({**numbered(Net()), "fc.bias": torch.tensor(1.0)}, r"'fc.bias' is \[\], not \[10\]"),
    ],
)
def test_weights_of_another_network_are_refused(
    state: State, sentence: str, tmp_path: Path
) -> None:
    path = save_torch(state, tmp_path)
    with pytest.raises(InvalidInput, match=rf"weights '{path}' are not those of 'Net': {sentence}"):
        backbone(Net, weights=path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = save_torch(not_finite(), tmp_path)
    with pytest.raises(InvalidInput, match=r"'mid\.weight' holds values that are not finite"):
        backbone(Net, weights=path)


class Surprise:
    """What a pickle can hold."""


def damaged(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("no weights")
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda at: at / "missing.pth", "cannot be read: .*No such file"),
        (lambda at: at / "missing.safetensors", "cannot be read: .*No such file"),
        (lambda at: damaged(save_torch(numbered(Net()), at)), "cannot be read"),
        (lambda at: damaged(save_safetensors(numbered(Net()), at)), "cannot be read"),
        (
            lambda at: text(at / "a.pth"),
            "cannot be read .*; accepted: .safetensors, or a state dict",
        ),
        (lambda at: text(at / "a.safetensors"), "cannot be read"),
        (lambda at: save_torch(Surprise(), at), "cannot be read .*; accepted: .safetensors, or a"),
        (lambda at: save_torch(Net(), at), "cannot be read .*; accepted: .safetensors, or a state"),
        (lambda at: save_torch([1, 2], at), "hold list; accepted: a state dict"),
        (lambda at: save_torch({"epoch": 3}, at), "hold 'epoch'; accepted: a state dict"),
        (lambda at: save_torch(torch.ones(3), at), "hold Tensor; accepted: a state dict"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_one_sentence(
    make: Callable[[Path], Path], sentence: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(InvalidInput, match=f"^weights '{path}' {sentence}") as refused:
        backbone(Net, weights=path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("network", [Net, Net()])
def test_weights_by_name_are_for_networks_that_have_some(network: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^weights 'DEFAULT': there is no such file\.$"):
        backbone(network, weights="DEFAULT")


# --- weights by name


def torchvision_downloads(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Let torchvision's weights come from `answer(weights)`."""
    import_torchvision()
    from torchvision.models import WeightsEnum

    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: answer(self))


@pytest.mark.parametrize(
    ("name", "weights", "tag"),
    [
        ("shufflenet_v2_x0_5", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("resnet50", "DEFAULT", "IMAGENET1K_V2"),
        ("resnet50", "IMAGENET1K_V1", "IMAGENET1K_V1"),
    ],
)
def test_weights_of_torchvision_are_known_by_their_names(
    name: str, weights: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = numbered(split(name).build())
    asked = []

    def answer(which: Any) -> State:
        asked.append(which.name)
        return dict(state)

    torchvision_downloads(monkeypatch, answer)
    found = parts(split(name, weights=weights), 1000)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert asked == [tag]


def former(state: State) -> State:
    """As torchvision's files of densenets are: with other names, and without counters."""
    return {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in state.items()
        if "num_batches_tracked" not in name
    }


@pytest.mark.parametrize("local", [True, False])
def test_tensors_with_the_names_of_former_versions_are_found(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = numbered(split("densenet121").build())
    old = former(state)
    assert old.keys() - state.keys()
    torchvision_downloads(monkeypatch, lambda _: dict(old))
    weights = save_torch(old, tmp_path) if local else "DEFAULT"
    found = parts(split("densenet121", weights=weights), 1000)
    assert all(
        torch.equal(found[name], tensor)
        for name, tensor in state.items()
        if "num_batches_tracked" not in name
    )


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_with_further_classifiers_are_taken_without_and_see_pixels_as_they_expect(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import get_model

    network = get_model(name, aux_logits=True, init_weights=False, transform_input=True).eval()
    torchvision_downloads(monkeypatch, lambda _: network.state_dict())
    side = 96
    maker = backbone(name, weights="DEFAULT").for_images((3, side, side))
    images = torch.randn(2, 3, side, side)
    composed = CNN(maker, 1000, "published", seed=0).eval()
    torch.testing.assert_close(composed(images), network(images))


def test_unknown_weights_of_torchvision_are_refused_with_the_known_ones() -> None:
    sentence = (
        r"^weights of resnet50 'IMAGENET1K_V3' is unknown \(did you mean 'IMAGENET1K_V\d'\?\); "
        r"accepted: 'IMAGENET1K_V1', 'IMAGENET1K_V2', 'DEFAULT' or a local file.$"
    )
    with pytest.raises(InvalidInput, match=sentence):
        backbone("resnet50", weights="IMAGENET1K_V3")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no route to host"), "<urlopen error no route to host>"),
        (ConnectionResetError("reset by peer"), "reset by peer"),
        (
            RuntimeError('invalid hash value (expected "f37072fd")\nsecond line'),
            "invalid hash value",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_download_that_fails_is_one_sentence(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> State:
        raise error

    torchvision_downloads(monkeypatch, fail)
    sentence = rf"^weights 'DEFAULT' could not be downloaded \({reason}.*\): name a local file inst"
    with pytest.raises(InvalidInput, match=sentence) as refused:
        backbone("resnet18", weights="DEFAULT")
    assert "\n" not in str(refused.value)


def timm_downloads(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[nn.Module, Any], None]
) -> None:
    """Let timm's weights be put into a network by `answer(network, their configuration)`."""
    import_torchvision()
    from timm.models import _builder

    def load_pretrained(model: nn.Module, pretrained_cfg: Any, **_: Any) -> None:
        answer(model, pretrained_cfg)

    monkeypatch.setattr(_builder, "load_pretrained", load_pretrained)


@pytest.mark.parametrize("weights", ["r160_in1k", "DEFAULT"])
def test_weights_of_timm_are_known_by_their_tags(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(model: nn.Module, configuration: Any) -> None:
        asked.append(configuration["tag"])
        model.load_state_dict(numbered(model))

    timm_downloads(monkeypatch, answer)
    maker = split("timm:test_resnet", weights=weights)
    expected = numbered(maker.build())
    found = parts(maker, 1000)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert asked == ["r160_in1k"]


def test_weights_of_timm_for_other_classes_than_imagenet_s_1000_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = []

    def answer(model: nn.Module, configuration: Any) -> None:
        outputs.append(model.get_parameter("head.fc.bias").numel())
        model.load_state_dict(numbered(model))

    timm_downloads(monkeypatch, answer)
    maker = split("timm:convnext_tiny", weights="fb_in22k")
    assert outputs == [21841]
    trunk = maker.make_trunk().state_dict()
    assert all(tensor.min() == tensor.max() > 0 for tensor in trunk.values())
    assert maker.make_head(7).get_parameter("head.fc.weight").shape == (7, 768)


def test_unknown_weights_of_timm_are_refused_with_the_known_ones() -> None:
    sentence = (
        "^weights of timm:test_resnet 'r160' is unknown .*; accepted: 'r160_in1k', 'DEFAULT' or"
    )
    with pytest.raises(InvalidInput, match=sentence):
        backbone("timm:test_resnet", weights="r160")


def test_a_download_of_timm_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(model: nn.Module, configuration: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")

    timm_downloads(monkeypatch, answer)
    sentence = (
        r"^weights 'DEFAULT' could not be downloaded \(We couldn't connect [^\n]*\): name a loc"
    )
    with pytest.raises(InvalidInput, match=sentence):
        backbone("timm:test_resnet", weights="DEFAULT")


def test_nothing_is_downloaded_for_a_split_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    torchvision_downloads(monkeypatch, asked.append)
    with pytest.raises(InvalidInput, match="split of resnet18 'layer9'"):
        backbone("resnet18", split="layer9", weights="DEFAULT")
    assert asked == []


# --- before anything is trained


class Shrinking(nn.Sequential):
    """Halves images six times; its pooling refuses what is left of small ones."""

    def __init__(self) -> None:
        halves = [nn.MaxPool2d(2) for _ in range(6)]
        super().__init__(nn.Conv2d(3, 4, 1), *halves, nn.Flatten(), nn.Linear(4, 10))


class NoClassifier(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(-1, 10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "resnet81"}, "backbone 'resnet81' is unknown"),
        ({"backbone": "timm:resnt18"}, "backbone 'timm:resnt18' is unknown"),
        ({"backbone": "resnet18", "split": "layer5"}, "split of resnet18 'layer5' is unknown"),
        ({"backbone": "resnet18", "stem": "tiny"}, "stem 'tiny' is unknown"),
        ({"backbone": "resnet18", "weights": "V9"}, "weights of resnet18 'V9' is unknown"),
        ({"backbone": Net, "weights": "missing.pth"}, "weights 'missing.pth' cannot be read"),
        (
            {"backbone": "resnet18", "preset": "paper"},
            "preset 'paper' is for the published networks",
        ),
    ],
)
def test_an_experiment_with_bad_input_cannot_be_made(
    options: dict[str, Any], sentence: str, tiny_experiment: Callable[..., Experiment]
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        tiny_experiment(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": Shrinking, "stem": "original"}, "cannot take images of 3 x 32 x 32"),
        ({"backbone": NoClassifier}, "'NoClassifier' has no classifier to resize"),
        (
            {"backbone": Net, "split": "fc", "branch_width": 0.5},
            "branch_width 0.5 changes nothing behind 'fc' of 'Net'",
        ),
    ],
)
def test_a_stage_that_cannot_be_trained_cannot_be_made(
    options: dict[str, Any], sentence: str, tiny_experiment: Callable[..., Experiment]
) -> None:
    experiment = tiny_experiment(**options)
    with pytest.raises(InvalidInput, match=sentence):
        experiment.nofe()


# --- layer by layer

SEVEN = Specialties(tuple("abcdefg"), (2, 0, 1, 2, 2, 0, 2), 3)


@pytest.mark.parametrize("name", ["alexnet_quick", "vgg11_c100", "resnet18", "convnext_tiny", Net])
def test_rows_of_the_layer_table_add_up_to_the_network(name: Any) -> None:
    maker = backbone(name).for_images(SMALL)
    networks: list[nn.Module] = [CNN(maker, 7, "published", 0), NofE(maker, SEVEN, "published", 0)]
    for network in networks:
        table = layer_table(network, maker.input_shape)
        rows, total = table.iloc[:-1], table.iloc[-1]
        for column, whole in (
            ("parameters", count_parameters(network)),
            ("multiply-accumulates", count_macs(network, maker.input_shape)),
        ):
            assert total[column] == whole
            assert rows[column].sum() == whole
        assert (total["part"], total["output"]) == ("total", "7")


def test_rows_are_the_outermost_layers_of_each_part() -> None:
    maker = split("resnet18")
    table = layer_table(CNN(maker, 7, "published", 0), SMALL)
    assert table[["part", "layers", "output"]].to_numpy().tolist() == [
        ["trunk", "conv1", "64 x 32 x 32"],
        ["trunk", "bn1", "64 x 32 x 32"],
        ["trunk", "layer1", "64 x 32 x 32"],
        ["trunk", "layer2", "128 x 16 x 16"],
        ["trunk", "layer3", "256 x 8 x 8"],
        ["head", "layer4", "512 x 4 x 4"],
        ["head", "fc", "7"],
        ["total", "", "7"],
    ]


def test_branches_count_together_in_the_layer_table() -> None:
    maker = split("resnet18")
    one, three = (
        layer_table(NofE(maker, specialties, "published", 0), SMALL).set_index(["part", "layers"])
        for specialties in (Specialties(tuple("abcdefg"), (0,) * 7, 1), SEVEN)
    )
    assert list(three.index)[-3:] == [("3 branches", "layer4"), ("3 branches", "fc"), ("total", "")]
    for column in ("parameters", "multiply-accumulates"):
        whole = one.loc[("1 branches", "layer4"), column]
        assert three.loc[("3 branches", "layer4"), column] == 3 * whole
    assert three.loc[("3 branches", "fc"), "output"] == "2"  # of the first


def test_branches_that_are_one_module_are_counted_as_branches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            branch = nn.Linear(12, 2)
            self.branches = nn.ModuleList([branch, branch])

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([branch(x.flatten(1)) for branch in self.branches], 1)

    table = layer_table(Twice(), (3, 2, 2))
    assert list(table["part"]) == ["2 branches", "total"]
    assert list(table["multiply-accumulates"]) == [48, 48]


def test_one_level_deeper_where_a_part_is_one_module(tiny: Dataset) -> None:
    table = layer_table(CNN(split("convnext_tiny"), 7, "published", 0), tiny.image_shape)
    trunk = table[table["part"] == "trunk"]["layers"].tolist()
    assert trunk == [f"features.{i}" for i in range(6)]


def test_the_library_s_own_network_has_a_name_a_split_and_experts_that_begin_as_it_does(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    made = backbone("alexnet_quick_bn").for_images(SMALL)
    assert isinstance(made, SplitNetwork)
    assert made.plan.cut.module == "conv3"
    assert backbone("alexnet_quick_bn", split="fc").for_images(SMALL).plan.cut.module == "fc"
    for side in (8, 32, 48):  # of images
        assert backbone("alexnet_quick_bn").for_images((3, side, side)).plan.classifier == "fc"
    experiment = tiny_experiment(
        backbone="alexnet_quick_bn", specialties="balanced", trunk="base", branch_start="upcycled"
    )
    (run,) = experiment.run(experiment.nofe())
    assert nofe_lab.load(run.path).network.specialties == experiment.formation()[1]
