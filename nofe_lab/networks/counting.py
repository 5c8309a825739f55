"""The layers, parameters and multiply-accumulates of a network, without training it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nofe_lab.networks.tracing import modes_kept


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates for one image of `input_shape` (c, h, w), by torch's FLOP counter.

    Counts convolutions and matrix products, not biases, pooling and nonlinearities.
    """
    with FlopCounterMode(display=False) as counter:
        _run_once(module, input_shape)
    return int(counter.get_total_flops()) // 2


def blank_image(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """An image [1, c, h, w] of zeros, with the device and dtype of a module's parameters."""
    parameter = next(module.parameters(), torch.empty(0))
    return torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)


def size_in_words(shape: tuple[int, ...]) -> str:
    """(3, 32, 32) -> "3 x 32 x 32"."""
    return " x ".join(map(str, shape))


def _run_once(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad(), modes_kept(module):
        output: Tensor = module.eval()(blank_image(module, input_shape))
    return output


def layer_table(network: nn.Module, input_shape: tuple[int, ...]) -> pd.DataFrame:
    """The layer groups of a network, in the order in which an image of `input_shape` passes them.

    One row a group: part (trunk, shared, head, branches), layers (the module inside the part), the
    output shape of its last layer, parameters and multiply-accumulates (by torch's FLOP counter).
    The branches are summed, with the shape of the first that runs; of a network that learned with a
    gate, so many as answer for an image.  The last row is the whole network.
    """
    leaves = {m: name for name, m in network.named_modules() if next(m.children(), None) is None}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    entered: list[int] = []

    def before(module: nn.Module, inputs: Any) -> None:
        entered.append(counter.get_total_flops())

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        macs = (counter.get_total_flops() - entered.pop()) // 2
        part, branch, *_ = f"{leaves[module]}.".split(".")
        if part == "branches" and branch not in ran:
            ran.append(branch)
        first = part != "branches" or branch == ran[0]
        row = rows.setdefault(group_of(leaves[module]), {"output": "", "macs": 0})
        row["macs"] += macs
        if first and isinstance(output, Tensor):
            row["output"] = size_in_words(output.shape[1:])

    branches = len(getattr(network, "branches", ()))
    ran: list[str] = []
    group_of = _grouping(leaves.values())
    hooks = []
    for leaf in leaves:
        hooks += [leaf.register_forward_pre_hook(before), leaf.register_forward_hook(after)]
    with FlopCounterMode(display=False) as counter:
        logits = _run_once(network, input_shape)
    for hook in hooks:
        hook.remove()
    parameters: Counter[tuple[str, str]] = Counter()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameters[group_of(name.rpartition(".")[0])] += parameter.numel()
    whole = int(counter.get_total_flops()) // 2
    between = whole - sum(row["macs"] for row in rows.values())
    if between:  # products computed in a forward, outside of layers
        rows["", "between layers"] = {"output": "", "macs": between}
    for group in parameters:  # parameters held outside of layers
        rows.setdefault(group, {"output": "", "macs": 0})
    usual = getattr(network, "usual_experts", None)
    few = f" ({usual} for an image)" if usual is not None and usual < branches else ""
    table = pd.DataFrame(
        [
            {
                "part": f"{branches} {part}{few}" if part == "branches" else part,
                "layers": layers,
                "output": row["output"],
                "parameters": parameters[part, layers],
                "multiply-accumulates": row["macs"],
            }
            for (part, layers), row in rows.items()
            if parameters[part, layers] or row["macs"]
        ]
    )
    sums = [count_parameters(network), whole]
    total = pd.DataFrame(
        [["total", "", size_in_words(logits.shape[1:]), *sums]], columns=table.columns
    )
    return pd.concat([table, total], ignore_index=True)


def _grouping(paths: Iterable[str]) -> Callable[[str], tuple[str, str]]:
    """A function from a layer's path to (part, group): the module directly inside the part.

    One level deeper where a part is a single module, as in ``features.7``.
    """

    def inside(path: str) -> tuple[str, list[str]]:
        part, *names = path.split(".")
        return part, names[1:] if part == "branches" else names

    outermost: dict[str, set[str]] = {}
    for part, names in map(inside, paths):
        outermost.setdefault(part, set()).update(names[:1])

    def group_of(path: str) -> tuple[str, str]:
        part, names = inside(path)
        return part, ".".join(names[: 2 if len(outermost[part]) == 1 else 1])

    return group_of
