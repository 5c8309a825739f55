"""The network of experts: a shared trunk, one branch a specialty, one softmax over all classes.

The paper runs every branch for every image.  A *gate*, one more branch but over all classes, makes
this conditional: its probabilities choose the few experts to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, some_of, whole_number
from nofe_lab.networks.backbone import CNN, Backbone, fresh
from nofe_lab.networks.counting import blank_image, count_macs
from nofe_lab.networks.grouped import CannotGroup, Groups
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.specialties import Specialties


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the parts of a network of experts, for one image."""

    trunk: int
    """Including the layers that all experts share."""
    gate: int
    """0 without a gate."""
    branches: tuple[int, ...]
    """One number an expert."""


class NofE(nn.Module):
    """images [N, c, h, w] -> logits [N, C] in the original class order.

    Branch k has one output for each class of specialty k.  The outputs of all branches are
    concatenated and put back into class order, so that one softmax, trained end to end, calibrates
    the experts against each other.
    Branches are named by their specialty, as in ``branches.3``; an empty specialty has none.
    width: factor on the hidden channels of every branch.
    """

    to_class_order: Tensor
    branch_of: Tensor
    """The place of each class's branch among the branches: int64 [C]."""
    gate: nn.Module | None
    """features -> logits [N, C], for `logits`; None until one is set."""
    grouped: bool = False
    """Run the branches as one (see `grouped.py`), for training.  Hooks on layers need False."""

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
        self._groups: Groups | None = None
        position = torch.tensor(specialties.order).argsort()
        self.register_buffer("to_class_order", position, persistent=False)
        place = torch.tensor([specialties.nonempty.index(k) for k in specialties.of])
        self.register_buffer("branch_of", place, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.experts(self.features(x))
        return logits[:, self.to_class_order]

    def begin_as(self, origin: CNN, backbone: Backbone, start: str, width: float = 1.0) -> None:
        """Copy a trained network's trunk, and its tail into the branches.

        start: of the branches (see `BRANCH_STARTS` in nofe_lab.config); ``upcycled`` gives the
        logits of `origin`, which has an output for each class.  width: of the branches.
        """
        self.trunk.load_state_dict(origin.trunk.state_dict())
        head = origin.head.state_dict()
        for k, branch in self.branches.items():
            if start == "upcycled":
                backbone.upcycle(branch, head, self.specialties.members(int(k)), width)
            elif start == "tail":
                branch.load_state_dict({n: head[n] for n in backbone.tail or ()}, strict=False)

    def features(self, x: Tensor) -> Tensor:
        """The features that all experts read."""
        features: Tensor = self.shared(self.trunk(x))
        return features

    def logits(self, x: Tensor, experts: int | None = None) -> Tensor:
        """Logits [N, C], running only the `experts` most promising branches for each image.

        Experts are ranked by the gate's probability of their best class.  The classes of the other
        experts keep the gate's logits, shifted so that gate and experts agree on the total
        probability of the classes that were run.  None runs all branches.
        Raises InvalidInput if there are fewer branches, or no gate.
        """
        if experts is None:
            logits: Tensor = self(x)
            return logits
        return self.routed(x, experts)[0]

    def routed(self, x: Tensor, experts: int) -> tuple[Tensor, Tensor]:
        """The logits of `logits`, and the specialties whose experts ran: int64 [N, experts].

        An exported graph runs all experts and masks the others, which gives the same logits.
        """
        self.check_experts(experts)
        assert self.gate is not None  # checked
        features = self.features(x)
        gate_logits = self.gate(features).float()
        members = [torch.tensor(self.specialties.members(int(k))) for k in self.branches]
        best = torch.stack([gate_logits[:, classes].amax(1) for classes in members], dim=1)
        chosen = best.topk(experts, dim=1).indices
        ran = (chosen[:, :, None] == self.branch_of).any(dim=1)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # which rows run is unknown
            found = self.experts(features)[:, self.to_class_order].float()
            found = found.masked_fill(~ran, -torch.inf)
        else:
            found = torch.full_like(gate_logits, -torch.inf)
            for place, (branch, classes) in enumerate(
                zip(self.branches.values(), members, strict=True)
            ):
                rows = (chosen == place).any(dim=1).nonzero()[:, 0]
                if len(rows):
                    seen = features if len(rows) == len(features) else features[rows]
                    found[rows[:, None], classes.to(x.device)] = branch(seen).float()
        gate_total = gate_logits.masked_fill(~ran, -torch.inf).logsumexp(1, keepdim=True)
        logits = torch.where(
            ran, found, gate_logits + found.logsumexp(1, keepdim=True) - gate_total
        )
        return logits, torch.tensor([int(k) for k in self.branches], device=x.device)[chosen]

    def check_experts(self, experts: int) -> None:
        """Raise InvalidInput if there are fewer branches, or no gate."""
        whole_number("experts", experts, 1, len(self.branches))
        if self.gate is None:
            raise InvalidInput(
                f"experts can be chosen (experts={experts}) by a network with a gate; this one has "
                "none: train one with `Experiment.gate`."
            )

    def expert(self, k: int) -> ExpertNetwork:
        """The expert of specialty k alone, on the same layers.  Raises InvalidInput."""
        whole_number("expert", k, 0, self.specialties.K - 1)
        if str(k) not in self.branches:
            titles = [self.specialties.title(int(each)) for each in self.branches]
            raise InvalidInput(
                f"{self.specialties.title(k)} has no classes, so no expert; accepted: "
                f"{some_of(titles)}."
            )
        return ExpertNetwork(self, k)

    def macs(self, input_shape: tuple[int, ...]) -> Macs:
        """The cost of the parts that `logits` can run or skip, for an image (c, h, w)."""
        with torch.no_grad(), modes_kept(self):
            features = self.eval().features(blank_image(self, input_shape))
        shape = tuple(features.shape[1:])
        return Macs(
            count_macs(nn.Sequential(self.trunk, self.shared), input_shape),
            count_macs(self.gate, shape) if self.gate is not None else 0,
            tuple(count_macs(branch, shape) for branch in self.branches.values()),
        )

    def experts(self, features: Tensor) -> Tensor:
        """The logits of all branches, concatenated [N, C]: specialty by specialty."""
        branches = tuple(self.branches.values())
        if self.grouped and self.why_not_grouped is None:
            try:
                if self._groups is None or self._groups.branches != branches:
                    self._groups = Groups(branches)
                return self._groups(features)
            except CannotGroup as reason:
                self.why_not_grouped = str(reason)
        return torch.cat([branch(features) for branch in branches], dim=1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps experts from running as one, in sentences; known after the first forward."""
        if self.why_not_grouped is not None:
            return (f"The experts run one after another: {self.why_not_grouped.rstrip('.')}.",)
        per_expert = sorted(self._groups.per_expert) if self._groups is not None else ()
        if not per_expert:
            return ()
        return (f"Layers of these kinds run once for each expert: {', '.join(per_expert)}.",)


class ExpertNetwork(nn.Module):
    """One expert of a network of experts: images [N, c, h, w] -> [N, n + 1].

    The logits of its n classes, and how much speaks for one of them, in nats: with a gate the
    log-odds that it gives to them, otherwise the log-sum-exp of the logits.
    Trunk, branch and gate are those of the whole network, not copies.
    """

    members: Tensor

    def __init__(self, whole: NofE, k: int) -> None:
        super().__init__()
        self.trunk, self.shared, self.gate = whole.trunk, whole.shared, whole.gate
        self.branch = whole.branches[str(k)]
        members = torch.tensor(whole.specialties.of, device=whole.to_class_order.device) == k
        self.register_buffer("members", members, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.shared(self.trunk(x))
        logits = self.branch(features).float()
        if self.gate is None:
            score = logits.logsumexp(1)
        else:
            score = log_odds(self.gate(features).float(), self.members)
        return torch.cat([logits, score[:, None]], dim=1)


def log_odds(logits: Tensor, members: Tensor) -> Tensor:
    """The log-odds that softmax gives to classes bool [C], from logits [N, C]: [N], in nats.

    Infinite if they are all or none.
    """
    inside, outside = (
        logits.masked_fill(~each, -torch.inf).logsumexp(1) for each in (members, ~members)
    )
    return inside - outside
