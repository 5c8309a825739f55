"""Experiments: bad input stops before any training, and stages hand their work to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nofe_lab import (
    Arm,
    Dataset,
    Experiment,
    InvalidInput,
    Run,
    Specialties,
    load,
    load_specialties,
    predict,
    superclass_specialties,
)
from nofe_lab.data import Resident
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.files import sha256, write_tensors
from nofe_lab.machine import Machine
from nofe_lab.networks import NofE, backbone
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.networks.paper import AlexNetQuick
from nofe_lab.runs.store import _digest
from nofe_lab.specialties import balanced_clusters, confusion_clusters, maps_of
from nofe_lab.stages import FlatStage, GeneralistStage, NofEStage, Stage, load_model
from nofe_lab.stages.gate import GateAlone
from nofe_lab.stages.report import few_experts
from nofe_lab.training.events import Event, StageLoaded

Make = Callable[..., Experiment]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that trains a step, or measures how long one takes."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("training has begun")

    monkeypatch.setattr("nofe_lab.stages.stage.fit", refuse)
    monkeypatch.setattr("nofe_lab.stages.stage.seconds_per_step", refuse)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the stages that have been trained, as they come."""
    kinds: list[str] = []
    fit = Stage.fit

    def note(self: Stage, *arguments: Any, **hooks: Any) -> Any:
        kinds.append(self.kind)
        return fit(self, *arguments, **hooks)

    monkeypatch.setattr(Stage, "fit", note)
    return kinds


# --- what is refused, and when


REFUSED_AT_ONCE = [
    ({"K": 1}, r"K must be a whole number of at least 2; got 1\."),
    ({"K": -3}, r"K must be a whole number of at least 2; got -3\."),
    ({"K": 10.5}, r"K must be a whole number of at least 2; got 10\.5\."),
    ({"K": "ten"}, r"K must be a whole number of at least 2; got 'ten'\."),
    ({"K": True}, r"K must be a whole number of at least 2; got True\."),
    ({"backbone": "resnet"}, r"'resnet' is unknown \(did you mean 'resnet50'.*'alexnet_quick', "),
    ({"rule": "optimum"}, r"rule 'optimum' is unknown \(did you mean 'optimal'\?\); accepted"),
    ({"preset": "fast"}, r"preset 'fast' is unknown; accepted: 'quick', 'paper', 'strong'\."),
    ({"specialties": "learnt"}, r"specialties 'learnt' is unknown \(did you mean 'learned'\?\)"),
    ({"specialties": "map.csv"}, r"specialties 'map.csv' is unknown.* the path of a \.json file"),
    ({"specialties": 5}, r"specialties must be text; got 5\."),
    ({"specialties": None}, r"specialties must be text; got None\."),
    ({"trunk": "basis"}, r"trunk 'basis' is unknown \(did you mean 'base'\?\); accepted"),
    ({"device": "gpu"}, r"device 'gpu' is unknown.*; accepted: 'auto', .*'cpu'"),
    ({"precision": "bf32"}, r"precision 'bf32' is unknown.*; accepted: 'auto', 'bf16', 'fp32'\."),
    ({"precision": 16}, r"precision must be text; got 16\."),
    ({"epochs": 0}, r"epochs must be a whole number from 1 to 1000000; got 0\."),
    ({"epochs": 1.5}, r"epochs must be a whole number from 1 to 1000000; got 1\.5\."),
    ({"batch_size": 0}, r"batch_size must be a whole number of at least 1; got 0\."),
    ({"learning_rate": 0}, r"learning_rate must be a number above 0; got 0\."),
    ({"seed": -1}, r"seed must be a whole number of at least 0; got -1\."),
    ({"data_seed": "x"}, r"data_seed must be a whole number of at least 0; got 'x'\."),
    ({"map_updates": 0}, r"map_updates must be a whole number from 1 to 100000; got 0\."),
    ({"map_updates": 100_001}, r"map_updates must be a whole number from 1 to 100000; got 100001"),
    ({"affinity": "votes"}, r"affinity 'votes' is unknown; accepted: 'counts', 'probability'\."),
    ({"affinity_images": -1}, r"affinity_images must be a whole number of at least 0; got -1\."),
    (
        {"affinity_from": "train"},
        r"affinity_from 'train' is unknown \(did you mean 'training'\?\); accepted: 'evaluation', ",
    ),
    (
        {"affinity_from": "training", "affinity_images": 50},
        r"affinity_images must be 0 \(all\) with affinity_from 'training'.*; got 50\.",
    ),
    ({"fine_head": "both"}, r"fine_head must be true or false; got 'both'\."),
    ({"initialisation": "zero"}, r"initialisation 'zero' is unknown; accepted: 'published', 'kai"),
    ({"elastic_lambda": -1}, r"elastic_lambda must be a number from 0 to 1e\+12; got -1\."),
    ({"affinity": ""}, r"affinity '' is unknown; accepted: 'counts', 'probability'\."),
    ({"flips": "yes"}, r"flips must be true or false; got 'yes'\."),
    ({"branch_width": 0}, r"branch_width must be a number above 0, at most 16; got 0\."),
    ({"branch_width": 17}, r"branch_width must be a number above 0, at most 16; got 17\."),
    ({"branch_start": "warm"}, r"branch_start 'warm' is unknown; accepted: 'fresh', 'tail', 'upc"),
    ({"branch_start": "tail", "trunk": "scratch"}, r"'tail' needs a trunk that has been trained"),
    ({"branch_start": "tail", "branch_width": 0.5}, r"branch_width 1; got .* branch_width 0\.5\."),
    (
        {"split": "conv3"},
        r"split is for networks of torchvision.*'alexnet_quick' has its own parts",
    ),
    ({"stem": "small"}, r"stem is for networks of torchvision.*; got 'small'\."),
    ({"backbone": "resnet18", "split": "layr4"}, r"split of resnet18 'layr4' is unknown \(did you"),
    ({"backbone": "resnet18", "stem": "tiny"}, r"stem 'tiny' is unknown; accepted: 'auto', 'ori"),
    ({"backbone": "resnet18", "preset": "paper"}, r"'paper' is for the published networks .* 'qui"),
    ({"backbone": "resnet18", "weights": "/no/w.pth"}, r"weights '/no/w\.pth' cannot be read"),
    ({"backbone": 5}, r"backbone must be a name, .*; got 5"),
    ({"val_fraction": 2}, r"val_fraction must be a number from 0 to 0\.9; got 2\."),
]


def name_of(case: Any) -> str:
    return "-".join(f"{k}={v}" for k, v in case.items()) if isinstance(case, dict) else ""


@pytest.mark.parametrize(("bad", "sentence"), REFUSED_AT_ONCE, ids=name_of)
def test_what_can_be_refused_without_the_data_is_refused_when_an_experiment_is_made(
    bad: dict[str, Any], sentence: str, runs_dir: Path
) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refused:
        Experiment(**{"runs_dir": str(runs_dir), **bad})
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("no_training")
def test_more_specialties_than_classes_stop_before_training(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(K=7)
    for ask in (experiment.generalist, experiment.nofe):
        with pytest.raises(InvalidInput, match=r"K must be at most the 6 classes of tiny; got 7\."):
            ask()


@pytest.mark.usefixtures("no_training")
def test_an_unknown_data_set_stops_before_training(runs_dir: Path) -> None:
    experiment = Experiment("cifar", runs_dir=str(runs_dir))
    with pytest.raises(InvalidInput, match=r"dataset 'cifar' is unknown \(did you mean 'cifar10'"):
        experiment.run(experiment.base(), experiment.nofe())


@pytest.mark.usefixtures("no_training")
def test_a_class_with_too_few_images_to_split_stops_before_training(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    keep = (tiny.train.labels != 3).nonzero().flatten()
    one_more = tiny.train.of_class(3)[:1]
    train = tiny.train[torch.cat([keep, one_more])]
    experiment = tiny_experiment(dataset=replace(tiny, train=train), val_fraction=0.1)
    with pytest.raises(InvalidInput, match=r"class 'green columns' has 1 training image, too few"):
        experiment.run(experiment.base())


@pytest.mark.usefixtures("no_training")
def test_a_batch_larger_than_the_training_split_stops_before_training(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(batch_size=109)  # 120 images, 10 % of them val
    with pytest.raises(InvalidInput, match="batch_size must be at most the 108 training images"):
        experiment.run(experiment.base())


@pytest.mark.usefixtures("no_training")
def test_images_of_a_size_that_the_backbone_does_not_take_stop_before_training(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    def crop(split: Resident) -> Resident:
        return Resident(split.images[..., :28, :28], split.labels)

    small = replace(tiny, train=crop(tiny.train), val=crop(tiny.val), test=crop(tiny.test))
    sentence = "'alexnet_quick' takes images of 3 x 32 x 32 or larger; got 3 x 28 x 28"
    with pytest.raises(InvalidInput, match=sentence):
        tiny_experiment(dataset=small).base()


@pytest.mark.usefixtures("no_training")
def test_a_specialties_file_of_other_classes_stops_before_training(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    file = tmp_path / "pets.json"
    file.write_text(Specialties(("cat", "dog"), (0, 1), 2).to_json())
    experiment = tiny_experiment(specialties=str(file))
    with pytest.raises(InvalidInput, match="2 classes are not the data set's 6: 'cat', 'dog' not"):
        experiment.run(experiment.nofe())


@pytest.mark.usefixtures("no_training")
def test_a_specialties_file_that_is_not_there_stops_before_training(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"specialties file '.*none\.json' cannot be read"):
        tiny_experiment(specialties=str(tmp_path / "none.json")).nofe()


@pytest.mark.usefixtures("no_training")
def test_a_partition_of_other_classes_or_with_one_expert_is_refused(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    with pytest.raises(InvalidInput, match="1 classes are not the data set's 6"):
        tiny_experiment().nofe(Specialties(("cat",), (0,), 1))
    with pytest.raises(InvalidInput, match="at least 2 specialties with classes; got 1"):
        tiny_experiment().nofe(Specialties(tiny.class_names, (1,) * 6, 3))


@pytest.mark.usefixtures("no_training")
def test_a_runs_dir_that_cannot_be_written_stops_before_training(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder, why in ((file / "runs", "file/runs' cannot"), ("", "' cannot .*it is empty")):
        experiment = Experiment("glyphs:4", runs_dir=str(folder))
        with pytest.raises(InvalidInput, match=f"runs_dir '.*{why}"):
            experiment.run(experiment.base())


def test_an_experiment_touches_no_disk_when_it_is_made(tmp_path: Path) -> None:
    experiment = Experiment(f"folder:{tmp_path}/pictures", runs_dir=str(tmp_path / "runs"))
    assert experiment.with_seed(1).runner.machine == experiment.runner.machine
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_training")
def test_superclass_specialties_need_superclasses(tiny: Dataset, tiny_experiment: Make) -> None:
    without = replace(tiny, superclass_names=(), superclass_of=())
    with pytest.raises(InvalidInput, match="is for data sets with superclasses; tiny has none"):
        tiny_experiment(dataset=without, specialties="superclass").nofe()


def test_an_unknown_budget_is_refused(tiny_experiment: Make) -> None:
    with pytest.raises(InvalidInput, match=r"budget 'both' is unknown; accepted: 'nofe', 'general"):
        tiny_experiment().base("both")


@pytest.mark.parametrize("n", [0, 1.5])
def test_a_number_of_seeds_that_is_none_is_refused(tiny_experiment: Make, n: Any) -> None:
    with pytest.raises(InvalidInput, match=f"n_seeds must be a whole number .*; got {n}"):
        tiny_experiment().seeds(n)


def test_a_refusal_is_shown_in_notebooks_as_its_sentence_alone() -> None:
    shown = InvalidInput("K must be 2; got 1.")._render_traceback_()
    assert shown == ["InvalidInput: K must be 2; got 1."]


def test_as_many_updates_come_in_a_shorter_stage(runs_dir: Path) -> None:
    def updates(**changes: Any) -> int:
        found = Experiment(preset="paper", dataset="glyphs:4", runs_dir=str(runs_dir), **changes)
        return len(found.generalist().updates)

    assert updates() == 3  # every 2 of 8 epochs
    assert updates(epochs=4) == 3
    assert updates(epochs=4, map_updates=2) == 2


# --- recipes and choices


def test_overrides_hold_for_every_stage_and_leave_the_rest_to_the_preset(
    runs_dir: Path,
) -> None:
    found = Experiment(preset="paper", epochs=20, batch_size=50, runs_dir=str(runs_dir)).recipes
    for recipe in (found.generalist, found.nofe, found.flat):
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (20, 50, 1e-3)
    assert found.nofe.drops == (0.8,)


def test_the_budgets_of_the_base_cnn(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(preset="paper", epochs=None, batch_size=None)
    epochs = {name: experiment.base(name).recipe.epochs for name in ("nofe", "generalist", "total")}
    assert epochs == {"nofe": 10, "generalist": 8, "total": 18}


def test_a_base_trunk_has_been_trained_as_long_as_the_generalist(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(preset="paper", epochs=None, batch_size=None)
    trunk = experiment.nofe(trunk="base").parents["trunk"]
    assert isinstance(trunk, FlatStage)
    assert trunk.recipe == experiment.generalist().recipe


def test_a_trunk_from_scratch_has_no_parent(tiny_experiment: Make) -> None:
    assert tiny_experiment().nofe("random", "scratch").parents == {}
    assert set(tiny_experiment().nofe("learned", "scratch").parents) == {"specialties"}


def of_classes(C: int, each: int = 4) -> Dataset:
    """C classes of blank images, `each` of them for training."""
    labels = torch.arange(C).repeat(each)
    split = Resident(torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8), labels)
    return Dataset("blank", tuple(f"class {c}" for c in range(C)), split, split[:0], split[:C])


@pytest.mark.parametrize(
    ("C", "K"), [(2, 2), (5, 2), (7, 2), (9, 3), (12, 3), (20, 4), (100, 10), (1000, 32)]
)
def test_k_follows_the_number_of_classes_where_it_is_not_given(C: int, K: int) -> None:
    experiment = Experiment(of_classes(C), epochs=1, batch_size=1, val_fraction=0)
    assert experiment.generalist().K == experiment.nofe().K == experiment.usual_K == K
    reasons = {2: "the fewest", 7: "at least 3 of 7 classes in each"}
    reason = reasons.get(C, f"about the square root of {C} classes")
    assert f"K = {K} specialties: {reason}." in experiment.base().choices


@pytest.mark.parametrize(
    ("C", "K", "said"),
    [
        (12, 10, "K = 3 would give each about 4."),
        (12, 5, "K = 3 would give each about 4."),
        (12, 4, ""),
        (100, 34, "K = 10 would give each about 10."),
        (100, 33, ""),
    ],
)
def test_too_many_specialties_are_trained_with_a_warning(C: int, K: int, said: str) -> None:
    stage = Experiment(of_classes(C), K=K, epochs=1, batch_size=1, val_fraction=0).nofe()
    assert stage.K == K
    text = " ".join(stage.choices)
    assert (f"K = {K} makes specialties of fewer than 3 of the {C} classes" in text) == bool(said)
    assert said in text


def test_with_very_few_classes_no_number_of_specialties_is_better() -> None:
    for given in (None, 2):
        choices = Experiment(of_classes(5), K=given, epochs=1, batch_size=1).base().choices
        assert "With 5 classes a specialty has fewer than 3" in choices[-1]


@pytest.mark.parametrize(
    ("images", "epochs", "batch"),
    [(100, 60, 20), (400, 32, 20), (720, 18, 20), (1300, 10, 32), (4000, 4, 64), (6000, 4, 100)],
)
def test_epochs_and_batches_follow_the_number_of_images(
    images: int, epochs: int, batch: int
) -> None:
    data = of_classes(10, images // 10)
    experiment = Experiment(data, K=2, val_fraction=0)
    for stage in (experiment.base(), experiment.generalist(), experiment.nofe()):
        assert (stage.recipe.epochs, stage.recipe.batch_size) == (epochs, batch)
        length = f"{epochs} epochs a stage in b" if epochs > 4 else "B"
        said = f"{length}atches of {batch}"
        assert (said in " ".join(stage.choices)) == (images < 5000)
    assert len(experiment.generalist().updates) == 7  # as many as usual
    for given in ({"epochs": 3}, {"batch_size": 50}):
        other = Experiment(data, K=2, val_fraction=0, **given)  # type: ignore[arg-type]
        if images >= 1000 or "batch_size" in given:
            assert other.recipes.nofe.batch_size in (50, 100)
            assert not other.base().choices
        else:  # no refusal of a batch that nobody has asked for
            assert other.recipes.nofe.batch_size <= images / 5
            assert other.recipes.nofe.epochs == 3
            assert "(batch_size takes others)" in other.base().choices[0]


@pytest.mark.parametrize(("classes", "each"), [(2, 2), (3, 4), (7, 2), (2, 10)])
@pytest.mark.parametrize("epochs", [None, 2])
def test_the_smallest_data_sets_get_batches_that_they_can_fill(
    classes: int, each: int, epochs: int | None
) -> None:
    data = of_classes(classes, each)
    stage = Experiment(data, epochs=epochs, val_fraction=0).base()
    assert stage.recipe.batch_size == min(20, len(data.train))
    assert stage.steps >= 1


def test_what_was_chosen_is_printed_before_training(
    tiny: Dataset, runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = Experiment(
        tiny, epochs=1, batch_size=36, device="cpu", runs_dir=str(runs_dir), learning_rate=0.005
    )
    experiment.run(experiment.base(), experiment.nofe())
    said = capsys.readouterr().out
    assert said.count("K = 2 specialties: about the square root of 6 classes.") == 1
    assert said.index("K = 2 specialties") < said.index("To train")


@pytest.mark.parametrize("images", [0, 108, 5000, None])
def test_all_training_images_are_one_request_however_they_are_counted(
    tiny_experiment: Make, images: int | None
) -> None:
    found = tiny_experiment(affinity_images=images).generalist()
    assert (len(found.dataset.train), found.config.affinity_images) == (108, None)
    assert tiny_experiment(affinity_images=107).generalist().config.affinity_images == 107


def test_ones_own_specialties_are_one_more_opponent(tiny_experiment: Make, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    names = experiment.data.class_names
    own = Specialties(names, (0, 0, 0, 1, 1, 1), 2)
    found = experiment.opponents(own)
    name = "NofE by hand, learned generalist"
    assert set(found) - set(experiment.opponents()) == {name}
    (tmp_path / "own.json").write_text(own.to_json())
    assert experiment.opponents(str(tmp_path / "own.json"))[name].id == found[name].id
    # two experts in place of three, each wider, so that they cost as much
    assert found[name].config.branch_width == pytest.approx(1.5)  # type: ignore[attr-defined]


def test_opponents_differ_in_specialties_and_trunk_alone(tiny_experiment: Make) -> None:
    opponents = tiny_experiment(epochs=30).opponents()
    assert len({stage.id for stage in opponents.values()}) == len(opponents) == 21
    nofes = [stage for stage in opponents.values() if isinstance(stage, NofEStage)]
    assert len(nofes) == 13
    assert len({(stage.recipe, stage.config.network, stage.seed, stage.K) for stage in nofes}) == 1


def test_flat_opponents_have_the_budgets_that_they_are_named_for(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(epochs=30)
    nofe, opponents = experiment.nofe(), experiment.opponents()
    spent = sum(stage.training_macs for stage in nofe.lineage.values())
    for name in ("base CNN", "flat control"):
        assert opponents[name].recipe.epochs == 30
        assert opponents[f"{name}, both budgets"].recipe.epochs == 60
        alike = opponents[f"{name}, equal arithmetic"]
        assert alike.training_macs == pytest.approx(spent, rel=0.02)
    control, base = opponents["flat control"], opponents["base CNN"]
    assert isinstance(nofe, NofEStage)
    parts = [count_parameters(stage.untrained_network()) for stage in (control, nofe, base)]
    assert parts[0] == pytest.approx(parts[1], rel=0.02)
    assert parts[0] > 2 * parts[2]


def test_a_network_of_experts_with_flips_is_there_where_only_flat_ones_would_have_them(
    tiny_experiment: Make,
) -> None:
    name = "NofE learned, generalist, flips"
    opponents = tiny_experiment(preset="paper", rule="optimal").opponents()
    flipped, plain = opponents[name], opponents["NofE learned, generalist"]
    assert flipped.recipe == replace(plain.recipe, flips=True)
    assert flipped.parents["trunk"].id == plain.parents["trunk"].id
    assert name not in tiny_experiment(preset="paper", flips=False).opponents()
    assert name not in tiny_experiment().opponents()


def test_a_small_control_costs_what_two_experts_and_their_gate_do(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(K=4, epochs=30)
    opponents = experiment.opponents()
    small = opponents["small flat control, both budgets"]
    assert small.recipe.epochs == 60
    network, C = backbone("alexnet_quick"), experiment.data.C
    nofe = NofE(network, Specialties.random(experiment.data.class_names, 4, 0), "published", 0)
    nofe.gate = network.make_branch(C)
    cost = nofe.macs(network.input_shape)
    few = cost.trunk + cost.gate + sum(cost.branches[:2])
    spent = count_macs(small.untrained_network(), network.input_shape)
    assert spent == pytest.approx(few, rel=0.02)
    assert not any(name.startswith("small") for name in tiny_experiment(K=3).opponents())
    with pytest.raises(InvalidInput, match="experts must be a whole number from 1 to 4; got 5"):
        experiment.stage(Arm("control", experts=5))


@pytest.mark.parametrize(
    ("trunk", "arm"),
    [("generalist", "flat control, generalist"), ("base", "flat control, base trunk")],
)
def test_the_control_on_another_stage_s_trunk_begins_with_it(
    tiny_experiment: Make, trunk: str, arm: str
) -> None:
    experiment = tiny_experiment(learning_rate=1e-9)
    control = experiment.opponents()[arm]
    assert control.recipe == experiment.nofe("random", trunk).recipe
    assert control.parents["trunk"].id == experiment.nofe("random", trunk).parents["trunk"].id
    run, before = experiment.run(control, control.parents["trunk"])
    trunks = [tensors_of(each, "network.trunk.") for each in (run, before)]
    for name, tensor in trunks[0].items():
        assert torch.allclose(tensor, trunks[1][name], atol=1e-6)


def test_an_opponent_that_a_network_does_not_admit_is_left_out_and_said(
    tiny_experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fixed(AlexNetQuick):
        def make_control(self, n: int, K: int, width: float = 1.0) -> nn.Module:
            raise InvalidInput("branch_width of 'fixed' cannot be changed.")

    found = tiny_experiment(backbone=Fixed()).opponents()
    assert not any("control" in name for name in found)
    assert "NofE confusion, learned generalist" in found
    said = capsys.readouterr().out
    assert "flat control, both budgets is left out: branch_width of 'fixed' cannot be" in said


@pytest.mark.parametrize("specialties", ["confusion", "balanced", "features"])
def test_clustered_specialties_come_from_the_base_cnn(
    tiny_experiment: Make, specialties: str
) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.nofe(specialties, "base"))
    found = load_specialties(run)
    assert (found.C, found.K, len(found.nonempty)) == (6, 3, 3)
    base = experiment.base("generalist")
    answers = predict(experiment.model(base), experiment.data.train)
    if specialties == "confusion":
        again = confusion_clusters(answers.confusion, found.class_names, 3, experiment.seed)
        assert again == found
    if specialties == "balanced":
        assert balanced_clusters(answers.confusion, found.class_names, 3) == found


def test_the_network_that_the_trunk_comes_from_may_be_trained_for_longer(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(epochs=2, trunk_epochs=5, trunk="base", specialties="balanced")
    (before, nofe) = sorted(experiment.nofe().lineage.values(), key=lambda each: each.kind)
    assert (before.recipe.epochs, nofe.recipe.epochs) == (5, 2)
    assert before.id == experiment.base("generalist").id
    assert experiment.generalist().recipe.epochs == 5
    assert experiment.base().recipe.epochs == 2
    assert experiment.base("total").recipe.epochs == 7
    same = tiny_experiment(epochs=2, trunk_epochs=2)
    assert same.nofe().id == tiny_experiment(epochs=2).nofe().id


def test_a_flat_network_of_equal_arithmetic_has_that_of_the_experiment_s_own_experts(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(epochs=20, trunk_epochs=60, trunk="base", specialties="balanced")
    spent = sum(stage.training_macs for stage in experiment.nofe().lineage.values())
    assert experiment.base("arithmetic").training_macs == pytest.approx(spent, rel=0.02)


@pytest.mark.parametrize("specialties", ["learned", "confusion", "balanced"])
def test_how_specialties_form_ends_in_those_of_the_network(
    tiny_experiment: Make, specialties: str
) -> None:
    trunk = "generalist" if specialties == "learned" else "base"
    experiment = tiny_experiment(specialties=specialties, trunk=trunk)
    formation = experiment.formation()
    assert formation is not None
    _, found, history, updates, _, start = formation
    (run,) = experiment.run(experiment.nofe())
    assert found == load_specialties(run)
    maps = maps_of(history, found)
    assert len(maps) == len(updates) + 1
    C, K = found.C, found.K
    first = {
        "random start": list(Specialties.random(found.class_names, K, experiment.seed).of),
        "in the data's order": [c * K // C for c in range(C)],
        "neighbours in a tree of confusions": maps[0].tolist(),
    }
    assert maps[0].tolist() == first[start]
    assert updates["objective_after"].between(0, 1).all()


def test_specialties_that_nothing_is_known_of_have_no_formation(tiny_experiment: Make) -> None:
    assert tiny_experiment(specialties="random").formation() is None


def test_networks_are_chosen_on_val_images_without_a_look_at_test(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    report = experiment.comparison([0, 1], lambda each: {"base CNN": each.base()}, "val")
    assert not any(name.startswith("test_") for name in report.table.columns)
    assert "val accuracy" in report.shown
    assert f"{report.table['val_accuracy'][0]:.2%}" in str(report)
    with pytest.raises(InvalidInput, match="split 'train' is unknown; accepted: 'test', 'val'"):
        experiment.comparison([0], lambda each: {"base CNN": each.base()}, "train")
    for row, answers in zip(report.table.itertuples(), report.predictions, strict=True):
        again = predict(
            experiment.model(experiment.with_seed(row.seed).base()), experiment.data.val
        )
        assert row.val_accuracy == answers.accuracy == again.accuracy


def test_more_clusters_than_classes_are_refused(tiny_experiment: Make) -> None:
    with pytest.raises(InvalidInput, match=r"K must be at most 5 for 'confusion' .*; got 6"):
        tiny_experiment(K=6).nofe("confusion")


def test_variants_differ_in_one_parameter_each(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(epochs=2)
    found = experiment.variants(K=[2, 3], rule=["greedy"], trunk=["base", "scratch"])
    assert list(found) == ["as it is", "K = 2", "rule = greedy", "trunk = base", "trunk = scratch"]
    assert found["as it is"].id == experiment.nofe().id
    assert found["K = 2"].K == 2
    assert len({stage.id for stage in found.values()}) == 5
    with pytest.raises(InvalidInput, match="parameter 'k' is unknown"):
        experiment.variants(k=[2])


# --- the gate


def test_with_all_experts_a_gated_network_answers_as_before(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    stage = experiment.nofe()
    plain, gated = experiment.model(stage), experiment.model(experiment.gate(stage))
    images = experiment.data.test.images
    with torch.inference_mode():
        expected = plain(images)
        assert torch.equal(gated(images), expected)
        assert torch.equal(gated.logits(images), expected)
        assert torch.allclose(gated.logits(images, 3), expected, atol=1e-5)


def test_few_experts_answer_for_their_classes_and_the_gate_for_the_others(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment()
    model = experiment.model(experiment.gate())
    nofe, images = model.network, experiment.data.test.images
    assert isinstance(nofe, NofE)
    of = torch.tensor(nofe.specialties.of)
    with torch.inference_mode():
        full, gate = model(images), ImageNetwork(model.preprocess, GateAlone(nofe))(images)
        for m in (1, 2):
            found = model.logits(images, m)
            best = torch.stack([gate[:, of == k].amax(1) for k in range(3)], dim=1)
            runs = (best.argsort(dim=1, descending=True).argsort(dim=1) < m)[:, of]
            assert torch.allclose(found[runs], full[runs], atol=1e-5)
            # what was run is as probable, all together, as the gate holds it to be
            together = [(each.softmax(1) * runs).sum(1) for each in (found, gate)]
            assert torch.allclose(*together, atol=1e-5)
            alone = torch.cat([model.logits(image[None], m) for image in images])
            assert torch.allclose(alone, found, atol=1e-4)


def test_the_curve_over_experts_is_what_predict_gives(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    curve = few_experts(experiment.runner, experiment.gate())
    model, test = experiment.model(experiment.gate()), experiment.data.test
    with torch.inference_mode():
        for m, accuracy in zip(curve["experts"], curve["top1"], strict=True):
            predicted = model.logits(test.images, int(m)).argmax(1)
            assert accuracy == pytest.approx((predicted == test.labels).float().mean().item())
    assert curve["found"].is_monotonic_increasing
    assert curve["found"].iloc[-1] == 1
    assert curve["macs"].iloc[-1] == curve["macs_all"].iloc[0] + curve["gate_macs"].iloc[0]
    assert curve["macs"].is_monotonic_increasing


def test_experts_that_are_not_there_are_refused(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    images = experiment.data.test.images[:2]
    with pytest.raises(InvalidInput, match=r"experts must be a whole number from 1 to 3; got 4"):
        experiment.model(experiment.gate()).logits(images, 4)
    with pytest.raises(InvalidInput, match=r"a network with a gate; this one has none"):
        experiment.model(experiment.nofe()).logits(images, 1)


def test_random_specialties_are_another_draw_than_the_one_that_learning_begins_with(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.generalist("random"))
    given = experiment.nofe("random").given
    assert given is not None
    assert given == experiment.nofe("random").given
    assert given != experiment.with_seed(1).nofe("random").given
    assert load_specialties(run).of != given.of


def test_the_superclasses_are_a_partition_with_their_names(tiny: Dataset) -> None:
    found = superclass_specialties(tiny)
    assert (found.of, found.names) == ((0, 0, 1, 1, 2, 2), ("red", "green", "blue"))


def test_the_command_names_what_differs_from_the_defaults_but_no_folder(
    tiny_experiment: Make,
) -> None:
    command = tiny_experiment(seed=5, dataset="parquet:$A/my set").command("03", results="a.csv")
    assert command == (
        "papermill notebooks/03.ipynb out.ipynb -p dataset 'parquet:$A/my set' -p K 3 -p epochs 1 "
        "-p batch_size 36 -p learning_rate 0.005 -p seed 5 -p results a.csv"
    )


def test_held_out_experiments_have_val_images(tiny_experiment: Make) -> None:
    paper = tiny_experiment(preset="paper")
    assert len(paper.data.val) == 0
    assert len(paper.held_out.data.val) == 12
    quick = tiny_experiment()
    assert quick.held_out is quick


# --- identity


def test_an_id_does_not_depend_on_folder_device_or_name(
    tiny: Dataset, tiny_experiment: Make, tmp_path: Path
) -> None:
    first = tiny_experiment().nofe().id
    renamed = replace(tiny, name="renamed")
    other = tiny_experiment(dataset=renamed, runs_dir=str(tmp_path / "other"), device="auto")
    assert other.nofe().id == first


def test_ids_stay_what_they_are() -> None:
    """Networks that were trained years ago are found again: never change what stands here."""
    images = (torch.arange(60 * 3 * 32 * 32) % 251).to(torch.uint8).reshape(60, 3, 32, 32)
    split = Resident(images, torch.arange(60) % 6)
    names, superclasses = tuple("abcdef"), (("x", "y"), (0, 0, 0, 1, 1, 1))
    data = Dataset("plain", names, split, split[:0], split[:12], *superclasses)
    plain = Experiment(data, K=3, batch_size=10, device="cpu")
    other = replace(
        plain,
        preset="paper",
        seed=1,
        trunk="base",
        specialties="confusion",
        rule="elastic",
        map_updates=2,
    )
    assert data.fingerprint == "702f6dd8432d6072"
    found = [
        [
            each.id
            for each in (e.base(), e.generalist(), e.nofe(), e.gate(), e.stage(Arm("control")))
        ]
        for e in (plain, other)
    ]
    assert found == [
        ["186cad19848a", "09e37bafee81", "89d3da10490c", "6d2ca9cced03", "2820f59fe4fe"],
        ["c2915fde7cf9", "66a815ad5098", "4c65d2bdfa09", "2f78d7b4be61", "30c49b6248a6"],
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"epochs": 2},
        {"batch_size": 18},
        {"learning_rate": 0.01},
        {"preset": "paper"},
        {"initialisation": "published"},
        {"val_fraction": 0.2},
    ],
    ids=name_of,
)
def test_every_stage_s_id_depends_on_what_all_stages_share(
    tiny_experiment: Make, change: dict[str, Any]
) -> None:
    first, other = tiny_experiment(), tiny_experiment(**change)
    assert first.base().id != other.base().id
    assert first.generalist().id != other.generalist().id
    assert first.nofe("random", "scratch").id != other.nofe("random", "scratch").id


@pytest.mark.parametrize(
    "change",
    [
        {"K": 2},
        {"rule": "greedy"},
        {"map_updates": 2},
        {"affinity": "counts"},
        {"affinity_images": 50},
        {"affinity_from": "training"},
        {"fine_head": True},
    ],
    ids=name_of,
)
def test_a_learned_nofe_s_id_depends_on_the_generalist_s(
    tiny_experiment: Make, change: dict[str, Any]
) -> None:
    first, other = tiny_experiment(), tiny_experiment(**change)
    assert first.generalist().id != other.generalist().id
    assert first.nofe().id != other.nofe().id
    assert first.base().id == other.base().id


@pytest.mark.parametrize(
    ("whole", "real"),
    [
        ({"rule": "elastic", "elastic_lambda": 5}, {"rule": "elastic", "elastic_lambda": 5.0}),
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
    ],
    ids=name_of,
)
def test_a_whole_number_and_its_float_ask_for_the_same_run(
    tiny_experiment: Make, whole: dict[str, Any], real: dict[str, Any]
) -> None:
    assert tiny_experiment(**whole).generalist().id == tiny_experiment(**real).generalist().id


def test_what_is_at_its_default_is_no_part_of_an_identity(tiny_experiment: Make) -> None:
    """So a later knob changes no id of the runs that were made without it."""
    assert tiny_experiment(fine_head=False).generalist().id == tiny_experiment().generalist().id
    first, other = tiny_experiment(), tiny_experiment(affinity_from="training")
    assert tiny_experiment(affinity_from="evaluation").generalist().id == first.generalist().id
    assert "affinity_from" not in first.generalist().identity["config"]
    assert other.generalist().identity["config"]["affinity_from"] == "training"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_makes_no_other_run_and_is_not_part_of_the_command(
    tiny_experiment: Make, precision: str
) -> None:
    first, other = tiny_experiment(), tiny_experiment(precision=precision)
    assert other.runner.machine.precision == precision
    for stage in ("base", "generalist", "nofe"):
        assert getattr(first, stage)().id == getattr(other, stage)().id
    assert "precision" not in json.dumps(other.nofe().identity)
    assert other.command("03") == first.command("03")


def test_a_knob_that_the_rule_does_not_read_makes_no_other_run(tiny_experiment: Make) -> None:
    first, other = tiny_experiment(), tiny_experiment(elastic_lambda=5)
    assert first.generalist().id == other.generalist().id


def test_a_generalist_with_a_fine_head_is_loaded_and_built_upon_as_any_other(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(fine_head=True, epochs=2)
    generalist, nofe = experiment.generalist(), experiment.nofe()
    made, _ = experiment.run(generalist, nofe)
    found = load(made.path)
    assert len(found.output_names) == 3
    images = experiment.data.test.sample(range(30))
    logits = experiment.model(generalist)(images)
    assert logits.shape == (30, 3)
    torch.testing.assert_close(found(images), logits)
    plain = tiny_experiment(epochs=2).generalist()
    assert (generalist.title, plain.title) == (
        "generalist (optimal, K = 3, fine head)",
        "generalist (optimal, K = 3)",
    )
    begun = nofe.untrained_network()
    nofe.start_from(made, begun)
    weights = begun.get_submodule("trunk").state_dict()
    kept = made.weights()
    assert all(torch.equal(t, kept[f"network.trunk.{name}"]) for name, t in weights.items())


def test_initialisation_is_that_of_every_new_network(tiny_experiment: Make) -> None:
    for scheme, preset in (("published", "quick"), ("kaiming", "paper"), ("fan_in", "quick")):
        made = tiny_experiment(initialisation=scheme, preset=preset, epochs=2)
        for stage in (made.base(), made.generalist(), made.nofe(), made.gate()):
            assert stage.config.network.initialisation == scheme
            assert stage.config.network.inputs == made.recipes.network.inputs


def test_a_comparison_with_random_specialties_needs_a_rule_that_learns(
    tiny_experiment: Make,
) -> None:
    with pytest.raises(InvalidInput, match="rule must learn"):
        tiny_experiment(rule="random").opponents()


def test_a_finished_run_does_not_ask_for_its_parents(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (generalist,) = experiment.run(experiment.generalist())
    (nofe,) = experiment.run(experiment.nofe())
    experiment.runner.store.remove(generalist.id)
    (again,) = experiment.run(experiment.nofe())
    assert again.path == nofe.path
    assert not generalist.path.exists()
    assert again.total_seconds == pytest.approx(nofe.seconds + generalist.seconds)


def test_specialties_from_a_file_are_known_by_their_content(
    tiny: Dataset, tiny_experiment: Make, tmp_path: Path
) -> None:
    partition = Specialties(tiny.class_names, (0, 1, 1, 2, 2, 2), 3)
    backwards = Specialties(tiny.class_names[::-1], partition.of[::-1], 3, ("x", "y", "z"))
    contents = {
        "one.json": partition,
        "copy.json": partition,
        "backwards.json": backwards,
        "other.json": Specialties(tiny.class_names, (0, 0, 1, 2, 2, 2), 3),
    }
    ids = []
    for name, content in contents.items():
        (tmp_path / name).write_text(content.to_json())
        ids.append(tiny_experiment(specialties=str(tmp_path / name)).nofe().id)
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert tiny_experiment().nofe(partition).id == ids[0]


# --- the chain


def weights_of(run: Run, part: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(part): tensor
        for name, tensor in run.weights().items()
        if name.startswith(part)
    }


def test_asking_for_a_nofe_trains_its_parents_first_and_once(
    tiny_experiment: Make, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment()
    base, nofe = experiment.run(experiment.base(), experiment.nofe())
    assert trained == ["flat", "generalist", "nofe"]
    parents = {"specialties": experiment.generalist().id, "trunk": experiment.generalist().id}
    assert nofe.identity["parents"] == parents
    assert base.identity["parents"] == {}
    announced = capsys.readouterr().out
    assert f"To train, on {experiment.runner.machine}:\n  base CNN" in announced
    assert "  generalist (optimal, K = 3)" in announced
    assert "  NofE (optimal specialties, K = 3; trunk: generalist (optimal))" in announced


def test_a_stage_that_is_asked_for_again_is_loaded(
    tiny_experiment: Make, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = tiny_experiment().run(tiny_experiment().base())
    capsys.readouterr()
    (second,) = tiny_experiment().run(tiny_experiment().base())
    assert trained == ["flat"]
    assert first.path == second.path
    assert capsys.readouterr().out.endswith(f": loaded {first.path.name}\n")


def test_a_nofe_that_is_asked_for_later_builds_on_the_finished_generalist(
    tiny_experiment: Make, trained: list[str]
) -> None:
    experiment = tiny_experiment()
    experiment.run(experiment.generalist())
    experiment.run(experiment.nofe())
    assert len(trained) == 2


def test_the_same_stage_twice_in_one_request_is_trained_once(
    tiny_experiment: Make, trained: list[str]
) -> None:
    runs = tiny_experiment().run(tiny_experiment().base(), tiny_experiment().base())
    assert len(trained) == 1
    assert runs[0].path == runs[1].path


def test_training_again_in_another_folder_gives_the_same_weights(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    runs = []
    for folder in ("a", "b"):
        experiment = tiny_experiment(runs_dir=str(tmp_path / folder))
        runs += experiment.run(experiment.nofe())
    first, second = (run.weights() for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nofe_begins_with_the_trunk_of_its_generalist_and_fresh_branches(
    tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment()
    (generalist,) = experiment.run(experiment.generalist())
    rows = [{"train_accuracy": 0.0}]
    monkeypatch.setattr(NofEStage, "fit", lambda *_, **__: rows)  # its weights stay as they begin
    (nofe,) = experiment.run(experiment.nofe())
    trunk, begun = weights_of(generalist, "network.trunk."), weights_of(nofe, "network.trunk.")
    fresh = experiment.generalist().network().trunk.state_dict()  # type: ignore[union-attr]
    assert trunk.keys() == begun.keys() == fresh.keys()
    for name in trunk:
        assert torch.equal(begun[name], trunk[name])
        assert not torch.equal(trunk[name], fresh[name])


def tensors_of(run: Run, prefix: str) -> dict[str, torch.Tensor]:
    """Those of a part of a run's network, by their names in it."""
    found = run.weights().items()
    return {name.removeprefix(prefix): t for name, t in found if name.startswith(prefix)}


def test_a_trunk_is_adopted_without_its_head(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (base,) = experiment.run(experiment.base("generalist"))
    stage = experiment.nofe("random", "base")
    model = stage.image_network(stage.network(), Machine.pick("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage.start_from(base, model.network)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if name.startswith("network.trunk.")}


def test_a_nofe_keeps_the_partition_that_its_generalist_learned(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    generalist, nofe = experiment.run(experiment.generalist(), experiment.nofe())
    assert load_specialties(nofe) == load_specialties(generalist)


def test_unequal_specialties_train(tiny: Dataset, tiny_experiment: Make, tmp_path: Path) -> None:
    file = tmp_path / "unequal.json"
    file.write_text(Specialties(tiny.class_names, (2, 1, 2, 0, 2, 1), 3).to_json())
    experiment = tiny_experiment(specialties=str(file), trunk="scratch")
    (run,) = experiment.run(experiment.nofe())
    outputs = [len(run.weights()[f"network.branches.{k}.fc2.bias"]) for k in range(3)]
    assert outputs == [1, 2, 3]
    model = load_model(experiment.nofe(), run)
    assert model(tiny.test.images[:4]).shape == (4, 6)


def test_a_loaded_model_reads_raw_images_and_says_what_the_trained_one_said(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment()
    stage = experiment.base()
    (run,) = experiment.run(stage)
    model = load_model(stage, run)
    assert not model.training
    assert predict(model, experiment.data.val).accuracy == pytest.approx(run.result["val_accuracy"])


def test_a_run_that_was_trained_in_another_precision_is_loaded_and_says_so(
    tiny: Dataset, tiny_experiment: Make, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    in_bf16, in_fp32 = (tiny_experiment(precision=precision) for precision in ("bf16", "fp32"))
    (run,) = in_bf16.run(in_bf16.nofe("random", "scratch"))
    assert run.provenance["precision"] == "bf16"
    assert "To train, on cpu in bf16:" in capsys.readouterr().out
    (same,) = in_bf16.run(in_bf16.nofe("random", "scratch"))
    assert "precision" not in capsys.readouterr().out
    (other,) = in_fp32.run(in_fp32.nofe("random", "scratch"))
    assert capsys.readouterr().out.endswith("(trained under precision bf16, now fp32)\n")
    assert trained == ["nofe"]
    assert run.path == same.path == other.path


def test_a_loaded_model_answers_in_fp32_unless_it_is_asked_for_another(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment(precision="bf16")
    stage = experiment.base()
    (run,) = experiment.run(stage)
    images = tiny.test.images[:8]
    model = load_model(stage, run)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        seen = model.preprocess(images)
        torch.testing.assert_close(model(images), model.network(seen), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model(images), experiment.model(stage)(images))
        rounded = load_model(stage, run, precision="bf16")(images)
    assert rounded.dtype == torch.float32
    difference = (rounded - model(images)).norm() / model(images).norm()
    assert 1e-4 < difference < 0.05


def test_a_stage_without_val_images_reports_its_training_accuracy(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(val_fraction=0)
    (run,) = experiment.run(experiment.base())
    assert set(run.result) == {"train_accuracy"}


def test_a_run_keeps_its_history_its_classes_and_what_it_was_asked(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment(epochs=2, map_updates=1)
    (run,) = experiment.run(experiment.generalist())
    assert run.history["epoch"].tolist() == [1, 2]
    assert json.loads(run.text("classes.json")) == list(tiny.class_names)
    assert run.about == {
        "title": "generalist (optimal, K = 3)",
        "dataset": "tiny",
        "backbone": "alexnet_quick",
        "K": 3,
        "epochs": 2,
        "seed": 0,
    }
    assert run.path.name == f"generalist-tiny-alexnet_quick-K3-s0-{run.id}"
    assert run.table("map_history")["update"].unique().tolist() == [0, 1]
    assert isinstance(experiment.generalist(), GeneralistStage)


def test_a_folder_of_parquet_files_names_its_runs_by_its_last_part(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    renamed = replace(tiny, name="parquet:$NOFE_DATA/my set")
    assert tiny_experiment(dataset=renamed).base().run_name == "flat-my_set-alexnet_quick-s0"


# --- final reports


def test_the_final_report_has_a_row_a_network_and_adds_up_its_parents_seconds(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    experiment = tiny_experiment()
    report = experiment.final_report({"base": experiment.base(), "NofE": experiment.nofe()})
    table = report.table.set_index("network")
    base, nofe = experiment.run(experiment.base(), experiment.nofe())
    (generalist,) = experiment.run(experiment.generalist())
    assert table.loc["base", "total_seconds"] == base.seconds
    assert table.loc["NofE", "total_seconds"] == pytest.approx(nofe.seconds + generalist.seconds)
    assert base.reports["test_accuracy"] == table.loc["base", "test_accuracy"]
    assert table.loc["base", "parameters"] == 151_428 - 94 * 65  # six classes, not a hundred
    assert report.predictions[1].accuracy == table.loc["NofE", "test_accuracy"]
    path = report.save(tmp_path / "results" / "tiny.csv", "papermill notebooks/03.ipynb")
    first, header, *rows = path.read_text().splitlines()
    assert first == "# papermill notebooks/03.ipynb"
    assert header.startswith("network,seed,kind,partition,rule,trunk,trunk_rule,")
    assert len(rows) == 2
    assert "145,318" in str(report).splitlines()[1]


def test_a_comparison_has_every_opponent_with_every_seed(
    tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def note(runner: object, networks: list[tuple[str, Stage]], split: str) -> None:
        assert split == "test"
        asked.extend((name, stage.seed) for name, stage in networks)

    monkeypatch.setattr("nofe_lab.stages.experiment.final_report", note)
    experiment = tiny_experiment(seed=4)
    experiment.comparison(experiment.seeds(2))
    assert asked == [(name, seed) for name in experiment.opponents() for seed in (4, 5)]


def test_scores_are_the_accuracies_on_val_of_every_arm_with_every_seed(
    tiny_experiment: Make,
) -> None:
    experiment = tiny_experiment(val_fraction=0.4)
    arms = [Arm("nofe", trunk="base"), Arm("base")]
    begun: list[str] = []
    found = experiment.scores(arms, (0, 1), lambda event: begun.append(getattr(event, "title", "")))
    assert found["network"].tolist() == [arm.name for arm in arms] * 2
    assert found["seed"].tolist() == [0, 0, 1, 1]
    (base,) = experiment.run(experiment.base())
    assert found["val_accuracy"][1] == base.history["val_accuracy"].iloc[-1]
    assert "base CNN" in begun
    with pytest.raises(InvalidInput, match="scores need val images; tiny has none"):
        tiny_experiment(val_fraction=0.0).scores(arms, (0,))


def test_specialties_that_collapsed_into_one_make_no_network_of_experts(
    tiny_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nofe_lab.stages.generalist.assign", lambda rule, affinity, current, **_: 0 * current
    )
    experiment = tiny_experiment(rule="free", epochs=2)
    with pytest.raises(InvalidInput, match="at least 2 specialties with classes; got 1"):
        experiment.run(experiment.nofe())


# --- what agrees with its own checksums, and is wrong all the same


def replace_file(run: Run, file: str, write: Callable[[Path], None]) -> None:
    """Change a file of a run as one who knows how the checksums are made."""
    write(run.path / file)
    record = json.loads((run.path / "run.json").read_text())
    status = {"bytes": (run.path / file).stat().st_size, "sha256": sha256(run.path / file)}
    record["files"][file] = status
    del record["digest"]
    record["digest"] = _digest(record)
    (run.path / "run.json").write_text(json.dumps(record))


def other_classes(found: Specialties) -> Specialties:
    return Specialties(("x", *found.class_names[1:]), found.of, found.K)


def other_order(found: Specialties) -> Specialties:
    return Specialties(found.class_names[::-1], found.of[::-1], found.K)


def other_K(found: Specialties) -> Specialties:
    return Specialties(found.class_names, tuple(k % 2 for k in found.of), 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_classes, "'x' not in the data set"),
        (other_order, "the order differs"),
        (other_K, "it has 2 specialties, not 3"),
    ],
)
def test_another_partition_of_the_generalist_is_refused_before_the_experts_are_trained(
    tiny_experiment: Make,
    change: Callable[[Specialties], Specialties],
    sentence: str,
    runs_dir: Path,
) -> None:
    """They were trained to the end and saved, and could never be loaded."""
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.generalist())
    text = change(load_specialties(run)).to_json()
    replace_file(run, "specialties.json", lambda path: path.write_text(text))
    with pytest.raises(InvalidInput, match=f"does not fit generalist .*{sentence}"):
        experiment.run(experiment.nofe())
    assert not list(runs_dir.glob("nofe-*"))


def to_int8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "network.head.fc.weight" if "network.head.fc.weight" in weights else sorted(weights)[0]
    return {**weights, name: weights[name].to(torch.int8)}


def to_other_mean(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "preprocess.mean": torch.zeros(3, 32, 32)}


def to_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "preprocess.mean": weights["preprocess.mean"] * float("nan")}


def without_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(weights.items())[1:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (to_int8, "is torch.int8 .* in the network torch.float32"),
        (to_other_mean, r"'preprocess.mean' is torch.float32 \[3, 32, 32\], in the network"),
        (to_nan, "'preprocess.mean' holds values that are not finite"),
        (without_one, "is missing, in the network"),
    ],
)
def test_weights_that_are_not_the_network_s_are_refused(
    tiny_experiment: Make, change: Callable[[Any], Any], sentence: str
) -> None:
    experiment = tiny_experiment()
    stage = experiment.base("generalist")
    (run,) = experiment.run(stage)
    changed = change(run.weights())
    replace_file(run, "weights.safetensors", lambda path: write_tensors(path, changed))
    with pytest.raises(InvalidInput, match=sentence):
        experiment.model(stage)
    with pytest.raises(InvalidInput, match=sentence):
        experiment.run(experiment.nofe("random", "base"))


# --- numbers as people write them


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"learning_rate": 10**400}, "learning_rate must be a number above 0; got 1000"),
        ({"seed": 10**5000}, "seed must be a whole number .*; got a number of thousands of digits"),
        ({"seed": 2**63}, "seed must be a whole number of at least 0, in 64 bits; got 9223372036"),
        ({"K": True}, "K must be a whole number of at least 2; got True"),
        ({"skip_unreadable": "yes"}, "skip_unreadable must be true or false; got 'yes'"),
        ({"groups": 3}, "groups must be text; got 3"),
        ({"image_size": []}, r"image_size must be a whole number from 1 to 1024; got \[\]"),
        ({"affinity_images": ""}, "affinity_images must be a whole number of at least 0; got ''"),
        ({"affinity_images": np.array([1, 2])}, "affinity_images must be a whole number"),
        ({"backbone": np.array([1, 2])}, "backbone must be a name, a torch module, or a function"),
        ({"elastic_lambda": 1e308}, "elastic_lambda must be a number from 0 to 1e.12; got 1e.308"),
        ({"epochs": 2**62}, "epochs must be a whole number from 1 to 1000000; got"),
        ({"seed": np.uint64(2**64 - 1)}, "seed must be a whole number of at least 0, in 64 bits"),
    ],
)
def test_strange_numbers_are_refused_in_a_sentence(
    tiny_experiment: Make, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        tiny_experiment(**parameters)


def test_numpy_s_numbers_are_numbers(tiny_experiment: Make) -> None:
    plain = tiny_experiment(K=3, seed=1, epochs=2, learning_rate=0.005)
    numpys = tiny_experiment(
        K=np.int64(3), seed=np.uint8(1), epochs=np.int32(2), learning_rate=np.float64(0.005)
    )
    assert plain.nofe().id == numpys.nofe().id
    controls = (Arm("control", experts=2), Arm("control", experts=np.int64(2)))  # type: ignore[arg-type]
    assert plain.stage(controls[0]).id == numpys.stage(controls[1]).id


def test_a_stage_of_one_step_says_what_it_lacks(tiny_experiment: Make) -> None:
    with pytest.raises(InvalidInput, match=r"epochs must be more, or batch_size smaller.*got 1"):
        tiny_experiment(batch_size=108).generalist()


# --- what is said of the code


def test_a_run_is_compared_by_the_library_s_code_and_not_by_the_repository_s_revision(
    tiny_experiment: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving a notebook, or committing a row, made every later load speak of another revision."""
    experiment = tiny_experiment()
    experiment.run(experiment.base())
    monkeypatch.setattr("nofe_lab.stages.runner.code_revision", lambda: "0123456-dirty")
    experiment.run(experiment.base())
    assert "trained under" not in capsys.readouterr().out
    monkeypatch.setattr("nofe_lab.stages.runner.code_digest", lambda: "another")
    experiment.run(experiment.base())
    assert "(trained under revision " in capsys.readouterr().out


def test_a_watcher_hears_of_what_is_loaded(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    experiment.run(experiment.base())
    heard: list[Event] = []
    experiment.run(experiment.base(), watch=heard.append)
    assert heard == [StageLoaded("base CNN")]


def test_the_run_of_another_stage_is_not_loaded(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.base())
    with pytest.raises(InvalidInput, match="is not that of base CNN, 1 epoch, seed 1, "):
        load_model(experiment.with_seed(1).base(), run)
    with pytest.raises(InvalidInput, match="device 'x' is unknown"):
        load_model(experiment.base(), run, "x")


def test_a_report_of_nothing_is_refused(tiny_experiment: Make) -> None:
    with pytest.raises(InvalidInput, match="at least 1 network"):
        tiny_experiment().final_report({})
    with pytest.raises(InvalidInput, match="at least 1 seed"):
        tiny_experiment().comparison([])


# --- slips in Python


def test_what_is_no_stage_is_not_run(tiny_experiment: Make) -> None:
    with pytest.raises(
        InvalidInput, match=r"runs stages, such as experiment\.nofe\(\); got 'base'"
    ):
        tiny_experiment().run("base")  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_training")
def test_a_report_without_test_images_is_refused_before_training(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment(dataset=replace(tiny, test=tiny.test[:0]))
    with pytest.raises(InvalidInput, match="a report needs test images; tiny has none"):
        experiment.final_report({"base": experiment.base()})


def test_a_data_set_is_prepared_once_for_all_seeds(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(val_fraction=0.1)
    assert experiment.with_seed(1).data is experiment.data
    with pytest.raises(InvalidInput, match=r"image_size is for .* files; got 64 for .* 'tiny'"):
        _ = tiny_experiment(image_size=64).data


def test_a_gate_is_trained_with_flips_where_every_stage_is(tiny_experiment: Make) -> None:
    assert tiny_experiment(flips=True).gate().recipe.flips
    assert not tiny_experiment().gate().recipe.flips


def test_val_images_of_a_data_set_s_own_are_kept_and_no_share_is_taken(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    own = tiny.with_val(0.2, 7)
    experiment = tiny_experiment(dataset=own, preset="paper")  # which sets no val aside
    assert experiment.data is own
    assert experiment.held_out is experiment
    assert tiny_experiment(dataset=own, val_fraction=0).data is own
    with pytest.raises(InvalidInput, match=r"val_fraction is for .*; got 0\.5 .* which has 24\."):
        _ = tiny_experiment(dataset=own, val_fraction=0.5).data
