"""The study's queue: what is missing is made, the most telling first, and nothing is made twice."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nofe_lab import Experiment, InvalidInput, Specialties
from nofe_lab.__main__ import main
from nofe_lab.stages import Arm
from nofe_lab.study import paper_rows
from nofe_lab.study.questions import (
    BASE,
    FEW,
    GATED,
    GREEDY,
    LAST,
    LEARNED,
    OTHERS,
    PAIRS,
    PRIMARY,
    RANDOM,
    SECONDARY,
    STUDIES,
    SUPERCLASS_PAIRS,
    TERTIARY,
    Study,
)
from nofe_lab.study.queue import Queue, read
from nofe_lab.training.tasks import TrainingDiverged

ARMS = (BASE, RANDOM, LEARNED)


@pytest.fixture
def queue(
    tiny_experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Queue]:
    """Makes the queue of a toy study, as a new process would."""
    study = Study("toy", lambda _: tiny_experiment(), 2, ARMS, (ARMS[:1] + ARMS[2:], OTHERS))
    monkeypatch.setattr("nofe_lab.study.queue.STUDIES", {"toy": study})
    return lambda: Queue(None, tmp_path / "study.csv", tmp_path / "conditional.csv")


def test_rows_come_in_the_order_of_the_queue_and_once(queue: Callable[[], Queue]) -> None:
    expected = [
        (BASE, 0),
        (LEARNED, 0),
        (BASE, 1),
        (LEARNED, 1),
        (RANDOM, 0),
        (RANDOM, 1),
    ]
    assert [row[1:] for row in queue().missing()] == expected
    for count in range(len(expected)):
        assert [row[1:] for row in queue().missing()] == expected[count:]
        assert queue().work()
    assert not queue().work()
    table = queue().table
    assert [(Arm.of_columns(row), row["seed"]) for _, row in table.iterrows()] == expected
    assert list(table["arm"]) == [arm.name for arm, _ in expected]


def test_arms_that_only_explain_others_wait_for_every_seed_of_those() -> None:
    study = next(iter(STUDIES.values()))
    rows = study.rows([*LAST, GREEDY, *SECONDARY, *PRIMARY])
    seeds = range(study.seeds)
    tiers = (PRIMARY, SECONDARY, (GREEDY,), LAST)  # in the order of the lists, not as given
    assert rows == [(arm, seed) for tier in tiers for seed in seeds for arm in tier]


def test_every_arm_is_an_opponent(tiny_experiment: Callable[..., Experiment]) -> None:
    arms = tiny_experiment(K=4, preset="paper", rule="optimal").arms()
    known = {arm.name for arm in (*arms, SUPERCLASS_PAIRS)}
    assert {arm.name for arm in (*PRIMARY, *SECONDARY, *TERTIARY, *LAST, *GATED, *FEW)} <= known


def test_a_row_holds_what_was_measured(
    queue: Callable[[], Queue], tiny_experiment: Callable[..., Experiment]
) -> None:
    for _ in range(2):
        queue().work()
    made = queue()
    base, nofe = (row for _, row in made.table.iterrows())
    experiment = tiny_experiment()
    report = experiment.final_report({"a": experiment.base(), "b": experiment.nofe()})
    assert [base["top1"], nofe["top1"]] == pytest.approx(list(report.table["test_accuracy"]))
    assert list(report.table["run"]) == [base["run"], nofe["run"]]
    assert pd.isna(base["map"])
    assert len(nofe["map"].split()) == 6
    assert nofe["total_seconds"] > nofe["seconds"]
    curve = made.curves
    assert list(curve["experts"]) == [1, 2, 3]
    assert set(curve["arm"]) == {LEARNED.name}
    assert set(curve["partition"]) == {"learned"}
    assert curve["top1"].iloc[-1] == pytest.approx(nofe["top1"])
    assert (curve.filter(like="ms_") > 0).all().all()
    assert len(curve.filter(like="ms_").columns) == 6


def test_the_command_line_makes_rows_lists_what_is_missing_and_commits(
    queue: Callable[[], Queue], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init")
    git("config", "user.name", "a")
    git("config", "user.email", "a@example.org")
    (tmp_path / "other").write_text("not the study's business")
    git("add", "other")
    tables = ["--results", str(tmp_path / "study.csv")]
    tables += ["--conditional", str(tmp_path / "conditional.csv")]
    assert main(["dev", "study", "--rows", "2", "--commit", *tables]) == 0
    assert main(["dev", "study", "--list", *tables]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-5:] == [
        "toy: base CNN, seed 1",
        "toy: NofE learned, generalist, seed 1",
        "toy: NofE random, learned generalist, seed 0",
        "toy: NofE random, learned generalist, seed 1",
        "4 rows missing",
    ]
    assert git("log", "--format=%s").splitlines() == [
        "Study: NofE learned, generalist, seed 0",
        "Study: base CNN, seed 0",
    ]
    assert git("ls-files", "--", "study.csv", "conditional.csv").split() == [
        "conditional.csv",
        "study.csv",
    ]
    assert "A  other" in git("status", "--short")  # still only staged


@pytest.mark.usefixtures("queue")
def test_one_row_can_be_made_again_in_another_table(tmp_path: Path) -> None:
    path = tmp_path / "again.csv"
    tables = ["--results", str(path), "--conditional", str(tmp_path / "few.csv")]
    assert main(["dev", "study", "--arm", "base CNN", "--seed", "1", "--rows", "5", *tables]) == 0
    (row,) = read(path, ("arm", "seed", "data")).itertuples()
    assert (row.arm, row.seed) == ("base CNN", 1)


@pytest.mark.usefixtures("queue")
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--arm", "base", "arm 'base' is unknown (did you mean 'base CNN'?); accepted: 'base CNN'"),
        ("--seed", "2", "seed must be a whole number from 0 to 1; got 2"),
    ],
)
def test_a_row_that_is_not_of_the_study_is_refused(
    option: str, value: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = ["--results", str(tmp_path / "a.csv"), "--conditional", str(tmp_path / "b.csv")]
    assert main(["dev", "study", option, value, *tables]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\0"])
def test_a_file_that_is_no_table_of_a_study_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InvalidInput, match="accepted: a table of `make study`"):
        read(tmp_path / "a.csv", ("study", "arm"))


def test_an_unknown_study_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dev", "study", "--study", "imagenet"]) == 2
    assert "study 'imagenet' is unknown" in capsys.readouterr().err


def test_a_row_that_is_made_again_takes_its_old_place(queue: Callable[[], Queue]) -> None:
    for _ in range(2):
        queue().work()
    first = queue()
    again = first.table[first.table["arm"] != LEARNED.name]
    again.to_csv(first.results, index=False)  # its curve is still there
    queue().work()
    assert list(queue().curves["experts"]) == [1, 2, 3]
    assert len(queue().table) == 2


def test_a_row_that_diverges_is_passed_by(
    queue: Callable[[], Queue], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*_: object) -> None:
        raise TrainingDiverged("training has diverged.")

    made = queue()
    with monkeypatch.context() as patch:
        patch.setattr("nofe_lab.study.queue.measure", diverge)
        assert made.work()
        made.commit()  # nothing, and that is no error
    assert "base CNN, seed 0: no row (training has diverged.)" in capsys.readouterr().out
    assert next(made.missing())[1:] == (LEARNED, 0)


def test_published_rows_are_beside_those_of_their_own_study_alone(tmp_path: Path) -> None:
    first, *_, other = STUDIES
    rows = [
        {"study": name, "arm": arm, "seed": seed, "backbone": "alexnet_quick", "preset": "paper",
         "rule": "greedy", "top1": top1, "epochs": 10, "total_epochs": 18}
        for name, arm, seed, top1 in (
            (first, "base CNN", 0, 0.4),
            (first, "NofE greedy, its generalist", 0, 0.5),
            (first, "NofE greedy, its generalist", 1, 0.6),
            (other, "NofE greedy, its generalist", 0, 0.1),
            (other, "base CNN", 0, 0.1),
        )
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "study.csv", index=False)
    found = paper_rows(tmp_path).set_index("network")
    row = found.loc["alexnet_quick"]
    assert (row["base"], row["nofe"], row["seeds"]) == (40, pytest.approx(55), 1)
    assert (row["epochs"], row["published_epochs"]) == ("8 + 10", "8 + 10")
    assert found.loc["vgg11_c100", "source"] == ""


def test_published_rows_say_what_was_asked_for_here() -> None:
    found = paper_rows().set_index("network")["recipe"]
    assert found["alexnet_quick"] == "paper, greedy"
    assert found["alexnet_c100"] == "paper, greedy"
    assert found["vgg11_c100"] == "quick, optimal, 40 images a class"
    assert found["alexnet_imagenet"] == ""


def test_the_superclasses_in_pairs_are_ten_tens() -> None:
    pairs = Specialties.from_json(PAIRS.read_text(encoding="utf-8"))
    assert pairs.sizes == (10,) * 10


def test_the_studies_can_be_planned_without_their_data(tmp_path: Path) -> None:
    for study in STUDIES.values():
        assert study.make(str(tmp_path)).recipes.nofe.epochs > 1
