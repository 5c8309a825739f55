"""The pilot of the test whether experts pay: candidates, rivals of equal arithmetic, its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nofe_lab import Experiment, InvalidInput, NofE
from nofe_lab.networks.counting import count_macs
from nofe_lab.stages import FlatStage, NofEStage
from nofe_lab.study import pays

Make = Callable[..., Experiment]

SMALL: dict[str, Any] = {
    **pays.CANDIDATES["late cut, narrow experts"],
    "sparse": 1,
    "preset": "quick",
    "trunk_epochs": 12,
    "epochs": 4,
}


@pytest.fixture
def small(tiny_experiment: Make) -> Experiment:
    given = {name: value for name, value in SMALL.items() if name not in ("dataset", "K")}
    return tiny_experiment(**given)


def test_candidates_are_experiments() -> None:
    known = {each.name for each in fields(Experiment) if each.init}
    for changes in pays.CANDIDATES.values():
        assert set(changes) <= known
        assert changes["trunk"] == "base"


@pytest.mark.parametrize("teacher", ["control", None])
def test_flat_rivals_have_the_arithmetic_of_the_experts_that_answer_and_their_gate(
    small: Experiment, teacher: str | None
) -> None:
    small = replace(small, teacher=teacher)
    found = pays.rivals(small)
    stage = small.stage(found["experts"])
    assert isinstance(stage, NofEStage)
    network = stage.untrained_network()
    assert isinstance(network, NofE)
    assert small.sparse is not None
    cost = network.macs(stage.backbone.input_shape)
    few = cost.trunk + cost.gate + small.sparse * sum(cost.branches) / len(cost.branches)
    spent = sum(each.training_macs for each in stage.lineage.values())
    for name in ("flat, taught", "flat"):
        flat = small.stage(found[name])
        assert isinstance(flat, FlatStage)
        own = count_macs(flat.untrained_network(), flat.backbone.input_shape)
        assert own == pytest.approx(few, rel=0.03)
        total = sum(each.training_macs for each in flat.lineage.values())
        assert abs(total - spent) <= flat.training_macs / flat.recipe.epochs
    assert not small.stage(found["flat"]).parents
    taught = small.stage(found["flat, taught"]).parents["teacher"]
    assert taught.id == stage.parents["trunk" if teacher is None else "teacher"].id
    random = small.stage(found["random experts"])
    assert random.parents["trunk"].id == stage.parents["trunk"].id
    assert random.recipe == stage.recipe


def test_the_pilot_measures_what_bears_on_the_choice_on_val(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(small, trunk_epochs=3, epochs=1)
    monkeypatch.setattr(pays, "CANDIDATES", {"one": {}})
    monkeypatch.setattr(pays, "Experiment", lambda **_: small)
    pays.pilot([], 0, None, str(tmp_path / "pilot.csv"), "the command")
    table = pd.read_csv(tmp_path / "pilot.csv", comment="#")
    assert list(table["network"]) == [*["experts"] * 3, "flat, taught", "flat"]
    assert list(table["experts"].dropna()) == [1, 2, 3]
    assert table["top1"].between(0, 1).all()
    experts = table[table["network"] == "experts"]
    assert experts["macs"].is_monotonic_increasing
    assert (experts["run"] == experts["run"].iloc[0]).all()
    assert (tmp_path / "pilot.csv").read_text().startswith("# the command")


def test_unknown_candidates_are_refused_before_any_training() -> None:
    with pytest.raises(InvalidInput, match="candidate 'none' is unknown; accepted: 'early cut'"):
        pays.pilot(["none"], 0, None, None, "")
    with pytest.raises(InvalidInput, match="of all candidates would become one of some"):
        pays.pilot(["late cut"], 0, None, None, "")
