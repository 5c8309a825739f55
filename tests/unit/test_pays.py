"""The pilot of the test whether experts pay: candidates, rivals of equal arithmetic, its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nofe_lab import Experiment, InvalidInput, NofE
from nofe_lab.networks.counting import count_macs
from nofe_lab.stages import FlatStage, NofEStage
from nofe_lab.study import pays, tables
from nofe_lab.study.questions import PAYS, STUDIES
from nofe_lab.study.queue import Queue, measure

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
    monkeypatch.setattr(pays, "CANDIDATES", {"one": {"sparse": small.sparse}})
    monkeypatch.setattr(pays, "Experiment", lambda seed, **_: replace(small, seed=seed))
    pays.pilot([], 0, None, str(tmp_path / "pilot.csv"), "the command")
    whole = pd.read_csv(tmp_path / "pilot.csv", comment="#")
    assert list(dict.fromkeys(whole["seed"])) == [pays.CHOOSING, *pays.REPEATS]
    assert whole["top1"].between(0, 1).all()
    table = whole[whole["seed"] == pays.CHOOSING]
    assert list(table["network"]) == [*["experts"] * 3, "flat, taught", "flat"]
    assert list(table["experts"].dropna()) == [1, 2, 3]
    experts = table[table["network"] == "experts"]
    assert experts["macs"].is_monotonic_increasing
    assert (experts["run"] == experts["run"].iloc[0]).all()
    assert (tmp_path / "pilot.csv").read_text().startswith("# the command")


def test_unknown_candidates_are_refused_before_any_training() -> None:
    with pytest.raises(InvalidInput, match="candidate 'none' is unknown; accepted: 'early cut'"):
        pays.pilot(["none"], 0, None, None, "")
    for part, seed in ((["late cut"], 0), ([], 1)):
        with pytest.raises(InvalidInput, match="whole pilot would become one of a part"):
            pays.pilot(part, seed, None, None, "")


def pilot_rows(**experts: float | tuple[float, ...]) -> pd.DataFrame:
    """A pilot's table: accuracy with two experts by candidate, beside flat ones of .5 and .52.

    More than one accuracy: of the seed that chooses and of others.
    """
    rows = []
    for name, accuracies in experts.items():
        of_seeds = zip((pays.CHOOSING, *pays.REPEATS), np.atleast_1d(accuracies), strict=False)
        for seed, top1 in of_seeds:
            own = (name.replace("_", " "), seed)
            rows += [(*own, "experts", 1, 0.9), (*own, "experts", 2, float(top1))]
            rows += [(*own, "flat, taught", None, 0.5), (*own, "flat", None, 0.52)]
    table = pd.DataFrame(rows, columns=["candidate", "seed", "network", "experts", "top1"])
    return table.assign(macs=1e7, total_training_macs=1e14)


def test_the_candidate_furthest_ahead_of_the_better_flat_network_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pays, "PILOT", tmp_path / "pilot.csv")
    with pytest.raises(InvalidInput, match="no configuration has been chosen; accepted: after"):
        pays.chosen_experiment(None)
    table = pilot_rows(late_cut=0.51, early_cut=0.53)
    assert dict(pays.leads(table)) == pytest.approx(
        {("late cut", 0): -0.01, ("early cut", 0): 0.01}
    )
    table.to_csv(tmp_path / "pilot.csv")
    chosen = STUDIES[PAYS].make(str(tmp_path))
    assert chosen.split == pays.CANDIDATES["early cut"]["split"]
    assert chosen.val_fraction == 0
    monkeypatch.setattr(tables, "PILOT", tmp_path / "pilot.csv")
    assert "late cut -1.00, early cut +1.00. Chosen: *early cut*." in tables.pilot_table()


def test_the_pilots_deviation_says_how_many_new_seeds_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pays, "PILOT", tmp_path / "pilot.csv")
    monkeypatch.setattr(tables, "PILOT", tmp_path / "pilot.csv")
    assert not {pays.CHOOSING, *pays.REPEATS} & set(STUDIES[PAYS].seeds)
    assert list(pays.seeds_of_test()) == [1, 2, 3, 4, 5]  # before the pilot
    for accuracies, least, most in (
        (0.53, 5, 5),
        ((0.530, 0.531, 0.529), 5, 5),  # a deviation of .1 points
        ((0.530, 0.540, 0.520), 30, 40),  # of 1 point, for a lead of .5: Student's t, by its power
    ):
        pilot_rows(late_cut=0.51, early_cut=accuracies).to_csv(tmp_path / "pilot.csv")
        assert least <= len(pays.seeds_of_test()) <= most
    # a seed of the repeats chooses nothing
    pilot_rows(late_cut=0.54, early_cut=(0.53, 0.60, 0.60)).to_csv(tmp_path / "pilot.csv")
    assert pays.chosen(pd.read_csv(tmp_path / "pilot.csv")) == "late cut"
    pilot_rows(early_cut=(0.530, 0.531, 0.529)).to_csv(tmp_path / "pilot.csv")
    assert "standard deviation of 0.10, which asks for 5 seeds" in tables.pilot_table()


@pytest.mark.parametrize(("ahead", "word"), [(0.01, "better"), (0.003, "not"), (-0.01, "worse")])
def test_the_verdict_is_beside_the_better_flat_network(
    small: Experiment, ahead: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pays.rivals(replace(small, sparse=2))
    assert {name: pays.rival(arm) for name, arm in found.items()} == {name: name for name in found}
    top1 = dict(zip(found, (0.5, 0.5, 0.48, 0.5 - ahead), strict=True))
    rows, few = [], []
    for seed in (1, 2, 3):
        for name, arm in found.items():
            row = {"study": PAYS, "arm": arm.name, "seed": seed, "total_training_macs": 1e14}
            value = top1[name] + seed / 1000 + (seed == 1) / 10000 * (name == "flat")
            rows.append(row | {"top1": value, "macs": 1e7} | arm.columns)
            if arm.kind == "nofe":
                few += [row | {"experts": m, "top1": value, "macs": 1e7} for m in (1, 2, 9)]
    results = {"study": pd.DataFrame(rows), "study_conditional": pd.DataFrame(few)}
    monkeypatch.setattr(tables, "read_result", results.__getitem__)
    said = tables.pays_table()
    assert f"flat networks of equal arithmetic: *{word}" in said
    assert "beside the taught one better" in said
    assert "one expert for an image: +0.00" in said
    assert "9 for an image" not in said
    results["study"] = results["study"].query("kind == 'nofe'")
    assert "equal arithmetic" not in tables.pays_table()  # while rows are missing
    results["study"] = results["study"].head(0)
    assert tables.pays_table() == tables.NOT_YET


def test_a_row_of_experts_that_learned_with_a_gate_has_its_curve(small: Experiment) -> None:
    small = replace(small, trunk_epochs=3, epochs=1)
    arm = pays.rivals(small)["experts"]
    row, curve, answers = measure(small, arm)
    assert curve is not None
    usual = curve[curve["experts"] == small.sparse].iloc[0]
    assert usual["top1"] == pytest.approx(row["top1"])
    assert {1, 2} <= {each for each in answers if each is not None}


def test_the_queue_leaves_the_test_out_before_the_pilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pays, "PILOT", tmp_path / "pilot.csv")
    queue = Queue([PAYS], tmp_path / "study.csv", tmp_path / "few.csv", str(tmp_path), seed=1)
    assert list(queue.missing()) == []
    with pytest.raises(InvalidInput, match="seed must be"):
        Queue([PAYS], tmp_path / "study.csv", tmp_path / "few.csv", seed=0)
