"""Import torchvision where its wheel stands beside a CPU-only build of torch.

The torchvision wheel of the package index is built against the CUDA build of torch.  Beside the CPU
build its compiled operators do not load, and then ``import torchvision`` stops with ``operator
torchvision::nms does not exist``, although nothing that this library needs is compiled: data sets,
transforms and model definitions are plain Python.  Declaring the two operators that torchvision
registers fake implementations for lets the import finish.  Nothing happens where the import works.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_DECLARED: list[torch.library.Library] = []  # a library's declarations end with the object


def import_torchvision() -> ModuleType:
    """Import and return torchvision, with the operators declared if the error appears.

    Raises RuntimeError if torchvision fails for any other reason than its missing operators.
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
