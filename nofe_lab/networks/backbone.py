"""The backbone contract: what any CNN must offer to become a network of experts.

A backbone is not a network; it makes the parts of networks.  All networks of a comparison share
these parts and differ in nothing else:

    base CNN    = trunk + head(C)      C original classes
    generalist  = trunk + head(K)      K specialties
    NofE        = trunk + (shared part +) K branches, branch k over the classes of specialty k
"""

from __future__ import annotations

import copy
import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from nofe_lab.config import INITIALISATIONS, MAX_BRANCH_WIDTH, InvalidInput, one_of
from nofe_lab.log import log
from nofe_lab.machine import seeded
from nofe_lab.networks.counting import count_macs, size_in_words
from nofe_lab.networks.digests import CannotDigest, digest_of, digest_of_class
from nofe_lab.networks.tracing import is_from_library
from nofe_lab.recipes import Preset, Recipe, quick_preset


class Backbone(ABC):
    """Makes the parts of one CNN architecture.  Subclass it to bring your own.

    A subclass needs a name, an input_shape, make_trunk, make_head and make_branch.  Parts are made
    on the CPU with torch's default initialisation; `initialise` sets another.  Initial weights come
    from torch's global random state: see `seeded`.
    """

    name: str
    input_shape: tuple[int, int, int] = (3, 32, 32)
    """(channels, height, width) of the network's input.  Larger images are cropped: at random in
    training, in the centre otherwise."""
    notes: tuple[str, ...] = ()
    """Automatic choices, as sentences that are printed before training."""
    pretrained: bool = False
    """Whether its parts begin with pretrained weights."""
    input_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation of each channel that these weights were made with, for pixels from 0 to 1;
    None if there are no weights, or if nobody knows."""
    usual_side: int | None = None
    """Side in pixels of the images that these weights were made for; None as above."""

    @abstractmethod
    def make_trunk(self) -> nn.Module:
        """The layers that all experts share: images [N, c, h, w] -> features."""

    @abstractmethod
    def make_head(self, n: int) -> nn.Module:
        """The last layers of a base CNN or a generalist: features -> logits [N, n]."""

    @abstractmethod
    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        """One expert: features -> logits [N, n].  `width` scales its hidden channels."""

    def make_control(self, n: int, K: int, width: float = 1.0) -> nn.Module:
        """One flat branch as deep as an expert, at about the cost of K: features -> logits [N, n].

        width: of the experts.  By default one branch of `matching_width`.
        """
        return self.make_branch(n, matching_width(self, n, K, width))

    def make_shared(self) -> nn.Module:
        """Layers between trunk and branches that the experts share but a base CNN lacks."""
        return nn.Identity()

    @cached_property
    def tail(self) -> tuple[str, ...] | None:
        """Names of the head's tensors that can initialise a branch: all but its classifier's.

        None if a branch has other layers than the head.
        """
        with seeded(0):
            parts = (self.make_head(7), self.make_branch(7))
        head, branch = ({k: t.shape for k, t in p.state_dict().items()} for p in parts)
        return self._unlike_classifier if head == branch else None

    def upcycle(
        self,
        branch: nn.Module,
        head: Mapping[str, Tensor],
        classes: Sequence[int],
        width: float = 1.0,
    ) -> None:
        """Begin a branch as a trained head with the rows of some classes.

        head: its tensors by name.  At width 1 the branch then gives the head's logits of `classes`;
        a narrower one keeps some of the channels of every layer (`narrowed`), so it does not.
        Raises InvalidInput if a branch cannot pass the features on as the head reads them.
        The idea: A. Komatsuzaki et al., "Sparse Upcycling", ICLR 2023.
        """
        rows = torch.tensor(classes)
        given: Mapping[str, Tensor] = {
            name: tensor if name in self._unlike_classifier else tensor[rows]
            for name, tensor in head.items()
        }
        own = branch.state_dict()
        if width != 1:
            given = self.narrowed(given, width)
        passed_on = tuple(f"{name}." for name in self.added)
        fits = all(name in own and own[name].shape == t.shape for name, t in given.items())
        fits &= all(name in given or name.startswith(passed_on) for name in own)
        if not fits or not isinstance(self.make_shared(), nn.Identity):
            size = "" if width == 1 else f" of width {width:g}"
            raise InvalidInput(
                f"branch_start 'upcycled' needs branches that can begin as the base CNN's head; "
                f"{self.name!r} has branches{size} of other layers, which start 'fresh'."
            )
        self.pass_on(branch)
        branch.load_state_dict(given, strict=False)

    added: tuple[str, ...] = ()
    """Layers of a branch in front of those of the head; `upcycle` begins them as the identity."""

    def pass_on(self, branch: nn.Module) -> None:
        """Make the `added` layers of a branch give their features back unchanged."""
        assert not self.added, "a backbone that adds layers says how they begin"

    def narrowed(self, head: Mapping[str, Tensor], width: float) -> Mapping[str, Tensor]:
        """The tensors of a head that a branch of this width begins with; by default all."""
        return head

    @cached_property
    def _unlike_classifier(self) -> tuple[str, ...]:
        """Names of the head's tensors that do not depend on the number of classes."""
        with seeded(0):
            parts = (self.make_head(7), self.make_head(8))
        head, wider = ({k: t.shape for k, t in p.state_dict().items()} for p in parts)
        return tuple(name for name in head if head[name] == wider[name])

    fixed_deviations: bool = False
    """Whether published weights are drawn with one deviation however many inputs a layer has."""

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """Initialise the weights of a new part.

        published: as made.  fan_in: the same, but for the wide layers of a `FlatControl`.  kaiming:
        Gaussian on fan-in, with ReLU's gain for convolutions only.
        """
        if one_of("initialisation", scheme, INITIALISATIONS) == "published":
            return
        if scheme == "fan_in":
            self.initialise(part, "published")
            return
        for module in part.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                gain = 2.0**0.5 if isinstance(module, nn.Conv2d) else 1.0
                nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Published multipliers (learning rate, weight decay) of a parameter."""
        return 1.0, 1.0

    def published_preset(self) -> Preset:
        """The published recipe.  Raises NotImplementedError if none was published."""
        raise NotImplementedError

    def quick_preset(self) -> Preset:
        """Recipes that take minutes on a CPU, with the initialisation that parts are made with."""
        return quick_preset("published")

    def for_images(self, image_shape: tuple[int, int, int]) -> Backbone:
        """The backbone for images of this shape (channels, height, width).

        Raises InvalidInput if it cannot take them.
        """
        channels, height, width = self.input_shape
        if image_shape[0] == channels and image_shape[1] >= height and image_shape[2] >= width:
            if 2 * height * width > image_shape[1] * image_shape[2]:
                return self
            cropped = copy.copy(self)
            cropped.notes = (
                *self.notes,
                f"{self.name} sees windows of {height} x {width} of the {image_shape[1]} x "
                f"{image_shape[2]} images, less than half of each.",
            )
            return cropped
        raise InvalidInput(
            f"backbone {self.name!r} takes images of {size_in_words(self.input_shape)} or larger; "
            f"got {size_in_words(image_shape)}."
        )

    @property
    def description(self) -> dict[str, Any]:
        """What `nofe_lab.networks.described` makes it of again, as JSON holds it.

        The name of a network that is not the library's tells nothing of its code: the network must
        be passed again.
        """
        return {"name": self.name}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What distinguishes its networks from others; part of every run's identity.

        By default its name, its input shape and a digest of the layers and parameter shapes of its
        parts; for a user's own backbone also of its code and its initial weights for one seed.
        Code outside the classes of its parts is not included.
        """
        with seeded(0):
            parts = (self.make_trunk(), self.make_shared(), self.make_head(7), self.make_branch(7))
        layers = [(repr(part), [tuple(p.shape) for p in part.parameters()]) for part in parts]
        if not is_from_library(type(self)):
            own = (digest_of_class(type(self)), *_digests_of_parts(parts))
            layers.append((repr(own), []))
        digest = hashlib.sha256(repr(layers).encode()).hexdigest()[:16]
        return {"name": self.name, "input": list(self.input_shape), "layers": digest}

    def parameter_groups(self, network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser; the training loop reads ``rate_multiplier``.

        Raises InvalidInput if all parameters are frozen.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            rate, decay = self.multipliers(name) if recipe.multipliers else (1.0, 1.0)
            if name.removeprefix("network.").startswith("trunk."):
                rate *= recipe.trunk_rate
            groups.setdefault((rate, decay), []).append(parameter)
        if not groups:
            raise InvalidInput(
                f"backbone {self.name!r} has nothing to learn, all of its parameters are frozen; "
                "accepted: a network with some parameters that require gradients."
            )
        return [
            {
                "params": parameters,
                "rate_multiplier": rate,
                "weight_decay": decay * recipe.weight_decay,
            }
            for (rate, decay), parameters in groups.items()
        ]


def expert_macs(backbone: Backbone, n: int, K: int, width: float = 1.0) -> int:
    """Multiply-accumulates of K branches for one image, each over n / K classes, rounded up."""
    with seeded(0):
        return K * _branch_cost(backbone)(-(-n // K), width)


@lru_cache(maxsize=64)
def matching_width(
    backbone: Backbone, n: int, K: int, width: float = 1.0, branches: int = 1
) -> float:
    """The width, in 64ths, at which `branches` branches cost nearest to K branches of `width`.

    The n classes are divided among the branches; one branch is the flat control of K experts.
    """
    with seeded(0):
        wanted = K * _branch_cost(backbone)(-(-n // K), width)
    most = max(K / branches, 1) * width
    return width_of_cost(backbone, -(-n // branches), wanted / branches, most)


def width_of_cost(backbone: Backbone, n: int, wanted: float, most: float) -> float:
    """The width, in 64ths and at most `most`, at which a branch of n outputs costs nearest to it.

    wanted: multiply-accumulates of one image.
    """
    with seeded(0):
        cost = _branch_cost(backbone)
        low, high = 1, round(64 * min(most, MAX_BRANCH_WIDTH))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(n, middle / 64) < wanted else (low, middle)
        return min((low, high), key=lambda step: abs(cost(n, step / 64) - wanted)) / 64


def _branch_cost(backbone: Backbone) -> Callable[[int, float], int]:
    """A function from (outputs, width) of a branch to its multiply-accumulates for one image."""
    before = nn.Sequential(backbone.make_trunk(), backbone.make_shared()).eval()
    with torch.no_grad():
        shape = tuple(before(torch.zeros(1, *backbone.input_shape)).shape[1:])
    return lambda outputs, width: count_macs(backbone.make_branch(outputs, width), shape)


class CNN(nn.Module):
    """trunk + head: images [N, c, h, w] -> logits [N, n]; a base CNN or a generalist."""

    def __init__(self, backbone: Backbone, n: int, scheme: str, seed: int) -> None:
        super().__init__()
        self.trunk = fresh(backbone, backbone.make_trunk, scheme, seed, "trunk")
        self.head = fresh(backbone, lambda: backbone.make_head(n), scheme, seed, "head")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(x))
        return logits


def fresh(
    backbone: Backbone, make: Callable[[], nn.Module], scheme: str, seed: int, *use: object
) -> nn.Module:
    """A new part, whose initial weights depend on (seed, use) alone.

    With one seed, a base CNN, a generalist and a NofE from scratch start with the same trunk.
    """
    with seeded(seed, *use):
        part = make()
        backbone.initialise(part, scheme)
    return part


def _digests_of_parts(parts: tuple[nn.Module, ...]) -> list[str]:
    """Digests of the parts of a user's backbone; random ones if a part cannot be digested."""
    try:
        return [digest_of(part) for part in parts]
    except CannotDigest as error:
        log.warning(cannot_reuse(str(error)))
        return [secrets.token_hex(8)]


def cannot_reuse(setting: str) -> str:
    """The note for a network with a setting that cannot be digested."""
    return (
        f"The content of {setting} cannot be determined: runs of this network are not reused, and "
        "an interrupted training of it starts again."
    )
