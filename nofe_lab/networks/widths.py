"""Narrower or wider copies of a network's tail, so that K branches need not cost K tails.

Which channels must change together?  Each convolution and fc layer makes a new group of channels,
free to change; normalisations, nonlinearities and depthwise convolutions pass it on; a sum joins
two groups; a concatenation lists them.  Channels from the trunk, the classifier's outputs, and all
that reach an unknown operation are fixed.  So the copy of any tail is consistent.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from nofe_lab.networks.tracing import Measured, attribute, has_hooks

Weighted = (nn.Conv2d, nn.Linear)


@dataclass(eq=False)
class _ChannelGroup:
    """Channels that change together."""

    size: int
    fixed: bool = False
    multiple: int = 1
    """The new size is a multiple of this."""
    joined: _ChannelGroup | None = None

    def root(self) -> _ChannelGroup:
        return self if self.joined is None else self.joined.root()

    def scaled(self, width: float) -> int:
        root = self.root()
        if root.fixed:
            return root.size
        return max(round(root.size * width / root.multiple), 1) * root.multiple


@dataclass(frozen=True)
class _Channels:
    """The groups along the channel dimension of a tensor."""

    groups: tuple[_ChannelGroup, ...]
    dimension: int
    times: int = 1
    """Features per channel, after flattening."""

    def scaled(self, width: float) -> int:
        return self.times * sum(group.scaled(width) for group in self.groups)

    @property
    def size(self) -> int:
        return self.times * sum(group.root().size for group in self.groups)

    def shared(self, width: float) -> tuple[Tensor, Tensor]:
        """Features that a copy of another width keeps: their indices [n] before and in the copy.

        The first channels of each group, or of each of its blocks where the size must be a
        multiple, so that grouped layers keep theirs in every block.
        """
        before, after, starts = [], [], (0, 0)
        for group in self.groups:
            size, scaled, blocks = group.root().size, group.scaled(width), group.root().multiple
            block = torch.arange(blocks)[:, None]
            kept = torch.arange(min(size, scaled) // blocks)
            before.append((starts[0] + block * (size // blocks) + kept).flatten())
            after.append((starts[1] + block * (scaled // blocks) + kept).flatten())
            starts = (starts[0] + size, starts[1] + scaled)
        cells = torch.arange(self.times)
        old, new = ((torch.cat(each)[:, None] * self.times + cells) for each in (before, after))
        return old.flatten(), new.flatten()


@dataclass
class Widths:
    """The channels of a tail's layers, as functions of its width."""

    inputs: dict[str, _Channels] = field(default_factory=dict)
    """The input channels of convolutions and fc layers, by path."""
    outputs: dict[str, _Channels] = field(default_factory=dict)
    per_channel: dict[str, _Channels] = field(default_factory=dict)
    """The channels of layers and parameters with one number per channel."""

    def are_free(self, width: float) -> bool:
        """Whether this width changes any layer."""
        return any(channels.scaled(width) != channels.size for channels in self.outputs.values())

    def apply(self, network: nn.Module, width: float, keep: bool = False) -> None:
        """Resize the layers of a network to this width, in place.

        keep: channels that remain keep their weights, all others are fresh; else all are fresh.
        """
        for path, outputs in self.outputs.items():
            layer, inputs = network.get_submodule(path), self.inputs[path]
            assert isinstance(layer, Weighted)
            weight, bias = layer.weight, layer.bias
            is_fixed = outputs.scaled(width) == outputs.size  # a classifier may have other classes
            n = len(weight) if is_fixed else outputs.scaled(width)
            resize(layer, inputs.scaled(width), n)
            if keep and layer.weight is not weight:
                rows = (torch.arange(n),) * 2 if is_fixed else outputs.shared(width)
                _keep_weights(layer, weight, bias, inputs.shared(width), rows)
        for path, channels in self.per_channel.items():
            shared = channels.shared(width) if keep else None
            _resize_per_channel(network, path, channels.size, channels.scaled(width), shared)


def find_widths(
    network: nn.Module, graph: fx.Graph, shapes: Mapping[fx.Node, Measured], classifier: str
) -> Widths:
    """Trace the channels through a tail.  shapes: of the graph's nodes (see `measure`)."""
    return _ChannelTracer(network, shapes, classifier).through(graph)


class _ChannelTracer:
    def __init__(
        self, network: nn.Module, shapes: Mapping[fx.Node, Measured], classifier: str
    ) -> None:
        self.network = network
        self.shapes = shapes
        self.classifier = classifier
        self.channels: dict[fx.Node, _Channels] = {}
        self.found = Widths()

    def through(self, graph: fx.Graph) -> Widths:
        for node in graph.nodes:
            if node.op == "get_attr":
                continue
            if self._shape(node) is None:
                if node.target not in ("size", getattr):  # chunks of channels, for instance
                    for source in node.all_input_nodes:
                        self._fix(source)
                continue
            known = self._follow(node)
            if known is None:
                for source in node.all_input_nodes:
                    self._fix(source)
                known = self._new(node, fixed=True)
            self.channels[node] = known
            if node.op == "output":
                self._fix(node)
        return self.found

    def _follow(self, node: fx.Node) -> _Channels | None:
        """The channels of a node's output; None for an unknown operation."""
        if node.op == "placeholder":
            return self._new(node, fixed=True)
        tensors = [n for n in node.all_input_nodes if n in self.channels]
        if node.op == "output":
            return self.channels[tensors[0]]
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            return self._layer(node, module, tensors[0]) if len(tensors) == 1 else None
        if node.target in (operator.add, operator.mul, operator.iadd, torch.add, torch.mul):
            return self._sum(node, tensors)
        if node.target is torch.cat:
            return self._concatenation(node, tensors)
        return self._pass_on(node, tensors[0]) if len(tensors) == 1 else None

    def _layer(self, node: fx.Node, module: nn.Module, source: fx.Node) -> _Channels | None:
        inputs, path = self.channels[source], str(node.target)
        if earlier := self._called_before(path):
            for channels in earlier:
                self._fix_channels(channels)
            return None
        if isinstance(module, Weighted) and not is_plain(module):
            return None
        if isinstance(module, Weighted):
            return self._weighted(node, module, inputs, path)
        if not _tensors(module):
            return self._pass_on(node, source)
        if self._shape(node) != self._shape(source) or not _is_per_channel(module, inputs.size):
            return None
        if isinstance(module, nn.GroupNorm):
            self._keep_divisible(inputs, module.num_groups)
        self.found.per_channel[path] = inputs
        return inputs

    def _called_before(self, path: str) -> list[_Channels]:
        known = (self.found.inputs, self.found.outputs, self.found.per_channel)
        return [channels[path] for channels in known if path in channels]

    def _weighted(
        self, node: fx.Node, module: nn.Conv2d | nn.Linear, inputs: _Channels, path: str
    ) -> _Channels | None:
        dimension, split_in = 1, 1
        if isinstance(module, nn.Linear):
            dimension = len(self._shape(node) or ()) - 1
        elif (split_in := module.groups) > 1:
            if module.groups == module.in_channels == module.out_channels:
                self.found.inputs[path] = self.found.outputs[path] = inputs
                return inputs
            if len(inputs.groups) > 1:
                return None
            self._keep_divisible(inputs, split_in)
        if inputs.dimension != dimension:
            return None
        outputs = self._new(node, fixed=path == self.classifier, dimension=dimension)
        self._keep_divisible(outputs, split_in)
        self.found.inputs[path], self.found.outputs[path] = inputs, outputs
        return outputs

    def _sum(self, node: fx.Node, tensors: list[fx.Node]) -> _Channels | None:
        """A sum or product: of tensors with the same channels, or of a tensor and a parameter."""
        if not tensors:
            return None
        known = self.channels[tensors[0]]
        parameters = [n for n in node.all_input_nodes if n.op == "get_attr"]
        for parameter in parameters:
            tensor = attribute(self.network, str(parameter.target))
            if tensor.numel() > 1:
                if tensor.numel() != known.size or max(tensor.shape) != known.size:
                    return None
                self.found.per_channel[str(parameter.target)] = known
        for other in (self.channels[tensor] for tensor in tensors[1:]):
            alike = [g.root().size for g in known.groups] == [g.root().size for g in other.groups]
            if not alike or (known.dimension, known.times) != (other.dimension, other.times):
                return None
            for one, twin in zip(known.groups, other.groups, strict=True):
                _join(one.root(), twin.root())
        return known if self._keeps_channels(node, known) else None

    def _concatenation(self, node: fx.Node, tensors: list[fx.Node]) -> _Channels | None:
        joined = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(joined, (list, tuple)) or any(n not in self.channels for n in joined):
            return None
        dimension = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = [self.channels[cast(fx.Node, n)] for n in joined]
        if any(part.dimension != dimension or part.times != 1 for part in parts):
            return None
        return _Channels(tuple(g for part in parts for g in part.groups), cast(int, dimension))

    def _pass_on(self, node: fx.Node, source: fx.Node) -> _Channels | None:
        """Operations without parameters: pooling, nonlinearities, dropout, flatten, permute."""
        known = self.channels[source]
        before, after = self._shape(source) or (), self._shape(node) or ()
        if (dims := _permutation(node, self.network)) is not None:
            return _Channels(known.groups, dims.index(known.dimension), known.times)
        if not _keeps_channels_apart(node, self.network):
            return None
        if node.target == "reshape" and (len(after) != 2 or node.args[-1] != -1):
            return None
        if len(after) == 2 and len(before) == 4 and known.dimension == 1:
            cells = after[1] // before[1]
            if after[1] == before[1] * cells:
                return _Channels(known.groups, 1, known.times * cells)
            return None
        return known if len(after) == len(before) and self._keeps_channels(node, known) else None

    def _keeps_channels(self, node: fx.Node, known: _Channels) -> bool:
        shape = self._shape(node) or ()
        return len(shape) > known.dimension and shape[known.dimension] == known.size

    def _new(self, node: fx.Node, fixed: bool = False, dimension: int = 1) -> _Channels:
        shape = self._shape(node) or ()
        size = shape[dimension] if len(shape) > dimension else 1
        return _Channels((_ChannelGroup(size, fixed),), dimension)

    def _fix(self, node: fx.Node) -> None:
        if node in self.channels:
            self._fix_channels(self.channels[node])

    @staticmethod
    def _fix_channels(channels: _Channels) -> None:
        for group in channels.groups:
            group.root().fixed = True

    @staticmethod
    def _keep_divisible(channels: _Channels, multiple: int) -> None:
        for group in channels.groups:
            group.root().multiple = math.lcm(group.root().multiple, multiple)

    def _shape(self, node: fx.Node) -> tuple[int, ...] | None:
        return self.shapes[node].shape


def _join(one: _ChannelGroup, other: _ChannelGroup) -> None:
    if one is not other:
        other.joined = one
        one.fixed |= other.fixed
        one.multiple = math.lcm(one.multiple, other.multiple)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a layer, without counters."""
    return [t for t in (*module.parameters(), *module.buffers()) if t.ndim]


def _is_per_channel(module: nn.Module, channels: int) -> bool:
    """Whether all tensors of a layer have one number per channel."""
    return all(max(t.shape) == t.numel() == channels for t in _tensors(module))


POINTWISE = {
    *("relu", "relu_", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid"),
    *("tanh", "leaky_relu", "elu", "mish", "softplus", "contiguous", "clone"),
}
"""Pointwise functions and methods."""

POOLING = {
    *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    "boolean_dispatch",  # torch's name for pooling that can return indices
}
"""Functions that pool each channel by itself."""

SAME_CHANNELS = {
    *POINTWISE,
    *POOLING,
    *("dropout", "flatten", "mean", "stochastic_depth", "drop_path", "reshape"),
}
"""Functions and methods that keep the channels."""


def _keeps_channels_apart(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return not isinstance(layer, (nn.ChannelShuffle, nn.PixelShuffle))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in SAME_CHANNELS


def _permutation(node: fx.Node, network: nn.Module) -> list[int] | None:
    dims: Any = None
    if node.op == "call_module":
        dims = getattr(network.get_submodule(str(node.target)), "dims", None)
    elif node.target in ("permute", torch.permute):
        given = node.args[1] if len(node.args) == 2 else node.args[1:]
        dims = node.kwargs.get("dims", given)
    if not isinstance(dims, (list, tuple)):
        return None
    return [dim % len(dims) for dim in dims]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weight is a plain parameter, without parametrisation or hooks."""
    own = {"weight"} <= set(layer._parameters)
    return own and not is_parametrized(layer) and not has_hooks(layer)


def resize(layer: nn.Module, inputs: int, outputs: int) -> None:
    """Give a convolution or fc layer other numbers of channels, in place.

    Weights that change shape are redrawn: Gaussian with the old deviation, corrected for the new
    fan-in, as the network's own initialisation would.
    """
    assert isinstance(layer, Weighted)
    groups = 1
    if isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels > 1:  # depthwise: a group each
            layer.groups = inputs
        groups = layer.groups
        layer.in_channels, layer.out_channels = inputs, outputs
    else:
        layer.in_features, layer.out_features = inputs, outputs
    layer.weight = redrawn(layer.weight, (outputs, inputs // groups, *layer.weight.shape[2:]))
    if layer.bias is not None:
        layer.bias = redrawn(layer.bias, (outputs,))


Shared = tuple[Tensor, Tensor]
"""Indices of the same channels in a layer and in its resized copy."""


def _keep_weights(
    layer: nn.Conv2d | nn.Linear,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Shared,
    outputs: Shared,
) -> None:
    """Copy the old weights between shared channels into a layer that was resized."""
    old, new = weight.detach(), layer.weight.data
    # of a grouped layer the channels of its first group, which lie as in all others
    before, after = (
        index[index < tensor.shape[1]] for index, tensor in zip(inputs, (old, new), strict=True)
    )
    new[outputs[1][:, None], after] = old[outputs[0][:, None], before]
    if layer.bias is not None and bias is not None:
        layer.bias.data[outputs[1]] = bias.detach()[outputs[0]]


def redrawn(old: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    """Gaussian weights of another shape, with the deviation of `old`, corrected for fan-in."""
    if old.shape == shape:
        return cast(nn.Parameter, old)
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    if not new.is_meta:
        fan_in = math.prod(old.shape[1:]) / math.prod(shape[1:])
        deviation = float(old.detach().std(correction=0)) * math.sqrt(fan_in)
        new.normal_(0.0 if len(shape) > 1 else float(old.detach().mean()), deviation)
    return nn.Parameter(new)


def _resize_per_channel(
    network: nn.Module, path: str, old: int, new: int, shared: Shared | None = None
) -> None:
    """Cut or repeat the per-channel numbers of a layer or parameter to `new` channels.

    shared: channels that keep their numbers.
    """
    if old == new:
        return
    owner_path, _, name = path.rpartition(".")
    target = attribute(network, path)
    if isinstance(target, nn.Module):
        for module in target.modules():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.ndim:
                    _resize_tensor(module, key, tensor, new, shared)
        for key in ("num_features", "num_channels", "num_parameters"):
            if hasattr(target, key):
                setattr(target, key, new)
        if isinstance(target, nn.LayerNorm):
            target.normalized_shape = (new,)
    else:
        _resize_tensor(network.get_submodule(owner_path), name, target, new, shared)


def _resize_tensor(
    module: nn.Module, name: str, tensor: Tensor, new: int, shared: Shared | None
) -> None:
    dimension = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    index = torch.arange(new, device=tensor.device) % tensor.shape[dimension]
    if shared is not None:
        index[shared[1]] = shared[0]
    changed = tensor.detach().index_select(dimension, index)
    setattr(module, name, nn.Parameter(changed) if isinstance(tensor, nn.Parameter) else changed)
