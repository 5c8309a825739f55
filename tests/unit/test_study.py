"""The study's queue: what is missing is made, the most telling first, and nothing is made twice."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nofe_lab import Experiment, InvalidInput, Specialties
from nofe_lab.__main__ import main
from nofe_lab.evaluation import Predictions, coverage_table
from nofe_lab.files import UnreadableFile
from nofe_lab.stages import Arm
from nofe_lab.statistics import paired_interval_over_seeds
from nofe_lab.study import paper_rows, tables
from nofe_lab.study.answers import (
    TopAnswers,
    answers_folder,
    difference,
    ensemble,
    read_answers,
    write_answers,
)
from nofe_lab.study.questions import (
    BALANCED_BASE_TRUNK,
    BASE,
    ELASTIC_MOVES,
    FEW,
    FEW_QUESTIONS,
    FLIPS,
    FOLLOW_UPS,
    GATED,
    GREEDY,
    LAST,
    LEARNED,
    OTHERS,
    OWN_RANDOM,
    PAIRS,
    PAYS,
    PRIMARY,
    QUESTIONS,
    RANDOM,
    SECONDARY,
    SHARED,
    STUDIES,
    SUPERCLASS_PAIRS,
    TERTIARY,
    TREENET_BASE_TRUNK,
    Study,
    arms_of,
)
from nofe_lab.study.queue import Queue, read
from nofe_lab.training.tasks import TrainingDiverged

ARMS = (BASE, RANDOM, LEARNED)


@pytest.fixture
def queue(
    tiny_experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Queue]:
    """Makes the queue of a toy study, as a new process would."""
    study = Study(
        "toy",
        lambda _: tiny_experiment(),
        partial(range, 2),
        lambda _: ARMS,
        (ARMS[:1] + ARMS[2:], OTHERS),
    )
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


@pytest.mark.slow
def test_the_queue_trains_in_a_sweep_and_makes_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(runs_dir: str | None) -> Experiment:
        small = {"K": 3, "epochs": 1, "batch_size": 60, "device": "cpu", "val_fraction": 0.0}
        return Experiment("lookalikes", runs_dir=runs_dir, **small)

    diverging = Arm("base", budget="generalist", changes='{"learning_rate": 1e9}')
    arms = (BASE, LEARNED, diverging)
    study = Study("toy", make, partial(range, 2), lambda _: arms, (arms,))
    monkeypatch.setattr("nofe_lab.study.queue.STUDIES", {"toy": study})

    def queue(name: str) -> Queue:
        place = tmp_path / name
        return Queue(None, place / "s.csv", place / "c.csv", str(place / "runs"))

    made = queue("swept")
    made.run(3, workers=2)
    assert len(queue("swept").table) == 2  # one of three diverges
    assert [row[1:] for row in made.missing()] == [(BASE, 1), (LEARNED, 1), (diverging, 1)]
    queue("swept").run(6, workers=2)
    queue("alone").run(6)
    drop = ["seconds", "total_seconds", "threads"]
    swept, alone = (
        queue(name).table.drop(columns=drop).sort_values(["seed", "arm"], ignore_index=True)
        for name in ("swept", "alone")
    )
    assert len(swept) == 4
    same = ["arm", "seed", "data", "run", "parameters", "macs"]
    assert swept[same].equals(alone[same])


def test_arms_that_only_explain_others_wait_for_every_seed_of_those() -> None:
    study = next(iter(STUDIES.values()))
    rows = study.rows([*SHARED, *FOLLOW_UPS, *LAST, GREEDY, *SECONDARY, *PRIMARY])
    tiers = (
        PRIMARY,
        SECONDARY,
        (GREEDY,),
        LAST,
        FOLLOW_UPS,
        SHARED,
    )  # in the order of the lists, not as given
    assert rows == [(arm, seed) for tier in tiers for seed in study.seeds() for arm in tier]


def test_every_arm_is_an_opponent(tiny_experiment: Callable[..., Experiment]) -> None:
    experiment = tiny_experiment(K=4, preset="paper", rule="optimal", epochs=2)
    admitted = experiment.possible(arms_of(experiment)).keys()
    known = admitted | {SUPERCLASS_PAIRS.name, TREENET_BASE_TRUNK.name}  # of other K
    arms = (*PRIMARY, *SECONDARY, *TERTIARY, *LAST, *FOLLOW_UPS, *GATED, *FEW)
    asked = (arm for pair in (*QUESTIONS, *FEW_QUESTIONS) for arm in pair if isinstance(arm, Arm))
    assert {arm.name for arm in (*arms, *asked)} <= known


def test_the_table_of_agreement_has_each_map_that_is_an_arm_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms = (LEARNED, FLIPS, OWN_RANDOM, ELASTIC_MOVES, BALANCED_BASE_TRUNK)
    rows = [
        {"arm": arm.name, "seed": seed, "map": of, **arm.columns}
        for arm in arms
        for seed, of in enumerate(("0 0 1 1", "0 1 0 1"))
    ]
    made_up = pd.read_csv(pd.io.common.StringIO(pd.DataFrame(rows).to_csv(index=False)))
    monkeypatch.setattr(tables, "quick", lambda: made_up)
    shown = [line.split(" | ")[0].strip("| ") for line in tables.agreement_table().splitlines()[2:]]
    assert shown == [LEARNED.name, ELASTIC_MOVES.name, BALANCED_BASE_TRUNK.name]


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


def repository(folder: Path) -> Callable[..., str]:
    """A new git repository: calls git there, and returns what it prints."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init")
    git("config", "user.name", "a")
    git("config", "user.email", "a@example.org")
    return git


def test_the_command_line_makes_rows_lists_what_is_missing_and_commits(
    queue: Callable[[], Queue], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git = repository(tmp_path)
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
    answers = sorted(
        f"study_answers/{path.name}" for path in (tmp_path / "study_answers").iterdir()
    )
    assert len(answers) == 3  # of two rows, and their images' labels
    committed = git("ls-tree", "-r", "--name-only", "HEAD").split()
    assert committed == ["conditional.csv", "study.csv", *answers]
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


def predictions(n: int, C: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, C)).astype(np.float32)
    return Predictions(logits, np.random.default_rng(0).integers(0, C, n))


def answered(n: int, C: int, seed: int = 0) -> TopAnswers:
    return TopAnswers.of(predictions(n, C, seed), "some images")


@pytest.mark.parametrize("C", [2, 5, 12, 256, 300])
def test_answers_are_read_as_they_were_given(C: int, tmp_path: Path) -> None:
    found = predictions(50, C)
    names = tuple(map(str, range(C)))
    halves = Specialties(names, tuple(c % 2 for c in range(C)), 2, names=("even", "<b>odd</b>"))
    kept: dict[int | None, TopAnswers] = {
        None: TopAnswers.of(found, "i", halves),
        1: TopAnswers.of(predictions(50, C, 1), "i", halves),
    }
    keys = {"study": "a/b", "arm": 'NofE, "x" = 1', "seed": 3}
    for results, given in (("all.csv", kept), ("flat.csv", {None: TopAnswers.of(found, "i")})):
        write_answers(tmp_path / results, keys, given)
        for experts, expected in given.items():
            again = read_answers(tmp_path / results, "a/b", 'NofE, "x" = 1', 3, experts)
            assert vars(again).keys() == vars(expected).keys()
            for name, value in vars(expected).items():
                other = getattr(again, name)
                assert np.array_equal(other, value), name
                assert getattr(other, "dtype", None) == getattr(value, "dtype", None), name
    k = min(5, C)
    assert expected.classes.shape == expected.probabilities.shape == (50, k)
    assert expected.classes.dtype == (np.uint8 if C <= 256 else np.uint16)
    assert expected.accuracy == found.accuracy
    assert (expected.classes == expected.labels[:, None]).any(axis=1).mean() == found.top5
    sorted_ = np.sort(found.probabilities, axis=1)[:, ::-1]
    assert np.allclose(expected.probabilities, sorted_[:, :k], rtol=1e-3)
    whole = kept[None]
    certainty = found.certainty(halves)
    exact = ["label", "predicted", "specialty"]
    assert whole.certainty[exact].equals(certainty[exact])
    assert whole.specialty_probability is not None
    sums = halves.sums(found.probabilities).max(axis=1)
    assert np.allclose(whole.specialty_probability, sums, rtol=1e-3)
    backed_off, exactly = (
        coverage_table(each, halves, [0.5]) for each in (whole.certainty, certainty)
    )
    assert np.allclose(backed_off, exactly, atol=0.05)  # two images can be as certain in float16
    with pytest.raises(InvalidInput, match="this network has no specialties"):
        _ = expected.certainty


def test_a_row_of_ten_thousand_images_takes_less_than_half_a_megabyte(tmp_path: Path) -> None:
    found = predictions(10_000, 100)  # noise compresses least
    names = tuple(map(str, range(100)))
    tens = Specialties(names, tuple(c % 10 for c in range(100)), 10)
    kept: dict[int | None, TopAnswers] = dict.fromkeys(
        (None, 1, 2), TopAnswers.of(found, "i", tens)
    )
    write_answers(tmp_path / "a.csv", {"study": "", "arm": "", "seed": 0}, kept)
    sizes = [path.stat().st_size for path in answers_folder(tmp_path / "a.csv").iterdir()]
    assert max(sizes) < 500_000


def test_the_same_answers_are_the_same_file_and_labels_are_kept_once(tmp_path: Path) -> None:
    results = tmp_path / "a.csv"
    for seed in (0, 1):
        write_answers(results, {"study": "", "arm": "", "seed": seed}, {None: answered(9, 6)})
    before = {path: path.read_bytes() for path in answers_folder(results).iterdir()}
    assert len(before) == 3
    write_answers(results, {"study": "", "arm": "", "seed": 0}, {None: answered(9, 6)})
    assert before == {path: path.read_bytes() for path in answers_folder(results).iterdir()}


def test_answers_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    results = tmp_path / "a.csv"
    with pytest.raises(
        InvalidInput, match=r"s: base, seed 0 has no answers beside a.csv; rows mad"
    ):
        read_answers(results, "s", "base", 0)
    write_answers(results, {"study": "s", "arm": "base", "seed": 0}, {None: answered(9, 6)})
    with pytest.raises(InvalidInput, match=r"s: base, seed 0 has no answers of 2 experts; arms wi"):
        read_answers(results, "s", "base", 0, 2)
    (path,) = (each for each in answers_folder(results).iterdir() if "labels" not in each.name)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-50], whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile, match=r"npz' holds no answers \("):
            read_answers(results, "s", "base", 0)


def test_an_ensemble_answers_with_the_mean_of_probabilities() -> None:
    several = [predictions(40, 5, seed) for seed in range(3)]  # all five classes are kept
    mean = np.mean([each.probabilities for each in several], axis=0)
    found = ensemble([TopAnswers.of(each, "i") for each in several])
    assert np.array_equal(found.top1, mean.argmax(axis=1))
    assert np.allclose(found.probabilities[:, 0], mean.max(axis=1), rtol=2e-3)
    many = answered(40, 30)
    assert many.spread.shape == (40, 30)
    assert np.allclose(many.spread.sum(axis=1), 1)
    assert np.array_equal(ensemble([many, many]).top1, many.top1)
    with pytest.raises(InvalidInput, match="for the same images; got 2 networks with 2 sets"):
        ensemble([many, TopAnswers.of(predictions(40, 30), "others")])


def test_arms_are_compared_image_by_image_and_seed_by_seed() -> None:
    own, other = ([answered(40, 6, seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    right, other_right = (np.stack([each.right for each in arm]) for arm in (own, other))
    assert difference(own, other) == paired_interval_over_seeds(right, other_right)
    with pytest.raises(InvalidInput, match="the same seeds of both arms; got 2 and 1"):
        difference(own, other[:1])
    with pytest.raises(InvalidInput, match="got 4 networks with 2 sets of images"):
        difference(own, [other[0], TopAnswers.of(predictions(40, 6), "others")])


def test_the_answers_of_a_row_give_its_figures(queue: Callable[[], Queue]) -> None:
    for _ in range(2):
        queue().work()
    made = queue()
    for _, row in made.table.iterrows():
        found = read_answers(made.results, row["study"], row["arm"], row["seed"])
        assert found.accuracy == pytest.approx(row["top1"], rel=1e-5)  # six digits in the table
        top5 = (found.classes == found.labels[:, None]).any(axis=1).mean()
        assert top5 == pytest.approx(row["top5"], rel=1e-5)
    assert found.specialties is not None
    assert " ".join(map(str, found.specialties.of)) == row["map"]
    near = np.array(found.specialties.of)[found.labels] == found.specialty
    assert near.mean() == pytest.approx(row["right_specialty"], rel=1e-5)
    curve = made.curves.set_index("experts")["top1"]
    for m in (1, 2):
        few = read_answers(made.results, row["study"], LEARNED.name, 0, m)
        assert few.accuracy == pytest.approx(curve[m], rel=1e-5)
        assert np.array_equal(few.labels, found.labels)


def test_answers_come_before_their_row_which_is_made_again_without_it(
    queue: Callable[[], Queue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    log = tmp_path / "log"
    monkeypatch.setattr("nofe_lab.study.queue.measure", made_up(log))
    made = queue()
    with monkeypatch.context() as patch:
        patch.setattr("nofe_lab.study.queue._write", kill)
        with pytest.raises(Killed):
            made.work()
    assert read_answers(made.results, "toy", BASE.name, 0).accuracy == answered(4, 6).accuracy
    assert queue().table.empty
    queue().commit()  # nothing, and that is no error
    assert queue().work()
    assert log.read_text().splitlines() == [f"{BASE.name}, seed 0"] * 2
    assert list(queue().table["arm"]) == [BASE.name]


def made_up(log: Path, hangs: Arm | None = None) -> Callable[..., tuple[object, ...]]:
    """Measures nothing, but notes which rows it was asked for, and hangs at some."""

    def measure(experiment: Experiment, arm: Arm) -> tuple[object, ...]:
        with log.open("a") as file:
            file.write(f"{arm.name}, seed {experiment.seed}\n")
        while arm == hangs:
            time.sleep(0.01)
        curve = pd.DataFrame({"experts": [1, 2], "top1": [0.25, 0.5]})
        return {"top1": 0.5}, curve if arm == LEARNED else None, {None: answered(4, 6)}

    return measure


def in_a_process(made: Queue, commit: bool = False) -> BaseProcess:
    """Has a queue made as far as it goes."""

    def run() -> None:
        torch.set_num_threads(1)  # a forked process has no others
        made.run(99, commit)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


@pytest.mark.usefixtures("flock")
def test_several_processes_make_each_row_once_lose_none_and_commit_each(
    queue: Callable[[], Queue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = repository(tmp_path)
    expected = sorted(f"{arm.name}, seed {seed}" for _, arm, seed in queue().missing())
    monkeypatch.setattr("nofe_lab.study.queue.measure", made_up(tmp_path / "log"))
    processes = [in_a_process(queue(), commit=True) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == expected
    made = queue()
    rows = made.table["arm"] + ", seed " + made.table["seed"].astype(str)
    assert sorted(rows) == expected
    assert made.curves.groupby("seed")["experts"].apply(list).tolist() == [[1, 2], [1, 2]]
    assert sorted(git("log", "--format=%s").splitlines()) == [f"Study: {row}" for row in expected]


@pytest.mark.usefixtures("flock")
def test_a_row_is_left_to_who_makes_it_and_free_when_that_process_dies(
    queue: Callable[[], Queue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nofe_lab.runs.locks.LEASE", 3.0)
    log = tmp_path / "log"
    monkeypatch.setattr("nofe_lab.study.queue.measure", made_up(log, hangs=BASE))
    process = in_a_process(queue())
    while not log.exists():
        time.sleep(0.01)
    monkeypatch.setattr("nofe_lab.study.queue.measure", made_up(tmp_path / "other"))
    queue().run(99)
    assert len(queue().table) == 5
    out = capsys.readouterr().out
    assert f"toy: {BASE.name}, seed 0: process {process.pid} on" in out
    process.kill()
    process.join()
    queue().run(99)
    assert [row[1:] for row in queue().missing()] == []
    assert len((tmp_path / "other").read_text().splitlines()) == len(queue().table) == 6


def test_another_process_that_has_the_index_of_git_is_waited_for(
    queue: Callable[[], Queue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["init"], ["config", "user.name", "a"], ["config", "user.email", "a@b.org"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    made = queue()
    monkeypatch.setattr("nofe_lab.study.queue.measure", made_up(tmp_path / "log"))
    made.work()
    index = tmp_path / ".git" / "index.lock"
    index.touch()
    looks = iter(range(3))
    monkeypatch.setattr(time, "sleep", lambda _: index.unlink() if next(looks) == 2 else None)
    made.commit()
    assert not list(looks)
    monkeypatch.undo()
    (tmp_path / ".git" / "HEAD").unlink()
    with pytest.raises(InvalidInput, match=r"git add failed \(.*not a git repository"):
        made.commit()


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
        if study.name != PAYS:  # which needs the pilot
            assert study.make(str(tmp_path)).recipes.nofe.epochs > 1
