"""README and docs show what data/results holds, and that says where it comes from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nofe_lab.bench.export import NETWORKS
from nofe_lab.bench.targets import TARGETS, against_targets, read
from nofe_lab.inference.export import LOGITS, PROBABILITIES
from nofe_lab.stages import Arm
from nofe_lab.statistics import paired_differences
from nofe_lab.study import pays, readme, tables
from nofe_lab.study.answers import answers_folder, read_all_answers
from nofe_lab.study.questions import (
    FEW_QUESTIONS,
    FOLLOW_UPS,
    GATED,
    LAST,
    OWN_RANDOM,
    PAYS,
    PRIMARY,
    QUESTIONS,
    SECONDARY,
    SHARED,
    STUDIES,
    TERTIARY,
    TWO,
)
from nofe_lab.study.uses import USES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results"
OTHERS = (
    *("study", "study_again", "study_conditional", "bench", "widgets", "latency", "onnx"),
    *("streaming", "sweeps"),
)
TIMES = RESULTS / "first_run_times.csv"
STUDY, AGAIN, CONDITIONAL, BENCH, WIDGETS, LATENCY, ONNX, STREAMING, SWEEPS = OF_OTHERS = [
    RESULTS / f"{name}.csv" for name in OTHERS
]
PILOT = pays.PILOT
OF_USES = [path for use in USES if (path := RESULTS / f"{use}.csv").exists()]
REPORTS = sorted(set(RESULTS.glob("*.csv")) - {TIMES, PILOT, *OF_OTHERS, *OF_USES})


def measured(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, comment="#", dtype={"revision": str, "run": str})


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    made_by = ("# papermill notebooks/", "# nofe-lab dev upcycling", "# nofe-lab dev first_run")
    assert path.read_text().startswith(made_by)
    table = measured(path)
    assert table[["network", "seed", "run", "device", "torch", "revision"]].notna().all().all()
    assert not table.revision.str.endswith("dirty").any()
    split = "val" if path.stem in ("first_run_pilot", "first_run_val") else "test"
    assert table[f"{split}_accuracy"].between(0.01, 1).all()


@pytest.mark.parametrize("path", OF_USES, ids=lambda path: path.stem)
def test_what_experts_are_for_was_measured_over_several_seeds(path: Path) -> None:
    assert path.read_text().startswith(f"# nofe-lab dev uses {path.stem}")
    table = measured(path)
    assert table[["dataset", "hardware", "precision", "torch", "revision"]].notna().all(axis=None)
    assert not table.revision.str.endswith("dirty").any()
    assert table.seed.nunique() >= 3
    what = ["map", "network", "specialty"]
    assert not table.duplicated(["seed", *(name for name in what if name in table)]).any()


def test_the_first_steps_were_timed_from_nothing() -> None:
    table = measured(TIMES)
    notebooks = [path.stem for path in sorted((ROOT / "notebooks").glob("0[123]_*.ipynb"))]
    assert list(table.what) == ["make run", *notebooks]
    assert table.seconds.between(1, 300).all()
    assert not table.revision.str.endswith("dirty").any()


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    ).stdout


def test_the_code_of_every_result_can_be_checked_out_or_is_named_as_lost() -> None:
    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("needs a checkout with its history")
    history = git("log", "--format=%H").split()
    lost = set(re.findall(r"\b[0-9a-f]{10}\b", (ROOT / "docs" / "results.md").read_text()[:2000]))
    tables = [measured(path) for path in RESULTS.glob("*.csv")]
    named = {each for table in tables if "revision" in table for each in table.revision}
    unknown = {each for each in named if not any(full.startswith(each) for full in history)}
    assert named
    assert unknown <= lost


@pytest.mark.skipif(not PILOT.exists(), reason="nothing has been chosen yet")
def test_the_pilot_of_whether_experts_pay_is_whole_and_says_where_it_comes_from() -> None:
    assert PILOT.read_text().startswith("# nofe-lab dev pays\n")
    table = measured(PILOT)
    assert table[["network", "seed", "run", "hardware", "torch", "revision"]].notna().all(axis=None)
    assert not table.revision.str.endswith("dirty").any()
    assert len(pays.seeds_of_test()) >= pays.FEWEST_SEEDS


def test_whether_experts_pay_was_tested_after_the_choice() -> None:
    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("needs a checkout with its history")
    table = measured(STUDY)
    for revision in set(table.revision[table.study == PAYS]):
        assert git("show", f"{revision}:data/results/{PILOT.name}") == PILOT.read_text()


@pytest.mark.parametrize("path", [STUDY, AGAIN, CONDITIONAL], ids=lambda path: path.stem)
def test_a_row_of_the_study_says_where_it_comes_from(path: Path) -> None:
    assert path.read_text().startswith("# nofe-lab dev study\n")
    table = measured(path)
    origin = ["study", "arm", "seed", "run", "hardware", "threads", "torch", "revision"]
    assert table[origin].notna().all().all()
    assert set(table.study) <= set(STUDIES)
    assert not table.revision.str.endswith("dirty").any()
    assert table.top1.between(0.01, 1).all()
    experts = ["experts"] if path == CONDITIONAL else []
    assert not table.duplicated(["study", "arm", "seed", *experts]).any()


@pytest.mark.parametrize("path", [STUDY, AGAIN], ids=lambda path: path.stem)
def test_the_columns_of_a_row_say_which_arm_it_is(path: Path) -> None:
    for _, row in measured(path).iterrows():
        assert Arm.of_columns(row).name == row["arm"]


def test_the_figures_of_onnx_files_are_within_what_is_promised() -> None:
    assert ONNX.read_text().startswith("# nofe-lab dev onnx ")
    table = measured(ONNX)
    assert not table.revision.str.endswith("dirty").any()
    assert set(table.network) == set(NETWORKS)
    assert (table.groupby("network").size() == 2).all()  # whole, and one expert
    assert table.logits.between(0, LOGITS).all()
    assert table.probabilities.between(0, PROBABILITIES).all()
    times = [f"ms_{n}_{side}" for n in (1, 256) for side in ("torch", "onnx")]
    assert table[times].gt(0).all(axis=None)


@pytest.mark.parametrize("path", [STREAMING, SWEEPS], ids=lambda path: path.stem)
def test_measurements_of_scale_say_where_they_come_from(path: Path) -> None:
    assert path.read_text().startswith(f"# nofe-lab dev {path.stem} ")
    table = measured(path)
    assert not table.revision.str.endswith("dirty").any()
    assert table.repeats.ge(3).all()
    assert table["value" if path == STREAMING else "seconds"].gt(0).all()


def test_streaming_keeps_what_is_promised() -> None:
    found = measured(STREAMING).set_index("what")
    assert found.images.eq(100_000).all()
    assert found.value["first batch after the listing"] < 10
    assert found.value["ours / ImageFolder + DataLoader"] >= 0.95
    assert found.value["memory at its end"] < 1.2 * found.value["memory after a tenth of an epoch"]


def test_the_times_of_predict_say_where_they_come_from() -> None:
    assert LATENCY.read_text().startswith("# nofe-lab dev latency ")
    table = measured(LATENCY)
    assert not table.revision.str.endswith("dirty").any()
    assert (table.groupby(["network", "pictures", "batch"]).size() == 2).all()
    assert set(table.batch) == {1, 256}
    assert table.ms.gt(0).all()


def test_the_widgets_times_say_where_they_come_from() -> None:
    assert WIDGETS.read_text().startswith("# nofe-lab dev widgets ")
    table = measured(WIDGETS)
    assert table[["widget", "click", "dataset", "hardware", "revision"]].notna().all().all()
    assert not table.revision.str.endswith("dirty").any()
    assert set(table.classes) == {100, 1000}
    assert (table.median_ms.notna() != table.share.notna()).all()


def test_every_network_with_a_gate_has_its_curve() -> None:
    rows, curves = measured(STUDY), measured(CONDITIONAL)
    rows = rows[rows["arm"].isin({arm.name for arm in GATED}) | rows["sparse"].notna()]
    keys = ["study", "arm", "seed"]
    assert set(map(tuple, rows[keys].values)) == set(map(tuple, curves[keys].values))
    both = curves.merge(rows[[*keys, "top1", "sparse"]], on=keys, suffixes=("_curve", ""))
    usual = both["sparse"].fillna(both.groupby(keys).experts.transform("max"))
    own = both[both.experts == usual]
    assert len(own) == len(rows)
    assert (own.top1_curve == own.top1).all()  # with as many experts it is the network itself


def test_rows_made_again_are_of_the_same_networks_on_another_machine() -> None:
    keys = ["study", "arm", "seed"]
    both = measured(AGAIN).merge(measured(STUDY), on=keys, suffixes=("", "_once"))
    assert len(both) == len(measured(AGAIN))
    assert (both.run == both.run_once).all()
    assert (both.hardware != both.hardware_once).all()


def test_the_first_part_of_the_study_is_complete() -> None:
    first = next(iter(STUDIES.values()))
    rows = measured(STUDY)
    rows = rows[rows.study == first.name]
    seeds = rows.groupby("arm").seed.agg(set)
    complete = set(seeds[seeds == set(first.seeds())].index)  # later arms may be under way
    assert len(complete) >= 26
    assert {arm.name for arm in PRIMARY + SECONDARY + TERTIARY + LAST + GATED} <= complete
    asked = (arm for pair in (*QUESTIONS, *FEW_QUESTIONS) for arm in pair)
    known = complete | {arm.name for arm in FOLLOW_UPS + SHARED}
    assert {arm.name for arm in asked if isinstance(arm, Arm)} <= known


def test_tables_and_figures_are_what_the_results_make_of_them(tmp_path: Path) -> None:
    for name in readme.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    readme.rebuild(tmp_path)
    for name in readme.FILES:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), "run `make results`"
    for path in (tmp_path / "data" / "figures").iterdir():
        again, kept = (
            np.asarray(Image.open(folder / path.name).convert("RGB"), dtype=int)
            for folder in (path.parent, ROOT / "data" / "figures")
        )
        assert again.shape == kept.shape
        apart = np.abs(again - kept).max(axis=2)
        assert (apart > 64).mean() < 0.002, "run `make results`"  # fonts may differ a little


def test_verdicts_are_those_of_the_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = {
        tables.PAPER: [0, 0, 0],
        OWN_RANDOM.name: [-0.021, -0.02, -0.019],  # the NofE is better by two points
        "base CNN": [0.019, 0.02, 0.021],
        "flat control": [-0.02, 0.001, 0.02],
        "flat control, both budgets": [0.01],
        "small flat control, both budgets": [-0.01, 0.03, 0.03],
    }
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "top1": 0.5 + 0.01 * seed + each,
            "total_training_macs": 2e12 if arm == tables.PAPER else 1e12,
        }
        for arm, values in apart.items()
        for seed, each in enumerate(values)
    ]
    two = [
        {
            "arm": tables.PAPER,
            "seed": s,
            "experts": 2,
            "top1": 0.5 + 0.01 * s - 0.01,
            "gate_training_macs": 3e12,
        }
        for s in (1, 2)
    ]
    monkeypatch.setattr(tables, "quick", lambda: pd.DataFrame(rows))
    monkeypatch.setattr(tables, "made_again", lambda: pd.DataFrame(rows[:0], columns=["arm"]))
    monkeypatch.setattr(tables, "curves", lambda: pd.DataFrame(two))
    lines = [line.strip("| ").split(" | ") for line in tables.answer().splitlines()[2:]]
    found = {
        line[2].strip(): [cell.strip(" |") for cell in line[3:]]
        for line in lines
        if line[1].strip() == tables.PAPER
    }
    assert found[OWN_RANDOM.name] == ["2 / 1", "3", "+2.00 [+1.75, +2.25] (0.33)", "better"]
    assert found["base CNN"] == ["2 / 1", "3", "-2.00 [-2.25, -1.75] (0.33)", "worse"]
    assert re.fullmatch(r"-0.03 \[-5.00, \+4.94\] \(\d\.\d\d\)", found["flat control"][2])
    assert found["flat control"][3] == "not told apart"
    assert found["flat control, both budgets"] == ["2 / 1", "1", "-1.00", "one seed"]
    assert found["base CNN, both budgets"] == ["", "", "not measured yet"]
    few = [line.strip("| ").split(" | ") for line in tables.few_answer().splitlines()[2:]]
    (small,) = (line for line in few if line[2].strip() == "small flat control, both budgets")
    assert small[1] == TWO
    assert small[3:] == ["5 / 1", "2", "-4.00 [-4.00, -4.00] (0.00)", "worse"]


def test_the_answers_that_were_kept_are_those_of_the_rows() -> None:
    rows = measured(STUDY)
    files = {path for path in answers_folder(STUDY).iterdir() if "labels" not in path.name}
    kept = 0
    for study, own in rows.groupby("study"):
        figures = own.set_index(["arm", "seed"])
        for arm, of_seed in read_all_answers(STUDY, own).items():
            for seed, found in of_seed.items():
                row, kept = figures.loc[(arm, seed)], kept + 1
                assert found.accuracy == pytest.approx(row.top1, rel=1e-5), (study, arm, seed)
    assert kept == len(files) > 0


TABLE = re.compile(r"<!-- table \w+ -->.*?<!-- end -->", re.DOTALL)
TYPED = re.compile(r"([-+]?\d+\.\d+)\s+\[([-+]?\d+\.\d+),\s+([-+]?\d+\.\d+)\]")


def test_an_interval_in_the_text_is_that_of_two_networks() -> None:
    rows, again = measured(STUDY), measured(AGAIN)
    again["arm"] += ", made again"
    both = pd.concat([rows[rows.study == tables.MAIN_STUDY], again])
    parts = [(table, "top1", "arm") for _, table in [*rows.groupby("study"), ("both", both)]]
    added = measured(RESULTS / "added_classes.csv")
    parts += [(added, value, "network") for value in ("old", "new", "all")]
    reports = map(measured, REPORTS)
    parts += [(each, "test_accuracy", "network") for each in reports if "test_accuracy" in each]
    apart = pd.concat(
        100 * paired_differences(table, name, value, by)[["mean", "low", "high"]]
        for table, value, by in parts
        for name in table[by].unique()
    )
    typed = 0
    for name in readme.FILES:
        text = (ROOT / name).read_text()
        for said in TYPED.finditer(TABLE.sub("", text)):
            half_a_digit = [0.5001 * 10.0 ** -len(each.partition(".")[2]) for each in said.groups()]
            close = (apart - [*map(float, said.groups())]).abs() <= half_a_digit
            assert close.all(axis=1).any(), f"{name}: {said[0]}"
            typed += 1
    assert typed > 0


def test_every_table_and_picture_is_shown() -> None:
    text = "".join((ROOT / name).read_text() for name in readme.FILES)
    assert set(re.findall(r"<!-- table (\w+) -->", text)) == set(readme.TABLES)
    for name in readme.PICTURES:
        picture = f"data/figures/{name}.png"
        assert (picture in text) == (ROOT / picture).exists()
    assert "data/figures/study.png" in text


@pytest.mark.parametrize(
    ("file", "C"),
    [
        ("cifar100_alexnet_c100", 100),
        ("cifar100_vgg11_c100", 100),
        ("cifar100_nin_c100", 100),
        ("cifar100_resnet56_c100", 100),
        ("tiny_imagenet_resnet18", 200),
    ],
)
def test_every_network_learns(file: str, C: int) -> None:
    table = measured(RESULTS / f"{file}.csv").set_index("network")
    assert (table.last_epoch_loss < table.first_epoch_loss).all()
    assert table.loc["network of experts", "test_accuracy"] > 3 / C


def test_the_benchmark_has_measured_all_of_its_targets() -> None:
    assert BENCH.read_text().startswith("# nofe-lab dev bench")
    table = read(BENCH)
    origin = ["precision", "device", "hardware", "torch", "revision", "date"]
    assert table[origin].notna().all().all()
    assert not table.revision.str.endswith("dirty").any()
    assert len(against_targets(table)) == len(TARGETS)


def test_bf16_was_compared_with_fp32_over_several_seeds() -> None:
    table = measured(RESULTS / "cifar100_precision.csv")
    (difference,) = paired_differences(table, "NofE in fp32").itertuples()
    assert difference.seeds >= 3
