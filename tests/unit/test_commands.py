"""The command line: what a terminal can ask of the library."""

from __future__ import annotations

import errno
import html
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import nofe_lab
from nofe_lab import Dataset, Experiment, Run
from nofe_lab.__main__ import COMMANDS, MAINTENANCE, main, notebooks
from nofe_lab.training.interrupts import Interrupted
from tests.conftest import train_once

Make = Callable[..., Experiment]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "rose.png"
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tiny: Dataset, tmp_path: Path) -> Path:
    """Some of `tiny` as a folder of class folders."""
    root = tmp_path / "pictures"
    for c, name in enumerate(tiny.class_names):
        (root / name).mkdir(parents=True)
        for n, image in enumerate(tiny.test.sample(tiny.test.of_class(c))):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / name / f"{n}.png")
    return root


def made(experiment: Experiment) -> Run:
    return train_once(experiment, Experiment.gate)


@pytest.mark.parametrize("command", [*COMMANDS, *MAINTENANCE], ids=lambda each: each.__name__)
def test_every_command_has_help_and_those_of_users_an_example(
    command: Callable[..., Any], capsys: Captured
) -> None:
    words = ["dev"] if command in MAINTENANCE else []
    with pytest.raises(SystemExit) as left:
        main([*words, command.__name__, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: nofe-lab")
    if command in COMMANDS:
        assert f"\nnofe-lab {command.__name__} " in said


def test_predict_answers_for_pictures(
    tiny_experiment: Make, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = made(tiny_experiment())
    moved = shutil.move(run.path, tmp_path / "moved")
    table = tmp_path / "answers.csv"
    capsys.readouterr()
    words = ["predict", str(moved), str(photo), str(photo), "--experts", "1", "--coverage", "0.5"]
    assert main([*words, "--output", str(table)]) == 0
    said = capsys.readouterr().out
    answers = nofe_lab.load(moved).predict([photo, photo], experts=1, coverage=0.5)
    assert said.startswith(str(answers))
    assert said.endswith(f"the answers: {table}\n")
    pd.testing.assert_frame_equal(
        pd.read_csv(
            table, dtype=dict.fromkeys(("image", "answer", "label", "specialty", "experts"), str)
        ),
        answers.table,
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["predict", "nowhere", "x.png"], "run 'nowhere' must be the folder of a finished run"),
        (["predict", ".", "x.png"], "the folder '.' is no run, it has no run.json"),
        (["predict", "RUN", "x.png"], "there is no file or folder 'x.png'"),
        (["predict", "RUN", "x.png", "--experts", "9"], "experts must be a whole number from 1"),
        (["predict", "RUN", "x.png", "--experts", "two"], "experts must be a whole number"),
        (["predict", "RUN", "x.png", "--coverage", "2"], "coverage must be a number from 0 to 1"),
        (["predict", "RUN", "x.png", "--device", "tpu"], "device 'tpu' is unknown"),
        (["predict", "RUN", "x.png", "--output", "/proc/none/x"], "cannot be written"),
        (["show", "RUN", "--output", "/proc/none/x"], "cannot be written"),
        (["show", "ffff"], "run 'ffff' must be the folder of a finished run"),
        (["look", "missing.csv"], "missing.csv"),
        (["look", "RUN"], "needs pictures: give --images a folder"),
        (["look", "empty.csv"], "the table 'empty.csv' cannot be read (it is empty)"),
        (["look", "RUN", "--images", "nowhere"], "nowhere"),
        (["train", "nowhere"], "dataset 'nowhere' is neither a folder nor the name of a data set"),
        (["train", ""], "dataset '' is unknown"),
        (["sweep", "missing.yaml"], "'missing.yaml' cannot be opened"),
        (["sweep", "empty.csv"], "'empty.csv' must have entries (experiment, arms,"),
        (["export", "RUN"], "nothing to write: give --web, --folder or --file"),
        (["export", "ffff", "--folder", "f"], "run 'ffff' must be the folder of a finished run"),
        (["export", "RUN", "--folder", "taken"], "accepted: the path of a new or an empty folder"),
        (["export", "RUN", "--file", "f.pth"], "ends in .onnx or .pt2; got 'f.pth'"),
        (["export", "RUN", "--file", "f.pt2", "--expert", "9"], "no specialty is called '9'"),
        (["export", "RUN", "--file", "f.pt2", "--experts", "9"], "experts must be a whole number"),
        (["export", "RUN", "--folder", "f", "--expert", "1"], "--experts are for --file; a page"),
        (
            ["export", "RUN", "--file", "f.pt2", "--expert", "1", "--experts", "1"],
            "--experts is for the whole network; got 1",
        ),
        (
            ["export", "RUN", "--folder", "f", "--file", "f.pth"],
            "ends in .onnx or .pt2; got 'f.pth'",
        ),
        (["export", "RUN", "--folder", "taken", "--file", "f.pt2"], "a new or an empty folder"),
        (["export", "RUN", "--web", "taken", "--folder", "f"], "a new or an empty folder"),
        (["export", "RUN", "--web", "page", "--file", "f.pt2", "--experts", "9"], "for --file"),
        (["export", "RUN", "--file", "f.pt2", "--no-thumbnails"], "is for --web and --folder"),
        (["export", "RUN", "--folder", "f", "--runtime", "x.tgz"], "--runtime is for --web"),
        (["export", "RUN", "--folder", "f", "--web", "f"], "need places of their own"),
        (["export", "RUN", "--folder", "f", "--file", "f/x.pt2"], "need places of their own"),
        (["export", "RUN", "--folder", " "], "cannot be written (it has no name)"),
        (["init", " "], "the folder for the notebooks must have a name"),
        (["dev", "onnx", "--repeats", "0"], "repeats must be a whole number of at least 1"),
        (["dev", "latency", "--repeats", "0"], "repeats must be a whole number of at least 1"),
        (["train", "folder:nowhere"], "there is no folder"),
        (["train", "glyphs", "--K", "1"], "K must be a whole number of at least 2; got 1"),
        (["init", "taken"], "'taken' has 00_look.ipynb already, which would be overwritten"),
        (["init", "/proc/none"], "the notebooks cannot be copied to '/proc/none'"),
    ],
)
def test_bad_words_get_one_sentence(
    tiny_experiment: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    words: list[str],
    sentence: str,
) -> None:
    run = made(tiny_experiment())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "00_look.ipynb").write_text("mine")
    (tmp_path / "empty.csv").touch()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main([str(run.path) if word == "RUN" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert (tmp_path / "taken" / "00_look.ipynb").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"taken", "empty.csv", "runs"}


def test_export_writes_a_folder_and_a_file(
    tiny_experiment: Make, tmp_path: Path, photo: Path, capsys: Captured
) -> None:
    run = made(tiny_experiment(val_fraction=0.25))
    folder, file = tmp_path / "flowers", tmp_path / "flowers.pt2"
    words = ["export", str(run.path), "--folder", str(folder), "--no-thumbnails"]
    assert main([*words, "--file", str(file)]) == 0
    assert not (folder / "thumbnails.jpg").exists()
    assert main(["predict", str(folder), str(photo)]) == 0
    assert main(["show", str(folder), "--output", str(tmp_path / "flowers.html")]) == 0
    alone = tmp_path / "one.pt2"
    assert main(["export", str(folder), "--file", str(alone), "--expert", "2"]) == 0
    assert alone.stat().st_size < file.stat().st_size
    assert main(["export", str(folder), "--file", str(file), "--experts", "1"]) == 0


def test_show_writes_a_page_without_links_for_every_kind_of_run(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    experiment = tiny_experiment()
    stages = (experiment.base(), experiment.generalist(), experiment.gate())
    experiment.final_report({"base": stages[0]})
    for stage in stages:
        (run,) = experiment.run(stage)
        page = tmp_path / f"{stage.kind}.html"
        assert main(["show", str(run.path), "--output", str(page)]) == 0
        text = page.read_text("utf-8")
        assert f"<h1>{stage.title}</h1>" in text
        assert run.id in text
        assert ("How certain it is" in text) == (stage.kind == "gate")
        assert ("specialties</h2>" in text) == (stage.K is not None)
        assert ("not tested" in text) == (stage.kind != "flat")
        assert html.escape(stage.command) in text
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert text.count("<img") == 1 + (stage.K is not None)


def test_show_opens_runs_of_earlier_libraries(tmp_path: Path) -> None:
    for old in (Path(__file__).parents[1] / "fixtures").glob("runs_of_format_*/*"):
        page = tmp_path / f"{old.name}.html"
        assert main(["show", str(old), "--output", str(page)]) == 0
        assert "<th>classes</th>" in page.read_text("utf-8")  # it keeps no thumbnails


def test_look_shows_what_a_run_confuses_on_a_folder(
    tiny_experiment: Make, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = made(tiny_experiment())
    page = tmp_path / "look.html"
    for images in (str(folder), f"folder:{folder}"):
        words = ["look", str(run.path), "--images", images, "--output", str(page), "--K", "2"]
        assert main(words) == 0
        assert "30 images" in capsys.readouterr().out
    assert page.stat().st_size > 10_000


def test_a_look_at_a_run_leaves_out_what_it_has_trained_on(
    tiny: Dataset, tiny_experiment: Make, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    experiment = tiny_experiment()
    run = made(experiment)
    known = experiment.data.train
    for c, name in enumerate(tiny.class_names):  # beside five that it has not seen
        pixels = known.sample(known.of_class(c)[:1])[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name / "known.png")
    words = ["look", str(run.path), "--images", str(folder), "--output", str(tmp_path / "a.html")]
    assert main(words) == 0
    assert "30 images" in capsys.readouterr().out
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "Left out, since it has trained on them: 6 images." in text
    for c, name in enumerate(tiny.class_names):
        for n in range(5):
            (folder / name / f"{n}.png").unlink()
        pixels = known.sample(known.of_class(c)[1:2])[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name / "second.png")
    assert main(words) == 2
    assert "has trained on all of the 12 images" in capsys.readouterr().err


def test_look_shows_a_table(tmp_path: Path, capsys: Captured) -> None:
    table = tmp_path / "said.csv"
    table.write_text("label,prediction\na,a\nb,a\nc,c\na,a\nb,b\nc,c\n")
    assert main(["look", str(table), "--output", str(tmp_path / "look.html")]) == 0
    assert "83.3" in capsys.readouterr().out


def test_train_goes_from_a_folder_to_a_run_that_answers(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["--epochs", "1", "--batch-size", "10", "--device", "cpu", "--trunk", "base"]
    runs = tmp_path / "runs"
    assert main(["train", str(folder), *words, "--specialties", "confusion", "--runs-dir",
                 str(runs)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "test accuracy" in said
    (command,) = re.findall(r"network of experts: nofe-lab predict (\S+) photo.jpg", said)
    shutil.rmtree(folder / "red rows")
    picture = next((folder / "blue rows").iterdir())
    assert main(["predict", command, str(picture)]) == 0
    assert "specialty probability" in capsys.readouterr().out


def test_a_folder_that_is_called_as_a_data_set_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--K", "40", "--runs-dir", str(tmp_path)]) == 2
    assert "K must be at most the 10 classes of digits" in capsys.readouterr().err


def test_a_command_that_is_stopped_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted("stopped after step 3 of 5; all of it is kept.")

    monkeypatch.setattr("nofe_lab.training.loop.seeded", stop)
    words = ["train", "glyphs:2", "--epochs", "1", "--batch-size", "90", "--trunk", "scratch"]
    words += ["--specialties", "random"]
    assert main([*words, "--device", "cpu", "--runs-dir", str(tmp_path / "runs")]) == 130
    assert capsys.readouterr().err == "stopped after step 3 of 5; all of it is kept.\n"


def test_a_full_disk_gets_one_sentence(
    tiny_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def full(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    run = made(tiny_experiment())
    page = tmp_path / "run.html"
    monkeypatch.setattr("nofe_lab.__main__.write_file", full)
    assert main(["show", str(run.path), "--output", str(page)]) == 2
    said = capsys.readouterr().err
    assert said == f"No space left on device ({page}): mend that and give the command again.\n"


def test_init_copies_the_notebooks(tmp_path: Path, capsys: Captured) -> None:
    assert main(["init", str(tmp_path / "mine")]) == 0
    copied = sorted((tmp_path / "mine").iterdir())
    assert [path.name for path in copied] == [path.name for path in notebooks()]
    assert [path.name[:2] for path in copied] == [f"{n:02}" for n in range(12)]
    assert "12 notebooks in" in capsys.readouterr().out
