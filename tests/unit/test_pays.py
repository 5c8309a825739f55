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
from nofe_lab.statistics import MOST_SEEDS
from nofe_lab.study import pays, readme, tables
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


def swapped(table: pd.DataFrame) -> pd.DataFrame:
    """The same, where each flat network has the other's accuracy."""
    other = dict(zip(pays.FLAT, reversed(pays.FLAT), strict=True))
    return table.replace({"network": other})


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the table of a pilot of two candidates is looked for."""
    monkeypatch.setattr(pays, "PILOT", tmp_path / "pilot.csv")
    two = ("early cut", "late cut")
    monkeypatch.setattr(pays, "CANDIDATES", {name: pays.CANDIDATES[name] for name in two})
    return pays.PILOT


def test_the_candidate_furthest_ahead_of_the_better_flat_network_is_chosen(of_two: Path) -> None:
    with pytest.raises(InvalidInput, match="no configuration has been chosen; accepted: after"):
        pays.chosen_experiment(None)
    table = pilot_rows(late_cut=0.51, early_cut=(0.53, 0.51, 0.51))
    for either in (table, swapped(table)):
        assert dict(pays.leads(either)) == pytest.approx({"late cut": -0.01, "early cut": 0.01})
    table.to_csv(of_two)
    chosen = pays.chosen_experiment(str(of_two.parent))
    assert chosen.split == pays.CANDIDATES["early cut"]["split"]
    assert chosen.val_fraction == 0
    assert "early cut +1.00, late cut -1.00. Chosen: *early cut*." in tables.pilot_table()
    # a seed of the repeats chooses nothing
    assert pays.chosen(pilot_rows(late_cut=0.54, early_cut=(0.53, 0.60, 0.60))) == "late cut"


def test_nothing_is_chosen_from_a_table_that_is_not_complete() -> None:
    pilot = pilot_rows(**{name.replace(" ", "_"): 0.5 for name in pays.CANDIDATES})
    assert pays.chosen(pilot) in pays.CANDIDATES
    late = pilot["candidate"] == "late cut"
    of_flat = [late & (pilot["network"] == name) for name in pays.FLAT]
    for left_out in (late, *of_flat, late & (pilot["experts"] == 2)):
        with pytest.raises(InvalidInput, match=r"has early cut, .* complete; accepted: early"):
            pays.chosen(pilot[~left_out])


def test_the_pilots_deviation_says_how_many_new_seeds_are_tested(of_two: Path) -> None:
    assert list(pays.seeds_of_test()) == [1, 2, 3, 4, 5]  # before the pilot
    assert min(pays.REPEATS) > MOST_SEEDS
    for accuracies, least, most in (
        ((0.530, 0.531, 0.529), 5, 5),  # a deviation of .1 points
        ((0.530, 0.540, 0.520), 30, 40),  # of 1 point
    ):
        pilot_rows(late_cut=0.51, early_cut=accuracies).to_csv(of_two)
        assert least <= len(pays.seeds_of_test()) <= most
    assert "deviation of 1.00 over 3 seeds, so the test has " in tables.pilot_table()
    pilot_rows(late_cut=0.51, early_cut=(0.53, 0.9, 0.1)).to_csv(of_two)
    with pytest.raises(InvalidInput, match="asks for more seeds than 200"):
        pays.seeds_of_test()


def test_the_flat_network_beside_which_experts_differ_most_says_how_many() -> None:
    pilot = pilot_rows(**{name.replace(" ", "_"): (0.53, 0.53, 0.53) for name in pays.CANDIDATES})
    for name in pays.FLAT:
        other = pilot.copy()
        other.loc[(pilot["network"] == name) & (pilot["seed"] == pays.REPEATS[1]), "top1"] = 0.45
        assert pays.deviation(other).name == name
    for left_out in (pilot["seed"] == pays.REPEATS[0], pilot["network"] == "flat"):
        repeated = pilot["seed"].isin(pays.REPEATS)
        with pytest.raises(InvalidInput, match="must have the chosen candidate with the seeds 0, "):
            pays.deviation(pilot[~(left_out & repeated)])


def test_a_pilot_that_is_not_whole_leaves_the_other_studies_alone(of_two: Path) -> None:
    pilot_rows(late_cut=0.51).to_csv(of_two)
    folder = of_two.parent
    queue = Queue(None, folder / "study.csv", folder / "few.csv", str(folder))
    assert PAYS not in {study.name for study, _, _ in queue.missing()}


Results = dict[str, pd.DataFrame]


@pytest.fixture
def results(small: Experiment, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    """Makes the tables of a complete test whose experts are so far ahead of one flat network."""
    found = pays.rivals(replace(small, sparse=2))
    assert {name: pays.rival(arm) for name, arm in found.items()} == {name: name for name in found}

    def made(ahead: float, better: str = "flat") -> Results:
        top1 = dict.fromkeys(found, 0.5) | dict.fromkeys(pays.FLAT, 0.48) | {better: 0.5 - ahead}
        rows, few = [], []
        for seed in STUDIES[PAYS].seeds():
            for name, arm in found.items():
                row = {"study": PAYS, "arm": arm.name, "seed": seed, "total_training_macs": 1e14}
                value = top1[name] + seed / 1000 + (seed == 1) / 10000 * (name == better)
                rows.append(row | {"top1": value, "macs": 1e7} | arm.columns)
                if arm.kind == "nofe":
                    gate = {"gate_top1": 0.4, "macs_gate_alone": 1e6}
                    found_few = [{"experts": m, "top1": value, "macs": 1e7} for m in (1, 2, 9)]
                    few += [row | arm.columns | gate | each for each in found_few]
        tests = {"study": pd.DataFrame(rows), "study_conditional": pd.DataFrame(few)}
        monkeypatch.setattr(tables, "read_result", tests.__getitem__)
        return tests

    return made


@pytest.mark.parametrize("better", pays.FLAT)
@pytest.mark.parametrize(
    ("ahead", "word"),
    [
        (0.01, "better"),
        (0.003, "ahead by less than half a point"),
        (0.0, "not told apart"),
        (-0.01, "worse"),
    ],
)
def test_the_verdict_is_beside_the_better_flat_network(
    results: Callable[..., Results], ahead: float, word: str, better: str
) -> None:
    results(ahead, better)
    said = tables.pays_table()
    assert f"Experts beside flat networks: *{word}* (" in said
    assert f"The test is {'' if word == 'better' else 'not '}passed." in said
    (other,) = set(pays.FLAT) - {better}
    assert f"minus *{other}* +2.00" in said
    assert "the gate and one expert for an image: +0.00" in said
    assert "9 for an image" not in said
    assert "data/figures/pays.png" in said


def test_the_figure_shows_experts_and_flat_networks(results: Callable[..., Results]) -> None:
    found = results(0.01)
    figure = readme.pays_figure()
    assert figure is not None
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["experts", "random experts", "the gate alone", "flat, taught", "flat"]
    found["study"] = found["study"].query("partition == 'random'")
    assert readme.pays_figure() is None
    assert tables.pays_table() == tables.NOT_YET


def test_there_is_no_verdict_before_every_seed_has_every_network(
    results: Callable[..., Results],
) -> None:
    found = results(0.01)
    whole = found["study"]
    found["study"] = whole[(whole["arm"] != whole["arm"].iloc[-1]) | (whole["seed"] < 3)]
    said = tables.pays_table()
    n = len(STUDIES[PAYS].seeds())
    assert f"Experts beside flat networks: 2 of {n} seeds so far." in said
    assert "one expert for an image: +0.00" in said  # which is complete
    random = whole["partition"] == "random"
    found["study"] = whole[(whole["seed"] < 3) == random]  # they share no seed
    said = tables.pays_table()
    assert f"Clusters of confusions beside random specialties: 0 of {n} seeds so far." in said
    assert "better" not in said
    found["study"] = whole.head(0)
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
