"""What an ONNX file takes to make, how far it is from torch, and which of the two is faster."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nofe_lab.bench.inference import hardly_trained
from nofe_lab.bench.tables import noise, save_table
from nofe_lab.config import whole_number
from nofe_lab.files import writable_path
from nofe_lab.inference import Classifier
from nofe_lab.inference.expert import Expert
from nofe_lab.log import write_line
from nofe_lab.machine import Machine, median_seconds
from nofe_lab.networks import PAPER

BATCHES = (1, 256)
NARROW = {"branch_width": 0.25}

NETWORKS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PAPER},
    "resnet18": NARROW,
    "mobilenet_v2": NARROW,
    "densenet121": NARROW,
    "efficientnet_b0": NARROW,
    "convnext_tiny": NARROW,
    "timm:resnet10t": NARROW,
    "timm:mobilenetv3_small_050": NARROW,
    "timm:efficientnet_lite0": NARROW,
}
"""Each with ten experts, for images of 32 x 32, or of the size that it needs."""

SIDES = {"alexnet_imagenet": 256, "densenet121": 64, "convnext_tiny": 64}
CLASSES = 100


def measure(repeats: int, output: str | None, command: str) -> None:
    """Export networks and one of their experts, and time them beside eager torch; print the table.

    One row a network and part (whole, expert).  seconds: for making and checking the file.  mb: of
    the file.  logits, probabilities: largest differences from torch, as in `Exported`.
    ms_N_torch, ms_N_onnx: the median over `repeats` of N images, measured in turn, fp32.
    output: a CSV file for the table; its first line is `command`.
    """
    whole_number("repeats", repeats, 1)
    target = writable_path("output", output) if output is not None else None
    machine = Machine.pick("cpu", "fp32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network, changes in NETWORKS.items():
            data = noise(CLASSES, 2, SIDES.get(network, 32))
            model = hardly_trained(network, folder, dataset=data, K=10, **changes)
            parts: dict[str, Classifier | Expert] = {"whole": model, "expert": model.expert(0)}
            for part, each in parts.items():
                rows.append({"network": network, "part": part} | _row(machine, each, repeats))
                write_line(str(rows[-1]), sys.stderr)
    import onnxruntime

    also = {"repeats": repeats, "onnxruntime": onnxruntime.__version__}
    save_table(pd.DataFrame(rows), target, command, **also)


def _row(machine: Machine, model: Classifier | Expert, repeats: int) -> dict[str, float]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        done = model.export(Path(folder) / "network.onnx")
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            done.path, threads, providers=["CPUExecutionProvider"]
        )
    found = {
        "seconds": done.seconds,
        "mb": done.bytes / 1e6,
        "logits": done.logits,
        "probabilities": done.probabilities,
    }
    for batch in BATCHES:
        images = torch.randint(256, (batch, *model.image_shape), dtype=torch.uint8)
        given = {"images": images.numpy()}
        sides = [partial(_eager, model, images), partial(session.run, None, given)]
        for name, each in zip(
            ("torch", "onnx"), median_seconds(machine, repeats, sides), strict=True
        ):
            found[f"ms_{batch}_{name}"] = 1000 * each
    return found


def _eager(model: Classifier | Expert, images: Tensor) -> None:
    with torch.inference_mode():
        model.outputs(images)
