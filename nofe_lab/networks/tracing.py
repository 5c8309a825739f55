"""A network as a graph of its layers, and the places where it can be cut in two.

torch.fx runs a network's `forward` on proxies and records the operations.  A cut is possible before
a module if only one tensor crosses there.  A network can be cut before and after a residual block,
but not inside, where the shortcut crosses as well.
"""

from __future__ import annotations

import builtins
import inspect
import operator
import random
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from nofe_lab.config import InvalidInput, first_line
from nofe_lab.machine import seeded


@dataclass(frozen=True)
class Cut:
    """A place where a network can be cut."""

    module: str
    """Path of the first module after the cut, as in ``layer4``."""
    position: int
    """Index of that module's first node in the graph."""
    crossing: fx.Node
    """The node whose tensor crosses."""


@dataclass(frozen=True)
class Measured:
    """The output shape and the cost of a node."""

    shape: tuple[int, ...] | None
    """Shape of its output for two images; None if that is not a tensor."""
    macs: int
    """Multiply-accumulates for one image."""


@dataclass(frozen=True)
class Traced:
    """The graph of a network."""

    graph: fx.Graph
    is_sized: bool
    """Whether the forward reads the size of its images, so that the graph may depend on it."""


def trace(network: nn.Module, name: str, shape: tuple[int, ...] | None = None) -> Traced:
    """Trace a network into one graph for both training and evaluation.

    A module becomes one node if it has no children, if fx cannot trace it, if its forward differs
    between training and evaluation, if it draws random numbers, or if it computes a part without
    gradients.  Otherwise its layers become nodes.
    shape: of an image; then the forward may branch on numbers that it derives from the shape.
    Raises InvalidInput if the network's own forward cannot be traced; it may differ between
    training and evaluation, as long as it gives one tensor.
    """
    if any(getattr(network, hooks) for hooks in HOOKS):
        raise _cannot_trace(
            name, "hooks on the network itself would be lost: put them on one of its layers"
        )
    opaque: set[type[nn.Module]] = set()
    while True:
        graphs, constants = [], []
        is_sized = False
        for training in (True, False):
            _forget_constants(network)
            tracer = _Tracer(opaque, shape)
            try:
                graphs.append(tracer.trace(network.train(training)))
            except Exception as error:  # a forward may raise anything on a proxy
                if tracer.failed is None:
                    raise _cannot_trace(name, reason_of(error)) from error
                opaque.add(tracer.failed)
                break
            is_sized |= tracer.is_sized
            constants.append({n: v for n, v in vars(network).items() if n.startswith(FX_CONSTANT)})
        else:
            _read_mode_when_running(*graphs)
            difference = _first_difference(*graphs)
            if (other := _changing_constant(graphs[0], *constants)) is not None:
                if not other:
                    reason = "a tensor that it makes of numbers is another one each time"
                    raise _cannot_trace(name, reason)
                difference = other
            if difference:
                opaque.add(type(network.get_submodule(difference[-1])))
                continue
            graph = graphs[0]
            if difference is not None:
                try:
                    graph = _merged(graphs[0], graphs[1], network)
                except _CannotMerge as error:
                    reason = "it does different things in training and evaluation"
                    raise _cannot_trace(name, reason) from error
            for node in graph.nodes:  # channels-last images have no view
                if node.op == "call_method" and node.target == "view":
                    node.target = "reshape"
            _make_contiguous_for_views(graph, network)
            if shape is not None:
                _count_images_locally(graph, tracer)
            return Traced(graph, is_sized)


def _cannot_trace(name: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"backbone {name!r} cannot be split, torch.fx cannot follow its forward ({reason}); "
        "accepted: a network whose forward has no decisions on values, or a Backbone of your own."
    )


def reason_of(error: BaseException) -> str:
    """An error in a forward, in one line, without the names of proxies."""
    return re.sub(r"Proxy\(\w+\)", "...", first_line(error))


def failing_layer(error: BaseException) -> str:
    """The class name of the innermost module that raised an error; "" if none did."""
    layer = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not isinstance(module, fx.GraphModule):
            layer = type(module).__name__
    return layer


def view_refused(error: BaseException, name: str) -> InvalidInput | None:
    """The refusal of a network that calls `view` on channels-last maps; None for other errors."""
    if "view size is not compatible" not in str(error):
        return None
    return InvalidInput(
        f"{failing_layer(error) or 'a layer'} of {name!r} calls view, which channels-last maps do "
        "not support; accepted: reshape or flatten instead."
    )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes in which a module keeps its hooks."""


def has_hooks(module: nn.Module) -> bool:
    """Whether a module or one inside it has hooks, which run only when that module is called."""
    return any(getattr(m, hooks) for m in module.modules() for hooks in HOOKS)


LIBRARIES = {
    *("torch", "torchvision", "timm", "nofe_lab", "numpy", "pandas", "scipy", "PIL"),
    *("builtins", "typing", "collections", "abc", "enum", "functools", "math", "operator"),
}


def is_from_library(kind: Any) -> bool:
    """Whether a class or function comes from a library, whose version is recorded elsewhere."""
    module = getattr(kind, "__module__", None) or ""  # code without one is the user's
    return module.split(".")[0] in LIBRARIES


class _SizeProxy(fx.Proxy):  # type: ignore[misc]
    """A proxy that converts to a number if it depends only on the image's shape."""

    def __index__(self) -> int:
        return operator.index(self.number())

    def __int__(self) -> int:
        return int(self.number())

    def __float__(self) -> float:
        return float(self.number())

    def number(self) -> Any:
        """Its value; raises TraceError if that depends on pixel values."""
        assert isinstance(self.tracer, _Tracer)
        return self.tracer.known(self.node)


class _Tracer(fx.Tracer):
    """Records for each node the modules around it, in ``meta["inside"]``, innermost last."""

    proxy_buffer_attributes = True  # else values computed from buffers become constants

    def __init__(self, opaque: set[type[nn.Module]], shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.opaque = opaque
        self.shape = shape
        self.inside: list[str] = []
        self.failed: type[nn.Module] | None = None
        self.is_sized = False
        self.evaluates = False
        self.modes = _modes()
        self.thread = threading.get_ident()
        self.values: dict[tuple[fx.Node, int], Any] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        kept = [(module, dict(module._buffers), dict(vars(module))) for module in root.modules()]
        with seeded(0):  # while no other thread draws
            drawn = _random_states()
            try:
                with _len_of_images(self):
                    graph = super().trace(root, concrete_args)
            finally:
                replaced = [name for module in kept for name in _restored(*module)]
            self._check_nothing_drawn(drawn)
        if replaced:
            raise fx.proxy.TraceError(f"it replaces its buffer {replaced[0]!r}: change it in place")
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        parameters = list(inspect.signature(root_fn).parameters.values())
        if len(parameters) == 2:
            found: tuple[Any, list[Any]] = super().create_args_for_root(root_fn, is_module)
            return found
        # arguments other than the image keep their defaults
        name = parameters[1].name if len(parameters) > 1 else "x"
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        is_torchs = super().is_leaf_module(m, module_qualified_name)
        return type(m) in self.opaque or childless or is_torchs

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.evaluates or threading.get_ident() != self.thread:  # torch.fx hears all threads
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        is_leaf = self.is_leaf_module(m, path)
        self.inside.append(path)
        drawn = None if is_leaf else _random_states()
        try:
            found = super().call_module(m, forward, args, kwargs)
            if drawn is not None:
                self._check_nothing_drawn(drawn)
            return found
        except Exception:
            if not is_leaf:  # else the caller's forward failed
                self.failed = self.failed or type(m)
            raise
        finally:
            self.inside.pop()

    @staticmethod
    def _check_nothing_drawn(before: tuple[Any, ...]) -> None:
        """Refuse random draws while tracing, which would become constants of the graph."""
        if _random_states() != before:
            raise fx.proxy.TraceError(
                "it draws random numbers itself: draw them in a module of their own, without "
                "others inside, or with torch.rand_like"
            )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluates:  # fx would return a proxy
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise fx.proxy.TraceError(
                "it computes a part without gradients or in autocast: do so in a module of its own"
            )
        node = super().create_node(*args, **kwargs)
        node.meta["inside"] = tuple(self.inside)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _SizeProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.known(obj.node))

    def known(self, node: fx.Node) -> Any:
        """The value of a node for images of the known shape.

        Raises TraceError if it depends on pixel values or on the number of images.
        """
        if self.shape is None:
            raise fx.proxy.TraceError("it decides on a value that is not known before it runs")
        try:
            two, three = self.value(node, 2), self.value(node, 3)
        except Exception as error:
            raise fx.proxy.TraceError(f"it decides on a value ({reason_of(error)})") from error
        if isinstance(two, Tensor) or two != three:
            raise fx.proxy.TraceError("it decides on the values of images, or on their number")
        self.is_sized = True
        return two

    def value(self, node: fx.Node, images: int) -> Any:
        """The output of a node for so many black images."""
        key = (node, images)
        if key not in self.values:
            device = next(self.root.parameters()).device
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda source: self.value(source, images)
            )
            self.evaluates = True
            try:
                with torch.no_grad(), seeded(0):
                    if node.op == "placeholder":
                        self.values[key] = torch.zeros(images, *(self.shape or ()), device=device)
                    elif node.op == "get_attr":
                        self.values[key] = attribute(self.root, str(node.target))
                    elif node.op == "call_module":
                        self.values[key] = self.root.get_submodule(str(node.target))(
                            *args, **kwargs
                        )
                    else:
                        self.values[key] = function_of(node)(*args, **kwargs)
            finally:
                self.evaluates = False
        return self.values[key]


def _restored(module: nn.Module, buffers: dict[str, Any], plain: dict[str, Any]) -> Iterator[str]:
    """Remove proxies that a forward stored in a module; yields the names of changed buffers."""
    now: dict[str, Any] = dict(module._buffers)
    for name, value in now.items():
        if isinstance(value, fx.Proxy):
            module._buffers[name] = buffers.get(name)
            yield name
    for name, value in list(vars(module).items()):
        if isinstance(value, fx.Proxy):
            if name in plain:
                vars(module)[name] = plain[name]
            else:
                del vars(module)[name]


def _modes() -> tuple[bool, ...]:
    """The modes of autograd and autocast."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
    )


def _random_states() -> tuple[Any, ...]:
    """The states of the global generators that a forward may draw from."""
    numpys = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        (str(numpys[0]), numpys[1].tobytes(), numpys[2:]),  # type: ignore[index, union-attr]
        random.getstate(),
    )


@contextmanager
def _len_of_images(tracer: _Tracer) -> Iterator[None]:
    """Let `len(images)` give a proxy, as `size(0)` does; Python's own `len` must give an int."""
    plain = builtins.len

    def length(value: Any) -> Any:
        if not isinstance(value, fx.Proxy) or tracer.shape is None:
            return plain(value)
        if isinstance(tracer.value(value.node, 2), Tensor):
            return value.size(0)
        return plain(tracer.known(value.node))

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


class _CannotMerge(Exception):
    """Two graphs cannot be merged into one."""


def select(training: bool, in_training: Any, otherwise: Any) -> Any:
    """The value of the current mode, in a forward that differs between the two."""
    return in_training if training else otherwise


def _changing_constant(
    graph: fx.Graph, one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """The modules around a constant that differs between two traces, innermost last; or None.

    A constant may differ because it depends on the mode, a generator or a counter.
    """
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name not in one:
            continue
        if name not in other or not torch.equal(one[name], other[name]):
            return tuple(node.meta["inside"])
    return None


def _merged(training: fx.Graph, evaluation: fx.Graph, network: nn.Module) -> fx.Graph:
    """Merge the graphs of a forward in training and in evaluation.

    The merged graph computes both and selects by mode.  Raises _CannotMerge if values do not
    correspond, or if a layer with weights or statistics is used in one mode only.
    """
    merged = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    one, other = list(training.nodes), list(evaluation.nodes)
    is_training: list[fx.Node] = []

    def both(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            if known[a] is known[b]:
                return known[a]
            if not is_training:
                is_training.append(merged.create_node("get_attr", "training"))
                is_training[0].meta["inside"] = ()
            chosen = merged.call_function(select, (is_training[0], known[a], known[b]))
            chosen.meta["inside"] = ()
            return chosen
        if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
            return type(a)(both(*pair) for pair in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: both(a[key], b[key]) for key in a}
        if type(a) is not type(b) or isinstance(a, fx.Node) or a != b:
            raise _CannotMerge
        return a

    def add(node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        made = merged.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        made.meta["inside"] = node.meta["inside"]
        return made

    matcher = SequenceMatcher(
        None, [(n.op, n.target) for n in one], [(n.op, n.target) for n in other], autojunk=False
    )
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            for a, b in zip(one[i1:i2], other[j1:j2], strict=True):
                args, kwargs = both(a.args, b.args), both(a.kwargs, b.kwargs)
                known[a] = known[b] = add(a, args, kwargs)
        else:
            for node in (*one[i1:i2], *other[j1:j2]):
                if node.op in ("placeholder", "output") or _holds_tensors(node, network):
                    raise _CannotMerge
                given = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = add(node, *given)
    return merged


def _holds_tensors(node: fx.Node, network: nn.Module) -> bool:
    if node.op != "call_module":
        return False
    return bool(network.get_submodule(str(node.target)).state_dict())


def _make_contiguous_for_views(graph: fx.Graph, network: nn.Module) -> None:
    """Pass contiguous tensors to a user's modules that call `view`.

    Images are channels-last, and `view` fails on those.
    """
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        modules = network.get_submodule(str(node.target)).modules()
        if not any(map(_calls_view, {type(module) for module in modules})):
            continue
        for source in node.all_input_nodes:
            with graph.inserting_before(node):
                contiguous = graph.call_method("contiguous", (source,))
            contiguous.meta["inside"] = node.meta["inside"]
            node.replace_input_with(source, contiguous)


def _calls_view(kind: type) -> bool:
    if is_from_library(kind):
        return False
    own = [base for base in kind.__mro__ if not is_from_library(base)]
    return any(
        {"view", "view_as"} & set(f.__code__.co_names)
        for base in own
        for f in filter(inspect.isfunction, vars(base).values())
    )


def _count_images_locally(graph: fx.Graph, tracer: _Tracer) -> None:
    """Read the batch size from the tensor that is reshaped by it, not from the images.

    Otherwise the number in ``n = x.size(0)`` ... ``view(n, -1)`` would cross every cut.
    """
    for count in [node for node in graph.nodes if _counts_images(node)]:
        for user in list(count.users):
            source = user.args[0] if user.args else None
            if not isinstance(source, fx.Node) or source.op == "placeholder" or source is count:
                continue
            try:
                shapes = [getattr(tracer.value(source, n), "shape", ())[:1] for n in (2, 3)]
            except Exception:  # it needs values, which meta tensors lack
                continue
            if shapes == [(2,), (3,)]:
                with graph.inserting_before(user):
                    own = graph.call_method("size", (source, 0))
                own.meta["inside"] = user.meta["inside"]
                user.replace_input_with(count, own)
        while not count.users and _reads_size(count):
            source = count.args[0]
            graph.erase_node(count)
            count = source


def _counts_images(node: fx.Node) -> bool:
    """Whether a node reads the batch size from the images."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return source.op == "placeholder"
    of = source.args[0] if _reads_shape(source) else None
    is_first = node.target is operator.getitem and node.args[1:] == (0,)
    return is_first and isinstance(of, fx.Node) and of.op == "placeholder"


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1
    return node.target is getattr and node.args[1:] == ("shape",)


def _reads_size(node: fx.Node) -> bool:
    return _counts_images(node) or _reads_shape(node)


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Restore the mode (training or evaluation) of each module afterwards, also of frozen ones."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


FX_CONSTANT = "_tensor_constant"
"""Prefix of the attributes in which fx stores tensors that a forward makes from numbers."""


def _forget_constants(network: nn.Module) -> None:
    """Remove the constants that fx has stored, so that it gives the same names again."""
    for name in [name for name in vars(network) if name.startswith(FX_CONSTANT)]:
        delattr(network, name)


def _read_mode_when_running(training: fx.Graph, evaluation: fx.Graph) -> None:
    """Let the network's own forward pass its current mode to functions as `training`."""
    for nodes in zip(list(training.nodes), list(evaluation.nodes), strict=False):
        if nodes[0].meta["inside"] or [n.kwargs.get("training") for n in nodes] != [True, False]:
            continue
        for graph, node in zip((training, evaluation), nodes, strict=True):
            with graph.inserting_before(node):
                mode = graph.create_node("get_attr", "training")
            mode.meta["inside"] = ()
            node.update_kwarg("training", mode)


def _first_difference(one: fx.Graph, other: fx.Graph) -> tuple[str, ...] | None:
    """The modules around the first node in which two graphs differ, innermost last; else None.

    Only modules around both nodes count.
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
    """Every possible cut, by each module that comes first after it.

    Both sides of a cut have parameters and share none.
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
    """Nodes before a position with users after it, except parameters, which both sides have."""
    return [
        node
        for node in nodes[:position]
        if node.op != "get_attr" and any(place[user] >= position for user in node.users)
    ]


def _parameters(node: fx.Node, network: nn.Module) -> set[int]:
    """Ids of the parameters of a node's module and of those among its inputs."""
    found: set[int] = set()
    if node.op == "call_module":
        found |= {id(p) for p in network.get_submodule(str(node.target)).parameters()}
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = attribute(network, str(source.target))
            found |= {id(value)} if isinstance(value, nn.Parameter) else set()
    return found


def attribute(network: nn.Module, path: str) -> Any:
    """The attribute of a network at a dotted path."""
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)


def function_of(node: fx.Node) -> Callable[..., Any]:
    """The function that a node calls; methods become functions."""
    if callable(node.target):
        return node.target
    return lambda value, *args, **kwargs: getattr(value, str(node.target))(*args, **kwargs)


def halves(graph: fx.Graph, cut: Cut, network: nn.Module) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of the trunk, images -> features, and of the tail, features -> logits.

    The tail never changes the features in place, since all branches of a network of experts read
    them.
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
    if _changes_input(features, tail, network):
        with tail.inserting_after(features):
            copied = tail.call_method("clone", (features,))
        features.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    return trunk, tail


IN_PLACE = {"iadd", "isub", "imul", "itruediv"}
"""Python's in-place operators."""

NEW_TENSORS = {
    *("Conv2d", "Linear", "BatchNorm2d", "LayerNorm", "GroupNorm"),
    *("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "add", "sub", "mul", "truediv", "cat", "mean"),
}
"""Layers of torch.nn and functions whose output shares no memory with their input."""

NEW_UNLESS_IN_PLACE = {
    *("relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh"),
    *("leakyrelu", "leaky_relu", "elu", "mish", "softplus"),
}
"""Lower-case names of those for which that holds unless they work in place."""


def gives_new_memory(name: str, in_place: bool) -> bool:
    """Whether an operation (see `name_and_in_place`) shares no memory with its inputs."""
    return name in NEW_TENSORS or (not in_place and name.lower() in NEW_UNLESS_IN_PLACE)


def _changes_input(features: fx.Node, tail: fx.Graph, network: nn.Module) -> bool:
    """Whether a tail may change its features, or a tensor that shares their memory, in place."""
    same = {features}
    for node in tail.nodes:
        inputs = node.all_input_nodes
        name, in_place = name_and_in_place(node, network)
        if name in IN_PLACE:  # changes only the first
            inputs = inputs[:1]
        if not same & set(inputs) or node.op == "output":
            continue
        if in_place:
            return True
        if name not in NEW_TENSORS:
            same.add(node)
    return False


def name_and_in_place(node: fx.Node, network: nn.Module) -> tuple[str, bool]:
    """The operation's name, and whether it may change its input, as a user's module may."""
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        own = any(not type(m).__module__.startswith("torch.nn.") for m in layer.modules())
        in_place = any(getattr(m, "inplace", False) for m in layer.modules())
        return ("" if own else type(layer).__name__), own or in_place
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or name in IN_PLACE or bool(node.kwargs.get("inplace"))
    return name, in_place


def assemble(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module that runs the graph with the layers of `network`, under their names."""
    return fx.GraphModule(network, graph)


def measure(
    module: fx.GraphModule, shape: tuple[int, ...], macs: bool = True
) -> dict[fx.Node, Measured]:
    """Shapes and multiply-accumulates of all nodes for images or features of `shape`.

    Runs the module in evaluation mode on two inputs on its parameters' device; on torch's meta
    device that costs no arithmetic.  Counts with torch's FLOP counter; without `macs` it skips
    that, which is faster.
    """
    device = next(module.parameters()).device
    found: dict[fx.Node, Measured] = {}

    class Measure(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            before = counter.get_total_flops()
            result = super().run_node(n)
            if n.op == "get_attr" and isinstance(result, Tensor):
                result = result.to(device)  # a constant made in the forward
            operations = counter.get_total_flops() - before
            size = tuple(result.shape) if isinstance(result, Tensor) else None
            found[n] = Measured(size, operations // 4)  # two images, two operations each
            return result

    module.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter if macs else nullcontext():
        Measure(module).run(torch.zeros(2, *shape, device=device))
    return found
