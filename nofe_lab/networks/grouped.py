"""K experts executed as one network.

The branches of a network of experts differ only in their weights, so K small layers can be one
large one.  A branch is traced once; its graph then runs on *stacked* values, with a dimension of K
experts before a branch's own dimensions:

    all branches read the same features       one dense layer with K times the outputs
    a convolution of stacked maps             one grouped convolution
    an fc layer of stacked vectors            one batched matrix product
    normalisation, pooling                    the same over K times the channels
    nonlinearities, sums, flattening ...      the same, one dimension later
    classifiers of different sizes            padded to the largest; the padding is cut off again

In memory the experts are next to the channels, [N, h, w, K, c], so stacked maps become wide maps
without a copy.  Layers that depend only on the features run once.  A layer that fits no rule runs
once for each expert, and the rest stays stacked: the result is always that of the branches.

Only the execution changes.  Weights stay in the branches, under their names, and are concatenated
in each step, so state dicts, optimisers and single experts are not affected.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812  as everywhere
from torch.nn.utils.rnn import pad_sequence

from nofe_lab.config import InvalidInput
from nofe_lab.networks.counting import count_macs
from nofe_lab.networks.tracing import (
    FX_CONSTANT,
    IN_PLACE,
    attribute,
    function_of,
    gives_new_memory,
    has_hooks,
    modes_kept,
    name_and_in_place,
    trace,
)
from nofe_lab.networks.widths import POINTWISE, POOLING

GROUP_MACS = 1.5e9
"""Multiply-accumulates of a forward, per CPU thread, for the experts of one group.  Smaller groups
spend more time between layers; in larger ones activations no longer fit into the cache.  Measured
on two cores, for five networks at K = 10 and 50.  On a GPU (not measured) there is one group."""


class CannotGroup(InvalidInput):
    """These branches must run one after another; the message says why."""


@dataclass(frozen=True)
class Stacked:
    """The tensors of all experts as one, [K, ...].

    sizes: of dimension 1 of the experts' own tensors, if they differ; the rest is padding.
    """

    tensor: Tensor
    sizes: tuple[int, ...] | None = None

    def of(self, k: int) -> Tensor:
        """The tensor of expert k, without padding."""
        own = self.tensor[k]
        return own if self.sizes is None else own.narrow(1, 0, self.sizes[k])


@dataclass(frozen=True)
class PerExpert:
    """One value for each expert, not stacked."""

    values: tuple[Any, ...]


_Values = (Tensor, Stacked, PerExpert)


class GroupedBranches:
    """The branches of a network of experts as one function: features -> logits [N, sum of n_k].

    branches: modules of one architecture, whose classifiers may differ in their outputs.
    Raises CannotGroup if they are not alike, or may change in place a tensor that is read later.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        self.branches = tuple(branches)
        self.K = len(self.branches)
        _check_alike(self.branches)
        self.graph = _graph_of(self.branches[0])
        _check_in_place(self.graph, self.branches[0])
        self.layers = {
            str(node.target): [branch.get_submodule(str(node.target)) for branch in self.branches]
            for node in self.graph.nodes
            if node.op == "call_module"
        }
        self.last_use = {
            source.name: node.name for node in self.graph.nodes for source in node.all_input_nodes
        }
        self.per_expert: dict[str, str] = {}
        """Nodes that run once for each expert, name -> kind; known after the first call."""
        self._kept_columns: Tensor | None = None  # cached, lest a GPU wait for it in each step

    @property
    def is_current(self) -> bool:
        """Whether no layer of the branches was replaced."""
        return all(
            branch.get_submodule(path) is layer
            for path, layers in self.layers.items()
            for branch, layer in zip(self.branches, layers, strict=True)
        )

    def __call__(self, features: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                return self._concatenated(args[0])
            if node.op == "placeholder":
                values[node] = features
            elif node.op == "get_attr":
                values[node] = self._attribute(str(node.target))
            else:
                values[node] = self._run(node, args, kwargs)
            for source in node.all_input_nodes:
                if self.last_use[source.name] == node.name:
                    del values[source]
        raise AssertionError("a graph has an output")

    def _attribute(self, path: str) -> Any:
        """A parameter or buffer of all branches, or a value that they share."""
        first = attribute(self.branches[0], path)
        if not isinstance(first, Tensor) or path.startswith(FX_CONSTANT):
            return first
        return _stacked(PerExpert(tuple(attribute(branch, path) for branch in self.branches)))

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        each: list[Callable[..., Any]]
        if node.op == "call_module":
            layers = self.layers[str(node.target)]
            alike = len({layer.training for layer in layers}) == 1
            each = [*layers]
            rule = partial(LAYERS.get(type(layers[0]), _no_rule) if alike else _no_rule, layers)
        else:
            each = [function_of(node)] * self.K
            rule = partial(OPERATIONS.get(_operation(node), _no_rule), self.K, each[0])
        args, kwargs = given = fx.node.map_aggregate((args, kwargs), _stacked)
        if node.op != "call_module" and not _find_all(_Values, given):
            return each[0](*args, **kwargs)  # on sizes, for instance
        known = _accepts(rule.func, len(rule.args) + len(args), tuple(kwargs))
        result = rule(*args, **kwargs) if known and _fits(rule.func, given) else NotImplemented
        if result is not NotImplemented:
            return result
        self.per_expert[node.name] = (
            type(each[0]).__name__ if node.op == "call_module" else _operation(node)
        )
        # an operation that may work in place gets copies of shared inputs
        own = name_and_in_place(node, self.branches[0])[1]
        results = []
        for k, function in enumerate(each):
            own_args, own_kwargs = _arguments_of(k, args, own), _arguments_of(k, kwargs, own)
            results.append(function(*own_args, **own_kwargs))
        return PerExpert(tuple(results))

    def _concatenated(self, logits: Any) -> Tensor:
        """Concatenate the experts' logits: [N, sum of n_k]."""
        if isinstance(logits, Tensor):  # no layer has weights
            return torch.cat([logits] * self.K, dim=1)
        if isinstance(logits, PerExpert):
            return torch.cat(logits.values, dim=1)
        joined = logits.tensor.transpose(0, 1).flatten(1)
        if logits.sizes is None:
            return joined
        if self._kept_columns is None or self._kept_columns.device != joined.device:
            widest = logits.tensor.shape[2]
            kept = [k * widest + j for k, n in enumerate(logits.sizes) for j in range(n)]
            with torch.inference_mode(False):  # so that training can use it, too
                self._kept_columns = torch.tensor(kept, device=joined.device)
        return joined[:, self._kept_columns]


class Groups:
    """All branches of a network of experts, in groups that suit device and batch size.

    features -> logits [N, C], the branches' logits concatenated.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        self.branches = tuple(branches)
        self._macs: int | None = None
        self._by_size: dict[int, list[GroupedBranches | nn.Module]] = {}

    def __call__(self, features: Tensor) -> Tensor:
        return torch.cat([group(features) for group in self.groups(features)], dim=1)

    def groups(self, features: Tensor) -> list[GroupedBranches | nn.Module]:
        """Groups of nearly equal size for these features; a group of one is the branch itself."""
        K = len(self.branches)
        number = 1 if features.device.type != "cpu" else math.ceil(K / self._group_size(features))
        groups = self._by_size.get(number, ())
        if not groups or not all(g.is_current for g in groups if isinstance(g, GroupedBranches)):
            ends = [round(i * K / number) for i in range(number + 1)]
            parts = [self.branches[start:end] for start, end in pairwise(ends)]
            self._by_size[number] = [
                GroupedBranches(part) if len(part) > 1 else part[0] for part in parts
            ]
        return self._by_size[number]

    @property
    def per_expert(self) -> set[str]:
        """Kinds of layers and functions that ran once for each expert."""
        groups = (group for groups in self._by_size.values() for group in groups)
        grouped = (group for group in groups if isinstance(group, GroupedBranches))
        return {kind for group in grouped for kind in group.per_expert.values()}

    def _group_size(self, features: Tensor) -> int:
        """How many experts a CPU should run as one group."""
        if self._macs is None:
            self._macs = count_macs(self.branches[0], tuple(features.shape[1:]))
        affordable = GROUP_MACS * torch.get_num_threads() / max(len(features) * self._macs, 1)
        return min(max(int(affordable), 1), len(self.branches))


# --- the branches


def _check_alike(branches: Sequence[nn.Module]) -> None:
    first = dict(branches[0].named_modules())
    if any(map(has_hooks, branches)):
        raise CannotGroup("a layer has hooks, which run when it is called")
    for branch in branches[1:]:
        other = dict(branch.named_modules())
        if first.keys() != other.keys():
            raise CannotGroup("branches have different layers")
        for path, module in first.items():
            if _signature(module) != _signature(other[path]):
                raise CannotGroup(f"{path or 'the forward'!r} differs between branches")


def _signature(module: nn.Module) -> dict[str, Any]:
    """What must be equal between branches: all but weights and the number of outputs."""
    plain: dict[str, Any] = {
        k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))
    }
    for name in ("training", "out_features", "out_channels"):
        plain.pop(name, None)
    # each GraphModule has its own class
    plain["class"] = module.code if isinstance(module, fx.GraphModule) else type(module)
    tensors = {**module._parameters, **module._buffers}
    plain["tensors"] = sorted(name for name, tensor in tensors.items() if tensor is not None)
    return plain


def _graph_of(branch: nn.Module) -> fx.Graph:
    """The fx graph of a branch; fx traces `a += b` as a sum that does not change `a`."""
    if isinstance(branch, fx.GraphModule):
        return branch.graph
    try:
        with modes_kept(branch):
            return trace(branch, type(branch).__name__).graph
    except InvalidInput as error:
        raise CannotGroup(str(error)) from error


def _check_in_place(graph: fx.Graph, branch: nn.Module) -> None:
    """Refuse a branch that may change in place a tensor that it reads later.

    The rules do not preserve in-place changes; without later reads that makes no difference.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {}  # nodes whose tensors may share memory
    for node in graph.nodes:
        memory[node] = {node}
        if not node.op.startswith("call"):
            continue
        name, in_place = name_and_in_place(node, branch)
        inputs = node.all_input_nodes[: 1 if name in IN_PLACE else None]
        together = set().union(*(memory[source] for source in inputs))
        later = [n for n in together if any(place[user] > place[node] for user in n.users)]
        if in_place and later:
            raise CannotGroup(f"{node.name!r} may change {later[0].name!r}, which is read again")
        if not gives_new_memory(name, in_place):
            for member in together | {node}:
                memory[member] = together | {node}


def _operation(node: fx.Node) -> str:
    """The name of a node's function or method."""
    return node.target if isinstance(node.target, str) else node.target.__name__


# --- stacked values


def _stacked(value: Any) -> Any:
    """Stack per-expert tensors of one shape; return anything else as it is."""
    each = value.values if isinstance(value, PerExpert) else ()
    if all(isinstance(v, Tensor) for v in each) and len({v.shape for v in each}) == 1:
        return Stacked(torch.stack(each))
    return value


def _arguments_of(k: int, given: Any, own: bool) -> Any:
    """The arguments of expert k; own: copy shared tensors."""

    def pick(value: Any) -> Any:
        if isinstance(value, Stacked):
            return value.of(k)
        if isinstance(value, PerExpert):
            return value.values[k]
        return value.clone() if own and isinstance(value, Tensor) else value

    return fx.node.map_aggregate(given, pick)


def _expanded(value: Tensor | Stacked, K: int) -> Tensor:
    """The value as [K, ...]; shared tensors are expanded."""
    return value.expand(K, *value.shape) if isinstance(value, Tensor) else value.tensor


def _fold(x: Tensor) -> Tensor:
    """[K, N, c, ...] -> [N, K c, ...], without a copy if the experts are next to the channels."""
    return x.movedim(0, 1).flatten(1, 2)


def _unfold(x: Tensor, K: int) -> Tensor:
    """[N, K c, ...] -> [K, N, c, ...], without a copy."""
    return x.unflatten(1, (K, -1)).movedim(1, 0)


def _flat(parameter: Any) -> Any:
    """[K, n, ...] -> [K n, ...]; None stays None."""
    return None if parameter is None else parameter.flatten(0, 1)


def _weights(layers: Sequence[Any], name: str) -> tuple[Any, tuple[int, ...] | None]:
    """One parameter of all layers, [K, outputs, ...], and the numbers of outputs if they differ.

    Then the parameter is padded to the largest.
    """
    each = [getattr(layer, name) for layer in layers]
    if each[0] is None:
        return None, None
    sizes = tuple(len(tensor) for tensor in each)
    if len(set(sizes)) == 1:
        return torch.cat(each).unflatten(0, (len(each), -1)), None  # cat keeps channels-last
    return pad_sequence(each, batch_first=True), sizes


def _find_all(kind: Any, given: Any) -> list[Any]:
    """All values of a type in nested arguments."""
    found: list[Any] = []

    def look(value: Any) -> Any:
        if isinstance(value, kind):
            found.append(value)
        return value

    fx.node.map_aggregate(given, look)
    return found


@cache
def _accepts(rule: Callable[..., Any], positional: int, named: tuple[str, ...]) -> bool:
    """Whether a rule accepts such arguments."""
    try:
        signature(rule).bind(*[None] * positional, **dict.fromkeys(named))
    except TypeError:
        return False
    return True


def _fits(rule: Any, given: Any) -> bool:
    """Whether a rule can take these values: not PerExpert, and padded only if it keeps padding."""
    padded = any(stacked.sizes is not None for stacked in _find_all(Stacked, given))
    return not _find_all(PerExpert, given) and (not padded or rule in KEEP_PADDING)


# --- rules for layers: (the experts' layers, value) -> value, or NotImplemented


def _no_rule(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


def _conv(layers: list[nn.Conv2d], x: Tensor | Stacked) -> Any:
    K, layer = len(layers), layers[0]
    shared = isinstance(x, Tensor)
    weight, sizes = _weights(layers, "weight")
    bias, _ = _weights(layers, "bias")
    if layer.padding_mode != "zeros" or (layer.groups > 1 and (shared or sizes)):
        return NotImplemented
    wide = F.conv2d(
        x if isinstance(x, Tensor) else _fold(x.tensor),
        _flat(weight),
        _flat(bias),
        layer.stride,
        layer.padding,
        layer.dilation,
        1 if shared else K * layer.groups,
    )
    return Stacked(_unfold(wide, K), sizes)


def _linear(layers: list[nn.Linear], x: Tensor | Stacked) -> Any:
    K = len(layers)
    weight, sizes = _weights(layers, "weight")
    bias, _ = _weights(layers, "bias")
    if isinstance(x, Tensor):
        if sizes and x.ndim != 2:
            return NotImplemented
        y = F.linear(x, _flat(weight), _flat(bias))
        return Stacked(y.unflatten(-1, (K, -1)).movedim(-2, 0), sizes)
    if sizes and x.tensor.ndim != 3:
        return NotImplemented
    rows, columns = x.tensor.flatten(1, -2), weight.transpose(1, 2)
    y = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    return Stacked(y.unflatten(1, x.tensor.shape[1:-1]), sizes)


def _batch_norm(layers: list[nn.BatchNorm2d], x: Tensor | Stacked) -> Any:
    K, layer = len(layers), layers[0]
    if layer.momentum is None or not layer.track_running_stats:
        return NotImplemented
    mean, variance, weight, bias = (
        _flat(_weights(layers, name)[0])
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    wide = F.batch_norm(
        _fold(_expanded(x, K)),
        mean,
        variance,
        weight,
        bias,
        layer.training,
        layer.momentum,
        layer.eps,
    )
    if layer.training:
        with torch.no_grad():
            for name, wide_one in (("running_mean", mean), ("running_var", variance)):
                torch._foreach_copy_([getattr(one, name) for one in layers], wide_one.chunk(K))
            torch._foreach_add_([one.num_batches_tracked for one in layers], 1)  # type: ignore[misc]
    return Stacked(_unfold(wide, K))


def _group_norm(layers: list[nn.GroupNorm], x: Tensor | Stacked) -> Any:
    K, layer = len(layers), layers[0]
    weight, bias = (_flat(_weights(layers, name)[0]) for name in ("weight", "bias"))
    wide = F.group_norm(_fold(_expanded(x, K)), K * layer.num_groups, weight, bias, layer.eps)
    return Stacked(_unfold(wide, K))


def _layer_norm(layers: list[nn.LayerNorm], x: Tensor | Stacked) -> Any:
    K, layer = len(layers), layers[0]
    y: Tensor | Stacked
    if isinstance(x, Tensor):
        y = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    else:
        y = Stacked(F.layer_norm(x.tensor, layer.normalized_shape, eps=layer.eps))
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if getattr(layer, name) is not None:
            each = Stacked(torch.stack([getattr(one, name) for one in layers]))
            y = _arithmetic(K, apply, y, each)
    return y


def _pointwise_layer(layers: list[nn.Module], x: Tensor | Stacked) -> Any:
    return x if isinstance(layers[0], nn.Identity) else _map_tensor(x, layers[0])


def _pooling_layer(layers: list[nn.Module], x: Tensor | Stacked) -> Any:
    if getattr(layers[0], "return_indices", False):
        return NotImplemented
    return _pooling(len(layers), layers[0], x)


def _dropout_layer(layers: list[nn.Dropout], x: Tensor | Stacked) -> Any:
    layer = layers[0]
    return _dropout(len(layers), F.dropout, x, layer.p, layer.training)


def _flatten_layer(layers: list[nn.Flatten], x: Tensor | Stacked) -> Any:
    return _flatten(len(layers), torch.flatten, x, layers[0].start_dim, layers[0].end_dim)


LAYERS: dict[Any, Callable[..., Any]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten_layer,
    nn.Dropout: _dropout_layer,
    **dict.fromkeys(
        (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pooling_layer
    ),
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
        _pointwise_layer,
    ),
    **dict.fromkeys(
        (nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Softplus, nn.Identity),
        _pointwise_layer,
    ),
}
"""By exact class, since subclasses may compute something else."""


# --- rules for functions and methods: (K, function, values ...) -> value, or NotImplemented


def _map_tensor(x: Tensor | Stacked, function: Callable[[Tensor], Tensor]) -> Tensor | Stacked:
    return function(x) if isinstance(x, Tensor) else Stacked(function(x.tensor), x.sizes)


def _pointwise(K: int, function: Any, x: Tensor | Stacked, *args: Any, **kwargs: Any) -> Any:
    if "memory_format" in kwargs and isinstance(x, Stacked):
        return NotImplemented  # has no meaning for stacked tensors
    return _map_tensor(x, lambda tensor: function(tensor, *args, **kwargs))


def _pooling(K: int, function: Any, x: Tensor | Stacked, *args: Any, **kwargs: Any) -> Any:
    if isinstance(x, Tensor):
        return function(x, *args, **kwargs)
    return Stacked(_unfold(function(_fold(x.tensor), *args, **kwargs), K), x.sizes)


def _dropout(
    K: int,
    function: Any,
    x: Tensor | Stacked,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    """Each expert draws its own mask, also for a shared input."""
    if not training or p == 0:
        return x
    sizes = None if isinstance(x, Tensor) else x.sizes
    return Stacked(F.dropout(_expanded(x, K), p), sizes)


def _arithmetic(K: int, function: Any, x: Any, y: Any) -> Any:
    """Sums and products of stacked and shared values."""
    if isinstance(x, Stacked):
        return Stacked(function(*_aligned(x, y)))
    if isinstance(y, Stacked):
        out_of_place = {operator.iadd: operator.add, operator.imul: operator.mul}
        return Stacked(out_of_place.get(function, function)(*_aligned(x, y)))
    return function(x, y)


def _aligned(*values: Any) -> list[Any]:
    """The values as tensors with equal numbers of dimensions behind the experts'."""
    tensors = [v.tensor if isinstance(v, Stacked) else v for v in values]
    ranks = [
        t.ndim - isinstance(v, Stacked) if isinstance(t, Tensor) else 0
        for v, t in zip(values, tensors, strict=True)
    ]
    return [
        t.reshape(len(t), *[1] * (max(ranks) - rank), *t.shape[1:]) if isinstance(v, Stacked) else t
        for v, t, rank in zip(values, tensors, ranks, strict=True)
    ]


def _flatten(K: int, function: Any, x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if isinstance(x, Tensor):
        return torch.flatten(x, start_dim, end_dim)
    if x.sizes and (start_dim != 1 or x.tensor.shape[3:].numel() != 1):
        return NotImplemented
    return Stacked(torch.flatten(x.tensor, _shifted(start_dim), _shifted(end_dim)), x.sizes)


def _mean(K: int, function: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(x, Tensor) and dim is not None:
        return x.mean(dim, keepdim)
    if dim is None or (x.sizes and (keepdim or set(_dims(dim)) != {2, 3})):
        return NotImplemented
    return Stacked(x.tensor.mean([_shifted(d) for d in _dims(dim)], keepdim), x.sizes)


def _permute(K: int, function: Any, x: Any, *dims: Any) -> Any:
    if isinstance(x, Tensor):
        return x.permute(*dims)
    return Stacked(x.tensor.permute(0, *(_shifted(d % (x.tensor.ndim - 1)) for d in _dims(*dims))))


def _transpose(K: int, function: Any, x: Any, one: int, other: int) -> Any:
    if isinstance(x, Tensor):
        return x.transpose(one, other)
    return Stacked(x.tensor.transpose(_shifted(one), _shifted(other)))


def _chunk(K: int, function: Any, x: Any, chunks: int, dim: int = 0) -> Any:
    if isinstance(x, Tensor):
        return x.chunk(chunks, dim)
    return tuple(Stacked(tensor) for tensor in x.tensor.chunk(chunks, _shifted(dim)))


def _cat(K: int, function: Any, tensors: Any, dim: int = 0) -> Any:
    if all(isinstance(tensor, Tensor) for tensor in tensors):
        return torch.cat(tensors, dim)
    return Stacked(torch.cat([_expanded(tensor, K) for tensor in tensors], _shifted(dim)))


def _reshape(K: int, function: Any, x: Any, *shape: Any) -> Any:
    if isinstance(x, Tensor):
        return x.reshape(*shape)
    return Stacked(x.tensor.reshape(K, *_dims(*shape)))


def _size(K: int, function: Any, x: Any, dim: int | None = None) -> Any:
    shape = x.shape if isinstance(x, Tensor) else x.tensor.shape[1:]
    return shape if dim is None else shape[dim]


def _getattr(K: int, function: Any, x: Any, name: str) -> Any:
    return _size(K, function, x) if name == "shape" else NotImplemented


def _getitem(K: int, function: Any, x: Any, index: Any) -> Any:
    each = index if isinstance(index, tuple) else (index,)
    if not all(i is None or isinstance(i, (int, slice, type(...))) for i in each):
        return NotImplemented  # indexing by lists and tensors may move dimensions
    if isinstance(x, Stacked):
        return Stacked(x.tensor[(slice(None), *each)])
    return x[index]


def _pad(K: int, function: Any, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    if mode != "constant":
        return NotImplemented
    return _map_tensor(x, lambda tensor: F.pad(tensor, pad, mode, value))


OPERATIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(POOLING, _pooling),
    **dict.fromkeys(("add", "sub", "mul", "truediv", "iadd", "imul"), _arithmetic),
    **dict.fromkeys(("reshape", "view"), _reshape),
    "dropout": _dropout,
    "flatten": _flatten,
    "mean": _mean,
    "permute": _permute,
    "transpose": _transpose,
    "chunk": _chunk,
    "cat": _cat,
    "size": _size,
    "getattr": _getattr,
    "getitem": _getitem,
    "pad": _pad,
}
"""By name of the function or method; all others run once for each expert."""

KEEP_PADDING = {
    *(_pointwise, _pointwise_layer, _pooling, _pooling_layer, _dropout, _dropout_layer),
    *(_flatten, _flatten_layer, _mean),
}
"""Rules that keep a classifier's padding where it is."""


def _shifted(dim: int) -> int:
    """The stacked tensor's dimension for one of a branch's tensor."""
    return dim + 1 if dim >= 0 else dim


def _dims(*given: Any) -> tuple[int, ...]:
    """(1, 2) from either 1, 2 or (1, 2)."""
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given
