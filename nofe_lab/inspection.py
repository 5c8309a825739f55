"""One image through a network of experts: the answers of its parts, and where they look.

The common softmax hides the experts' own predictions.  An `Inspector` also gives each expert a
softmax of its own, and Grad-CAM shows the evidence of the expert and of the base CNN in the image.
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
    """What the networks predict for one image; expert k has the k-th non-empty specialty.

    Views and Grad-CAM maps are float [height, width] of the image, from 0 to 1.
    """

    base: NDArray[np.float64]
    """Probabilities of the base CNN [C]."""
    nofe: NDArray[np.float64]
    """Probabilities of the network of experts under its common softmax [C]."""
    alone: NDArray[np.float64]
    """Probabilities under the softmax of each class's own expert [C]: the prediction if the image
    were known to be in its specialty."""
    best: NDArray[np.int64]
    """The best class of each expert [K]."""
    mass: NDArray[np.float64]
    """The sum of `nofe` over the classes of each expert [K]."""
    gate: NDArray[np.float64] | None
    """The gate's probability of the best class of each expert [K]; None without a gate."""
    trunk_view: NDArray[np.float64]
    """Mean absolute value of the trunk's features at each position."""
    expert: int
    """The expert of the predicted class."""
    base_map: NDArray[np.float64]
    """Grad-CAM of the base CNN for the class that it predicts."""
    expert_map: NDArray[np.float64]
    """Grad-CAM of the expert for the predicted class."""


class Inspector:
    """Runs a base CNN and a network of experts on single images.

    Raises InvalidInput if `nofe` is not a network of experts.
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
        """Inspect an image, uint8 [channels, height, width]."""
        batch = image[None].to(next(self.nofe.parameters()).device)
        network, n = self.network, len(self.branches)
        with torch.no_grad(), modes_kept(self.nofe):
            self.nofe.eval()
            x = self.nofe.preprocess(batch, None)
            features = network.features(x)
            outputs = network.experts(features)[0].double().cpu().numpy()
            answered = network(x)[0].double().cpu().numpy()  # a gate may have its part in it
            gate_logits = network.gate(features)[0] if network.gate is not None else None
        with torch.no_grad(), modes_kept(self.base):
            base = torch.softmax(self.base.eval()(batch)[0].double(), 0).cpu().numpy()
        probabilities = _softmax(answered)
        mass = np.bincount(self.expert_of, probabilities, n).astype(np.float64)
        alone = np.empty_like(probabilities)
        first = 0
        for k in self.branches:  # whose own classes come first
            own = network.specialties.members(k)
            alone[list(own)] = _softmax(outputs[first : first + len(own)])
            first += len(network.members[k])
        gate = None
        if gate_logits is not None:
            gate_probabilities = _softmax(gate_logits.double().cpu().numpy())
            gate = np.array([gate_probabilities[self.expert_of == k].max() for k in range(n)])
        answer = int(probabilities.argmax())
        expert = int(self.expert_of[answer])
        members = np.flatnonzero(self.expert_of == expert)
        branch = network.branches[str(self.branches[expert])]
        whole_expert = nn.Sequential(network.trunk, network.shared, branch)
        _, view = _last_spatial_layer(nn.Sequential(network.trunk, network.shared), x)
        return Inspection(
            base=base,
            nofe=probabilities,
            alone=alone,
            best=np.array([np.where(self.expert_of == k, alone, -1).argmax() for k in range(n)]),
            mass=mass,
            gate=gate,
            trunk_view=_overlay(view.abs().mean(1)[0], x, image),
            expert=expert,
            base_map=self._grad_cam(
                self.base.network, self.base.preprocess(batch, None), int(base.argmax()), image
            ),
            expert_map=self._grad_cam(
                whole_expert, x, int(np.flatnonzero(members == answer)[0]), image
            ),
        )

    def _grad_cam(
        self, network: nn.Module, x: Tensor, target: int, image: Tensor
    ) -> NDArray[np.float64]:
        """Grad-CAM of the last feature map for an output, by captum.

        R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization", ICCV 2017.
        """
        from captum.attr import LayerGradCam

        with modes_kept(network):
            network.eval()
            layer, _ = _last_spatial_layer(network, x)
            found = LayerGradCam(network, layer).attribute(x, target, relu_attributions=True)
        assert isinstance(found, Tensor)
        return _overlay(found.detach()[0, 0], x, image)


def _last_spatial_layer(network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The last layer with a feature map of several cells, and that map [N, c, h, w].

    Layers that work in place are skipped, since captum's hooks need their inputs unchanged.
    """
    last: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or output[0, 0].numel() < 2:
            return
        if not getattr(module, "inplace", False):
            last.append((module, output))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(record) for module in leaves]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise InvalidInput("no layer of the network gives a feature map of several cells.")
    return last[-1]


def _overlay(values: Tensor, x: Tensor, image: Tensor) -> NDArray[np.float64]:
    """Values [h, w] over the network's input x, resized to the image and scaled to 0..1.

    Where the network sees only the centre of the image, the rest is 0.
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
