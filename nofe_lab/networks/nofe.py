"""The network of experts: a shared trunk, one branch a specialty, one softmax over all classes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from nofe_lab.networks.backbone import Backbone, fresh
from nofe_lab.networks.grouped import CannotGroup, Groups
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
    grouped: bool = False
    """Run the branches as one (see `grouped`); set it in training.  Hooks on layers need False."""

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
        self.why_not_grouped: str | None = None
        self._as_one: Groups | None = None
        position = torch.tensor(specialties.order).argsort()
        self.register_buffer("to_class_order", position, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.experts(self.shared(self.trunk(x)))
        return logits[:, self.to_class_order]

    def experts(self, features: Tensor) -> Tensor:
        """The logits of all branches [N, C], one branch behind the other."""
        branches = tuple(self.branches.values())
        if self.grouped and self.why_not_grouped is None:
            try:
                if self._as_one is None or self._as_one.branches != branches:
                    self._as_one = Groups(branches)
                return self._as_one(features)
            except CannotGroup as reason:
                self.why_not_grouped = str(reason)
        return torch.cat([branch(features) for branch in branches], dim=1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps experts from running as one, in sentences; known once they have run."""
        if self.why_not_grouped is not None:
            return (f"The experts run one after another: {self.why_not_grouped.rstrip('.')}.",)
        apart = sorted(self._as_one.apart) if self._as_one is not None else ()
        if not apart:
            return ()
        return (f"Layers of these kinds run once for each expert: {', '.join(apart)}.",)
