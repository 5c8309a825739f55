"""What must hold for each CNN of torchvision and timm that becomes a backbone.

Each network's checks also make its row of docs/backbones.md.  The fast tests take one network of
each family and compare their rows with the file; this rewrites it, with all networks:

    pytest tests/integration/test_any_cnn.py --write-tables
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from nofe_lab import Dataset, InvalidInput, NofE, Specialties, backbone
from nofe_lab.compat import import_torchvision
from nofe_lab.data import Batches, Resident
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.networks import CNN
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.networks.grouped import CannotGroup, GroupedBranches
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.networks.tracing import assemble, halves
from nofe_lab.recipes import Recipe
from nofe_lab.training.loop import fit
from nofe_lab.training.tasks import Classification

TABLE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
SMALL = (3, 32, 32)
SEVEN = Specialties(tuple("abcdefg"), (2, 0, 1, 2, 2, 0, 2), 3)


class Subject(NamedTuple):
    """A network that is tested."""

    name: str
    family: str
    fast: bool = False
    side: int = 64
    """Of the images on which it is compared with the original network."""


SUBJECTS = (
    Subject("resnet18", "resnet", fast=True),
    Subject("resnet50", "resnet"),
    Subject("resnext50_32x4d", "resnet"),
    Subject("wide_resnet50_2", "resnet"),
    Subject("densenet121", "densenet", fast=True),
    Subject("densenet169", "densenet"),
    Subject("vgg11_bn", "vgg", fast=True),
    Subject("vgg16_bn", "vgg"),
    Subject("googlenet", "googlenet", fast=True),
    Subject("inception_v3", "inception", side=80),
    Subject("mobilenet_v2", "mobilenet"),
    Subject("mobilenet_v3_small", "mobilenet", fast=True),
    Subject("mobilenet_v3_large", "mobilenet"),
    Subject("mnasnet0_5", "mnasnet"),
    Subject("shufflenet_v2_x0_5", "shufflenet", fast=True),
    Subject("shufflenet_v2_x1_0", "shufflenet"),
    Subject("efficientnet_b0", "efficientnet", fast=True),
    Subject("efficientnet_v2_s", "efficientnet"),
    Subject("convnext_tiny", "convnext", fast=True),
    Subject("convnext_small", "convnext"),
    Subject("regnet_y_400mf", "regnet", fast=True),
    Subject("regnet_x_400mf", "regnet"),
    Subject("squeezenet1_1", "squeezenet"),
    Subject("alexnet", "alexnet"),
    Subject("timm:resnet10t", "resnet", fast=True),
    Subject("timm:resnet18", "resnet"),
    Subject("timm:densenet121", "densenet"),
    Subject("timm:mobilenetv3_small_050", "mobilenet"),
    Subject("timm:efficientnet_lite0", "efficientnet"),
    Subject("timm:convnext_atto", "convnext"),
    Subject("timm:regnety_002", "regnet"),
    Subject("timm:ghostnet_050", "ghostnet"),
    Subject("timm:nfnet_f0", "nfnet"),
    Subject("timm:res2net50_14w_8s", "resnet"),
    Subject("timm:test_vit", "transformer", fast=True),
)

FAST = {subject.family for subject in SUBJECTS if subject.fast}
"""The families of which one network is tested with the fast tests."""

ONE_AFTER_ANOTHER = dict.fromkeys(
    ("timm:nfnet_f0", "timm:test_vit"), "may change .*, which is read again"
)
"""Networks whose experts do not run as one, and why."""

REFUSED = (("timm:levit_128s", "transformer", "its output comes from 'add'"),)
"""Networks that cannot be split, and why."""


def original(name: str) -> nn.Module:
    """The network as its library makes it, without further classifiers."""
    if name.startswith("timm:"):
        import timm

        made: nn.Module = timm.create_model(name.removeprefix("timm:"))
        return made
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": False}
    made = import_torchvision().models.get_model(name, **more)
    return made


def split_network(name: str, shape: tuple[int, int, int], **options: str) -> SplitNetwork:
    made = backbone(name, **options).for_images(shape)
    assert isinstance(made, SplitNetwork)
    return made


def enliven(network: nn.Module, images: Tensor) -> None:
    """Let every layer be seen in the output: no constant weights, statistics of real features."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter.uniform_(0.5, 1.5) if parameter.mean() else parameter.normal_(0, 0.1)
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        network.train()(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """To 1e-5 of the largest value."""
    if torch.equal(found, expected):
        return
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=f"{what} differs")


def trained_once(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits in training, and gradients by the parameters' names in the original."""
    network.train().zero_grad()
    torch.manual_seed(0)  # dropout and stochastic depth draw the same for both
    logits = network(images)
    (logits * torch.linspace(-1, 1, logits.shape[1])).mean().backward()
    return logits.detach(), {
        name.split(".", 1)[1] if isinstance(network, CNN) else name: parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def check_that_the_unsplit_network_is_the_original(
    maker: SplitNetwork, network: nn.Module, images: Tensor
) -> None:
    with torch.no_grad():
        outputs = network.eval()(images)
    composed = CNN(maker, outputs.shape[1], "published", seed=1)
    state = network.state_dict()
    names = [*composed.trunk.state_dict(), *composed.head.state_dict()]
    assert sorted(names) == sorted(state), "tensors have other names than in the original"
    composed.trunk.load_state_dict({name: state[name] for name in composed.trunk.state_dict()})
    composed.head.load_state_dict({name: state[name] for name in composed.head.state_dict()})
    with torch.no_grad():
        assert outputs.std() > 1e-3, "the original gives nothing to compare"
        assert_equal(composed.eval()(images), outputs, "the output")
    logits, gradients = trained_once(composed, images)
    original_logits, original_gradients = trained_once(network, images)
    assert_equal(logits, original_logits, "the output in training")
    assert set(gradients) == set(original_gradients)
    for name, gradient in original_gradients.items():
        assert_equal(gradients[name], gradient, f"the gradient of {name}")


def some(places: Sequence[str], n: int) -> Sequence[str]:
    """About n of them, from all over the network."""
    return places[:: -(-len(places) // n)]


def check_that_split_points_work(
    maker: SplitNetwork, network: nn.Module, images: Tensor, places: Sequence[str]
) -> None:
    with torch.no_grad():
        whole = network.eval()(images)
        for place in places:
            trunk, tail = halves(maker.graph, maker.cuts[place], network)
            features = assemble(network, trunk).eval()(images)
            for _ in range(2):  # one tail leaves the features to the next
                assert_equal(assemble(network, tail).eval()(features), whole, f"split at {place!r}")


def check_that_parts_fit(name: str, places: Sequence[str]) -> None:
    for place in places:
        maker = split_network(name, SMALL, split=place)
        features = without_numbers(maker.make_trunk)(torch.zeros(2, *SMALL, device="meta"))
        assert without_numbers(maker.make_head, 5)(features).shape == (2, 5), place
        assert without_numbers(maker.make_branch, 3)(features).shape == (2, 3), place


def without_numbers(make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """A part on torch's meta device, made there if its constructor allows that."""
    try:
        with torch.device("meta"):
            return make(*arguments)
    except NotImplementedError:
        return make(*arguments).to("meta")


def check_that_a_default_is_chosen_and_said(maker: SplitNetwork) -> None:
    assert maker.split is None
    cut = maker.plan.cut.module
    assert cut in maker.cuts
    assert f"{maker.name}: the branches begin at {cut!r}, with " in maker.notes[0]
    share = maker.plan.tail_macs / (maker.plan.tail_macs + maker.plan.trunk_macs)
    assert 0.1 <= share <= 0.5


def widths_of(maker: SplitNetwork) -> float:
    """A quarter where the tail can be made narrower."""
    try:
        without_numbers(maker.make_branch, 2, 0.25)
    except InvalidInput:
        return 1.0
    return 0.25


def check_that_it_trains(maker: SplitNetwork, images: Tensor, network: NofE) -> None:
    recipe = Recipe(1, 0.01, batch_size=8)
    batches = Batches(Resident(images, torch.arange(16) % 7), recipe, 0, torch.device("cpu"))
    preprocess = Preprocess(torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 1 / 50))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    model = ImageNetwork(preprocess, network)
    groups = maker.parameter_groups(model, recipe)
    task = Classification(recipe, batches.source[:0])
    (row,) = fit(model, groups, task, batches, recipe)
    assert len(batches) == 2
    assert 0 < row["train_loss"] < float("inf")
    parts = ("trunk.", "branches.0.", "branches.1.", "branches.2.")
    for part in parts:
        weights = [n for n, p in before.items() if n.startswith(part) and p.ndim > 1]
        after = dict(network.named_parameters())
        changed = [name for name in weights if not torch.equal(before[name], after[name])]
        assert len(changed) > len(weights) / 2, f"{len(changed)} of {len(weights)} of {part}"


def check_that_experts_run_as_one(maker: SplitNetwork, network: NofE) -> None:
    """Output, gradients and statistics are those of the branches one after another."""
    loop = copy.deepcopy(network).double()
    for module in loop.modules():
        for chance in ("p", "drop_prob"):  # no two ways draw the same
            if hasattr(module, chance):
                setattr(module, chance, 0.0)
    for branch in loop.branches.values():
        for node in branch.graph.nodes:  # type: ignore[union-attr]
            if node.target is dropout:
                node.update_kwarg("p", 0.0)
        branch.recompile()  # type: ignore[operator]
    if maker.name in ONE_AFTER_ANOTHER:
        with pytest.raises(CannotGroup, match=ONE_AFTER_ANOTHER[maker.name]):
            GroupedBranches(list(loop.branches.values()))
        return
    together = copy.deepcopy(loop)
    as_one = GroupedBranches(list(together.branches.values()))
    features = torch.randn(4, *maker.plan.features, dtype=torch.float64)
    for training in (True, False):
        logits = loop.train(training).experts(features)
        together.train(training)
        found = as_one(features)
        torch.testing.assert_close(found, logits, rtol=1e-9, atol=1e-9)
        for each in (logits, found):
            (each * torch.linspace(-1, 1, 7)).mean().backward()
    own = dict(together.named_parameters())
    for name, parameter in loop.named_parameters():
        if parameter.grad is not None:
            scale = max(1.0, float(parameter.grad.abs().max()))
            torch.testing.assert_close(own[name].grad, parameter.grad, rtol=0, atol=1e-9 * scale)
    state = together.state_dict()
    for name, tensor in loop.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-9)


def check_the_order_of_the_logits(maker: SplitNetwork, network: NofE) -> None:
    """Each branch's classifier says the numbers of its classes."""
    with torch.no_grad():
        for k in SEVEN.nonempty:
            classifier = network.branches[str(k)].get_submodule(maker.plan.classifier)  # type: ignore[operator]
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor(SEVEN.members(k)))
        logits = network.eval()(torch.randn(2, *SMALL))
    torch.testing.assert_close(logits, torch.arange(7.0).expand(2, 7))


# --- the table

COLUMNS = (
    "network",
    "family",
    "split point",
    "stem",
    "parameters: trunk",
    "branch",
    "branch, width 0.25",
    "multiply-accumulates: trunk",
    "branch",
    "branch, width 0.25",
    "works",
)

HEADING = """\
# CNNs that have become backbones

`nofe_lab.backbone(NAME)` takes the classification CNNs of torchvision and timm, and your own. These
have been tried, for images of 3 x 32 x 32 pixels and the split point that is chosen where none is
named. Shares are percentages of the base CNN with 100 classes; a branch has 10 of these classes,
and either the tail's own layers or, with `branch_width` 0.25, a quarter of their channels. A dash:
this tail's channels cannot be changed. Stem: the first layers that were changed so that small
images keep their size; the layers are named as in the network.

*Works* is a yes if the uncut network gives the output, the output in training and the gradients of
the original to 1e-5; if it gives the original's output cut in two at every possible split point; if
a network of three experts trains two steps, in all its parts; if these experts, run as one, give
the output, gradients and statistics that they give one after another, to 1e-9 (those of
`timm:nfnet_f0` and `timm:test_vit` do not run as one); and if the logits come in class order.

Written by `pytest tests/integration/test_any_cnn.py --write-tables` with {versions}.
"""

Row = tuple[str, ...]


def cells(line: str) -> Row:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def rows_of_the_file() -> dict[str, Row]:
    lines = TABLE.read_text().splitlines() if TABLE.is_file() else []
    rows = [cells(line) for line in lines if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def write_rows(rows: dict[str, Row]) -> None:
    import timm

    libraries = (torch, import_torchvision(), timm)
    versions = ", ".join(f"{each.__name__} {each.__version__}" for each in libraries)
    order = [subject.name for subject in SUBJECTS] + [name for name, *_ in REFUSED]
    table = [COLUMNS, ("---",) * 4 + ("---:",) * 6 + ("---",)]
    table += [rows[name] for name in order if name in rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(f"{HEADING.format(versions=versions)}\n{lines}\n")


@pytest.fixture(scope="module")
def written(request: pytest.FixtureRequest) -> Iterator[dict[str, Row] | None]:
    """Rows for the file, which is written when the module's tests are done; None: compare only."""
    if not request.config.getoption("--write-tables"):
        yield None
        return
    rows: dict[str, Row] = {}
    yield rows
    write_rows(rows_of_the_file() | rows)


def put_down(row: Row, written: dict[str, Row] | None) -> None:
    if written is not None:
        written[row[0]] = row
        return
    again = f"write it again: pytest {Path(__file__).name} --write-tables"
    assert rows_of_the_file().get(row[0]) == row, f"docs/{TABLE.name} has another row; {again}"


def shares(maker: SplitNetwork, width: float) -> Iterator[str]:
    """Percentages of parameters and of multiply-accumulates: trunk, branch, narrow branch."""
    trunk, head = without_numbers(maker.make_trunk), without_numbers(maker.make_head, 100)
    widths = (1, width) if width != 1 else (1,)
    branches = [without_numbers(maker.make_branch, 10, each) for each in widths]
    for count, shape in (
        (lambda part, _: count_parameters(part), ()),
        (count_macs, maker.plan.features),
    ):
        own = count(trunk, SMALL)
        total = own + count(head, shape)
        yield f"{own / total:.1%}"
        yield from (f"{count(branch, shape) / total:.1%}" for branch in branches)
        yield from ["–"] * (2 - len(branches))


def row_of(subject: Subject, maker: SplitNetwork, width: float, works: str) -> Row:
    edits = "<br>".join(f"`{path}` {what}" for path, what in maker.plan.edits.items())
    split = f"`{maker.plan.cut.module}`"
    measured = tuple(shares(maker, width))
    return (subject.name, subject.family, split, edits or "as it is", *measured, works)


def when(subject: Subject) -> tuple[pytest.MarkDecorator, ...]:
    if subject.fast:
        return ()
    return (pytest.mark.long if subject.family in FAST else pytest.mark.slow,)


@pytest.mark.parametrize("subject", [pytest.param(s, id=s.name, marks=when(s)) for s in SUBJECTS])
def test_a_network_becomes_a_backbone(
    subject: Subject, tiny: Dataset, written: dict[str, Row] | None
) -> None:
    maker = split_network(subject.name, SMALL)
    width = widths_of(maker)
    try:
        check_that_a_default_is_chosen_and_said(maker)
        torch.manual_seed(0)
        images = torch.randn(4, 3, subject.side, subject.side)
        network = original(subject.name)
        enliven(network, images)
        points = maker.split_points
        elsewhere = points[len(points) // 2]
        shape = (3, subject.side, subject.side)
        whole = split_network(subject.name, shape, stem="original", split=elsewhere)
        check_that_the_unsplit_network_is_the_original(whole, network, images)
        tried = some(points, 6) if subject.fast else points
        check_that_split_points_work(whole, network, images, tried)
        if not subject.fast:
            check_that_parts_fit(subject.name, some(points, 10))
        experts = NofE(maker, SEVEN, "published", seed=0, width=width)
        check_that_it_trains(maker, tiny.train.images[::7][:16], experts)
        check_that_experts_run_as_one(maker, experts)
        check_the_order_of_the_logits(maker, experts)
    except Exception as error:
        if written is not None:
            reason = str(error).splitlines()[0]
            written[subject.name] = row_of(subject, maker, width, f"no: {reason}")
        raise
    put_down(row_of(subject, maker, width, "yes"), written)


@pytest.mark.parametrize(("name", "family", "reason"), REFUSED)
def test_a_network_that_cannot_be_followed_is_refused_in_one_sentence(
    name: str, family: str, reason: str, written: dict[str, Row] | None
) -> None:
    with pytest.raises(InvalidInput, match=f"'{name}' has no classifier to resize: .*{reason}"):
        backbone(name)
    put_down((name, family, *["–"] * 8, f"no: {reason}"), written)
