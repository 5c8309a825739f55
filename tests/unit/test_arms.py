"""Arms of a comparison: what they are called, what is refused, what a result file keeps of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nofe_lab import Experiment, InvalidInput, Specialties
from nofe_lab.stages import Arm

HALVES = Specialties(tuple("abcd"), (0, 0, 1, 1), 2)

NAMES = {
    "base CNN": Arm("base"),
    "base CNN, both budgets": Arm("base", budget="total"),
    "base CNN, equal arithmetic": Arm("base", budget="arithmetic"),
    "flat control, both budgets, NofE recipe": Arm("control", budget="total", recipe="nofe"),
    "flat control, generalist": Arm("control", trunk="generalist"),
    "flat control, base trunk": Arm("control", trunk="base"),
    "small flat control, generalist": Arm("control", trunk="generalist", experts=3),
    "flat control of 2 experts": Arm("control", experts=2),
    "NofE learned, generalist": Arm("nofe"),
    "NofE learned, generalist, flips": Arm("nofe", changes='{"flips": true}'),
    "NofE random, learned generalist, fine_head": Arm("nofe", "random").with_changes(
        fine_head=True
    ),
    "NofE elastic, its generalist, elastic_lambda = 30": Arm("nofe", rule="elastic").with_changes(
        elastic_lambda=30.0
    ),
    "flat control, initialisation = kaiming": Arm("control").with_changes(initialisation="kaiming"),
    "NofE learned, generalist, epochs = 30": Arm("nofe", changes='{"epochs": 30}'),
    "NofE greedy, its generalist": Arm("nofe", rule="greedy"),
    "NofE random, its generalist": Arm("nofe", rule="random"),
    "NofE random, learned generalist": Arm("nofe", "random"),
    "NofE random, greedy generalist": Arm("nofe", "random", trunk_rule="greedy"),
    "NofE learned, random generalist": Arm("nofe", trunk_rule="random"),
    "NofE learned, base trunk": Arm("nofe", trunk="base"),
    "NofE random, scratch": Arm("nofe", "random", trunk="scratch"),
    "NofE confusion, learned generalist": Arm("nofe", "confusion"),
    "NofE by hand, learned generalist": Arm("nofe", HALVES),
    "NofE in pairs, learned generalist": Arm("nofe", "folder/pairs.json", label="in pairs"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_spells_its_name(name: str) -> None:
    assert NAMES[name].name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_result_file_says_which_arm_a_row_is(name: str) -> None:
    arm = NAMES[name]
    text = pd.DataFrame([arm.columns, Arm("base").columns]).to_csv(index=False)
    row = pd.read_csv(pd.io.common.StringIO(text)).iloc[0]
    if isinstance(arm.partition, Specialties):
        assert row["partition"] == "given"  # its content is in the run
        return
    again = Arm.of_columns(row)
    assert again.name == name
    assert again.columns == arm.columns


def test_two_ways_to_say_one_arm_make_one_value() -> None:
    assert Arm("nofe") == Arm("nofe", "learned", "optimal", "generalist", "optimal")
    assert Arm("nofe", "learned", "random") == Arm("nofe", "random", "random")
    spelled = (
        Arm("nofe", changes=text)
        for text in ('{"flips":true,"epochs":2}', '{"epochs": 2, "flips": true}')
    )
    assert len(set(spelled)) == 1
    elastic = Arm("nofe", rule="elastic")
    assert elastic.with_changes(elastic_lambda=30) == elastic.with_changes(elastic_lambda=30.0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "nof"}, "kind 'nof' is unknown (did you mean 'nofe'?)"),
        ({"kind": "control", "budget": "total", "trunk": "base"}, "budget 'total' is for a trunk"),
        (
            {"kind": "control", "budget": "arithmetic", "trunk": "generalist"},
            "budget 'arithmetic' is",
        ),
        (
            {"kind": "control", "budget": "generalist", "recipe": "nofe"},
            "has no budget 'generalist'",
        ),
        ({"kind": "control", "trunk": "base", "recipe": "nofe"}, "has no recipe; got 'nofe'"),
        ({"kind": "base", "trunk": "generalist"}, "a base CNN begins from scratch"),
        ({"kind": "base", "experts": 3}, "a base CNN from scratch has no experts; got 3"),
        ({"kind": "base", "partition": "learned"}, "has no partition; got 'learned'"),
        ({"kind": "nofe", "budget": "total"}, "has no budget; got 'total'"),
        ({"kind": "nofe", "partition": "confusion", "rule": "greedy"}, "has no rule; got 'greedy'"),
        ({"kind": "nofe", "partition": "random", "rule": "greedy"}, "is learned by no rule"),
        ({"kind": "nofe", "trunk": "base", "trunk_rule": "greedy"}, "has no trunk_rule"),
        ({"kind": "nofe", "partition": "confusions"}, "did you mean 'confusion'?"),
        ({"kind": "nofe", "label": "mine"}, "has no label; got 'mine'"),
        (
            {"kind": "nofe", "trunk": "scratch", "branch_start": "tail"},
            "needs a trunk that has been",
        ),
        ({"kind": "nofe", "changes": "{flips"}, "changes must be JSON"),
        ({"kind": "nofe", "changes": '{"flip": true}'}, "did you mean 'flips'?"),
        ({"kind": "nofe", "changes": '{"flips": "yes"}'}, "flips must be true or false"),
        ({"kind": "nofe", "changes": '{"fine_head": 2}'}, "fine_head must be true or false; got 2"),
        (
            {"kind": "control", "changes": '{"initialisation": "caiming"}'},
            "initialisation 'caiming' is unknown (did you mean 'kaiming'?)",
        ),
        ({"kind": "nofe", "changes": '{"elastic_lambda": null}'}, "elastic_lambda must be"),
        ({"kind": "nofe", "width": float("nan")}, "width must be"),
        ({"kind": "nofe", "width": 0}, "width must be a number above 0; got 0"),
        ({"kind": "control", "experts": 0}, "experts must be a whole number"),
    ],
)
def test_what_means_nothing_is_refused_when_an_arm_is_built(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        Arm(**fields)
    assert sentence in str(error.value)


def test_every_arm_of_a_comparison_is_the_stage_of_its_name(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment(K=4, preset="paper", branch_width=2.0)
    opponents = experiment.opponents()
    arms = experiment.arms()
    assert list(opponents) == [arm.name for arm in arms]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        assert experiment.stage(arm).id == opponents[arm.name].id
        assert opponents[arm.name].arm == arm
        json.dumps(arm.columns)


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        (Arm("base"), {"fine_head": True}),
        (Arm("nofe", "random", trunk="scratch"), {"fine_head": True}),
        (Arm("nofe"), {"elastic_lambda": 30}),
    ],
)
def test_a_change_that_no_generalist_of_an_arm_reads_is_refused(
    arm: Arm, change: dict[str, Any], tiny_experiment: Callable[..., Experiment]
) -> None:
    (name,) = change
    with pytest.raises(InvalidInput, match=f"has no generalist that {name} would change"):
        tiny_experiment().stage(arm.with_changes(**change))


def test_changes_of_an_arm_reach_its_generalist_and_its_weights(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment()
    elastic = experiment.stage(Arm("nofe", rule="elastic").with_changes(elastic_lambda=30))
    assert {stage.config.elastic_lambda for stage in elastic.parents.values()} == {30}  # type: ignore[attr-defined]
    both = experiment.stage(Arm("nofe", "random").with_changes(fine_head=True))
    assert both.parents["trunk"].id == tiny_experiment(fine_head=True).generalist().id
    changed = experiment.stage(Arm("control").with_changes(initialisation="published"))
    assert changed.config.network.initialisation == "published"
    assert changed.id != experiment.stage(Arm("control")).id


def test_two_arms_of_one_name_are_refused(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    with pytest.raises(InvalidInput, match="two arms of a comparison are called 'NofE learned"):
        tiny_experiment().possible([Arm("nofe"), Arm("nofe", width=2.0)])


def test_a_final_report_has_the_fields_of_its_arms(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment()
    table = experiment.final_report({"a": experiment.base(), "b": experiment.nofe("random")}).table
    assert list(table["kind"]) == ["base", "nofe"]
    assert list(table["partition"]) == ["", "random"]
    assert list(table["trunk_rule"]) == ["", "optimal"]


def test_an_arm_is_made_again_from_its_columns_with_and_without_a_file() -> None:
    for arm in (Arm("nofe", "random"), Arm("control", experts=2), Arm("base", budget="total")):
        assert Arm.of_columns(arm.columns) == arm
        older = {name: value for name, value in arm.columns.items() if name != "label"}
        assert Arm.of_columns(older) == arm


def test_a_partition_may_be_a_path() -> None:
    assert Arm("nofe", Path("mine.json")).partition == "mine.json"  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="partition must be text; got None"):
        Arm("nofe", None)  # type: ignore[arg-type]
