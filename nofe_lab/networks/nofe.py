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

FEWEST_IMAGES = 2
"""Images of a batch that each expert sees at least in sparse training."""


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
    width: factor on the hidden channels of every branch.  overlap: how many branches have an output
    for a class (see `Specialties.overlapping`), whose logit is their mean.
    """

    to_class_order: Tensor
    """Which outputs of all branches are a class's: int64 [C], or [C, overlap] above 1."""
    branch_of: Tensor
    """The place of each class's own branch among the branches: int64 [C]."""
    has: Tensor
    """1 where a branch has an output for a class, else 0: float [branches, C]."""
    gate: nn.Module | None
    """features -> logits [N, C], for `logits`; None until one is set."""
    usual_experts: int | None = None
    """Where gate and experts learn together: how many of the gate's best experts an image trains
    beside its own (see `sparse`), and how many answer; None: all experts do both."""
    own: Tensor | None = None
    """The place of the own branch of each image that comes next, int64 [N], in sparse training: it
    runs too, and the answer has experts and gate side by side, [N, 2 C]."""
    grouped: bool = False
    """Run the branches as one (see `grouped.py`), for training.  Hooks on layers need False."""

    def __init__(
        self,
        backbone: Backbone,
        specialties: Specialties,
        scheme: str,
        seed: int,
        width: float = 1.0,
        overlap: int = 1,
    ) -> None:
        super().__init__()
        self.specialties, self.overlap = specialties, overlap
        self.members = specialties.overlapping(overlap)
        """The classes of each specialty's branch, in the order of its outputs."""
        self.trunk = fresh(backbone, backbone.make_trunk, scheme, seed, "trunk")
        self.shared = fresh(backbone, backbone.make_shared, scheme, seed, "shared")
        self.branches = nn.ModuleDict()
        for k in specialties.nonempty:
            make = partial(backbone.make_branch, len(self.members[k]), width)
            self.branches[str(k)] = fresh(backbone, make, scheme, seed, "branch", k)
        self.gate = None
        self.why_not_grouped: str | None = None
        self._groups: Groups | None = None
        classes = torch.tensor([c for each in self.members for c in each])
        position = classes.argsort(stable=True)
        if overlap > 1:
            position = position.view(-1, overlap)
        self.register_buffer("to_class_order", position, persistent=False)
        place = torch.tensor([specialties.nonempty.index(k) for k in specialties.of])
        self.register_buffer("branch_of", place, persistent=False)
        has = torch.zeros(len(self.branches), len(place))
        for row, each in zip(has, self._members, strict=True):
            row[each] = 1
        self.register_buffer("has", has, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.usual_experts is not None:
            if not self.training:
                return self.routed(x, self.usual_experts)[0]
            own, self.own = self.own, None
            both = self.sparse(self.features(x), own)
            return _together(*both) if own is None else torch.cat(both, dim=1)
        return self.in_class_order(self.experts(self.features(x)))

    def in_class_order(self, outputs: Tensor) -> Tensor:
        """The logits [N, C] of the outputs of all branches, as `experts` gives them."""
        found = outputs[:, self.to_class_order]
        return found if self.overlap == 1 else found.mean(2)

    def begin_with_gate(self, gate: nn.Module, experts: int) -> None:
        """Take a gate that learns together with the experts, of which an image trains a few."""
        self.gate = gate
        self.usual_experts = whole_number("sparse", experts, 1, len(self.branches))

    def begin_as(self, origin: CNN, backbone: Backbone, start: str, width: float = 1.0) -> None:
        """Copy a trained network's trunk, and its tail into the branches.

        start: of the branches (see `BRANCH_STARTS` in nofe_lab.config); ``upcycled`` gives the
        logits of `origin`, which has an output for each class, and its whole tail to a gate.
        width: of the branches.
        """
        self.trunk.load_state_dict(origin.trunk.state_dict())
        head = origin.head.state_dict()
        for k, branch in self.branches.items():
            if start == "upcycled":
                backbone.upcycle(branch, head, self.members[int(k)], width)
            elif start == "tail":
                branch.load_state_dict({n: head[n] for n in backbone.tail or ()}, strict=False)
        if self.gate is not None and start == "upcycled":
            classes = range(len(self.specialties.of))
            backbone.upcycle(self.gate, head, classes)

    def features(self, x: Tensor) -> Tensor:
        """The features that all experts read."""
        features: Tensor = self.shared(self.trunk(x))
        return features

    def logits(self, x: Tensor, experts: int | None = None) -> Tensor:
        """Logits [N, C], running only the `experts` most promising branches for each image.

        Experts are ranked by the gate's probability of their best class.  The classes of the other
        experts keep the gate's logits, shifted so that gate and experts agree on the total
        probability of the classes that were run.  A gate that has learned together with the experts
        knows the classes as they do: the answer is then the mean of both, in log-probabilities.
        None runs all branches, or the usual ones of such a network.
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
        chosen = self._promise(gate_logits).topk(experts, dim=1).indices
        runs = (chosen[:, :, None] == self._places).any(dim=1)
        logits = self._combined(features, gate_logits, runs)
        if self.usual_experts is not None:
            logits = _together(logits, gate_logits)
        return logits, torch.tensor([int(k) for k in self.branches], device=x.device)[chosen]

    def sparse(self, features: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits of the experts and of the gate, each [N, C], in training.

        An image runs its own expert, if that is told, and the `usual_experts` that the gate finds
        most promising; the classes of the others keep the gate's logits, as in `logits`, which
        learn nothing there.
        Each expert's gradient is the mean over the images that it sees, as a network's over all,
        and not the smaller the fewer they are.
        """
        assert self.gate is not None
        assert self.usual_experts is not None
        gate_logits = self.gate(features).float()
        promise = self._promise(gate_logits.detach())
        chosen = promise.topk(self.usual_experts, dim=1).indices
        runs = torch.zeros_like(promise, dtype=torch.bool).scatter(1, chosen, True)
        if own is not None:
            runs = runs.scatter(1, own[:, None], True)
        # batch normalisation, and ranks that average gradients, need images for each expert
        fewest = promise.topk(min(FEWEST_IMAGES, len(promise)), 0).indices
        lacks = runs.sum(0) < FEWEST_IMAGES
        runs |= torch.zeros_like(runs).scatter(0, fewest, True) & lacks
        return self._combined(features, gate_logits.detach(), runs, balanced=True), gate_logits

    @property
    def _places(self) -> Tensor:
        return torch.arange(len(self.branches), device=self.branch_of.device)

    @property
    def _branch_of_output(self) -> Tensor:
        """The place of the branch of each of the outputs that `experts` gives, int64."""
        sizes = torch.tensor([len(each) for each in self._members])
        return torch.arange(len(sizes)).repeat_interleave(sizes).to(self.branch_of.device)

    @property
    def _members(self) -> list[Tensor]:
        """The classes of each branch, int64."""
        return [torch.tensor(self.members[int(k)]) for k in self.branches]

    def _promise(self, gate_logits: Tensor) -> Tensor:
        """[N, branches], by which experts are ranked: the gate's logit of their best own class."""
        own = [torch.tensor(self.specialties.members(int(k))) for k in self.branches]
        return torch.stack([gate_logits[:, classes].amax(1) for classes in own], dim=1)

    def _combined(
        self, features: Tensor, gate_logits: Tensor, runs: Tensor, balanced: bool = False
    ) -> Tensor:
        """Logits [N, C] of the experts that run, bool [N, branches], and of the gate elsewhere.

        balanced: an expert's weights, but no others, learn from the mean over the images it sees.
        """
        times = runs.to(self.has.dtype) @ self.has
        ran = times > 0
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # which rows run is unknown
            found = self.experts(features).float()[:, self.to_class_order]
            if self.overlap > 1:
                ran_of = runs[:, self._branch_of_output][:, self.to_class_order]
                found = (found * ran_of).sum(2) / times.clamp(min=1).float()
        else:
            found = torch.zeros_like(gate_logits)
            for place, (branch, classes) in enumerate(
                zip(self.branches.values(), self._members, strict=True)
            ):
                rows = runs[:, place].nonzero()[:, 0]
                if len(rows):
                    seen = features if len(rows) == len(features) else features[rows]
                    share = len(rows) / len(features) if balanced else 1.0
                    answer = _scaled(branch(_scaled(seen, share)), 1 / share).float()
                    found[rows[:, None], classes.to(features.device)] += answer
            found = found / times.clamp(min=1).float()
        found = found.masked_fill(~ran, -torch.inf)
        gate_total = gate_logits.masked_fill(~ran, -torch.inf).logsumexp(1, keepdim=True)
        return torch.where(ran, found, gate_logits + found.logsumexp(1, keepdim=True) - gate_total)

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
        if self.overlap > 1:
            raise InvalidInput(
                f"an expert answers alone for classes of its own; here a class has {self.overlap} "
                "experts (overlap)."
            )
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


class ExpertsAlone(nn.Module):
    """All experts of a network without its gate: images [N, c, h, w] -> logits [N, C]."""

    def __init__(self, nofe: NofE) -> None:
        super().__init__()
        self.nofe = nofe

    def forward(self, x: Tensor) -> Tensor:
        return self.nofe.in_class_order(self.nofe.experts(self.nofe.features(x)))


def _together(experts: Tensor, gate: Tensor) -> Tensor:
    """The mean of the log-probabilities of two answers [N, C]."""
    return (experts.log_softmax(1) + gate.log_softmax(1)) / 2


def _scaled(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by `factor` on its way back."""
    if factor == 1 or not x.requires_grad:
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * factor)
    return x


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
