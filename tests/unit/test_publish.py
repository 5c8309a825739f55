"""Folders to publish: weights, config and a model card that says what was measured."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import nofe_lab
from nofe_lab import Arm, Classifier, Dataset, Experiment, InvalidInput, Run
from nofe_lab.data import Resident
from nofe_lab.evaluation import predict
from nofe_lab.files import user_path
from nofe_lab.inference.card import model_card
from nofe_lab.knobs import understood
from nofe_lab.runs import DamagedRun
from nofe_lab.specialties import Specialties as Partition
from nofe_lab.stages import Stage
from nofe_lab.statistics import paired_interval, share_interval
from nofe_lab.views.web_page import write_web_page
from tests.conftest import train_once

Make = Callable[..., Experiment]
STAGES: dict[str, Callable[[Experiment], Stage]] = {
    "base CNN": lambda experiment: experiment.base(),
    "longer base CNN": lambda experiment: experiment.base("total"),
    "flat control": lambda experiment: experiment.stage(Arm("control", experts=2)),
    "generalist": lambda experiment: experiment.generalist(),
    "greedy generalist": lambda experiment: experiment.generalist("greedy"),
    "network of experts": lambda experiment: experiment.nofe(),
    "random experts": lambda experiment: experiment.nofe("random", "base"),
    "experts on a base CNN's trunk": lambda experiment: experiment.stage(Arm("nofe", trunk="base")),
    "other recipe": lambda experiment: experiment.stage(Arm("nofe").with_changes(epochs=2)),
    "gate": lambda experiment: experiment.gate(),
    "gate of random experts": lambda experiment: experiment.gate(experiment.nofe("random")),
}


def published(
    experiment: Experiment, folder: Path, of: str = "network of experts"
) -> tuple[Run, Classifier, str]:
    run = train_once(experiment, STAGES[of])
    nofe_lab.load(run).publish(folder)
    return run, nofe_lab.load(folder), (folder / "README.md").read_text()


# --- the folder


@pytest.mark.parametrize("of", STAGES)
def test_a_published_folder_answers_as_the_run(
    tiny_experiment: Make, tmp_path: Path, of: str
) -> None:
    experiment = tiny_experiment(val_fraction=0.25)
    run, model, card = published(experiment, tmp_path / "flowers", of)
    original = nofe_lab.load(run)
    images = experiment.data.test.sample(range(7))
    assert torch.equal(model(images), original(images))
    assert model.output_names == original.output_names
    assert model.specialties == original.specialties
    assert model.description == original.description
    assert torch.equal(model.thumbnails, original.thumbnails)
    assert model.has_seen(experiment.data.train.sample(range(3))).all()
    assert card.startswith("---\n")
    names = {path.name for path in (tmp_path / "flowers").iterdir()}
    assert {"model.safetensors", "config.json", "README.md"} <= names
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    if original.specialties is not None and "generalist" not in of:
        assert model.predict(images, coverage=0.5).table.equals(
            original.predict(images, coverage=0.5).table
        )
        assert model.expert(0).measure().equals(original.expert(0).measure())


def test_other_tools_read_weights_and_config(tiny_experiment: Make, tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    run, model, _ = published(tiny_experiment(), folder)
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(model.state_dict())
    config = json.loads((folder / "config.json").read_text())
    assert tuple(config["classes"]) == model.class_names
    assert config["model"]["kind"] == "nofe"
    assert config["id"] == run.id
    specialties = json.loads((folder / "specialties.json").read_text())
    assert [each["name"] for each in specialties["specialties"]] == ["1", "2", "3"]


def test_a_published_folder_can_be_moved_shown_and_published_again(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    _, _, card = published(tiny_experiment(), tmp_path / "flowers")
    moved = shutil.move(tmp_path / "flowers", tmp_path / "elsewhere")
    model = nofe_lab.load(moved)
    model.publish(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card
    from nofe_lab.views.run_page import run_page

    assert "nofe-lab predict" in run_page(model.run)


def test_a_card_may_be_edited_but_neither_weights_nor_config(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "flowers"
    published(tiny_experiment(), folder)
    (folder / "README.md").write_text("by hand")
    nofe_lab.load(folder)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedRun, match=r"config\.json has been changed"):
        nofe_lab.load(folder)
    config.write_text(text[: len(text) // 2])
    with pytest.raises(DamagedRun, match=r"config\.json cannot be read"):
        nofe_lab.load(folder)
    config.write_text(text)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedRun, match=r"model\.safetensors is missing or changed"):
        nofe_lab.load(folder)


def test_a_folder_that_is_not_empty_is_left_alone(
    tiny_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (run,) = experiment.run(experiment.base())
    model = nofe_lab.load(run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path in (
        *(tmp_path / name for name in ("mine", "file", "file/inside")),
        "",
        " ",
        ".",
        "a\0b",
    ):
        with pytest.raises(InvalidInput, match="accepted: the path of a new or an empty folder"):
            model.publish(path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    model.publish(tmp_path / "empty")
    model.publish(tmp_path / "new" / "deep")
    nofe_lab.load(tmp_path / "empty")
    nofe_lab.load(tmp_path / "new" / "deep")
    with pytest.raises(InvalidInput, match="folder must be text; got 7"):
        model.publish(7)  # type: ignore[arg-type]


def test_training_images_can_be_kept_back(tiny_experiment: Make, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.nofe())
    nofe_lab.load(run).publish(tmp_path / "flowers", thumbnails=False)
    names = {path.name for path in (tmp_path / "flowers").iterdir()}
    assert not names & {"thumbnails.jpg", "seen.bin"}
    with pytest.raises(InvalidInput, match="keeps no thumbnails"):
        nofe_lab.load(tmp_path / "flowers").thumbnails  # noqa: B018


def test_files_may_be_left_out_of_a_published_folder_but_not_changed(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "flowers"
    run, model, _ = published(tiny_experiment(val_fraction=0.25), folder)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for name in ("thumbnails.jpg", "seen.bin", "val.csv", "experts.csv", "history.csv"):
        (folder / name).unlink()
        assert torch.equal(nofe_lab.load(folder)(images), model(images))
    with pytest.raises(InvalidInput, match="no val images to fit a threshold on"):
        nofe_lab.load(folder).expert(0).predict(images)
    (folder / "specialties.json").write_text("{}")
    with pytest.raises(DamagedRun, match=r"specialties\.json is missing or changed"):
        nofe_lab.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DamagedRun, match=r"model\.safetensors is missing or changed|specialties"):
        nofe_lab.load(folder)
    assert len(repr(run)) < 300


def test_changed_weights_are_not_published_as_the_run(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    experiment = tiny_experiment()
    model = experiment.model(experiment.base())
    with torch.no_grad():
        next(model.parameters()).mul_(0)
    with pytest.raises(InvalidInput, match="the weights of base CNN were changed"):
        model.publish(tmp_path / "flowers")
    assert not (tmp_path / "flowers").exists()


def test_what_takes_no_pictures_is_neither_published_nor_exported(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    experiment = tiny_experiment()
    there = experiment.on_features(experiment.base())
    model = there.model(there.base())
    for act in (
        lambda: model.publish(tmp_path / "flowers"),
        lambda: model.export(tmp_path / "flowers.pt2"),
        lambda: write_web_page(model, tmp_path / "page"),
    ):
        with pytest.raises(InvalidInput, match="takes the features of a frozen trunk"):
            act()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.parametrize("prefix", ["folder:", "Folder: "])
@pytest.mark.parametrize("of", ["network of experts", "random experts"])
def test_where_the_data_lay_is_not_told(tmp_path: Path, prefix: str, of: str) -> None:
    secret = tmp_path / "jane o'neil" / "secret" / "flowers"
    rng = np.random.default_rng(0)
    for name in "abcd":
        for n in range(12):
            file = secret / name / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file)
    part = tmp_path / "secret" / "part.json"
    part.parent.mkdir()
    part.write_text(Partition(tuple("abcd"), (0, 0, 1, 1), 2).to_json())
    experiment = Experiment(
        f"{prefix}{secret}",
        K=2,
        epochs=1,
        batch_size=12,
        image_size=32,
        learning_rate=0.005,
        device="cpu",
        specialties=str(part),
        runs_dir=str(tmp_path / "runs"),
    )
    folder = tmp_path / "published"
    run, _, card = published(experiment, folder, of)
    assert "secret" in run.provenance["command"]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"secret" not in content, path.name
        assert b"neil" not in content, path.name
    assert "folder:flowers" in card
    if of == "network of experts":
        assert "--specialties 'THE FOLDER OF THE RUN/specialties.json'" in card
        assert Partition.load(folder / "specialties.json", tuple("abcd")).of == (0, 0, 1, 1)


def test_a_run_of_an_earlier_library_is_not_published(tmp_path: Path) -> None:
    from nofe_lab.inference.card import save_for_publishing
    from nofe_lab.runs import open_run

    old = next((Path(__file__).parents[1] / "fixtures" / "runs_of_format_2").glob("nofe-*"))
    with pytest.raises(InvalidInput, match="made by an earlier nofe_lab"):
        save_for_publishing(open_run(old), tmp_path / "flowers")
    assert not (tmp_path / "flowers").exists()


# --- the card


def test_what_was_not_measured_is_not_tested(tiny_experiment: Make, tmp_path: Path) -> None:
    _, _, card = published(tiny_experiment(val_fraction=0.0), tmp_path / "flowers")
    assert "| test accuracy, 95 % interval | not tested |" in card
    assert "| calibration error (15 bins) | not tested |" in card
    assert "| accuracy on val images | not tested |" in card
    assert "Not tested against any other network." in card
    assert "The interval tells" not in card
    assert "It has not been tested" in card
    assert "model-index" not in card


def test_a_card_tells_what_the_final_report_found(tiny_experiment: Make, tmp_path: Path) -> None:
    experiment = tiny_experiment(val_fraction=0.25)
    networks = {"base CNN": experiment.base(), "NofE | <b>mine</b>": experiment.nofe()}
    report = experiment.final_report(networks)
    run, _, card = published(experiment, tmp_path / "flowers")
    base, nofe = report.predictions
    right, other = (each.predicted == each.labels for each in (nofe, base))
    low, high = share_interval(nofe.accuracy, len(right))
    assert f"{nofe.accuracy:.2%} [{low:.2%}, {high:.2%}] on {len(right):,} images" in card
    assert f"| calibration error (15 bins) | {nofe.calibration_error:.2%} |" in card
    assert f"| accuracy on val images | {run.result['val_accuracy']:.2%} |" in card
    difference, low, high = (100 * each for each in paired_interval(right, other))
    assert f"| base CNN | {base.accuracy:.2%} | {difference:+.1f} [{low:.1f}, {high:.1f}] |" in card
    assert "its seed" not in card
    assert "<b>" not in card
    _, matter, _ = card.split("---\n", 2)
    read = yaml.safe_load(matter)
    assert read["library_name"] == "nofe_lab"
    (result,) = read["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": round(nofe.accuracy, 4)}]
    counts = experiment.data.counts
    told = f"{counts['train']:,} train, {counts['val']:,} val, {counts['test']:,} test images"
    assert told in card
    table = run.report_table("per_specialty")
    for row in table.to_dict("records"):
        assert f"| {row['images']:,.0f} | {row['accuracy']:.2%} |" in card


def test_a_card_of_several_seeds_tells_their_mean(tiny_experiment: Make, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    report = experiment.comparison(
        (0, 1, 2), lambda each: {"base CNN": each.base(), "NofE": each.nofe()}
    )
    (run,) = experiment.run(experiment.nofe())
    card = model_card(run)
    assert "Over seeds, with 95 % intervals of the mean:" in card
    wide = report.table.pivot(index="seed", columns="network", values="test_accuracy")
    mean = 100 * (wide["NofE"] - wide["base CNN"]).mean()
    assert f"| base CNN | 3 | {mean:+.1f} [" in card


def test_a_smaller_report_does_not_undo_a_larger_one(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    base, nofe = experiment.base(), experiment.nofe()
    experiment.final_report({"base CNN": base, "NofE": nofe})
    (run,) = experiment.run(nofe)
    before = model_card(run)
    experiment.final_report({"NofE": nofe})
    assert model_card(run) == before
    assert "| base CNN |" in before
    experiment.final_report({"mine": nofe, "mine again": nofe, "random": experiment.nofe("random")})
    after = model_card(run)
    assert "| base CNN |" in after
    assert "| random |" in after
    assert after.count("**this one**") == 1


def test_networks_of_one_name_are_all_in_a_card(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    nofe = experiment.nofe()
    experiment.final_report({"NofE": nofe, "base CNN": experiment.base()})
    experiment.final_report({"NofE": nofe, "base CNN": tiny_experiment(epochs=2).base()})
    (run,) = experiment.run(nofe)
    assert model_card(run).count("| base CNN |") == 2


def test_a_card_says_what_weights_a_network_began_with(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.base())
    assert "The network was trained on train images alone." in model_card(run)
    identity = {**run.identity, "backbone": {"name": "x", "weights": "0123"}}
    began = Run(run.path, {**run.record, "identity": identity})
    assert "The network began with pretrained weights, which" in model_card(began)


def test_the_accuracy_of_a_gate_s_network_is_that_of_all_its_experts(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(val_fraction=0.25)
    (run,) = experiment.run(experiment.gate())
    (nofe,) = experiment.run(experiment.nofe())
    assert run.accuracies["val"] == nofe.accuracies["val"]
    model = nofe_lab.load(run)
    assert run.accuracies["val"] == predict(model, experiment.data.val).accuracy
    assert run.accuracies["train"] == predict(model, experiment.data.train).accuracy
    assert f"| accuracy on val images | {run.accuracies['val']:.2%} |" in model_card(run)
    old = replace_result(run, {"val_accuracy": 0.9, "train_accuracy": 0.9})
    assert old.accuracies == {}  # of the gate alone, as an earlier library kept it


def replace_result(run: Run, result: dict[str, float]) -> Run:
    return Run(run.path, {**run.record, "result": result})


def test_a_generalist_s_accuracy_is_of_specialties(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(val_fraction=0.25)
    (run,) = experiment.run(experiment.generalist())
    shown = f"{run.accuracies['val']:.2%}"
    assert f"| share of right specialties on val images | {shown} |" in model_card(run)


def test_specialties_of_one_name_keep_their_figures(tiny: Dataset, tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    partition = Partition(tiny.class_names, (0, 0, 0, 1, 1, 2), 3, ("a", "a", "b"))
    stage = experiment.nofe(partition)
    experiment.final_report({"NofE": stage})
    (run,) = experiment.run(stage)
    rows = [line for line in model_card(run).split("\n") if line.startswith(("| a |", "| b |"))]
    expected = run.report_table("per_specialty").to_dict("records")
    for line, row in zip(rows, expected, strict=True):
        assert f"| {row['images']} | {row['accuracy']:.2%} | {row['right specialty']:.2%} |" in line


def test_a_specialty_without_test_images_is_not_tested(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    of = torch.tensor([0, 0, 1, 1, 2, 2])
    few = tiny.test.sample((of[tiny.test.labels] > 0).nonzero()[:, 0])
    kept = tiny.test.labels[of[tiny.test.labels] > 0]
    experiment = tiny_experiment(dataset=replace(tiny, test=Resident(few, kept)))
    stage = experiment.nofe(Partition(tiny.class_names, tuple(of.tolist()), 3))
    experiment.final_report({"NofE": stage})
    (run,) = experiment.run(stage)
    card = model_card(run)
    assert "| 0 | not tested | not tested | not tested |" in card
    assert "worst in specialty 1:" not in card


def test_reports_that_were_edited_make_no_figures(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    stages = {"base CNN": experiment.base(), "NofE": experiment.nofe()}
    experiment.final_report(stages)
    (run,) = experiment.run(stages["NofE"])
    path = run.path / "reports.json"
    found = json.loads(path.read_text())
    row = found["compared"][0]
    for rows in (
        [*found["compared"], {**row, "run": "x"}],
        [{**row, "seed": "one"}],
        [{**each, "low": None, "high": None} for each in found["compared"]],
        [{**each, "seed": each["seed"] + n} for n, each in enumerate(found["compared"] * 3)],
    ):
        path.write_text(json.dumps({**found, "compared": rows}))
        assert "nan" not in model_card(run)


def test_a_command_is_text_in_a_card(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.base())
    made = {**run.provenance, "public_command": "a\n\x1b[31m```\n<b>"}
    card = model_card(Run(run.path, {**run.record, "provenance": made}))
    assert "\x1b" not in card
    assert "````\na\n" in card
    assert card.count("````") == 2


def test_other_people_s_names_are_text_in_a_card(
    tiny: Dataset, tiny_experiment: Make, tmp_path: Path
) -> None:
    names = ("<script>x</script>", "a|b", "# no", "`c`", "[l](http://x)", "{d}")
    experiment = tiny_experiment(dataset=replace(tiny, class_names=names))
    _, _, card = published(experiment, tmp_path / "flowers")
    assert "<script" not in card.replace(r"\<script", "")
    (line,) = [each for each in card.split("\n") if r"a\|b" in each]
    assert line.replace(r"\|", "").count("|") == 7
    assert "[l](" not in card


@pytest.mark.parametrize("of", STAGES)
def test_the_command_makes_the_same_run_again(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Stage] = []
    monkeypatch.setattr(Experiment, "run", lambda self, *stages: made.extend(stages))
    where = {"runs_dir": str(tmp_path), "device": "cpu", "precision": "fp32"}
    experiment = Experiment("glyphs:2", K=7, flips=True, learning_rate=0.01, seed=3, **where)
    stage = STAGES[of](experiment)
    assert stage.command.startswith("nofe-lab ") == (of == "network of experts")
    if stage.command.startswith("nofe-lab "):
        words = shlex.split(stage.command)
        assert words[:2] == ["nofe-lab", "train"]
        names = [word.removeprefix("--").replace("-", "_") for word in words[3::2]]
        options = dict(zip(names, words[4::2], strict=True))
        again = Experiment(**understood({"dataset": words[2], **options}))
        made = [again.nofe()]
    else:
        exec(stage.command, {})
    assert [each.id for each in made] == [stage.id]


def test_a_command_tells_what_must_be_given_as_an_object(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    command = tiny_experiment().nofe().command
    assert "Experiment(dataset=dataset, K=3" in command
    assert "dataset = ...  # to be given: tiny" in command
    private = tiny_experiment(dataset=replace(tiny, name="/home/jane/flowers"))
    assert "jane" not in private.nofe().public_command
    odd = tiny_experiment(dataset=replace(tiny, name="a\nimport os"))
    assert "\nimport os" not in odd.nofe().command
    assert "runs_dir" not in command


def test_a_gate_of_another_experiment_s_network_is_not_said_to_be_of_this_one(
    tiny_experiment: Make,
) -> None:
    nofe = tiny_experiment(seed=1).nofe()
    assert tiny_experiment().gate(nofe).command.endswith("experiment.run(experiment.gate(...))")


def test_a_given_partition_is_named_as_that_of_the_run(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment()
    stage = experiment.nofe(Partition(tiny.class_names, (0, 0, 0, 1, 1, 2), 3))
    for each in (stage, experiment.gate(stage)):
        assert "partition='THE FOLDER OF THE RUN/specialties.json'" in each.command


def test_a_report_is_of_networks_that_answer_with_classes(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    with pytest.raises(InvalidInput, match=r"got generalist \(optimal, K = 3\), which answers"):
        experiment.final_report({"generalist": experiment.generalist()})


def test_a_run_keeps_the_command_and_the_number_of_images(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    stage = experiment.nofe()
    (run,) = experiment.run(stage)
    assert run.provenance["command"] == stage.command
    assert run.provenance["images"] == experiment.data.counts


# --- intervals


def test_a_paired_interval_is_that_of_the_images_differences() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    right, other = rng.random((2, 400)) < [[0.7], [0.6]]
    mean, low, high = paired_interval(right, other)
    expected = stats.ttest_rel(right.astype(float), other.astype(float)).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(right.mean() - other.mean())


def test_the_interval_of_a_share_is_wilson_s() -> None:
    # E. B. Wilson, 1927: 0 of 10
    low, high = share_interval(0.0, 10)
    assert low == pytest.approx(0.0, abs=1e-9)
    assert high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)


# --- tables of a report


def test_tables_of_a_report_are_kept_beside_its_figures(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.base())
    assert run.report_table("per_specialty").empty
    run.report(test_accuracy=0.5)
    run.report(compared=pd.DataFrame({"network": ["é"], "seed": [1], "low": [np.nan]}))
    run.report(test_loss=1.0)
    assert run.reports == {"test_accuracy": 0.5, "test_loss": 1.0}
    assert run.reports_problem == ""
    (row,) = run.report_table("compared").to_dict("records")
    assert row["network"] == "é"
    assert row["seed"] == 1
    (run.path / "reports.json").write_text('{"compared": [{"a": [1]}], "test_accuracy": 0.1}')
    assert run.report_table("compared").empty
    assert "compared" in run.reports_problem
    assert run.reports == {"test_accuracy": 0.1}
    assert user_path(run.path) == run.path
