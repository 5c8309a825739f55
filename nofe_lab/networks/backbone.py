"""The backbone contract: what any CNN must offer to become a network of experts.

A backbone is not a network but a maker of parts.  From the same parts come all the networks of a
comparison, so that they differ in nothing else:

    base CNN    = trunk + head(C)      C original classes
    generalist  = trunk + head(K)      K specialties
    NofE        = trunk + (shared part +) K branches, branch k over the classes of specialty k
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, Preset, Recipe, derive_seed, one_of, quick_preset


class Backbone(ABC):
    """Makes the parts of one CNN architecture.  Subclass it to bring your own.

    A subclass needs a name, an input_shape, and the three makers of trunk, head and branch.
    Parts are made on the CPU with torch's default initialisation; `initialise` sets another.
    Initial weights come from torch's global random state: see `seeded`.
    """

    name: str
    input_shape: tuple[int, int, int] = (3, 32, 32)
    """(channels, height, width) of what the network sees, in pixels.  Larger images are cropped to
    it: a random window in training, the one in the middle otherwise."""
    notes: tuple[str, ...] = ()
    """What was chosen without being asked for, in sentences; said before training."""

    @abstractmethod
    def make_trunk(self) -> nn.Module:
        """The layers that all experts share: images [N, c, h, w] -> features."""

    @abstractmethod
    def make_head(self, n: int) -> nn.Module:
        """The last layers of a base CNN or a generalist: features -> logits [N, n]."""

    @abstractmethod
    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        """One expert: features -> logits [N, n].  `width` scales its hidden channels."""

    def make_shared(self) -> nn.Module:
        """Layers between trunk and branches that the experts share and a base CNN lacks."""
        return nn.Identity()

    @cached_property
    def tail(self) -> tuple[str, ...] | None:
        """Names of the head's tensors that a branch can begin with: all but its classifier's.

        None where a branch is made of other layers than the head.
        """
        with seeded(0):
            parts = (self.make_head(7), self.make_head(8), self.make_branch(7))
        head, wider, branch = ({k: t.shape for k, t in p.state_dict().items()} for p in parts)
        return tuple(n for n in head if head[n] == wider[n]) if head == branch else None

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """Set the weights of a fresh part: ``kaiming``, or ``published`` where it is known.

        kaiming: Gaussian on fan-in, with ReLU's gain for convolutions and none for fc layers.
        """
        one_of("initialisation", scheme, ("kaiming", "published"))
        for module in part.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                gain = 2.0**0.5 if isinstance(module, nn.Conv2d) else 1.0
                nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """(learning-rate, weight-decay) multipliers that were published for a parameter."""
        return 1.0, 1.0

    def published_preset(self) -> Preset:
        """The published recipe.  Raises NotImplementedError where nothing was published."""
        raise NotImplementedError

    def quick_preset(self) -> Preset:
        """Recipes that take minutes on a CPU."""
        return quick_preset()

    def for_images(self, image_shape: tuple[int, int, int]) -> Backbone:
        """The backbone for images of this shape (channels, height, width).

        Raises InvalidInput if it cannot take them.
        """
        channels, height, width = self.input_shape
        if image_shape[0] == channels and image_shape[1] >= height and image_shape[2] >= width:
            return self
        raise InvalidInput(
            f"backbone {self.name!r} takes images of {size_in_words(self.input_shape)} or larger; "
            f"got {size_in_words(image_shape)}."
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that makes its networks different ones; part of every run's identity.

        By default its name, its input and a digest of its parts' layers and parameter shapes.
        """
        with seeded(0):
            parts = (self.make_trunk(), self.make_shared(), self.make_head(7), self.make_branch(7))
        layers = [(repr(part), [tuple(p.shape) for p in part.parameters()]) for part in parts]
        digest = hashlib.sha256(repr(layers).encode()).hexdigest()[:16]
        return {"name": self.name, "input": list(self.input_shape), "layers": digest}

    def parameter_groups(self, network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Groups for a torch optimiser; ``rate_multiplier`` is for the loop."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            multipliers = self.multipliers(name) if recipe.multipliers else (1.0, 1.0)
            groups.setdefault(multipliers, []).append(parameter)
        return [
            {
                "params": parameters,
                "rate_multiplier": rate,
                "weight_decay": decay * recipe.weight_decay,
            }
            for (rate, decay), parameters in groups.items()
        ]


class CNN(nn.Module):
    """trunk + head: images [N, c, h, w] -> logits [N, n]; a base CNN or a generalist."""

    def __init__(self, backbone: Backbone, n: int, scheme: str, seed: int) -> None:
        super().__init__()
        self.trunk = fresh(backbone, backbone.make_trunk, scheme, seed, "trunk")
        self.head = fresh(backbone, lambda: backbone.make_head(n), scheme, seed, "head")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(x))
        return logits


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Draw from torch's random state on the CPU as if seeded by `parts`; leave it as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def fresh(backbone: Backbone, make: Any, scheme: str, seed: int, *use: object) -> nn.Module:
    """A part with its initial weights, which depend on (seed, use) alone.

    So a base CNN, a generalist and a NofE from scratch of one seed begin with the same trunk.
    """
    with seeded(seed, *use):
        part: nn.Module = make()
        backbone.initialise(part, scheme)
    return part


def size_in_words(shape: tuple[int, ...]) -> str:
    """(3, 32, 32) -> "3 x 32 x 32"."""
    return " x ".join(map(str, shape))
