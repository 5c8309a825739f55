"""Imports torchvision from PyPI beside a CPU-only build of torch.

PyPI's torchvision is built against the CUDA build of torch.  With the CPU build its compiled
operators do not load, and ``import torchvision`` fails with ``operator torchvision::nms does not
exist``, although data sets, transforms and models are plain Python.  Declaring the two operators
for which torchvision registers fake implementations lets the import succeed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_DECLARED: list[torch.library.Library] = []  # declarations live as long as their Library


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring its operators only if the plain import fails without them.

    Raises RuntimeError if the import fails for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
    return importlib.import_module("torchvision")
