"""Pretrained weights: the inputs they were made with, and trunks that learn slowly or never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from nofe_lab import Dataset, Experiment, InvalidInput
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.machine import Machine
from nofe_lab.networks import FlatControl, backbone, catalogue
from nofe_lab.networks.catalogue import IMAGENET, IMAGENET_SIDE
from nofe_lab.networks.counting import count_macs
from nofe_lab.recipes import Recipe
from nofe_lab.stages.arms import Arm
from tests.unit.test_experiment_networks import Own

Make = Callable[..., Experiment]


def trained_own() -> Own:
    """A module that has seen images."""
    module = Own()
    with torch.no_grad():
        module(torch.rand(20, 3, 32, 32))
    return module


def test_a_module_that_saw_no_image_is_trained_as_a_new_one() -> None:
    new, trained = backbone(Own()), backbone(trained_own())
    assert (new.pretrained, trained.pretrained) == (False, True)
    assert new.quick_preset() == backbone(Own).quick_preset() != trained.quick_preset()
    assert any("a module keeps its weights, which are finetuned" in n for n in trained.notes)
    assert not any("finetuned" in note for note in new.notes)


def test_initialisation_never_overwrites_pretrained_weights() -> None:
    Experiment("glyphs:4", backbone=trained_own(), device="cpu", initialisation="published")
    Experiment("glyphs:4", backbone=Own, device="cpu", initialisation="kaiming")
    with pytest.raises(InvalidInput, match=r"'kaiming' would overwrite the weights of .*'publish"):
        Experiment("glyphs:4", backbone=trained_own(), device="cpu", initialisation="kaiming")


# --- a trunk that learns slowly, or not at all


def test_a_frozen_trunk_stays_as_it_is_with_its_statistics(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=Own, split="stage3", trunk="base", trunk_rate=0)
    stage = experiment.nofe("random")
    base, nofe = experiment.run(experiment.base("generalist"), stage)
    before, after = base.weights(), nofe.weights()
    trunk = [name for name in before if name.startswith("network.trunk.")]
    assert any("running_mean" in name for name in trunk)
    assert all(torch.equal(before[name], after[name]) for name in trunk)


def test_a_frozen_trunk_computes_no_gradients_and_is_never_in_training_mode(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(backbone=Own, split="stage3", trunk="base", trunk_rate=0)
    stage = experiment.nofe("random")
    model = stage.image_network(stage.network(), Machine.pick("cpu")).train()
    trunk = model.network.get_submodule("trunk")
    assert not any(module.training for module in trunk.modules())
    features = trunk(model.preprocess(experiment.data.train.images[:4]))
    assert not features.requires_grad
    assert model(experiment.data.train.images[:4]).requires_grad
    shape = stage.backbone.input_shape
    images = stage.steps * stage.recipe.batch_size
    whole = tiny_experiment(backbone=Own, split="stage3", trunk="base").nofe("random")
    assert whole.training_macs - stage.training_macs == 2 * images * count_macs(trunk, shape)


def test_the_rate_of_a_trunk_is_a_share_of_the_learning_rate() -> None:
    found = backbone(Own, split="stage3").for_images((3, 32, 32))
    model = ImageNetwork(
        Preprocess(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)),
        nn.ModuleDict({"trunk": found.make_trunk(), "head": found.make_head(2)}),
    )
    groups = found.parameter_groups(model, Recipe(1, 0.1, trunk_rate=0.25))
    rates = {id(p): group["rate_multiplier"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.25 if name.startswith("network.trunk") else 1), name


def test_a_trunk_from_scratch_learns_as_fast_as_the_rest(tiny_experiment: Make) -> None:
    """Its rate is for trunks that have been trained, so runs without one stay what they are."""
    usual, slow = (tiny_experiment(trunk_rate=rate) for rate in (None, 0.1))
    assert slow.base().id == usual.base().id
    assert slow.generalist().id == usual.generalist().id
    assert slow.nofe(trunk="scratch").id == usual.nofe(trunk="scratch").id
    assert slow.nofe().id != usual.nofe().id
    pretrained = [tiny_experiment(backbone=trained_own(), trunk_rate=rate) for rate in (0.5, 0.1)]
    assert len({each.base().recipe.trunk_rate for each in pretrained}) == 2


@pytest.mark.parametrize("rate", [-0.1, 1.5, "slow"])
def test_a_rate_that_is_no_share_is_refused(rate: Any) -> None:
    with pytest.raises(InvalidInput, match="trunk_rate must be a number from 0 to 1; got"):
        Experiment(trunk_rate=rate)


def test_a_finetuning_keeps_the_statistics_of_the_weights(tiny_experiment: Make) -> None:
    module = trained_own()
    for stage in (tiny_experiment(backbone=module).base(), tiny_experiment(backbone=Own).base()):
        model = stage.image_network(stage.untrained_network(), Machine.pick("cpu")).train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {not stage.backbone.pretrained}
        assert all(m.weight.requires_grad for m in norms)


def test_a_new_classifier_on_pretrained_layers_begins_quietly() -> None:
    fresh, pretrained = (backbone(each).for_images((3, 32, 32)) for each in (Own, trained_own()))
    loud, quiet = (
        float(each.make_head(4).state_dict()["out.weight"].std()) for each in (fresh, pretrained)
    )
    assert quiet < loud / 20


# --- the inputs of the weights


def saved(tmp_path: Path, name: str) -> Path:
    """A file with weights that have seen images."""
    path = tmp_path / "weights.pt"
    state = backbone(name).build().state_dict()  # type: ignore[attr-defined]
    torch.save({key: t + 0.1 if "running_mean" in key else t for key, t in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "statistics", "side"),
    [
        ("mobilenet_v3_small", IMAGENET, IMAGENET_SIDE),
        ("timm:mobilenetv3_small_050", IMAGENET, IMAGENET_SIDE),
        ("timm:efficientnet_lite0", IMAGENET, IMAGENET_SIDE),
        ("timm:tf_efficientnet_lite0", ((0.5,) * 3, (0.5,) * 3), 224),
    ],
)
def test_weights_from_a_file_take_the_inputs_that_are_usual_for_their_network(
    name: str, statistics: Any, side: int, tmp_path: Path
) -> None:
    found = backbone(name, weights=saved(tmp_path, name))
    assert found.input_statistics == statistics
    assert found.usual_side == side
    assert found.quick_preset().network.inputs == "pretrained"
    assert backbone(name).input_statistics is backbone(name).usual_side is None
    assert backbone(name).quick_preset().network.inputs == "standardised"


@pytest.mark.parametrize(
    ("name", "weights", "side"),
    [
        ("mobilenet_v3_small", "IMAGENET1K_V1", 224),
        ("timm:resnet10t", "c3_in1k", 176),
        ("timm:resnet10t", "DEFAULT", 176),
    ],
)
def test_weights_that_have_a_name_know_their_inputs(
    name: str, weights: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = backbone(name).build().state_dict()  # type: ignore[attr-defined]
    for load in ("_torchvision_weights", "_timm_weights"):  # without a download
        monkeypatch.setattr(catalogue, load, lambda *_: state)
    found = backbone(name, weights=weights)
    assert (found.input_statistics, found.usual_side) == (IMAGENET, side)


def test_a_module_says_which_inputs_its_weights_were_made_with() -> None:
    module = trained_own()
    silent = backbone(module)
    assert silent.input_statistics is None
    assert silent.quick_preset().network.inputs == "standardised"
    assert any("so images are standardised" in note for note in silent.notes)
    module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 96, 96)}  # type: ignore[assignment]
    found = backbone(module)
    assert (found.input_statistics, found.usual_side) == (((0.5,) * 3, (0.25,) * 3), 96)
    assert found.for_images((3, 32, 32)).input_statistics == found.input_statistics
    assert FlatControl(found, 3).input_statistics == found.input_statistics
    module.pretrained_cfg = {"mean": (0.4,) * 3, "std": (0.25,) * 3}  # type: ignore[assignment]
    assert backbone(module).identity != found.identity


def test_pretrained_inputs_are_those_of_the_weights(tiny: Dataset, tiny_experiment: Make) -> None:
    module = trained_own()
    module.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.4)}  # type: ignore[assignment]
    stages = tiny_experiment(backbone=module)
    for stage in (stages.base(), stages.nofe("random"), stages.stage(Arm("control"))):
        model = stage.image_network(stage.untrained_network(), Machine.pick("cpu"))
        images = tiny.train.images[:2]
        mean, deviation = torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.2, 0.4]])[:, :, None, None]
        wanted = (images / 255 - mean) / deviation
        assert torch.allclose(model.preprocess(images), wanted, atol=1e-5)
    assert stages.model(stages.base()).preprocess.mean.flatten().tolist() == pytest.approx(
        [127.5, 102, 76.5]
    )


def test_grey_images_take_the_average_of_the_channels(tiny: Dataset) -> None:
    statistics = ((0.2, 0.3, 0.4), (0.1, 0.2, 0.3))
    grey = Dataset(
        "grey",
        tiny.class_names,
        *(
            type(split)(split.images[:, :1], split.labels)
            for split in (tiny.train, tiny.val, tiny.test)
        ),
    )
    found = Preprocess.measure(grey, "pretrained", None, statistics)
    assert found.mean.flatten().tolist() == pytest.approx([255 * 0.3])
    assert found.scale.flatten().tolist() == pytest.approx([1 / (255 * 0.2)])
    with pytest.raises(InvalidInput, match="'pretrained' are for weights whose input statistics"):
        Preprocess.measure(grey, "pretrained")


def test_pretrained_statistics_keep_their_momentum() -> None:
    class Slow(Own):
        def __init__(self) -> None:
            super().__init__()
            self.stage3[1].momentum = 0.01  # type: ignore[union-attr]

    slow = Slow()
    slow(torch.rand(20, 3, 32, 32))
    fresh, pretrained = (backbone(each).for_images((3, 32, 32)) for each in (Slow, slow))
    momenta = [
        {m.momentum for m in made.make_head(2).modules() if isinstance(m, nn.BatchNorm2d)}
        for made in (fresh, pretrained)
    ]
    assert momenta == [{0.1}, {0.01}]
    assert any("get momentum" in note for note in fresh.notes)
    assert not any("get momentum" in note for note in pretrained.notes)


def test_pictures_of_a_folder_get_the_size_that_the_weights_were_made_for(
    tiny: Dataset, tiny_experiment: Make, tmp_path: Path
) -> None:
    for c, name in enumerate(tiny.class_names):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n, image in enumerate(tiny.train.sample(tiny.train.of_class(c)[:4])):
            path = tmp_path / "pictures" / name / f"{n}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    module = trained_own()
    module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 48, 48)}  # type: ignore[assignment]
    pictures = {"dataset": f"folder:{tmp_path}/pictures", "K": 2, "batch_size": 4}
    weighted = tiny_experiment(backbone=module, **pictures)
    assert weighted.data.image_shape == (3, 48, 48)
    (said,) = weighted.base().choices
    assert said.startswith("Images of 48 x 48 pixels, which the pretrained weights were made for")
    other = tiny_experiment(backbone=module, image_size=40, **pictures)
    assert other.data.image_shape == (3, 40, 40)
    (said,) = other.base().choices
    assert "were made for images of 48 x 48 pixels; these have 40 x 40." in said
    assert tiny_experiment(backbone=Own, **pictures).data.image_shape == (3, 32, 32)
