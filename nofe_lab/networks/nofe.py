"""The network of experts: a shared trunk, one branch a specialty, one softmax over all classes.

The paper runs every branch for every image.  A *gate*, one more branch but over all classes, makes
it conditional: what it believes of the classes says which few experts are worth running.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.networks.backbone import Backbone, fresh
from nofe_lab.networks.counting import an_image, count_macs
from nofe_lab.networks.grouped import CannotGroup, Groups
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.specialties import Specialties


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the parts of a network of experts, for one image."""

    trunk: int
    """With the layers that all experts share."""
    gate: int
    """0 without a gate."""
    branches: tuple[int, ...]
    """Of each expert."""


class NofE(nn.Module):
    """images [N, c, h, w] -> logits [N, C] in the original class order.

    Every branch sees every image.  Branch k has one output for each class of specialty k; the
    outputs of all branches are concatenated and put back into class order, so one softmax, trained
    end to end, calibrates the experts against each other.
    An empty specialty has no branch.  Branches are named by their specialty: ``branches.3.…``.
    width: factor on the hidden channels of every branch.
    """

    to_class_order: Tensor
    gate: nn.Module | None
    """features -> logits [N, C], for `predict`; None until one is set."""
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
        self.gate = None
        self.why_not_grouped: str | None = None
        self._as_one: Groups | None = None
        position = torch.tensor(specialties.order).argsort()
        self.register_buffer("to_class_order", position, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.experts(self.features(x))
        return logits[:, self.to_class_order]

    def features(self, x: Tensor) -> Tensor:
        """What all experts see of the images."""
        features: Tensor = self.shared(self.trunk(x))
        return features

    def predict(self, x: Tensor, experts: int | None = None) -> Tensor:
        """Logits [N, C] where only the `experts` most promising branches are run for each image.

        The promise of an expert is the probability that the gate gives to its best class.  The
        classes of the experts that are not run keep the gate's logits, shifted so that experts and
        gate agree on how probable the classes that were run are together.  None runs all branches.
        Raises InvalidInput if there are not so many branches, or no gate.
        """
        if experts is None:
            logits: Tensor = self(x)
            return logits
        whole_number("experts", experts, 1, len(self.branches))
        if self.gate is None:
            raise InvalidInput(
                f"experts can be chosen (experts={experts}) by a network with a gate; this one has "
                "none: train one with `Experiment.gate`."
            )
        features = self.features(x)
        guess = self.gate(features).float()
        members = [torch.tensor(self.specialties.members(int(k))) for k in self.branches]
        best = torch.stack([guess[:, classes].amax(1) for classes in members], dim=1)
        chosen = best.topk(experts, dim=1).indices
        found = torch.full_like(guess, -torch.inf)
        for place, (branch, classes) in enumerate(
            zip(self.branches.values(), members, strict=True)
        ):
            rows = (chosen == place).any(dim=1).nonzero()[:, 0]
            if len(rows):
                seen = features if len(rows) == len(features) else features[rows]
                found[rows[:, None], classes.to(x.device)] = branch(seen).float()
        ran = found.isfinite()
        guessed = guess.masked_fill(~ran, -torch.inf).logsumexp(1, keepdim=True)
        return torch.where(ran, found, guess + found.logsumexp(1, keepdim=True) - guessed)

    def macs(self, input_shape: tuple[int, ...]) -> Macs:
        """What the parts cost that `predict` runs or leaves out, for an image (c, h, w)."""
        with torch.no_grad(), modes_kept(self):
            features = self.eval().features(an_image(self, input_shape))
        shape = tuple(features.shape[1:])
        return Macs(
            count_macs(nn.Sequential(self.trunk, self.shared), input_shape),
            count_macs(self.gate, shape) if self.gate is not None else 0,
            tuple(count_macs(branch, shape) for branch in self.branches.values()),
        )

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
