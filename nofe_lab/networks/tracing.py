"""A network as a graph of its layers, and the places where it can be cut in two.

torch.fx runs a network's `forward` on stand-ins and writes down what happens to them.  A cut is
possible before a module if one tensor alone crosses there: what the layers before it hand to those
from it on.  A residual block can be cut before it and behind it but not inside, where its shortcut
would cross as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from nofe_lab.config import InvalidInput, first_line


@dataclass(frozen=True)
class Cut:
    """A place where a network can be cut."""

    module: str
    """Path of the module that comes first behind the cut, as in ``layer4``."""
    position: int
    """Of its first node in the graph."""
    crossing: fx.Node
    """The node whose tensor crosses."""


@dataclass(frozen=True)
class Measured:
    """What a node gives for two images, and what it costs for one."""

    shape: tuple[int, ...] | None
    """Of its tensor, or None if it gives something else."""
    macs: int
    """Multiply-accumulates of one image."""


def trace(network: nn.Module, name: str) -> fx.Graph:
    """The graph of a network; it is the same in training and in evaluation.

    A module is one node of the graph if it holds no other modules, if fx cannot look into it, or if
    its forward does different things in training and in evaluation; otherwise its layers are.
    Raises InvalidInput if the network's own forward is one of the latter two, except that it may
    tell functions whether it is training, as in ``dropout(x, training=self.training)``.
    """
    opaque: set[type[nn.Module]] = set()
    while True:
        graphs = []
        for training in (True, False):
            _forget_constants(network)
            tracer = _Tracer(opaque)
            try:
                graphs.append(tracer.trace(network.train(training)))
            except Exception as error:  # whatever a forward may do to a stand-in for a tensor
                if tracer.failed is None:
                    raise _cannot_trace(name, first_line(error)) from error
                opaque.add(tracer.failed)
                break
        else:
            _tell_when_running(*graphs)
            difference = _first_difference(*graphs)
            if difference is None:
                for node in graphs[0].nodes:  # images are channels-last, of which there is no view
                    if node.op == "call_method" and node.target == "view":
                        node.target = "reshape"
                return graphs[0]
            if not difference:
                raise _cannot_trace(name, "it does different things in training and evaluation")
            opaque.add(type(network.get_submodule(difference[-1])))


def _cannot_trace(name: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"backbone {name!r} cannot be split, torch.fx cannot follow its forward ({reason}); "
        "accepted: a network whose forward has no decisions on values, or a Backbone of your own."
    )


class _Tracer(fx.Tracer):
    """Notes for each node the path of modules that it happens in, innermost last."""

    proxy_buffer_attributes = True  # else what a forward makes of a buffer would be a constant

    def __init__(self, opaque: set[type[nn.Module]]) -> None:
        super().__init__()
        self.opaque = opaque
        self.inside: list[str] = []
        self.failed: type[nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        is_torchs = super().is_leaf_module(m, module_qualified_name)
        return type(m) in self.opaque or childless or is_torchs

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.inside.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self.is_leaf_module(m, path):  # else it is the caller whose forward fails
                self.failed = self.failed or type(m)
            raise
        finally:
            self.inside.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["inside"] = tuple(self.inside)
        return node


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Every module is afterwards in training or in evaluation as before, also frozen ones."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


FX_CONSTANT = "_tensor_constant"
"""Begins the names of what fx puts beside the layers: tensors that a forward makes of numbers."""


def _forget_constants(network: nn.Module) -> None:
    """Remove what fx put beside the layers, so that it gives the same names again."""
    for name in [name for name in vars(network) if name.startswith(FX_CONSTANT)]:
        delattr(network, name)


def _tell_when_running(training: fx.Graph, evaluation: fx.Graph) -> None:
    """Let functions of the network's own forward be told by its state whether it is training."""
    for nodes in zip(list(training.nodes), list(evaluation.nodes), strict=False):
        if nodes[0].meta["inside"] or [n.kwargs.get("training") for n in nodes] != [True, False]:
            continue
        for graph, node in zip((training, evaluation), nodes, strict=True):
            with graph.inserting_before(node):
                told = graph.create_node("get_attr", "training")
            told.meta["inside"] = ()
            node.update_kwarg("training", told)


def _first_difference(one: fx.Graph, other: fx.Graph) -> tuple[str, ...] | None:
    """The modules around the first node in which two graphs differ; None if they do not.

    They are those whose forwards have led to either node, innermost last.
    """
    for nodes in zip(one.nodes, other.nodes, strict=False):
        if nodes[0].format_node() != nodes[1].format_node():
            forwards = [
                node.meta["inside"][: -1 if node.op == "call_module" else None] for node in nodes
            ]
            common = takewhile(lambda pair: pair[0] == pair[1], zip(*forwards, strict=False))
            return tuple(path for path, _ in common)
    return None


def cuts(graph: fx.Graph, network: nn.Module) -> dict[str, Cut]:
    """Every place to cut, by each module that comes first behind it.

    There are parameters on both sides of a cut, and none on both at once.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    first: dict[str, int] = {}
    calls: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for path in node.meta.get("inside", ()):
            first.setdefault(path, i)
            calls.setdefault(path, []).append(i)
    parameters = [_parameters(node, network) for node in nodes]
    found = {}
    for path, position in sorted(first.items(), key=lambda item: (item[1], len(item[0]))):
        together = calls[path][-1] - position == len(calls[path]) - 1
        crossing = _crossing(nodes, place, position)
        if together and len(crossing) == 1 and crossing[0].op != "placeholder":
            before, behind = (
                set().union(*part) for part in (parameters[:position], parameters[position:])
            )
            if before and behind and not before & behind:
                found[path] = Cut(path, position, crossing[0])
    return found


def _crossing(nodes: list[fx.Node], place: Mapping[fx.Node, int], position: int) -> list[fx.Node]:
    """Nodes before a position that are used from it on; a parameter can be had on either side."""
    return [
        node
        for node in nodes[:position]
        if node.op != "get_attr" and any(place[user] >= position for user in node.users)
    ]


def _parameters(node: fx.Node, network: nn.Module) -> set[int]:
    """Those of a node's module, and those that it is given."""
    found: set[int] = set()
    if node.op == "call_module":
        found |= {id(p) for p in network.get_submodule(str(node.target)).parameters()}
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = attribute(network, str(source.target))
            found |= {id(value)} if isinstance(value, nn.Parameter) else set()
    return found


def attribute(network: nn.Module, path: str) -> Any:
    """What a dotted path names inside a network."""
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)


def halves(graph: fx.Graph, cut: Cut, network: nn.Module) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of the trunk, images -> features, and of the tail, features -> logits.

    The tail leaves the features as they are, whatever `network` does in place: other tails of a
    network of experts see them, too.
    """
    nodes = list(graph.nodes)
    trunk, tail = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: cut.position]:
        copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(copies[cut.crossing])
    copies = {cut.crossing: tail.placeholder("features")}
    for node in nodes[: cut.position]:
        if node.op == "get_attr":
            copies[node] = tail.node_copy(node)
    for node in nodes[cut.position :]:
        copies[node] = tail.node_copy(node, copies.__getitem__)
    for part in (trunk, tail):
        for node in reversed(part.nodes):
            if node.op == "get_attr" and not node.users:
                part.erase_node(node)
    features = next(node for node in tail.nodes if node.op == "placeholder")
    if _changes(features, tail, network):
        with tail.inserting_after(features):
            copied = tail.call_method("clone", (features,))
        features.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    return trunk, tail


IN_PLACE = {"iadd", "isub", "imul", "itruediv"}
"""Python's operators that change what they are given."""

NEW_TENSORS = {
    *("Conv2d", "Linear", "BatchNorm2d", "LayerNorm", "GroupNorm"),
    *("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "add", "sub", "mul", "truediv", "cat", "mean"),
}
"""Layers of torch.nn and functions whose output shares no memory with their input."""

NEW_UNLESS_IN_PLACE = {
    *("relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh"),
    *("leakyrelu", "leaky_relu", "elu", "mish", "softplus"),
}
"""Others of which that is true unless they are told to work in place, in small letters."""


def gives_new_memory(name: str, in_place: bool) -> bool:
    """Whether the output of `what_happens` shares no memory with an input."""
    return name in NEW_TENSORS or (not in_place and name.lower() in NEW_UNLESS_IN_PLACE)


def _changes(features: fx.Node, tail: fx.Graph, network: nn.Module) -> bool:
    """Whether a tail may change its features in place: these, or what shares memory with them."""
    same = {features}
    for node in tail.nodes:
        inputs = node.all_input_nodes
        name, in_place = what_happens(node, network)
        if name in IN_PLACE:  # only to the first
            inputs = inputs[:1]
        if not same & set(inputs) or node.op == "output":
            continue
        if in_place:
            return True
        if name not in NEW_TENSORS:
            same.add(node)
    return False


def what_happens(node: fx.Node, network: nn.Module) -> tuple[str, bool]:
    """What is called, and whether it may change its input; a module of one's own may."""
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        own = any(not type(m).__module__.startswith("torch.nn.") for m in layer.modules())
        in_place = any(getattr(m, "inplace", False) for m in layer.modules())
        return ("" if own else type(layer).__name__), own or in_place
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or name in IN_PLACE or bool(node.kwargs.get("inplace"))
    return name, in_place


def assemble(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module that does what the graph says with the layers of `network`, under their names."""
    return fx.GraphModule(network, graph)


def measure(
    module: fx.GraphModule, shape: tuple[int, ...], macs: bool = True
) -> dict[fx.Node, Measured]:
    """Shapes and multiply-accumulates of all nodes for images or features of `shape`.

    Runs the module, in evaluation mode, on two inputs that lie where its parameters do; on torch's
    meta device that costs no arithmetic.  By torch's own counter; without `macs` it counts nothing,
    which is faster.
    """
    device = next(module.parameters()).device
    found: dict[fx.Node, Measured] = {}

    class Measure(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            before = counter.get_total_flops()
            result = super().run_node(n)
            if n.op == "get_attr" and isinstance(result, Tensor):
                result = result.to(device)  # a constant that the network's forward has made
            operations = counter.get_total_flops() - before
            size = tuple(result.shape) if isinstance(result, Tensor) else None
            found[n] = Measured(size, operations // 4)  # two images, two operations each
            return result

    module.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter if macs else nullcontext():
        Measure(module).run(torch.zeros(2, *shape, device=device))
    return found
