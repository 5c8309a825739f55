"""One image through a network of experts: what each of its parts makes of it.

The common softmax hides the experts' own opinions.  Here each expert is asked alone, before the
softmax sets it against the others, and the places in the image that speak for an answer are found,
beside those of the base CNN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nofe_lab.config import InvalidInput
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.networks.nofe import NofE
from nofe_lab.networks.tracing import modes_kept


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the networks make of one image; experts are numbered like the specialties with classes.

    Maps are float [height, width] of the image, from 0 to 1.
    """

    base: NDArray[np.float64]
    """Probabilities of the base CNN [C]."""
    nofe: NDArray[np.float64]
    """Probabilities of the network of experts under its common softmax [C]."""
    alone: NDArray[np.float64]
    """The same class by class, but each under the softmax of its own expert [C]: what the expert
    would say if the image were known to be one of its own."""
    best: NDArray[np.int64]
    """The best class of each expert [K]."""
    mass: NDArray[np.float64]
    """What the common softmax gives to all classes of each expert together [K]."""
    gate: NDArray[np.float64] | None
    """The gate's probability of the best class of each expert [K]; None without a gate."""
    trunk_view: NDArray[np.float64]
    """Mean size of the trunk's features at each place."""
    expert: int
    """The expert that gives the answer."""
    base_map: NDArray[np.float64]
    """Where the base CNN sees its answer (Grad-CAM)."""
    expert_map: NDArray[np.float64]
    """Where the expert sees its answer."""


class Inspector:
    """Asks a base CNN and a network of experts about single images.

    Raises InvalidInput if `nofe` is no network of experts.
    """

    def __init__(self, base: ImageNetwork, nofe: ImageNetwork) -> None:
        if not isinstance(nofe.network, NofE):
            raise InvalidInput(
                f"an inspector needs a network of experts; got {type(nofe.network).__name__}."
            )
        self.base = base
        self.nofe = nofe
        self.network: NofE = nofe.network
        self.branches = [int(k) for k in self.network.branches]
        of = np.array(self.network.specialties.of)
        self.expert_of = np.searchsorted(self.branches, of)
        """The expert of each class [C]."""

    def __call__(self, image: Tensor) -> Inspection:
        """Ask about an image, uint8 [channels, height, width]."""
        batch = image[None].to(next(self.nofe.parameters()).device)
        network, n = self.network, len(self.branches)
        with torch.no_grad(), modes_kept(self.nofe):
            self.nofe.eval()
            x = self.nofe.preprocess(batch, None)
            features = network.features(x)
            logits = network.experts(features)[0][network.to_class_order].double().cpu().numpy()
            guess = network.gate(features)[0] if network.gate is not None else None
        with torch.no_grad(), modes_kept(self.base):
            base = torch.softmax(self.base.eval()(batch)[0].double(), 0).cpu().numpy()
        together = _softmax(logits)
        mass = np.bincount(self.expert_of, together, n).astype(np.float64)
        alone = np.empty_like(together)
        for k in range(n):
            alone[self.expert_of == k] = _softmax(logits[self.expert_of == k])
        gate = None
        if guess is not None:
            believed = _softmax(guess.double().cpu().numpy())
            gate = np.array([believed[self.expert_of == k].max() for k in range(n)])
        answer = int(together.argmax())
        expert = int(self.expert_of[answer])
        members = np.flatnonzero(self.expert_of == expert)
        branch = network.branches[str(self.branches[expert])]
        apart = nn.Sequential(network.trunk, network.shared, branch)
        _, view = _last_map(nn.Sequential(network.trunk, network.shared), x)
        return Inspection(
            base=base,
            nofe=together,
            alone=alone,
            best=np.array([np.where(self.expert_of == k, alone, -1).argmax() for k in range(n)]),
            mass=mass,
            gate=gate,
            trunk_view=_picture(view.abs().mean(1)[0], x, image),
            expert=expert,
            base_map=self._grad_cam(
                self.base.network, self.base.preprocess(batch, None), int(base.argmax()), image
            ),
            expert_map=self._grad_cam(apart, x, int(np.flatnonzero(members == answer)[0]), image),
        )

    def _grad_cam(
        self, network: nn.Module, x: Tensor, target: int, image: Tensor
    ) -> NDArray[np.float64]:
        """Where the last feature map speaks for an output, by captum.

        R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization", ICCV 2017.
        """
        from captum.attr import LayerGradCam

        with modes_kept(network):
            network.eval()
            layer, _ = _last_map(network, x)
            found = LayerGradCam(network, layer).attribute(x, target, relu_attributions=True)
        assert isinstance(found, Tensor)
        return _picture(found.detach()[0, 0], x, image)


def _last_map(network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The last layer of a network that gives a map of several places, and its map [N, c, h, w].

    Not one that changes its input in place: what captum listens to must stay as it was.
    """
    last: list[tuple[nn.Module, Tensor]] = []

    def listen(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or output[0, 0].numel() < 2:
            return
        if not getattr(module, "inplace", False):
            last.append((module, output))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(listen) for module in leaves]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise InvalidInput("no layer of the network gives a map of places to look at.")
    return last[-1]


def _picture(values: Tensor, x: Tensor, image: Tensor) -> NDArray[np.float64]:
    """A map [h, w] of what the network saw, x, laid over the whole image, from 0 to 1.

    The network may see the middle of the image alone: the rest is 0.
    """
    (height, width), window = image.shape[1:], (int(x.shape[2]), int(x.shape[3]))
    seen = nn.functional.interpolate(
        values[None, None].double(), window, mode="bilinear", align_corners=False
    )[0, 0]
    low, high = seen.min(), seen.max()
    whole = seen.new_zeros(height, width)
    top, left = (height - window[0]) // 2, (width - window[1]) // 2
    whole[top : top + window[0], left : left + window[1]] = (seen - low) / (high - low).clamp(
        min=1e-12
    )
    result: NDArray[np.float64] = whole.cpu().numpy()
    return result


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(logits)
    return found
