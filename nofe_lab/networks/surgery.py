"""Surgery: any CNN becomes a backbone, cut in two where a single tensor crosses.

The published networks of experts add layers to their base CNN.  Surgery adds none: the layers
before a split point are the trunk; the tail after it, with its classifier resized, is the head of a
base CNN or a generalist, and also each branch.  K tails are expensive: a branch can be narrower.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from nofe_lab.config import InvalidInput, first_line, one_of
from nofe_lab.machine import seeded
from nofe_lab.networks.backbone import Backbone, size_in_words
from nofe_lab.networks.tracing import (
    Cut,
    Measured,
    Traced,
    assemble,
    attribute,
    cuts,
    function_of,
    halves,
    measure,
    reason_of,
    trace,
    view_refused,
)
from nofe_lab.networks.widths import Widths, find_widths, is_plain, redrawn, resize
from nofe_lab.recipes import Preset, finetuning_preset, quick_preset

SMALL_SIDE = 64
"""Images with a shorter side, in pixels, are small."""

MIN_MAP_SIDE = 4
"""An ImageNet stem downsamples small images too far if the last convolution's feature maps have a
shorter side, in cells."""

MAX_SIDE_TRIED = 512
"""Side in pixels of the largest images tried when a network refuses a size."""

STEM_REDUCTION = 4
"""Largest factor by which an ImageNet stem downsamples; a small stem keeps the size of images."""

TAIL_SHARE = 0.25
"""Approximate share of the multiply-accumulates in the tail of the default split."""

STEMS = ("auto", "original", "small")
"""Stems of a split network; auto: small if small images would be downsampled too far, unless there
are pretrained weights."""

NORM_MOMENTUM = 0.1
"""Smallest momentum of batch normalisations.  Networks made for hundreds of epochs may use so
little (mnasnet: .0003) that the few epochs of a stage hardly change their running statistics."""

QUIET = 0.01
"""Factor on the weights of a new classifier on pretrained layers.  Its first answers are random:
the larger they are, the more the first steps spoil these layers.  Not 0: some networks have a ReLU
behind their classifier, which would never learn."""

DEFAULT_SHAPE = (3, 224, 224)

USUAL_SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
"""Common input sides in pixels."""

USUAL_SHAPES = tuple((c, side, side) for c in (3, 1) for side in (32, 64, 28, 96, 128, 256, 299))
"""Tried if a network refuses images of the default shape."""


@dataclass(frozen=True)
class Plan:
    """Where and how a network is cut, known before any weights are made."""

    edits: Mapping[str, str]
    """Layers of the stem that were changed to keep the size of small images, and how."""
    slow_norms: int
    """Number of batch normalisations whose momentum is raised."""
    cut: Cut
    trunk: fx.Graph
    tail: fx.Graph
    classifier: str
    features: tuple[int, ...]
    """Shape of the features for one image."""
    widths: Widths
    trunk_macs: int
    """Multiply-accumulates for one image."""
    tail_macs: int


class SplitNetwork(Backbone):
    """A backbone made of any CNN that torch.fx can trace.

    build: makes the network, with its own initialisation from torch's global random state.
    split: the module where the branches begin; None leaves about a quarter of the
    multiply-accumulates to them.  Raises InvalidInput with the possible modules if it is not one.
    stem: ``small`` makes the first layers keep the size of small images, ``original`` leaves them.
    own: a digest of a user's network, which its name does not identify; part of the identity.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        *,
        split: str | None = None,
        stem: str = "auto",
        own: str = "",
    ) -> None:
        self.name = name
        self.build = build
        self.split = split
        self.stem = one_of("stem", stem, STEMS)
        self.weights: tuple[Mapping[str, Tensor], str] | None = None
        """A state dict for trunk, head and branches, and its digest."""
        self.own = own
        self.input_shape = DEFAULT_SHAPE
        self.weight_notes: tuple[str, ...] = ()
        """Sentences on its weights."""
        self._for_images: dict[tuple[int, int, int], SplitNetwork] = {}
        self._checked_widths: set[tuple[tuple[int, int, int], float]] = set()
        if not self.cuts:
            raise InvalidInput(
                f"backbone {name!r} cannot be split: there is no module with one tensor crossing "
                "before it and parameters on both sides."
            )
        if split is not None:
            known = self.cuts if split in self.cuts else self.split_points
            self.split = one_of(f"split of {name}", split, known)
        self.classifier = self._classifier_of(self.graph)

    @property
    def pretrained(self) -> bool:  # type: ignore[override]
        """Whether its weights have been trained; batch normalisations of new ones saw no image."""
        if self.weights is None:
            return False
        means = [t for name, t in self.weights[0].items() if name.endswith("running_mean")]
        return not means or any(bool(mean.any()) for mean in means)

    # --- the network as it comes

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without weights, on torch's meta device if possible."""
        with seeded(0):
            try:
                with torch.device("meta"):
                    return self.build()
            except (RuntimeError, NotImplementedError, ValueError):
                return self.build()

    def _copy(self) -> nn.Module:
        try:
            return copy.deepcopy(self.skeleton)
        except Exception as error:  # deepcopy may raise anything on a user's attributes
            raise InvalidInput(
                f"backbone {self.name!r} cannot be copied ({first_line(error)}); accepted: a "
                "network that copy.deepcopy takes."
            ) from error

    def _needs_real_tensors(self, error: Exception) -> bool:
        """Whether a layer failed because the skeleton is on the meta device."""
        return "meta" in str(error).lower() and next(self.skeleton.parameters()).is_meta

    def _leave_meta_device(self) -> None:
        """Replace the skeleton by a network with real tensors."""
        for computed in ("skeleton", "_traced", "cuts"):
            self.__dict__.pop(computed, None)
        with seeded(0):
            self.skeleton = self.build()

    @cached_property
    def _traced(self) -> Traced:
        """The traced network, for images of `input_shape` if it reads their size.

        Before `for_images`, some usual shapes are tried.
        """
        if self.input_shape != DEFAULT_SHAPE:
            return trace(self.skeleton, self.name, self.input_shape)
        refused = None
        for shape in (DEFAULT_SHAPE, *USUAL_SHAPES):
            try:
                return trace(self.skeleton, self.name, shape)
            except InvalidInput as error:
                refused = refused or error
                if isinstance(error.__cause__, fx.proxy.TraceError):  # at any size
                    break
        assert refused is not None
        raise refused

    @property
    def graph(self) -> fx.Graph:
        """The graph of the network."""
        return self._traced.graph

    @cached_property
    def cuts(self) -> dict[str, Cut]:
        """The possible cuts, by each module that can name one."""
        return cuts(self.graph, self.skeleton)

    @property
    def split_points(self) -> tuple[str, ...]:
        """One module for each possible cut, from front to back."""
        names: dict[int, str] = {}
        for path, cut in self.cuts.items():
            names.setdefault(cut.position, path)
        return tuple(names.values())

    def _classifier_of(self, graph: fx.Graph) -> str:
        """The path of the layer that makes the logits."""
        (node,) = (node for node in graph.nodes if node.op == "output")
        while len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
            if node.op != "call_module":
                continue
            layer = self.skeleton.get_submodule(str(node.target))
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                self._check_plain(str(node.target), layer)
                return str(node.target)
            if next(layer.parameters(), None) is not None:
                break
        raise InvalidInput(
            f"backbone {self.name!r} has no classifier to resize: its last layer with weights must "
            f"be an fc layer or a convolution; its output comes from {self._describe(node)}."
        )

    def _check_plain(self, path: str, layer: nn.Module) -> None:
        """Refuse to resize a layer whose weights are computed from others."""
        if not is_plain(layer):
            raise InvalidInput(
                f"the layer {path!r} of backbone {self.name!r} cannot be resized: its weights are "
                "computed from others (weight or spectral normalisation, pruning, a "
                "parametrisation) or it has hooks; accepted: a plain layer there "
                "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove)."
            )

    def _check_uncoupled(self, tail: fx.Graph, classifier: str, shape: tuple[int, ...]) -> None:
        """Refuse a network whose outputs depend on each other after its classifier.

        After a softmax of their own, all experts would get the same probability.  shape: of the
        classifier's output for two images.
        """
        nodes = list(tail.nodes)
        start = next(i for i, node in enumerate(nodes) if node.target == classifier)
        layers = {  # none has weights: see _classifier_of
            node: copy.deepcopy(self.skeleton.get_submodule(str(node.target)))
            for node in nodes[start + 1 :]
            if node.op == "call_module"
        }

        @seeded(0)  # the same dropout mask
        def behind(given: Tensor, training: bool) -> Tensor:
            values: dict[fx.Node, Any] = {nodes[start]: given}
            for node in nodes[start + 1 :]:
                if node.op == "get_attr":
                    is_mode = node.target == "training"
                    values[node] = (
                        training if is_mode else attribute(self.skeleton, str(node.target))
                    )
                    continue
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "output":
                    break
                if node.op == "call_module":
                    values[node] = layers[node].train(training)(*args, **kwargs)
                else:
                    values[node] = function_of(node)(*args, **kwargs)
            return args[0].flatten(1).clone()

        generator = torch.Generator().manual_seed(0)
        given = torch.randn(shape, generator=generator).abs() + 0.5
        other = given.clone()
        other[:, 0] += 1
        try:
            with torch.no_grad():
                changes = [
                    (behind(other.clone(), mode) - behind(given.clone(), mode))[:, 1:]
                    for mode in (False, True)
                ]
        except Exception as error:
            raise InvalidInput(
                f"backbone {self.name!r} cannot be followed behind its classifier {classifier!r} "
                f"({first_line(error)}); accepted: a network that ends in its classifier."
            ) from error
        if any(bool((change.abs() > 1e-6).any()) for change in changes):
            last = next(node for node in reversed(nodes) if node.op != "output")
            raise InvalidInput(
                f"backbone {self.name!r} ends in {self._describe(last)}, behind which its outputs "
                "depend on each other, as those of a softmax do; accepted: a network that gives "
                "logits, since the softmax is a part of the loss."
            )

    def _describe(self, node: fx.Node) -> str:
        if node.op == "output":
            return f"{len(node.all_input_nodes)} places"
        if node.op == "call_module":
            layer = self.skeleton.get_submodule(str(node.target))
            return f"{str(node.target)!r} ({type(layer).__name__})"
        return repr(node.target if node.op != "call_function" else node.target.__name__)  # type: ignore[union-attr]

    # --- the network for images of a size

    def for_images(self, image_shape: tuple[int, int, int]) -> Backbone:
        if image_shape == self.input_shape:
            self.plan  # noqa: B018  a network that cannot take them is refused here
            return self
        if image_shape not in self._for_images:
            other = copy.copy(self)
            other.input_shape = image_shape
            for computed in ("plan", "notes", "identity", "tail", "_adapted"):
                other.__dict__.pop(computed, None)
            if self._traced.is_sized:
                for computed in ("_traced", "cuts"):
                    other.__dict__.pop(computed, None)
            other.plan  # noqa: B018
            self._for_images[image_shape] = other
        return self._for_images[image_shape]

    @cached_property
    @seeded(0)  # layers that are tried with other sizes are drawn, and a layer may draw itself
    def plan(self) -> Plan:
        """How the network is cut for images of `input_shape`."""
        edits = self._stem_edits()
        skeleton, measured = self._measured(edits)
        sizes = dict(zip(self.graph.nodes, measured.values(), strict=True))
        cut = self._choose_cut(sizes)
        trunk, tail = halves(self.graph, cut, self.skeleton)
        classifier = self._classifier_of(tail)
        features = (sizes[cut.crossing].shape or ())[1:]
        tail_sizes = measure(assemble(skeleton, tail), features)
        tail_sizes = dict(zip(tail.nodes, tail_sizes.values(), strict=True))
        widths = find_widths(skeleton, tail, tail_sizes, classifier)
        self._check_resizing(skeleton, tail, classifier, features)
        given = next(tail_sizes[n].shape for n in tail.nodes if n.target == classifier)
        self._check_uncoupled(tail, classifier, given or ())
        total = sum(each.macs for each in sizes.values())
        behind = sum(each.macs for each in tail_sizes.values())
        slow = sum(map(self._is_too_slow, self.skeleton.modules()))
        return Plan(
            edits, slow, cut, trunk, tail, classifier, features, widths, total - behind, behind
        )

    def _measured(self, edits: Mapping[str, str]) -> tuple[nn.Module, dict[fx.Node, Measured]]:
        """The edited skeleton, and its nodes' shapes and costs for images of `input_shape`."""
        skeleton = self._edited(self._copy(), edits)
        try:
            return skeleton, measure(assemble(skeleton, self.graph), self.input_shape)
        except Exception as error:
            if self._needs_real_tensors(error):
                self._leave_meta_device()
                return self._measured(edits)
            if (refused := view_refused(error, self.name)) is not None:
                raise refused from error
            raise InvalidInput(
                f"backbone {self.name!r} cannot take images of {size_in_words(self.input_shape)} "
                f"({reason_of(error)}){self._accepted_images()}."
            ) from error

    def _accepted_images(self) -> str:
        """The images that a network accepts if it refuses `input_shape`, in words."""
        smallest = low = min(self.input_shape[1:])
        sides = sorted({low * 2**n for n in range(1, 9)} | set(USUAL_SIDES) - {low})
        taken = [side for side in sides if side <= MAX_SIDE_TRIED and self._takes(side)]
        accepted = []
        larger = [side for side in taken if side > low]
        if larger and larger == [side for side in sides if larger[0] <= side <= MAX_SIDE_TRIED]:
            high = larger[0]
            low = max((side for side in sides if side < high), default=low)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self._takes(middle) else (middle, high)
            accepted.append(f"at least {high} x {high} pixels")
        elif taken:  # only some sizes
            accepted.append(" or ".join(f"{side} x {side}" for side in taken) + " pixels")
        if self.stem != "small" and self._takes(smallest, "small"):
            accepted.append("stem 'small'")
        return f"; accepted: {', or '.join(accepted)}" if accepted else ""

    def _takes(self, side: int, stem: str | None = None) -> bool:
        """Whether the network takes square images of this side."""
        other = copy.copy(self)
        other.input_shape = (self.input_shape[0], side, side)
        other.stem = stem or self.stem
        try:
            if self._traced.is_sized:
                other.__dict__.pop("_traced", None)
            skeleton = other._edited(self._copy(), other._stem_edits())
            measure(assemble(skeleton, other.graph), other.input_shape, macs=False)
        except Exception:
            return False
        return True

    def _choose_cut(self, sizes: Mapping[fx.Node, Measured]) -> Cut:
        """The requested cut, or the one that leaves about a quarter of the cost to the tail.

        Prefers tails with a convolution larger than 1 x 1 and with a tenth to a half of the cost,
        and then the outermost modules.
        """
        possible = {p: c for p, c in self.cuts.items() if sizes[c.crossing].shape is not None}
        if self.split is not None:
            return possible[one_of(f"split of {self.name}", self.split, possible)]
        nodes = list(self.graph.nodes)
        total = sum(each.macs for each in sizes.values())
        shares = {
            path: sum(sizes[node].macs for node in nodes[cut.position :]) / total
            for path, cut in possible.items()
        }
        last = max((i for i, node in enumerate(nodes) if self._has_spatial_kernel(node)), default=0)
        able = [path for path, cut in possible.items() if cut.position <= last] or list(possible)
        usual = [path for path in able if 0.1 <= shares[path] <= 0.5] or able
        depth = min(path.count(".") for path in usual)
        outermost = [path for path in usual if path.count(".") == depth]
        path = min(outermost, key=lambda p: abs(math.log((shares[p] or 1e-9) / TAIL_SHARE)))
        return possible[path]

    def _has_spatial_kernel(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        layers = self.skeleton.get_submodule(str(node.target)).modules()
        return any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in layers)

    def _check_resizing(
        self, skeleton: nn.Module, tail: fx.Graph, classifier: str, features: tuple[int, ...]
    ) -> None:
        """Refuse a tail that depends on the number of classes outside of its classifier."""
        outputs = len(skeleton.get_submodule(classifier).weight)  # type: ignore[arg-type]
        for n in (7, outputs + 5):  # fewer than it has, and more
            shape = self._logits_of(copy.deepcopy(skeleton), tail, classifier, features, n)
            if shape != (2, n):
                raise InvalidInput(
                    f"backbone {self.name!r} has no classifier to resize: with {n} outputs in "
                    f"{classifier!r} it gives {'an error' if shape is None else list(shape)} for "
                    f"two images; accepted: logits [2, {n}]."
                )

    @staticmethod
    def _logits_of(
        trial: nn.Module, tail: fx.Graph, classifier: str, features: tuple[int, ...], n: int = 7
    ) -> tuple[int, ...] | None:
        """Shape of the logits of two images with n outputs; None if a layer refuses."""
        _resize_outputs(trial.get_submodule(classifier), n)
        try:
            return list(measure(assemble(trial, tail), features, macs=False).values())[-1].shape
        except Exception:
            return None

    # --- the stem

    def _stem_edits(self) -> dict[str, str]:
        """The first downsampling layers, up to a factor of 4, if images are small.

        Only in networks that begin with such a convolution, and only layers that all paths run
        through: a shortcut around them would no longer fit.
        """
        if self.stem == "original":
            return {}
        if self.stem == "auto" and (self.weights is not None or not self._downsamples_too_far()):
            return {}
        edits: dict[str, str] = {}
        reduced = 1
        nodes = list(self.graph.nodes)
        for node in nodes:
            if node.op != "call_module":
                continue
            layer = self.skeleton.get_submodule(str(node.target))
            stride = _stride(layer)
            if stride == 1:
                continue
            reduced *= stride
            first = isinstance(layer, nn.Conv2d) and node.all_input_nodes[0].op == "placeholder"
            bottleneck = self._is_bottleneck(nodes, node)
            if reduced > STEM_REDUCTION or not bottleneck or not (edits or first):
                break
            edits[str(node.target)] = "stride 1" if isinstance(layer, nn.Conv2d) else "left out"
        return edits

    def _downsamples_too_far(self) -> bool:
        if min(self.input_shape[1:]) >= SMALL_SIDE:
            return False
        whole = assemble(self._edited(self._copy(), {}), self.graph)
        try:
            sizes = measure(whole, self.input_shape)
        except Exception as error:
            if self._needs_real_tensors(error):
                self._leave_meta_device()
                return self._downsamples_too_far()
            return True  # too small for the network
        maps = [
            each.shape[2:]
            for node, each in zip(self.graph.nodes, sizes.values(), strict=True)
            if self._has_spatial_kernel(node) and each.shape is not None and len(each.shape) == 4
        ]
        return bool(maps) and min(maps[-1]) < MIN_MAP_SIDE

    @staticmethod
    def _is_bottleneck(nodes: list[fx.Node], node: fx.Node) -> bool:
        """Whether all paths run through a node."""
        before = set(nodes[: nodes.index(node)])
        behind = set(nodes[nodes.index(node) + 1 :])
        return not any(n.op != "get_attr" and behind & set(n.users) for n in before)

    def _edited(
        self, network: nn.Module, edits: Mapping[str, str], adapt: bool = False
    ) -> nn.Module:
        """Change, in place, the stem, the input channels and slow batch normalisations.

        adapt: compute weights of a new shape from the old ones instead of drawing them.
        """
        for module in network.modules():
            if self._is_too_slow(module):
                module.momentum = NORM_MOMENTUM  # type: ignore[assignment]
        for path in edits:
            layer = network.get_submodule(path)
            owner, _, name = path.rpartition(".")
            if isinstance(layer, nn.Conv2d):
                self._check_plain(path, layer)
                _remove_stride(layer, adapt)
            else:
                setattr(network.get_submodule(owner), name, nn.Identity())
        for node in self.graph.nodes:
            if node.op == "call_module" and [n.op for n in node.all_input_nodes] == ["placeholder"]:
                layer = network.get_submodule(str(node.target))
                channels = self.input_shape[0]
                is_other = isinstance(layer, nn.Conv2d) and layer.in_channels != channels
                if isinstance(layer, nn.Conv2d) and layer.groups == 1 and is_other:
                    self._check_plain(str(node.target), layer)
                    kept = layer.weight
                    resize(layer, channels, layer.out_channels)
                    if adapt:  # keeps the output for grey images
                        mean = kept.detach().mean(1, keepdim=True) * kept.shape[1] / channels
                        repeated = mean.repeat(1, channels, 1, 1)
                        layer.weight = nn.Parameter(repeated, kept.requires_grad)
        return network

    def _is_too_slow(self, module: nn.Module) -> bool:
        """Whether a layer's statistics have too far to go; pretrained ones are there already."""
        is_slow = isinstance(module, nn.BatchNorm2d) and (module.momentum or 1) < NORM_MOMENTUM
        return is_slow and not self.pretrained

    @cached_property
    def _adapted(self) -> tuple[str, ...]:
        """How weights of the first layers are adapted to another shape; part of `identity`."""
        if self.weights is None and not self.own:
            return ()
        found = []
        before, after = self.skeleton, self._edited(self._copy(), self.plan.edits)
        for path, layer in before.named_modules():
            try:
                there = after.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(layer, nn.Conv2d) and isinstance(there, nn.Conv2d):
                if layer.in_channels != there.in_channels:
                    found.append(
                        f"{path} takes {there.in_channels} channels with the mean of its weights "
                        f"for {layer.in_channels}"
                    )
                if layer.kernel_size != there.kernel_size:
                    size = f"{there.kernel_size[0]} x {there.kernel_size[1]}"
                    found.append(f"the kernels of {path} are resampled to {size}")
        return tuple(found)

    # --- parts

    def _network(self) -> nn.Module:
        network = self.build()
        if self.weights is not None:
            state = dict(self.weights[0])
            classifier = network.get_submodule(self.classifier)
            name = f"{self.classifier}.weight"
            if name in state:
                _resize_outputs(classifier, len(state[name]))
            else:  # weights without a classifier: it keeps its own initialisation
                own = network.state_dict()
                state |= {k: t for k, t in own.items() if k.startswith(f"{self.classifier}.")}
            network.load_state_dict(state, strict=True)
        is_kept = self.weights is not None or bool(self.own)
        network = self._edited(network, self.plan.edits, adapt=is_kept)
        for node in self.graph.nodes:  # constants that fx stored in the skeleton
            if node.op == "get_attr" and not _has(network, str(node.target)):
                setattr(network, str(node.target), attribute(self.skeleton, str(node.target)))
        return network

    def make_trunk(self) -> nn.Module:
        """[N, c, h, w] -> features: the layers before the split."""
        return assemble(self._network(), self.plan.trunk)

    def make_head(self, n: int) -> nn.Module:
        """Features -> [N, n]: the layers after the split, with n outputs."""
        return self._tail(self._network(), n)

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        """Features -> [N, n]: a copy of the tail, with its pretrained weights or fresh ones.

        Of pretrained weights a narrower branch keeps those between its channels, and a wider one
        has fresh ones in addition.  All are trained, and the classifier is fresh.
        Raises InvalidInput if `width` changes nothing: all channels are tied to the trunk's.
        """
        if width != 1:
            self._check_width(width)
        network = self._network().requires_grad_(True)
        if width != 1:
            self.plan.widths.apply(network, width, keep=self.weights is not None)
        return self._tail(network, n)

    def narrowed(self, head: Mapping[str, Tensor], width: float) -> Mapping[str, Tensor]:
        """The tensors of a head without the channels that a branch of this width lacks."""
        network = self._network()
        self._tail(network, len(head[f"{self.plan.classifier}.weight"])).load_state_dict(head)
        self.plan.widths.apply(network, width, keep=True)
        return assemble(network, self.plan.tail).state_dict()

    def _check_width(self, width: float) -> None:
        if (self.input_shape, width) in self._checked_widths:
            return
        plan = self.plan
        if not plan.widths.are_free(width):
            raise InvalidInput(
                f"branch_width {width:g} changes nothing behind {plan.cut.module!r} of "
                f"{self.name!r}: all channels there are tied to the trunk's; split earlier or "
                "take branch_width 1."
            )
        trial = self._edited(self._copy(), plan.edits)
        plan.widths.apply(trial, width)
        if self._logits_of(trial, plan.tail, plan.classifier, plan.features) != (2, 7):
            raise InvalidInput(
                f"branch_width must be 1 behind {plan.cut.module!r} of {self.name!r}, whose layers "
                f"depend on their widths in ways that cannot be followed; got {width:g}."
            )
        self._checked_widths.add((self.input_shape, width))

    def _tail(self, network: nn.Module, n: int) -> nn.Module:
        classifier = network.get_submodule(self.plan.classifier)
        before = classifier.weight
        _resize_outputs(classifier, n)
        if self.pretrained and classifier.weight is not before:
            with torch.no_grad():
                for parameter in classifier.parameters():
                    parameter.mul_(QUIET)
        return assemble(network, self.plan.tail)

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: the network's own initialisation, as made."""
        if scheme == "published":
            return
        if self.weights is not None:
            raise InvalidInput(
                f"initialisation {scheme!r} would overwrite the weights of {self.name!r}; "
                "accepted: 'published'."
            )
        super().initialise(part, scheme)

    def quick_preset(self) -> Preset:
        """With pretrained weights, recipes for finetuning them."""
        if not self.pretrained:
            return quick_preset("published")
        return finetuning_preset("pretrained" if self.input_statistics else "standardised")

    # --- notes and identity

    @cached_property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Automatic choices, in sentences."""
        notes = list(self.weight_notes)
        plan = self.plan
        if self._adapted:
            notes.append(f"{self.name}: {'; '.join(self._adapted)}, for the images it is given.")
        if self.split is None:
            share = plan.tail_macs / (plan.trunk_macs + plan.tail_macs)
            notes.append(
                f"{self.name}: the branches begin at {plan.cut.module!r}, with {share:.0%} of its "
                f"multiply-accumulates (split=... takes {_shortened(self.split_points)})."
            )
        if plan.edits and self.stem == "auto":
            changed = ", ".join(f"{path} ({what})" for path, what in plan.edits.items())
            notes.append(
                f"{self.name}: images of {size_in_words(self.input_shape)} are small, so its stem "
                f"keeps their size: {changed} (stem=original leaves it as it is)."
            )
        if plan.slow_norms:
            notes.append(
                f"{self.name}: {plan.slow_norms} batch normalisations get momentum "
                f"{NORM_MOMENTUM:g}, so that their statistics keep up in short trainings."
            )
        if self.pretrained and self.own:
            notes.append(
                f"{self.name}: a module keeps its weights, which are finetuned; pass its class, or "
                "a function that makes it, for fresh ones."
            )
            if self.input_statistics is None:
                notes.append(
                    f"{self.name}: it does not say which statistics its weights were made with (as "
                    "timm's networks do, in pretrained_cfg), so images are standardised."
                )
        return tuple(notes)

    @property
    def description(self) -> dict[str, Any]:
        """Its name, and the split and the stem that were chosen."""
        stem = "small" if self.plan.edits else "original"
        found = {"name": self.name, "split": self.identity["split"], "stem": stem}
        rescales = getattr(self.skeleton, "transform_input", False) is True
        return found | ({"transform_input": True} if rescales else {})

    @cached_property
    def identity(self) -> dict[str, Any]:
        plan = self.plan
        skeleton = self._edited(self._copy(), plan.edits)
        parts = (assemble(skeleton, graph) for graph in (plan.trunk, plan.tail))
        layers = [
            (part.code, repr(part), [(n, tuple(t.shape)) for n, t in part.state_dict().items()])
            for part in parts
        ]
        digest = hashlib.sha256(repr(layers).encode()).hexdigest()[:16]
        return {
            "name": self.name,
            "input": list(self.input_shape),
            "split": next(p for p, c in self.cuts.items() if c.position == plan.cut.position),
            "layers": digest,
            "own": self.own,
            "weights": self.weights[1] if self.weights is not None else None,
            # only if it changes the network, so that other runs keep their ids
            **({"adapted": list(self._adapted)} if self._adapted and self.weights else {}),
            **self._of_weights,
        }

    @property
    def _of_weights(self) -> dict[str, Any]:
        """What the identity says of pretrained weights: once, branches were not made of them."""
        if self.weights is None:
            return {}
        return {"branches": "pretrained", "statistics": self.input_statistics}

    def __repr__(self) -> str:
        where = f"at {self.split!r}" if self.split else "where its notes say"
        return f"<{self.name}, split {where}>"


def _stride(layer: nn.Module) -> int:
    """The factor by which a convolution or pooling downsamples."""
    if not isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return 1
    stride = layer.stride
    return stride if isinstance(stride, int) else int(stride[0])


def _remove_stride(layer: nn.Conv2d, adapt: bool = False) -> None:
    """Make a convolution keep the size of its input; large or even kernels become 3x3.

    adapt: resample the old weights, so that a constant image keeps its output.
    """
    layer.stride = (1, 1)
    size = layer.kernel_size[0]
    if (size > 3 and layer.groups == 1) or size % 2 == 0:
        size = 3
        shape = (*layer.weight.shape[:2], size, size)
        kept = layer.weight
        layer.weight = redrawn(layer.weight, shape)
        if adapt:
            resampled = _resampled(kept.detach(), size)
            layer.weight = nn.Parameter(resampled, kept.requires_grad)
        layer.kernel_size = (size, size)
    layer.padding = (size // 2, size // 2)


def _resampled(kernels: Tensor, size: int) -> Tensor:
    """Resample square kernels [..., k, k] to [..., size, size] by area, keeping their sums."""
    old = kernels.shape[-1]
    edges = torch.arange(size + 1, device=kernels.device) * (old / size)
    cells = torch.arange(old, device=kernels.device)
    ends = torch.minimum(edges[1:, None], cells + 1)
    share = (ends - torch.maximum(edges[:-1, None], cells)).clamp(min=0)
    return share @ kernels @ share.T


def _resize_outputs(layer: nn.Module, n: int) -> None:
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    resize(layer, int(inputs), n)  # type: ignore[arg-type]


def _has(network: nn.Module, path: str) -> bool:
    try:
        attribute(network, path)
    except AttributeError:
        return False
    return True


def _shortened(names: tuple[str, ...]) -> str:
    shown = names if len(names) <= 8 else (*names[:4], "...", *names[-4:])
    return ", ".join(shown)
