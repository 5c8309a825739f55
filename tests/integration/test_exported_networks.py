"""Every kind of network leaves as an ONNX file: published ones, torchvision's, timm's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

import nofe_lab
from nofe_lab import Classifier, Dataset, Experiment
from nofe_lab.bench.export import NETWORKS, SIDES
from nofe_lab.data import Resident
from nofe_lab.inference.expert import Expert
from nofe_lab.networks import PAPER

pytestmark = pytest.mark.slow

CLASSES = tuple("abcdef")
USUAL = ("resnet18", "timm:mobilenetv3_small_050")


def data(side: int) -> Dataset:
    """Images of six classes, of one shade each under noise."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Resident:
        labels = torch.arange(len(CLASSES)).repeat(n)
        shades = 40.0 * labels.numpy()[:, None, None, None]
        pixels = shades + rng.normal(0, 20, (len(labels), 3, side, side))
        return Resident(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels)

    return Dataset("shades", CLASSES, split(4), split(2), split(2))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in (*PAPER, *USUAL) else pytest.mark.long) for n in NETWORKS],
)
def test_a_trained_network_and_its_expert_answer_alike_in_onnxruntime(
    name: str, tmp_path: Path
) -> None:
    experiment = Experiment(
        data(SIDES.get(name, 36)),
        name,
        K=2,
        epochs=1,
        batch_size=6,
        learning_rate=1e-4,
        specialties="random",
        trunk="scratch",
        runs_dir=str(tmp_path),
        device="cpu",
        precision="fp32",
        **NETWORKS[name],
    )
    (run,) = experiment.run(experiment.gate())
    model = nofe_lab.load(run)
    images = experiment.data.test.sample(range(5))
    check(model, images, None)
    check(model, images, 1)
    check(model.expert(0), images, None)


def check(model: Classifier | Expert, images: Tensor, experts: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        if isinstance(model, Expert):
            model.export(file)
        else:
            model.export(file, experts)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for part in (images, images[:1]):
            found = session.run(["logits", "probabilities"], {"images": part.numpy()})
            with torch.inference_mode():
                logits = model.logits(part, experts)
            largest = float(logits.abs().max())
            assert np.abs(found[0] - logits.numpy()).max() <= 1e-3 * largest
            assert np.abs(found[1] - logits.softmax(1).numpy()).max() <= 1e-4
