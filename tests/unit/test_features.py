"""Features of a frozen trunk in place of images: the same networks, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nofe_lab import Dataset, Experiment, InvalidInput
from nofe_lab.data.features import Features, features_of
from nofe_lab.stages.arms import Arm
from tests.unit.test_experiment_networks import Own
from tests.unit.test_finetuning import trained_own

Make = Callable[..., Experiment]


def test_a_network_on_features_is_the_one_on_a_frozen_trunk(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(
        backbone=trained_own(), split="stage3", trunk_rate=0, precision="fp32", epochs=2
    )
    there = experiment.on_features()
    assert there.data.image_shape == (8, 8, 8)
    for stage, twin in (
        (experiment.base(), there.base()),
        (experiment.nofe("random", "scratch"), there.nofe("random", "scratch")),
    ):
        through_images, on_features = experiment.model(stage), there.model(twin)
        images, features = experiment.data.test, there.data.test
        assert isinstance(features, Features)
        with torch.no_grad():
            assert torch.allclose(
                through_images(images.images), on_features(features.images), atol=1e-5
            )
        assert stage.id != twin.id


def test_a_trained_trunk_serves_maps_controls_and_experts(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=Own, split="stage3")
    base = experiment.base()
    there = experiment.on_features(base)
    arms = {
        "generalist's": Arm("nofe"),
        "features": Arm("nofe", "features", trunk="base"),
        "upcycled": Arm("nofe", "confusion", trunk="base", branch_start="upcycled"),
        "control": Arm("control"),
    }
    report = there.final_report({name: there.stage(arm) for name, arm in arms.items()})
    assert len(report.table) == 4
    assert there.stage(arms["control"]).id != experiment.stage(arms["control"]).id
    again = tiny_experiment(backbone=Own, split="stage3").on_features(base)
    assert again.nofe().id == there.nofe().id
    other = experiment.on_features(experiment.with_seed(1).base())
    assert other.nofe().id != there.nofe().id
    assert there.with_seed(1).nofe().id != there.nofe().id
    assert len(there.data.train) == len(experiment.data.train)
    assert len(there.data.val) == len(experiment.data.val)


class Pooled(Own):
    """Cut behind its pooling, where features are vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stage3(self.stage2(self.stage1(x)))).flatten(1)
        logits: torch.Tensor = self.out(torch.cat([self.hidden(x), x[:, :4]], 1))
        return logits


def test_vectors_are_features_too(tiny_experiment: Make) -> None:
    module = Pooled()
    module(torch.rand(20, 3, 32, 32))
    experiment = tiny_experiment(backbone=module, split="hidden")
    there = experiment.on_features()
    assert there.data.image_shape == (16, 1, 1)
    there.run(there.nofe())


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_the_memory_rounds_the_features(stored: str, tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=trained_own(), split="stage3")
    whole, half = experiment.on_features(), experiment.on_features(stored=stored)
    one, two = (each.data.test.sample([0, 1]) for each in (whole, half))
    assert two.element_size() == 2
    assert torch.allclose(one, two.float(), rtol=2**-8)
    assert half.base().id != whole.base().id
    half.run(half.base())


def test_keys_tell_trunks_and_images_apart(tiny: Dataset) -> None:
    def mean(images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))

    found = [features_of(mean, tiny.test, origin) for origin in ("one", "two")]
    assert found[0].images.shape == (len(tiny.test), 3, 1, 1)
    assert found[0].fingerprint != found[1].fingerprint
    assert torch.equal(found[0][2:5].keys, found[0].keys[2:5])
    assert isinstance(found[0][2:5], Features)
    assert repr(found[0]).startswith("features of ")


@pytest.mark.parametrize(
    ("given", "asked", "sentence"),
    [
        ({"backbone": Own}, {}, "pass the stage that trained it, or give 'Own' weights"),
        ({"backbone": trained_own()}, {"stored": "int8"}, "stored 'int8' is unknown"),
    ],
)
def test_features_need_a_trained_trunk(
    given: dict[str, Any], asked: dict[str, Any], sentence: str, tiny_experiment: Make
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        tiny_experiment(split="stage3", **given).on_features(**asked)


@pytest.mark.parametrize("given", [{"flips": True}, {"preset": "strong"}])
def test_flips_and_padding_need_images(given: dict[str, Any], tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=trained_own(), split="stage3", **given)
    with pytest.raises(InvalidInput, match="flips, random_crops and padding need images"):
        experiment.on_features().base()


def test_images_and_features_are_not_taken_for_each_other(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=trained_own(), split="stage3")
    there = experiment.on_features()
    model = there.model(there.base())
    with pytest.raises(InvalidInput, match=r"takes features of floating point \[N, 8, 8, 8\]"):
        model(experiment.data.test.images)
    with pytest.raises(InvalidInput, match=r"takes features of 8 x 8 x 8; got 3 x 32 x 32"):
        Experiment(experiment.data, backbone=there.backbone, K=3).base()
