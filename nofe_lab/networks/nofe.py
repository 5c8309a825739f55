"""The network of experts: a shared trunk, one branch a specialty, one softmax over all classes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from nofe_lab.networks.backbone import Backbone, fresh
from nofe_lab.specialties import Specialties


class NofE(nn.Module):
    """images [N, c, h, w] -> logits [N, C] in the original class order.

    Every branch sees every image: there is no routing.  Branch k has one output for each class of
    specialty k; the outputs of all branches are concatenated and put back into class order, so one
    softmax, trained end to end, calibrates the experts against each other.
    An empty specialty has no branch.  Branches are named by their specialty: ``branches.3.…``.
    width: factor on the hidden channels of every branch.
    """

    to_class_order: Tensor

    def __init__(
        self,
        backbone: Backbone,
        specialties: Specialties,
        scheme: str,
        seed: int,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.specialties = specialties
        self.trunk = fresh(backbone, backbone.make_trunk, scheme, seed, "trunk")
        self.shared = fresh(backbone, backbone.make_shared, scheme, seed, "shared")
        self.branches = nn.ModuleDict()
        for k in specialties.nonempty:
            make = partial(backbone.make_branch, specialties.sizes[k], width)
            self.branches[str(k)] = fresh(backbone, make, scheme, seed, "branch", k)
        position = torch.tensor(specialties.order).argsort()
        self.register_buffer("to_class_order", position, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.shared(self.trunk(x))
        logits = torch.cat([branch(features) for branch in self.branches.values()], dim=1)
        return logits[:, self.to_class_order]
