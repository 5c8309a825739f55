"""What experts are for beside accuracy: added classes, one expert alone, twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from nofe_lab import Dataset, Experiment, InvalidInput
from nofe_lab.__main__ import main
from nofe_lab.evaluation import Predictions, oracle, predict
from nofe_lab.inference import Classifier
from nofe_lab.networks import NofE
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.specialties import Specialties, balanced_clusters
from nofe_lab.stages.flat import FlatStage
from nofe_lab.stages.nofe import NofEStage
from nofe_lab.study import tables
from nofe_lab.study.uses import (
    USES,
    added_classes,
    compare,
    masked,
    new_expert,
    new_rows,
    one_expert,
    reunited,
    teach,
    twins,
    with_twins,
)

Make = Callable[..., Experiment]

OLD = 4
"""Classes of `tiny` that are trained first."""


@pytest.fixture(params=["alexnet_quick", "alexnet_quick_bn"])
def old(request: pytest.FixtureRequest, tiny: Dataset, tiny_experiment: Make) -> Experiment:
    """An experiment on the old classes, of networks without and with batch normalisation."""
    of_old = tiny.with_classes(range(OLD))
    chosen = {"K": 2, "trunk": "base", "specialties": "balanced", "val_fraction": 0.0}
    return tiny_experiment(dataset=of_old, backbone=request.param, **chosen)


@pytest.fixture
def nofe(old: Experiment) -> tuple[NofEStage, Classifier]:
    return (stage := old.nofe()), old.model(stage)


@pytest.fixture
def base(old: Experiment) -> tuple[FlatStage, Classifier]:
    return (stage := old.base()), old.model(stage)


def copied(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_new_expert_leaves_every_other_bit_and_the_old_logits_as_they_are(
    tiny: Dataset, old: Experiment, nofe: tuple[NofEStage, Classifier]
) -> None:
    stage, model = nofe
    before = predict(model, tiny.test).logits
    addition = new_expert(stage, model, tiny.class_names)
    assert np.array_equal(predict(addition.model, tiny.test).logits[:, :OLD], before)
    weights = copied(addition.model)
    macs = teach(addition, tiny.train, stage, old.recipes.nofe)  # three steps
    changed = {
        name for name, now in addition.model.state_dict().items() if not now.equal(weights[name])
    }
    assert changed == {name for name in weights if name.startswith("network.branches.2.")}
    after = predict(addition.model, tiny.test).logits
    assert after.shape[1] == tiny.C
    assert np.array_equal(after[:, :OLD], before)
    network = addition.model.network
    assert isinstance(network, NofE)
    cost = network.macs(stage.backbone.input_shape)
    assert macs == 108 * (cost.trunk + sum(cost.branches) + 2 * cost.branches[2])


def test_new_rows_on_a_frozen_base_cnn_leave_every_other_bit_and_the_old_logits_as_they_are(
    tiny: Dataset, old: Experiment, base: tuple[FlatStage, Classifier]
) -> None:
    stage, model = base
    before = predict(model, tiny.test).logits
    addition = new_rows(stage, model, tiny.class_names, frozen=True)
    assert np.array_equal(predict(addition.model, tiny.test).logits[:, :OLD], before)
    weights = copied(addition.model)
    recipe = replace(old.recipes.nofe, weight_decay=0.1)  # which would shrink old rows
    teach(addition, tiny.train, stage, recipe)
    learning = {name for name, p in addition.model.named_parameters() if p.requires_grad}
    assert learning
    for name, now in addition.model.state_dict().items():
        if name in learning:
            assert now[:OLD].equal(weights[name][:OLD])
            assert not now[OLD:].equal(weights[name][OLD:])
        else:
            assert now.equal(weights[name])
    assert np.array_equal(predict(addition.model, tiny.test).logits[:, :OLD], before)


def test_finetuning_changes_all_layers_and_begins_with_the_old_logits(
    tiny: Dataset, old: Experiment, base: tuple[FlatStage, Classifier]
) -> None:
    stage, model = base
    addition = new_rows(stage, model, tiny.class_names, frozen=False)
    before = predict(model, tiny.test).logits
    assert np.array_equal(predict(addition.model, tiny.test).logits[:, :OLD], before)
    weights = copied(addition.model.network)
    of_new = tiny.train[tiny.train.labels >= OLD]
    macs = teach(addition, of_new, stage, old.recipes.nofe)
    assert all(not p.equal(weights[n]) for n, p in addition.model.network.named_parameters())
    assert macs == 36 * 3 * count_macs(addition.model.network, stage.backbone.input_shape)
    assert np.array_equal(predict(model, tiny.test).logits, before)  # the base CNN is another


def test_classes_are_added_in_every_way_and_the_draw_is_the_seeds(
    tiny_experiment: Make, tiny: Dataset
) -> None:
    experiment = tiny_experiment(K=2, trunk="base", specialties="balanced", val_fraction=0.0)
    found = pd.DataFrame(added_classes(experiment))
    assert list(found["network"]) == [
        *("new expert, all images", "new rows, all images", "new expert, new images"),
        *("new rows, new images", "finetuned base CNN, new images", tables.RETRAINED),
    ]
    only_new = found["network"].str.endswith("new images")
    assert set(found["images"][only_new]) == {40}
    assert set(found["images"][~only_new]) == {len(tiny.train)}
    shares = found[["old_before", "old", "new", "all"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert np.allclose(found["all"], (20 * found["old"] + 10 * found["new"]) / 30)
    assert found["training_macs"].idxmax() == len(found) - 1
    assert added_classes(experiment) == found.to_dict("records")  # stages loaded, additions again


def test_masked_answers_are_of_the_classes_alone() -> None:
    rng = np.random.default_rng(0)
    found = Predictions(rng.normal(size=(50, 6)).astype(np.float32), rng.integers(0, 6, 50))
    classes = (1, 2, 5)
    alone = masked(found, classes)
    own = np.isin(found.labels, classes)
    others = np.where(np.isin(np.arange(6), classes), found.logits[own], -np.inf)
    assert np.array_equal(np.array(classes)[alone.predicted], others.argmax(axis=1))
    assert np.array_equal(np.array(classes)[alone.labels], found.labels[own])


def test_an_expert_alone_answers_as_the_whole_network_masked_to_its_classes(
    tiny_experiment: Make, tiny: Dataset
) -> None:
    experiment = tiny_experiment(trunk="base", specialties="balanced", val_fraction=0.0)
    found = pd.DataFrame(one_expert(experiment))
    assert set(found["map"]) == {"learned", "balanced", "random"}
    for name, own in found.groupby("map"):
        model = experiment.model(experiment.nofe(str(name)))
        specialties = model.specialties
        assert specialties is not None
        for network, whole in (
            (tables.ALONE, model),
            (tables.MASKED, experiment.model(experiment.base("arithmetic"))),
        ):
            rows = own[own["network"] == network]
            assert tuple(rows["specialty"]) == specialties.nonempty
            right = np.average(rows["accuracy"], weights=rows["classes"])
            assert right == pytest.approx(
                oracle(predict(whole, tiny.test), specialties).within_specialty
            )
        network = model.network
        assert isinstance(network, NofE)
        alone = own[own["network"] == tables.ALONE].set_index("specialty")
        for k, branch in network.branches.items():
            parts = (network.trunk, network.shared, branch)
            assert alone.loc[int(k), "parameters"] == sum(map(count_parameters, parts))


def test_twins_are_halves_of_a_class(tiny: Dataset) -> None:
    found = with_twins(tiny, [1, 4], 0)
    names = tiny.class_names
    assert found.class_names == (*names, f"{names[1]}, twin", f"{names[4]}, twin")
    assert found.superclass_of == (*tiny.superclass_of, 0, 2)
    for split, whole in ((found.train, tiny.train), (found.test, tiny.test)):
        assert split.keys.equal(whole.keys)
        origin = torch.tensor([*range(6), 1, 4])[split.labels]
        assert origin.equal(whole.labels)
    counts = found.train.labels.bincount().tolist()
    assert counts == [20, 10, 20, 20, 10, 20, 10, 10]
    assert with_twins(tiny, [1, 4], 0).fingerprint == found.fingerprint
    assert with_twins(tiny, [1, 4], 1).fingerprint != found.fingerprint


def test_a_class_of_one_image_has_no_twin(tiny: Dataset) -> None:
    few = tiny.with_train_per_class(1, 0)
    with pytest.raises(InvalidInput, match="at least 2 training images; tiny has one of 1"):
        with_twins(few, [0], 0)


def test_twins_are_reunited_by_a_map_that_has_them_in_one_specialty() -> None:
    names = tuple("abcdABCD")
    together = Specialties(names, (0, 1, 2, 3, 0, 1, 2, 3), 4)
    assert reunited(together, [0, 1, 2, 3]) == 1
    assert reunited(replace(together, of=(0, 1, 2, 3, 1, 2, 3, 0)), [0, 1, 2, 3]) == 0
    assert reunited(replace(together, of=(0, 1, 2, 3, 0, 1, 3, 2)), [0, 1, 2, 3]) == 0.5
    twin = (np.arange(8) + 4) % 8
    confusion = 10 * np.eye(8, dtype=np.int64)
    confusion[np.arange(8), twin] = 9  # a CNN that can tell no twins apart
    assert reunited(balanced_clusters(confusion, names, 4), [0, 1, 2, 3]) == 1


def test_every_kind_of_map_is_asked_for_twins(tiny_experiment: Make) -> None:
    found = pd.DataFrame(twins(tiny_experiment(val_fraction=0.0))).set_index("map")
    assert list(found.index) == [
        *("learned, optimal", "learned, greedy", "balanced clusters of confusions"),
        *("clusters of features", "random"),
    ]
    assert set(found["twins"]) == {1}
    assert set(found["reunited"]) <= {0, 1}
    balanced = found.loc[["balanced clusters of confusions", "random"], "chance"]
    assert np.allclose(balanced, (3 * 2 + 2 * 1 + 2 * 1) / (7 * 6))


def test_the_command_writes_the_same_table_again(tmp_path: Path) -> None:
    words = ["dev", "uses", "twins", "--dataset", "glyphs:8:OQ0CGS", "--K", "2", "--epochs", "1"]
    words += ["--seeds", "2", "--device", "cpu"]
    found = []
    for name in ("once", "again"):
        also = ["--runs-dir", str(tmp_path / name), "--results", str(tmp_path / f"{name}.csv")]
        assert main([*words, *also]) == 0
        first, *lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        assert first.startswith("# nofe-lab dev uses twins --dataset glyphs:8:OQ0CGS")
        found.append(lines)
    assert found[0] == found[1]
    table = pd.read_csv(tmp_path / "once.csv", comment="#")
    assert list(table.groupby("seed").size()) == [5, 5]
    assert (
        table[["dataset", "backbone", "preset", "hardware", "precision", "torch", "revision"]]
        .notna()
        .all(axis=None)
    )


@pytest.mark.parametrize(
    ("use", "change", "sentence"),
    [
        ("twin", {}, r"use 'twin' is unknown \(did you mean 'twins'\?\)"),
        ("added_classes", {"classes": 4}, "at least 5 classes; tiny has 4"),
        ("one_expert", {"test": 0}, "one_expert needs test images; tiny has none"),
        ("added_classes", {"sparse": 1}, "experts without a gate.* got sparse=1"),
        ("one_expert", {"overlap": 2}, "experts that share no class; got overlap=2"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(
    use: str,
    change: dict[str, int],
    sentence: str,
    tiny: Dataset,
    tiny_experiment: Make,
    tmp_path: Path,
) -> None:
    data = tiny.with_classes(range(change["classes"])) if "classes" in change else tiny
    if "test" in change:
        data = replace(data, test=data.test[:0])
    knobs = {name: change[name] for name in ("sparse", "overlap") if name in change}
    experiment = tiny_experiment(dataset=data, K=2, val_fraction=0.0, trunk="base", **knobs)
    with pytest.raises(InvalidInput, match=sentence):
        compare(use, experiment, (0,), str(tmp_path / "table.csv"), "a command")
    assert not (tmp_path / "table.csv").exists()
    assert not experiment.runner.store.unfinished
    assert not experiment.runner.store.opened()[0]


def test_tables_show_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = (0, 1, 2)
    ways = {"new expert, all images": (0.5, 0.4, 10), tables.RETRAINED: (0.6, 0.6, 30)}
    costs = {tables.ALONE: (0.8, 1e6), tables.MASKED: (0.7, 2e6)}
    made_up = {
        "added_classes": [
            {
                "network": network,
                "seed": seed,
                **{"old_before": 0.7, "old": old, "new": new, "all": old + 0.01 * seed},
                **{"images": 5000, "training_macs": spent * 1e12},
            }
            for seed in seeds
            for network, (old, new, spent) in ways.items()
        ],
        "one_expert": [
            {
                **{"map": "learned", "seed": seed, "specialty": k, "network": network},
                **{"accuracy": accuracy + 0.1 * k, "parameters": size, "macs": 10 * size},
            }
            for seed in seeds
            for k in (0, 1)
            for network, (accuracy, size) in costs.items()
        ],
        "twins": [
            {"map": name, "seed": seed, "twins": 10, "reunited": share, "chance": 0.1}
            for seed in seeds
            for name, share in (("learned", 0.9), ("random", 0.1))
        ],
    }
    of = {"dataset": "cifar100", "backbone": "alexnet_quick", "preset": "quick"}
    monkeypatch.setattr(
        tables, "read_result", lambda name: pd.DataFrame(made_up[name]).assign(**of)
    )
    lines = {}
    for use in USES:
        table, about = tables.uses_table(use).split("\n\n")
        assert about == "alexnet_quick on cifar100, preset `quick`."
        lines[use] = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert all(len(row) == len(rows[0]) for rows in lines.values() for row in rows[:3])
    new = lines["added_classes"][2]
    assert new[:3] == ["new expert, all images", "3", "70.00 ± 0.00"]
    assert new[6:] == ["-10.00 [-10.00, -10.00] (0.00)", "10 T", "5,000"]
    (alone,) = lines["one_expert"][2:]
    assert alone[2:4] == ["85.00 ± 0.00", "75.00 ± 0.00"]
    assert alone[4].startswith("+10.00")
    assert alone[5:] == ["1.00 / 2.00", "10.0 / 20.0"]
    assert [row[2:] for row in lines["twins"][2:]] == [
        ["27 of 30", "90 [74, 97]", "10"],
        ["3 of 30", "10 [3, 26]", "10"],
    ]


def test_a_table_without_a_measurement_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "data_folder", lambda: Path("there is none"))
    assert {tables.uses_table(use) for use in USES} == {"Not measured yet."}
