"""Sparse training, in which an image trains a few experts and the gate, and teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import nofe_lab
from nofe_lab import Arm, Experiment, InvalidInput, NofE, Specialties
from nofe_lab.data import Batch
from nofe_lab.evaluation import predict
from nofe_lab.inference.kept import certainty_of
from nofe_lab.inspection import Inspector
from nofe_lab.networks.counting import count_macs
from nofe_lab.networks.nofe import ExpertsAlone
from nofe_lab.recipes import Recipe
from nofe_lab.stages import NofEStage
from nofe_lab.stages.gate import GateStage
from nofe_lab.stages.report import few_experts
from nofe_lab.sweeps import Sweep
from nofe_lab.training.tasks import Classification, Distillation, SparseTraining
from tests.unit.test_networks import Flat

Make = Callable[..., Experiment]

C, K = 8, 4
PARTITION = Specialties(tuple("abcdefgh"), tuple(c % K for c in range(C)), K)
SPARSE: dict[str, Any] = {
    "backbone": "alexnet_quick_bn",
    "split": "conv2",
    "trunk": "base",
    "specialties": "balanced",
    "branch_start": "upcycled",
    "sparse": 1,
}


def network(sparse: int = 2) -> NofE:
    torch.manual_seed(1)  # of other gates, an expert may be the best for fewer images than it needs
    found = NofE(Flat(), PARTITION, "published", 0)
    found.begin_with_gate(nn.Linear(5, C), sparse)
    return found


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 1, 2, 2), torch.randint(0, C, (n,))


def trained_by(found: NofE, x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the experts and of the gate for images whose experts are `own`."""
    found.train().own = own
    experts, gate = found(x).chunk(2, dim=1)
    return experts, gate


def test_an_image_whose_own_expert_the_gate_has_chosen_gets_the_answer_of_that_many() -> None:
    found, (x, _) = network(2), images()
    with torch.no_grad():
        expected, chosen = found.eval().routed(x, 2)
        experts, gate = trained_by(found, x, chosen[:, 0])
    both = (experts.log_softmax(1) + gate.log_softmax(1)) / 2
    assert torch.allclose(both, expected, atol=1e-6)
    assert torch.allclose(gate, found.gate(found.features(x)))  # type: ignore[misc]


def test_an_image_runs_its_own_expert_and_the_gate_s_best() -> None:
    found, (x, labels) = network(1), images()
    own = found.branch_of[labels]
    with torch.no_grad():
        experts, gate = trained_by(found, x, own)
        everything = ExpertsAlone(found.eval())(x)
    best = torch.stack([gate[:, k::K].amax(1) for k in range(K)], 1).argmax(1)
    runs = (torch.arange(K) == own[:, None]) | (torch.arange(K) == best[:, None])
    ran = runs[:, found.branch_of]
    assert torch.allclose(experts[ran], everything[ran], atol=1e-6)
    # all together they are as probable as the gate holds them to be
    together = [(each.softmax(1) * ran).sum(1) for each in (experts, gate)]
    assert torch.allclose(*together, atol=1e-6)


def test_an_expert_learns_from_the_mean_over_the_images_that_it_sees() -> None:
    found, (x, labels) = network(1), images()
    own = found.branch_of[labels]
    experts, gate = trained_by(found, x, own)
    cross_entropy(experts, labels).backward()
    best = torch.stack([gate[:, k::K].amax(1) for k in range(K)], 1).argmax(1)
    learned = [each.weight.grad.clone() for each in found.branches.values()]  # type: ignore[union-attr, operator]
    for place, branch in enumerate(found.branches.values()):
        sees = (own == place) | (best == place)
        assert 2 <= sees.sum() < len(x)
        found.zero_grad()
        alone, _ = trained_by(found, x, own)
        cross_entropy(alone[sees], labels[sees]).backward()
        expected = branch.weight.grad * (sees.sum() / len(x))  # type: ignore[operator]
        assert torch.allclose(learned[place], expected, atol=1e-6)


def test_the_trunk_learns_from_all_images_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (x, labels) = network(1), images()

    def of_trunk() -> Tensor:
        found.zero_grad()
        experts, _ = trained_by(found, x, found.branch_of[labels])
        cross_entropy(experts, labels).backward()
        return found.trunk[1].weight.grad.clone()  # type: ignore[index, union-attr]

    balanced = of_trunk()
    combined = found._combined
    monkeypatch.setattr(found, "_combined", lambda *given, **_: combined(*given))
    assert torch.allclose(balanced, of_trunk(), atol=1e-6)


def test_the_layer_table_counts_the_experts_that_answer_for_an_image(tiny_experiment: Make) -> None:
    of_all, of_one = (
        tiny_experiment(**{**SPARSE, "sparse": sparse}).layer_table("network of experts")
        for sparse in (None, 1)
    )
    few = of_one[of_one["part"] == "3 branches (1 for an image)"].set_index("layers")
    whole = of_all[of_all["part"] == "3 branches"].set_index("layers")
    assert few["output"].ne("").all()
    assert few["parameters"].equals(whole["parameters"])
    macs = "multiply-accumulates"
    assert 3 * few.loc["conv3", macs] == whole.loc["conv3", macs] > 0


def test_the_gate_learns_from_its_own_answers_alone() -> None:
    found, (x, labels) = network(1), images()
    experts, _ = trained_by(found, x, found.branch_of[labels])
    cross_entropy(experts, labels).backward()
    assert not any(each.grad.any() for each in found.gate.parameters())  # type: ignore[union-attr]


def test_every_expert_sees_images_even_if_the_gate_wants_none_of_it() -> None:
    found, (x, _) = network(1), images(6)
    with torch.no_grad():
        found.gate.bias[::K] += 100  # type: ignore[union-attr, operator, index]
    experts, _ = trained_by(found, x, torch.zeros(6, dtype=torch.int64))
    cross_entropy(experts, torch.zeros(6, dtype=torch.int64)).backward()
    for branch in found.branches.values():
        assert branch.weight.grad is not None
        assert branch.weight.grad.abs().sum() > 0  # type: ignore[operator]


def test_what_is_known_of_the_images_is_for_one_step() -> None:
    found, (x, labels) = network(1), images()
    trained_by(found, x, found.branch_of[labels])
    assert found.own is None
    assert found(x[:3]).shape == (3, C)  # others come without it


def test_the_task_tells_the_network_and_teaches_both_parts(tiny_experiment: Make) -> None:
    found, (x, labels) = network(2), images()
    val = tiny_experiment().data.val
    task = SparseTraining(found, Classification(Recipe(1, 0.1), val))
    batch = Batch(x, labels, torch.arange(len(x)), {})
    task.before_step(batch)
    assert torch.equal(found.own, found.branch_of[labels])  # type: ignore[arg-type]
    logits = found.train()(x)
    experts, gate = logits.chunk(2, dim=1)
    expected = cross_entropy(experts, labels) + cross_entropy(gate, labels)
    assert torch.allclose(task.loss(logits, batch), expected)
    assert task.metrics(logits, batch) == {
        "accuracy": (experts.argmax(1) == labels).sum(),
        "gate_accuracy": (gate.argmax(1) == labels).sum(),
    }


# --- stages


def test_a_sparse_network_begins_with_its_base_cnn_s_tail_as_the_gate(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(**SPARSE)
    stage = experiment.nofe()
    base = experiment.base("generalist")
    (run,) = experiment.run(base)
    begun = stage.network(Specialties.random(experiment.data.class_names, 3, 0)).eval()
    assert isinstance(begun, NofE)
    stage.start_from(run, begun)
    flat = experiment.model(base).network
    x = torch.randn(2, *experiment.data.image_shape)
    with torch.no_grad():
        expected = flat(x)
        assert torch.allclose(begun.gate(begun.features(x)), expected, atol=1e-5)  # type: ignore[misc]
        assert torch.allclose(ExpertsAlone(begun)(x), expected, atol=1e-5)
        assert torch.allclose(begun(x), expected.log_softmax(1), atol=1e-5)


def test_a_sparse_network_is_opened_with_its_gate_and_measured_with_few_experts(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(**SPARSE)
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    test = experiment.data.test
    x = test.sample(range(len(test)))
    opened = nofe_lab.load(run.path, device="cpu")
    with torch.inference_mode():
        for m in (1, 3, None):
            assert torch.equal(opened.logits(x, m), experiment.model(stage).logits(x, m))
    assert experiment.gate(stage) is stage
    curve = few_experts(experiment.runner, stage)
    assert list(curve["experts"]) == [1, 2, 3]
    for m, top1, nll in curve[["experts", "top1", "nll"]].to_numpy():
        found = predict(experiment.model(stage), test, experts=int(m))
        assert (found.accuracy, found.loss) == pytest.approx((top1, nll), abs=1e-4)
    assert (curve["gate_training_macs"] == 0).all()  # it is the network's own
    assert {"train_gate_accuracy", "train_accuracy"} <= set(run.history)


def test_a_network_that_was_trained_twice_is_the_same(tiny_experiment: Make, tmp_path: Any) -> None:
    weights = []
    for name in "ab":
        experiment = tiny_experiment(**SPARSE, runs_dir=str(tmp_path / name))
        weights.append(experiment.run(experiment.nofe())[0].weights())
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_sparse_training_costs_the_experts_that_an_image_runs(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(**{**SPARSE, "sparse": None})
    dense = experiment.nofe()
    sparse = experiment.stage(Arm(**{**vars(dense.arm), "sparse": 1}))
    network = sparse.untrained_network()
    assert isinstance(network, NofE)
    cost = network.macs(sparse.backbone.input_shape)
    forward, experts = 3 * sparse.steps * sparse.recipe.batch_size, sum(cost.branches)
    saved = forward * (experts / 3 - cost.gate)  # of three experts the gate's best and its own run
    saved += sparse.images_evaluated * (experts * 2 / 3 - cost.gate)
    # which classes have an answer is a product of matrices too
    answered = (forward + sparse.images_evaluated) * 3 * experiment.data.C
    assert dense.training_macs - sparse.training_macs == pytest.approx(saved, abs=answered)
    full = experiment.stage(Arm(**{**vars(dense.arm), "sparse": 3}))
    more = (forward + full.images_evaluated) * cost.gate
    assert full.training_macs - dense.training_macs == pytest.approx(more, abs=answered)


def test_more_experts_than_there_are_cannot_be_trained(tiny_experiment: Make) -> None:
    with pytest.raises(InvalidInput, match="sparse must be a whole number from 1 to 3; got 4"):
        tiny_experiment(**{**SPARSE, "sparse": 4}).nofe()
    with pytest.raises(InvalidInput, match="a base CNN from scratch has no sparse; got 1"):
        Arm("base", sparse=1)


# --- teachers


def test_a_pupil_learns_the_teacher_s_answers_and_not_the_labels(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone="alexnet_quick_bn", epochs=20, trunk_epochs=2)
    teacher = experiment.stage(Arm("base", budget="generalist"))
    pupil = experiment.stage(Arm("base", teacher="base"))
    assert pupil.parents["teacher"].id == teacher.id
    train = experiment.data.train
    x = train.sample(range(len(train)))
    models = [experiment.model(stage) for stage in (teacher, pupil, experiment.base())]
    with torch.inference_mode():
        said, learned, other = (model(x).log_softmax(1) for model in models)
    assert -(said.exp() * learned).sum(1).mean() < -(said.exp() * other).sum(1).mean()


def test_a_pupil_of_equal_arithmetic_counts_its_teacher(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(**SPARSE, epochs=30, trunk_epochs=20, teacher="control")
    nofe = experiment.nofe()
    assert set(nofe.parents) == {"teacher", "specialties", "trunk"}
    pupil = experiment.stage(Arm("control", budget="arithmetic", experts=2, teacher="control"))
    totals = [sum(each.training_macs for each in s.lineage.values()) for s in (nofe, pupil)]
    epoch = pupil.training_macs / pupil.recipe.epochs
    assert abs(totals[0] - totals[1]) <= epoch / 2 + 1
    teacher = pupil.parents["teacher"]
    looked = len(experiment.data.train) * count_macs(
        teacher.untrained_network(), teacher.backbone.input_shape
    )
    plain = experiment.stage(Arm("control", budget="nofe", experts=2))
    taught = experiment.stage(Arm("control", budget="nofe", experts=2, teacher="control"))
    assert taught.training_macs - plain.training_macs == looked


def test_teachers_are_flat_networks(tiny_experiment: Make) -> None:
    with pytest.raises(
        InvalidInput, match="teacher 'nofe' is unknown; accepted: 'base', 'control'"
    ):
        Arm("nofe", teacher="nofe")


def test_names_say_how_a_network_is_trained_and_by_whom() -> None:
    arm = Arm("nofe", "balanced", trunk="base", sparse=2, teacher="control")
    assert arm.name == "NofE balanced, base trunk, sparse 2, taught by control"
    assert Arm.of_columns({**arm.columns, "sparse": 2.0}) == arm
    assert Arm("base", teacher="control").name == "base CNN, taught by control"


def test_a_plain_network_still_gets_a_gate_of_its_own(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    gate = experiment.gate()
    assert isinstance(gate, GateStage)
    assert isinstance(experiment.nofe(), NofEStage)


# --- overlap


@pytest.mark.parametrize("overlap", [1, 2, 3, K])
def test_each_class_is_in_so_many_experts_and_they_are_alike_in_size(overlap: int) -> None:
    found = PARTITION.overlapping(overlap)
    for k, members in enumerate(found):
        assert members[: len(PARTITION.members(k))] == PARTITION.members(k)
        assert len(set(members)) == len(members) == overlap * C // K
    assert all(sum(c in each for each in found) == overlap for c in range(C))


def test_an_expert_without_classes_gets_none_of_others() -> None:
    partition = Specialties(tuple("abcd"), (0, 0, 3, 3), 4)
    assert partition.overlapping(2) == ((0, 1, 2, 3), (), (), (2, 3, 0, 1))
    with pytest.raises(InvalidInput, match="overlap must be a whole number from 1 to 2; got 3"):
        partition.overlapping(3)


def test_the_logit_of_a_class_is_the_mean_of_its_experts() -> None:
    found, (x, _) = NofE(Flat(), PARTITION, "published", 0, overlap=3).eval(), images()
    with torch.no_grad():
        features = found.features(x)
        said = [branch(features) for branch in found.branches.values()]
        expected = torch.zeros(len(x), C)
        for members, logits in zip(found.members, said, strict=True):
            expected[:, list(members)] += logits / 3
        assert torch.allclose(found(x), expected, atol=1e-6)


def test_of_the_experts_of_a_class_those_that_run_are_averaged() -> None:
    found, (x, _) = NofE(Flat(), PARTITION, "published", 0, overlap=2).eval(), images()
    found.gate = nn.Linear(5, C)
    with torch.no_grad():
        features, gate = found.features(x), found.gate(found.features(x))
        logits, chosen = found.routed(x, 2)
        total, times = torch.zeros(len(x), C), torch.zeros(len(x), C)
        for k, branch in enumerate(found.branches.values()):
            runs = (chosen == k).any(1).float()[:, None]
            members = list(found.members[k])
            total[:, members] += runs * branch(features)
            times[:, members] += runs
        ran = times > 0
        assert torch.allclose(logits[ran], (total / times)[ran], atol=1e-6)
        together = [(each.softmax(1) * ran).sum(1) for each in (logits, gate)]
        assert torch.allclose(*together, atol=1e-6)
        everything, _ = found.routed(x, K)
        assert torch.allclose(everything, found(x), atol=1e-6)


@pytest.mark.parametrize("overlap", [2, 3])
def test_upcycled_experts_that_share_classes_begin_as_the_base_cnn(
    tiny_experiment: Make, overlap: int
) -> None:
    plain = {name: value for name, value in SPARSE.items() if name != "sparse"}
    experiment = tiny_experiment(**plain, overlap=overlap)
    stage, base = experiment.nofe(), experiment.base("generalist")
    (run,) = experiment.run(base)
    begun = stage.network(Specialties.random(experiment.data.class_names, 3, 0)).eval()
    assert isinstance(begun, NofE)
    stage.start_from(run, begun)
    x = torch.randn(2, *experiment.data.image_shape)
    with torch.no_grad():
        assert torch.allclose(begun(x), experiment.model(base).network(x), atol=1e-5)


def test_a_network_whose_experts_share_classes_is_opened_as_it_was(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(overlap=2)
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    x = experiment.data.test.sample(range(4))
    opened = nofe_lab.load(run.path, device="cpu")
    with torch.inference_mode():
        assert torch.equal(opened(x), experiment.model(stage)(x))
    with pytest.raises(InvalidInput, match=r"here a class has 2 experts \(overlap\)"):
        opened.expert(0)
    assert stage.arm is not None
    assert stage.arm.name == "NofE learned, generalist, overlap 2"


def test_gates_choose_among_experts_that_share_classes(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(**{**SPARSE, "overlap": 2})
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    x = experiment.data.test.sample(range(4))
    opened = nofe_lab.load(run.path, device="cpu")
    with torch.inference_mode():
        assert torch.equal(opened.logits(x, 1), experiment.model(stage).logits(x, 1))
    with pytest.raises(InvalidInput, match=r"counted where each class has one; here .* 2"):
        few_experts(experiment.runner, stage)


def test_experts_that_share_classes_are_exported_with_their_gate(tmp_path: Path) -> None:
    found, (x, _) = network(2), images(6)
    shared = NofE(Flat(), PARTITION, "published", 0, overlap=2)
    shared.begin_with_gate(nn.Linear(5, C), 2)
    for each in (found, shared):
        each.eval()
        program = torch.export.export(each, (x,))
        with torch.no_grad():
            assert torch.allclose(program.module()(x), each(x), atol=1e-5)


def test_what_is_kept_and_shown_is_of_the_answers_that_it_gives(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(**{**SPARSE, "sparse": 2}, val_fraction=0.2)
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    model, val, test = experiment.model(stage), experiment.data.val, experiment.data.test
    assert model.predict(val, coverage=0.5).experts is not None
    found = predict(model, val)
    seen = certainty_of(run, experiment.data.C)
    assert set(seen["experts"]) == {1, 2, 3}
    own = seen[seen["experts"] == 2]
    assert list(own["predicted"]) == list(found.logits.argmax(1))
    kept, again = (model.expert(0).measure(images) for images in (None, val))
    shares = ["found", "accuracy", "false alarms"]
    assert kept[shares].to_numpy() == pytest.approx(again[shares].to_numpy(), nan_ok=True)
    inspector = Inspector(experiment.model(experiment.base()), model)
    x = test.sample(range(8))
    with torch.inference_mode():
        answers = model.logits(x).softmax(1)
    for image, answer in zip(x, answers, strict=True):
        assert inspector(image).nofe == pytest.approx(answer.numpy(), abs=1e-4)


def test_narrow_experts_are_chosen_by_the_base_cnn_s_whole_tail(tiny_experiment: Make) -> None:
    upcycled = tiny_experiment(**SPARSE, branch_width=0.5).nofe().untrained_network()
    whole = tiny_experiment(**SPARSE).nofe().untrained_network()
    fresh = {**SPARSE, "branch_start": "fresh"}
    narrow = tiny_experiment(**fresh, branch_width=0.5).nofe().untrained_network()
    shapes = [
        {name: tensor.shape for name, tensor in each.gate.state_dict().items()}  # type: ignore[union-attr, operator]
        for each in (upcycled, whole, narrow)
    ]
    assert shapes[0] == shapes[1] != shapes[2]


def test_opponents_are_trained_as_the_experiment_has_it(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(sparse=2, overlap=2, teacher="base")
    for arm in experiment.arms():
        assert arm.teacher == "base"
        assert (arm.sparse, arm.overlap) == ((2, 2) if arm.kind == "nofe" else (None, 1))
    names = {arm.name for arm in experiment.arms()}
    assert experiment.nofe().arm.name in names  # type: ignore[union-attr]


# --- what was wrong and silent


def test_an_arm_s_own_learning_rate_is_that_of_the_network_of_experts_too(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(nofe_rate=0.01)
    assert experiment.nofe().recipe.learning_rate == 0.01
    assert experiment.generalist().recipe.learning_rate == 0.005
    arm = Arm("nofe").with_changes(learning_rate=0.1)
    assert experiment.stage(arm).recipe.learning_rate == 0.1


def test_the_accuracy_of_a_pupil_is_that_of_the_classes(tiny_experiment: Make) -> None:
    labels, answers = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 1, 1])
    said, taught = torch.tensor([0, 1, 2, 1]), torch.eye(C)
    task = Distillation(Recipe(1, 0.1), tiny_experiment().data.val, taught[answers])
    batch = Batch(torch.zeros(4, 1), labels, torch.arange(4), {})
    assert task.metrics(taught[said], batch) == {"accuracy": 3, "agreement": 3}
    assert task.metrics(taught[answers], batch) == {"accuracy": 2, "agreement": 4}
    experiment = tiny_experiment(**SPARSE, teacher="base")
    (run,) = experiment.run(experiment.nofe())
    assert {"train_accuracy", "train_agreement", "train_gate_agreement"} <= set(run.history)


def test_a_trained_network_answers_as_others_do_while_it_is_trained_on(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(**SPARSE)
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    x = experiment.data.test.sample(range(4))
    labels = experiment.data.test.labels[:4]
    for model in (experiment.model(stage), nofe_lab.load(run.path, device="cpu")):
        logits = model.train()(x)
        assert logits.shape == (4, experiment.data.C)
        cross_entropy(logits, torch.as_tensor(labels)).backward()  # in a loop of somebody's own
        assert all(weights.grad is not None for weights in model.parameters())


def test_a_teacher_that_costs_more_than_the_whole_budget_is_refused(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(trunk="base", specialties="balanced", trunk_epochs=40)
    with pytest.raises(InvalidInput, match="no arithmetic left to learn with: its teacher takes"):
        experiment.stage(Arm("control", budget="arithmetic", teacher="control"))


def test_what_an_arm_says_itself_is_not_changed_by_a_sweep(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(dataset="glyphs:5", trunk="base", specialties="balanced")
    arm = Arm("nofe", "balanced", trunk="base")
    for name, values in (("sparse", [1, 2]), ("overlap", [2, 3]), ("teacher", ["base", "control"])):
        with pytest.raises(InvalidInput, match=f"changes of {name} make no other network"):
            Sweep(experiment, [arm], {name: values, "K": [3, 4]}, [0])
    found = Sweep(experiment, [arm, Arm("base")], {"K": [3, 4]}, [0])  # of one of two arms
    assert len({row.stage.id for row in found.rows}) == 3


def test_few_experts_of_shared_classes_are_refused_before_a_gate_is_trained(
    tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(overlap=2)
    monkeypatch.setattr("nofe_lab.stages.stage.fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InvalidInput, match="few experts are counted where each class has one"):
        few_experts(experiment.runner, experiment.gate())


def test_none_is_a_knob_s_word_for_an_arm_s_default() -> None:
    arm = Arm("nofe", teacher=None, overlap=None)  # type: ignore[arg-type]
    assert arm == Arm("nofe") == Arm.of_columns(arm.columns)
    assert arm.name == "NofE learned, generalist"
