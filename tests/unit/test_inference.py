"""Trained networks answer without their data and the experiment that made them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import nofe_lab
from nofe_lab import Arm, Classifier, Dataset, Experiment, InvalidInput, Run, predict
from nofe_lab.compat import import_torchvision
from nofe_lab.data import Resident
from nofe_lab.data.pictures import UnreadableImage, image_tensor
from nofe_lab.files import sha256
from nofe_lab.inference import MODEL, THUMBNAILS, VAL
from nofe_lab.inference.kept import _sheet
from nofe_lab.networks import FlatControl, backbone
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.runs import DamagedRun
from nofe_lab.runs.store import _digest
from nofe_lab.stages import Stage
from nofe_lab.views.run_page import run_page
from tests.conftest import train_once

Make = Callable[..., Experiment]
MakeStage = Callable[[Experiment], Stage]


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4)
        self.act = nn.LeakyReLU(slope)
        self.tail = nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.act(self.first(x)))
        return logits


STAGES: dict[str, MakeStage] = {
    "base CNN": lambda experiment: experiment.base(),
    "flat control": lambda experiment: experiment.stage(Arm("control")),
    "generalist": lambda experiment: experiment.generalist(),
    "network of experts": lambda experiment: experiment.nofe(),
    "narrow experts": lambda experiment: replace(experiment, branch_width=0.5).nofe(),
    "gate": lambda experiment: experiment.gate(),
}


def made(experiment: Experiment, of: str = "network of experts") -> Run:
    return train_once(experiment, STAGES[of])


def edited(run: Run, file: str, change: Callable[[Any], Any]) -> Run:
    """Change a file of a run, and its record so that the change is not seen as damage.

    A table is changed as text, any other file as JSON.
    """
    path = run.path / file
    old = path.read_text()
    path.write_text(change(old) if file.endswith(".csv") else json.dumps(change(json.loads(old))))
    record = {name: value for name, value in run.record.items() if name != "digest"}
    record["files"] = {
        **record["files"],
        file: {"bytes": path.stat().st_size, "sha256": sha256(path)},
    }
    (run.path / "run.json").write_text(json.dumps({**record, "digest": _digest(record)}))
    return Run(run.path, record)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of another size than the network's."""
    rng = np.random.default_rng(0)
    path = tmp_path / "rose.png"
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


# --- load


@pytest.mark.parametrize("of", STAGES)
def test_a_run_that_was_moved_answers_as_it_did(
    tiny_experiment: Make, tmp_path: Path, of: str
) -> None:
    experiment = tiny_experiment()
    stage = STAGES[of](experiment)
    run = made(experiment, of)
    expected = experiment.model(stage)(experiment.data.test.images)
    moved = shutil.move(run.path, tmp_path / "flowers")
    model = nofe_lab.load(moved)
    assert isinstance(model, Classifier)
    assert not model.training
    assert model.class_names == experiment.data.class_names
    assert torch.equal(model(experiment.data.test.images), expected)
    assert model.description.superclass_names == experiment.data.superclass_names
    assert model.description.superclass_of == experiment.data.superclass_of
    assert (model.specialties is None) == (stage.K is None)


def test_a_run_is_found_by_the_beginning_of_its_id(tiny_experiment: Make, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    run = made(experiment)
    for name in (run.id, run.id[:4], str(run.path), run.path, run):
        assert nofe_lab.load(name, runs_dir=run.path.parent).run.id == run.id
    with pytest.raises(InvalidInput, match=r"run 'fff' must be the folder of a finished run, or"):
        nofe_lab.load("fff", runs_dir=run.path.parent)
    with pytest.raises(InvalidInput, match=r"the folder .* is no run, it has no run\.json"):
        nofe_lab.load(tmp_path)
    with pytest.raises(InvalidInput, match=r"run must be text; got 3"):
        nofe_lab.load(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"runs_dir must be text; got 3"):
        nofe_lab.load(run.id, runs_dir=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"run 'xxx.*too long"):
        nofe_lab.load("x" * 5000)
    assert nofe_lab.load(run.path.name, runs_dir=run.path.parent).run.id == run.id


def test_weights_that_rescale_pixels_are_built_again_to_do_so() -> None:
    import_torchvision()
    from torchvision.models import get_model

    shape = (3, 96, 96)
    build = partial(get_model, "googlenet", weights=None, aux_logits=False, init_weights=True)
    for rescales in (True, False):
        made = SplitNetwork("googlenet", partial(build, transform_input=rescales))
        there = made.for_images(shape)
        found = nofe_lab.networks.described(there.description, shape)
        assert found.identity["layers"] == there.identity["layers"]
        assert found.skeleton.transform_input is rescales  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["resnet18", "alexnet_quick", "nin_c100"])
def test_a_network_of_the_library_is_built_again_with_its_split_and_stem(
    name: str, tiny: Dataset
) -> None:
    whole = backbone(name, split="layer3") if name == "resnet18" else backbone(name)
    for original in (whole, FlatControl(whole, 3, 0.5)):
        there = original.for_images(tiny.image_shape)
        found = nofe_lab.networks.described(
            json.loads(json.dumps(there.description)), tiny.image_shape
        )
        assert found.identity == there.identity


def test_a_network_of_ones_own_is_passed(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=Own, split="tail", preset="quick", epochs=1)
    stage = experiment.nofe("random", "scratch")
    (run,) = experiment.run(stage)
    images = experiment.data.test.images
    assert torch.equal(nofe_lab.load(run, network=Own)(images), experiment.model(stage)(images))
    assert torch.equal(nofe_lab.load(run, network=Own())(images), experiment.model(stage)(images))
    with pytest.raises(InvalidInput, match=r"'Own' is not one of the library's; pass it as it was"):
        nofe_lab.load(run)
    with pytest.raises(InvalidInput, match=r"is of the network 'Own'; got 'resnet18'"):
        nofe_lab.load(run, network=backbone("resnet18"))
    with pytest.raises(InvalidInput, match=r"does not answer as it did when it was trained"):
        nofe_lab.load(run, network=lambda: Own(slope=0.9))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        (MODEL, lambda _: [], f"{MODEL} of .* describes no network"),
        (MODEL, lambda about: about | {"kind": "x"}, "kind 'x' is unknown"),
        (MODEL, lambda about: about | {"image_shape": [3, 1e9, 1]}, "a length of image_shape must"),
        (MODEL, lambda about: about | {"image_shape": [3]}, f"{MODEL} of .* describes no network"),
        (MODEL, lambda about: about | {"code": "os"}, f"{MODEL} of .* describes no network"),
        (MODEL, lambda about: about | {"network": {}}, f"{MODEL} of .* describes no network"),
        (MODEL, lambda about: about | {"network": {"name": "os.system"}}, "not one of the library"),
        (MODEL, lambda about: about | {"network": {"name": 3}}, "name of the network is no text"),
        (MODEL, lambda about: about | {"branch_width": -1}, "branch_width must be a number"),
        (MODEL, lambda about: about | {"answers": []}, "does not answer as it did"),
        (MODEL, lambda about: about | {"answers": [["x"]]}, f"{MODEL} of .* describes no network"),
        (MODEL, lambda about: about | {"answers": [[1.0], [1.0, 2.0]]}, "not of one length"),
        (MODEL, lambda about: about | {"image_shape": [3, 16384, 16384]}, "values together; got"),
        (MODEL, lambda about: about | {"superclass_names": "abc"}, "superclass_names is no list"),
        (MODEL, lambda about: about | {"superclass_names": [1, 2]}, "superclass name is no text"),
        (MODEL, lambda about: about | {"superclass_of": [-1] * 6}, "a superclass must be"),
        (MODEL, lambda about: about | {"superclass_of": [0]}, "superclasses of 1 classes; there"),
        (
            MODEL,
            lambda about: about | {"gate_width": 1.0, "sparse": 1},
            "'network.gate.conv4.bias' is missing",
        ),
        (MODEL, lambda about: about | {"gate_width": 1.0}, "gate_width of the kind 'nofe' is 1.0"),
        (MODEL, lambda about: about | {"sparse": 2}, "gate_width of the kind 'nofe' is None"),
        (MODEL, lambda about: about | {"sparse": 0}, "sparse must be"),
        (MODEL, lambda about: {k: about[k] for k in about if k != "bit_depth"}, "no network"),
        ("classes.json", lambda _: [], "fewer than 2 names"),
        ("classes.json", lambda names: names[1:], "classes"),
        ("classes.json", lambda names: [*names[1:], names[1]], "repeats"),
        ("classes.json", lambda _: "abc", "holds no list of names"),
    ],
)
def test_what_a_run_says_about_itself_is_checked(
    tiny_experiment: Make, file: str, change: Callable[[Any], Any], sentence: str
) -> None:
    run = edited(made(tiny_experiment()), file, change)
    with pytest.raises(InvalidInput, match=sentence):
        nofe_lab.load(run.path)


@pytest.mark.parametrize(
    "table",
    [
        "a,b\n1,2\n",
        "experts,label,predicted,probability\n",
        "experts,label,predicted,probability\n3,0,0,nan\n",
        "experts,label,predicted,probability\n3,0,0,inf\n",
        "experts,label,predicted,probability\n3,0,0,7\n",
        "experts,label,predicted,probability\n3,0,0,-3\n",
        "experts,label,predicted,probability\n3,99,0,0.5\n",
        "experts,label,predicted,probability\n3,cat,0,0.5\n",
        f"experts,label,predicted,probability\n3,0,0,1{'0' * 400}\n",
        "experts,label,predicted,probability\n1.5,0,0,0.5\n",
    ],
)
def test_certainties_that_are_none_are_refused(tiny_experiment: Make, table: str) -> None:
    run = edited(made(tiny_experiment()), VAL, lambda _: table)
    with pytest.raises(DamagedRun, match=VAL):
        nofe_lab.load(run.path).predict(torch.zeros(3, 32, 32, dtype=torch.uint8), coverage=0.5)
    with pytest.raises(DamagedRun, match=VAL):
        run_page(nofe_lab.load(run.path).run)


def test_flat_networks_have_no_specialties_to_tell(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    for of in ("base CNN", "generalist"):
        found = nofe_lab.load(made(experiment, of)).predict(experiment.data.test)
        for ask in ("specialties", "specialty_probabilities"):
            with pytest.raises(InvalidInput, match="this network has no specialties"):
                getattr(found, ask)


def test_a_damaged_run_says_which_and_how(tiny_experiment: Make) -> None:
    run = made(tiny_experiment())
    (run.path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedRun, match=rf"{run.path.name} is damaged: weights.safetensors is"):
        nofe_lab.load(run.path)


def test_a_run_of_an_earlier_library_says_what_it_lacks() -> None:
    old = next((Path(__file__).parents[1] / "fixtures" / "runs_of_format_3").glob("nofe-*"))
    with pytest.raises(InvalidInput, match=r"made by an earlier nofe_lab, which did not keep"):
        nofe_lab.load(old)


# --- what a run keeps


@pytest.mark.parametrize("of", ["base CNN", "generalist", "network of experts"])
def test_a_run_keeps_images_of_each_class_and_its_report(tiny_experiment: Make, of: str) -> None:
    experiment = tiny_experiment()
    stage = STAGES[of](experiment)
    model = nofe_lab.load(made(experiment, of))
    kept, train = model.thumbnails, experiment.data.train
    assert kept.shape == (6, 3, 3, 32, 32)
    for c in range(6):
        own = train.sample(train.of_class(c))
        near = [(own.float() - image).abs().flatten(1).mean(1).min() for image in kept[c]]
        assert max(near) < 16  # grey levels that a JPEG of noise loses
    assert model.report == {}
    if of == "base CNN":
        report = experiment.final_report({"base": stage})
        assert model.report["test_accuracy"] == report.table["test_accuracy"][0]


def test_large_thumbnails_are_made_small_and_grey_ones_are_shown(tmp_path: Path) -> None:
    images = torch.randint(0, 255, (16, 1, 60, 96), dtype=torch.uint8)
    split = Resident(images, torch.arange(16) % 2)
    data = Dataset("grey", ("a", "b"), split, split[:0], split)

    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tail = nn.Conv2d(1, 4, 3, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.tail(self.first(x).mean((2, 3)))
            return logits

    experiment = Experiment(
        data, Grey, K=2, epochs=1, batch_size=4, runs_dir=str(tmp_path), val_fraction=0
    )
    (run,) = experiment.run(experiment.base())
    model = nofe_lab.load(run, network=Grey)
    assert model.thumbnails.shape == (2, 3, 3, 30, 48)
    coloured = np.random.default_rng(0).integers(0, 255, (200, 100, 3), dtype=np.uint8)
    assert model.predict(coloured).probabilities.shape == (1, 2)


# --- predict


def test_pictures_of_every_kind_are_prepared_as_in_training(
    tiny_experiment: Make, photo: Path
) -> None:
    model = nofe_lab.load(made(tiny_experiment()))
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, dtype=np.uint8)])
    expected = model.predict(photo).probabilities[0]
    several = [str(photo), photo, picture, pixels, tensor, alpha, picture.convert("RGBA")]
    for what in several:
        np.testing.assert_array_equal(model.predict(what).probabilities[0], expected)
    together = model.predict(several)
    np.testing.assert_allclose(together.probabilities, np.tile(expected, (7, 1)), atol=1e-6)
    assert together.names[:3] == (str(photo), str(photo), "image 1")
    grey = pixels[..., 0]
    for what in (grey, grey[..., None], torch.from_numpy(grey.copy())[None]):
        np.testing.assert_array_equal(
            model.predict(what).probabilities, model.predict(np.dstack([grey] * 3)).probabilities
        )


def test_images_of_the_network_s_size_are_answered_as_logits_say(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment))
    test = experiment.data.test
    expected = predict(model, test)
    rows = test.images.permute(0, 2, 3, 1).numpy()
    for what in (test.images, rows, test, list(rows)):
        found = model.predict(what)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        assert found.labels == tuple(model.class_names[c] for c in expected.predicted)
        assert len(found) == len(test)


def test_a_prediction_tells_the_specialty_and_its_probability(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment))
    found = model.predict(experiment.data.test)
    assert model.specialties is not None
    np.testing.assert_allclose(found.specialty_probabilities.sum(1), 1)
    for n, c in enumerate(found.predicted):
        k = model.specialties.of[c]
        members = list(model.specialties.members(k))
        assert found.specialties[n] == model.specialties.title(k)
        row = found.table.iloc[n]
        assert row["specialty probability"] == pytest.approx(found.probabilities[n, members].sum())
        assert row["label"] == model.class_names[c]
    assert found.experts is None
    assert "probability" in str(found)
    assert "<table" in found._repr_html_()


def test_a_generalist_answers_with_specialties(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment, "generalist"))
    found = model.predict(experiment.data.test)
    assert model.specialties is not None
    assert set(found.labels) <= set(map(model.specialties.title, range(3)))
    assert "specialty" not in found.table


def test_the_experts_that_ran_are_named(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment, "gate"))
    test = experiment.data.test
    for m in (1, 2):
        found = model.predict(test, experts=m)
        logits = model.logits(test.images, m)
        np.testing.assert_allclose(found.probabilities, logits.softmax(1).detach(), atol=1e-6)
        assert found.experts is not None
        assert {len(row) for row in found.experts} == {m}
        assert "experts" in found.table
    # one expert alone: its classes keep its own logits, the others the gate's
    full, (ran,) = model(test.images[:1])[0], found_one(model, test.images[:1])
    members = list(model.specialties.members(ran))  # type: ignore[union-attr]
    torch.testing.assert_close(model.logits(test.images[:1], 1)[0, members], full[members])
    with pytest.raises(InvalidInput, match="experts must be a whole number from 1 to 3; got 4"):
        model.predict(test, experts=4)
    with pytest.raises(InvalidInput, match="a network with a gate; this one has none"):
        nofe_lab.load(made(experiment)).predict(test, experts=1)
    with pytest.raises(InvalidInput, match="which has no experts"):
        nofe_lab.load(made(experiment, "base CNN")).predict(test, experts=1)


def found_one(model: Classifier, images: Tensor) -> list[int]:
    ran = model.predict(images, experts=1).ran
    assert ran is not None
    return [int(k) for k in ran[0]]


@pytest.mark.parametrize("experts", [None, 1, 2])
def test_coverage_answers_with_the_class_for_that_share_of_val(
    tiny_experiment: Make, experts: int | None
) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment, "gate"))
    val = experiment.data.val
    shares = []
    for coverage in (0.0, 0.5, 1.0):
        found = model.predict(val, experts=experts, coverage=coverage)
        is_class = np.array([answer in model.class_names for answer in found.answers])
        shares.append(is_class.mean())
        assert "answer" in found.table
        certain = found.probabilities.max(1)
        assert certain[is_class].min(initial=1) >= certain[~is_class].max(initial=0)
    assert shares == pytest.approx([0, 0.5, 1], abs=1.01 / len(val))
    for coverage in (-0.1, 2, "x"):
        with pytest.raises(InvalidInput, match="coverage must be a number from 0 to 1"):
            model.predict(val, coverage=coverage)  # type: ignore[arg-type]


def test_coverage_is_refused_without_val_images_or_specialties(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(val_fraction=0)
    test = experiment.data.test
    with pytest.raises(InvalidInput, match="needs val images, on which its threshold is fitted"):
        nofe_lab.load(made(experiment)).predict(test, coverage=0.9)
    with pytest.raises(InvalidInput, match="is for networks of experts, which answer with a"):
        nofe_lab.load(made(experiment, "base CNN")).predict(test, coverage=0.9)


def test_a_folder_is_answered_and_unreadable_images_are_named(
    tiny_experiment: Make, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nofe_lab.load(made(tiny_experiment()))
    folder = tmp_path / "pictures"
    (folder / "inside").mkdir(parents=True)
    shutil.copy(photo, folder / "inside" / "a.png")
    shutil.copy(photo, folder / "b.PNG")
    (folder / "broken.jpg").write_bytes(photo.read_bytes()[:400])
    (folder / "notes.txt").write_text("no picture")
    capsys.readouterr()
    found = model.predict(folder)
    assert found.names == ("b.PNG", "inside/a.png")
    assert [name for name, _ in found.unreadable] == ["broken.jpg"]
    assert "1 of 3 images cannot be read: broken.jpg" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    bad = [
        tmp_path / "missing.png",
        folder / "broken.jpg",
        "\0",
        "~nobody/x.png",
        tmp_path / "none",
    ]
    mixed = model.predict([photo, *bad, "x" * 5000, folder, bad[0]])
    assert mixed.names == (str(photo), f"{folder}/b.PNG", f"{folder}/inside/a.png")
    assert len(mixed.unreadable) == len(bad) + 3
    assert all(len(name) < 300 for name, _ in mixed.unreadable)


def test_images_have_names_that_tell_them_apart(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment))
    some = experiment.data.test.images[:2]
    found = model.predict([some, experiment.data.test[:2], some[0]])
    assert found.names == tuple(f"image {n}" for n in range(1, 6))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("missing.png", "there is no file or folder 'missing.png'"),
        (".", "holds no images; accepted: files ending in .avif"),
        ("empty", "holds no images"),
        ("text.png", r"no image can be read: text.png \(no image, or of an unknown format\)"),
        ([], "predict needs at least 1 image; got none"),
        (3, "predict takes the path of an image or of a folder, .*; got int"),
        ([None], "predict takes the path .*; got NoneType"),
        ("\0", "there is no file or folder"),
        ("", "there is no file or folder ''|holds no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "predict needs at least 1 image"),
        (np.zeros((8, 8, 3)), r"pixels must be uint8 \[height, width, 1, 3 or 4\]; got float64"),
        (np.zeros((3, 8, 8), np.uint8), r"pixels must be uint8 .*; got uint8 \[3, 8, 8\]"),
        (np.zeros((8, 0, 3), np.uint8), "it has no pixels"),
        (torch.zeros(3, 8, 8), "pixels must be uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "must be a plain tensor"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "must be a plain tensor"),
        (Image.new("RGB", (0, 5)), "it has no pixels"),
        ("x" * 5000, r"'xxx.*\.\.\. \(5002 characters\) cannot be opened"),
        (torch.zeros(2, 3, 4, 5, 6, dtype=torch.uint8), "pixels must be uint8"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(
    tiny_experiment: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: Any,
    sentence: str,
) -> None:
    model = nofe_lab.load(made(tiny_experiment()))
    place = tmp_path / "place"
    (place / "empty").mkdir(parents=True)
    monkeypatch.chdir(place)
    if isinstance(what, str) and what == "text.png":
        Path(what).write_text("no picture")
    with pytest.raises(InvalidInput, match=sentence):
        model.predict(what)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_picture(tiny_experiment: Make, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidInput, match="not a regular file"):
        nofe_lab.load(made(tiny_experiment())).predict(tmp_path / "pipe.png")


def test_a_network_knows_the_images_that_it_has_trained_on(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    data = experiment.data
    for of in ("base CNN", "gate"):
        model = nofe_lab.load(made(experiment, of))
        assert model.has_seen(data.train.sample(range(len(data.train)))).all()
        assert not model.has_seen(data.val.sample(range(len(data.val)))).any()
        assert not model.has_seen(data.test.images).any()


def test_thumbnails_of_thousands_of_classes_fit_a_picture() -> None:
    for C in (2, 7, 3000):
        marks = torch.arange(3 * C) % 250
        sheet = _sheet(marks[:, None, None, None].expand(-1, 3, 8, 8).to(torch.uint8))
        with Image.open(io.BytesIO(sheet)) as opened:
            assert max(opened.size) < 3000


def test_a_data_set_s_predict_says_where_pictures_go(tiny_experiment: Make) -> None:
    model = nofe_lab.load(made(tiny_experiment()))
    with pytest.raises(InvalidInput, match=r"model\.predict\(\.\.\.\) takes files, folders"):
        predict(model, ["rose.png"])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"got str: predict takes files and pictures"):
        model("rose.png")


def test_predicting_changes_neither_the_mode_nor_the_gradients(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    model = nofe_lab.load(made(experiment))
    model.train()
    model.predict(experiment.data.test)
    assert model.training
    assert model(experiment.data.test.images).requires_grad


def test_16_bit_images_are_scaled_by_the_training_images_depth(tmp_path: Path) -> None:
    values = np.linspace(0, 1023, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    ten = image_tensor(tmp_path / "deep.png", (3, 8, 8), 10)
    assert (int(ten.min()), int(ten.max())) == (0, 255)
    assert int(image_tensor(tmp_path / "deep.png", (3, 8, 8), 16).max()) == 4
    with pytest.raises(UnreadableImage, match="tensors of 5 channels, not pictures"):
        image_tensor(tmp_path / "deep.png", (5, 8, 8))


def test_the_files_that_load_needs_are_named_in_the_record(tiny_experiment: Make) -> None:
    files = made(tiny_experiment()).record["files"]
    assert {MODEL, THUMBNAILS, VAL, "classes.json", "specialties.json"} < set(files)
