"""Networks leave the workbench: one expert alone, ONNX and torch.export files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import nofe_lab
from nofe_lab import Classifier, Dataset, Experiment, InvalidInput, Specialties
from nofe_lab.evaluation import best_threshold, on_specialty
from nofe_lab.inference import export
from nofe_lab.inference.answers import NONE
from nofe_lab.inference.export import METADATA, Exported
from nofe_lab.networks import NofE
from nofe_lab.networks.nofe import log_odds
from nofe_lab.runs import DamagedRun, open_run
from nofe_lab.specialties import Specialties as Partition
from nofe_lab.stages import Stage
from tests.unit.test_inference import edited

Make = Callable[..., Experiment]
Open = Callable[..., Classifier]
STAGES: dict[str, Callable[[Experiment], Stage]] = {
    "base CNN": lambda experiment: experiment.base(),
    "generalist": lambda experiment: experiment.generalist(),
    "network of experts": lambda experiment: experiment.nofe(),
    "gate": lambda experiment: experiment.gate(),
}


@pytest.fixture(scope="module")
def experiment(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Whose networks are trained once; no test may change their runs."""
    return Experiment(
        tiny,
        K=3,
        epochs=1,
        batch_size=36,
        learning_rate=0.005,
        val_fraction=0.25,
        device="cpu",
        runs_dir=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def opened(experiment: Experiment) -> Open:
    """Opens a trained network of `experiment`."""

    def load(of: str = "network of experts", **options: Any) -> Classifier:
        (run,) = experiment.run(STAGES[of](experiment))
        return nofe_lab.load(run, **options)

    return load


@pytest.fixture(scope="module")
def onnx_file(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Exports a network, an expert of it, or its choice of some experts, once."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def made(of: str, expert: int | None = None, experts: int | None = None) -> Exported:
        path = folder / f"{of} {expert} {experts}" / "network.onnx"
        if expert is not None:
            return opened(of).expert(expert).export(path)
        return opened(of).export(path, experts)

    return made


def answers(path: Path, images: Tensor) -> dict[str, np.ndarray]:
    """What onnxruntime makes of a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    found: list[Any] = session.run(names, {"images": images.numpy()})
    return dict(zip(names, found, strict=True))


# --- files for other programs


@pytest.mark.parametrize("of", ["base CNN", "network of experts"])
def test_an_onnx_file_answers_as_the_network_for_any_number_of_images(
    experiment: Experiment, opened: Open, onnx_file: Callable[..., Exported], of: str
) -> None:
    done = onnx_file(of)
    assert done.path.stat().st_size == done.bytes
    assert [each.name for each in done.path.parent.iterdir()] == ["network.onnx"]  # one file
    assert 0 <= done.logits < 1e-4
    for n in (1, 7):
        images = experiment.data.test.sample(range(n))
        found = answers(done.path, images)
        with torch.inference_mode():
            expected = opened(of)(images)
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found["probabilities"], expected.softmax(1), atol=1e-4)


def test_an_onnx_file_says_what_it_takes_and_what_it_answers(
    opened: Open, onnx_file: Callable[..., Exported]
) -> None:
    model, file = opened(), onnx.load(onnx_file("network of experts").path)
    onnx.checker.check_model(file, full_check=True)
    assert file.opset_import[0].version >= 19
    (given,) = file.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *sides = given.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [side.dim_value for side in sides] == list(model.image_shape)
    said = {each.key: each.value for each in file.metadata_props}
    assert tuple(json.loads(said["class_names"])) == model.class_names
    assert Specialties.from_json(said["specialties"]) == model.specialties
    assert said["run"] == model.run.id
    assert "uint8 [N, 3, 32, 32]" in said["input"]


def test_a_file_does_not_tell_where_the_library_lies(
    opened: Open, onnx_file: Callable[..., Exported], tmp_path: Path
) -> None:
    model = opened("base CNN")
    for path in (onnx_file("base CNN").path, model.export(tmp_path / "network.pt2").path):
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as packed:
                content = b"".join(map(packed.read, packed.namelist()))
        for place in (Path(nofe_lab.__file__).parents[1], Path(torch.__file__).parents[1]):
            assert str(place).encode() not in content


def test_a_link_leads_to_the_file_that_is_written(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "link.pt2").symlink_to(tmp_path / "network.pt2")
    done = opened("base CNN").export(tmp_path / "link.pt2")
    assert (tmp_path / "link.pt2").is_symlink()
    assert (tmp_path / "network.pt2").stat().st_size == done.bytes


def test_a_generalist_s_file_is_of_its_specialties(opened: Open) -> None:
    model = opened("generalist")
    assert json.loads(model.metadata["class_names"]) == list(model.output_names)


@pytest.mark.parametrize("experts", [None, 2])
def test_a_file_of_torch_export_answers_as_the_network(
    experiment: Experiment, opened: Open, tmp_path: Path, experts: int | None
) -> None:
    model = opened("gate", precision="bf16")
    path = model.export(str(tmp_path / "network.pt2"), experts).path
    assert model.precision == "bf16"  # the file computes in fp32, the network is not changed
    more = {METADATA: ""}
    read = torch.export.load(path, extra_files=more).module()
    about = json.loads(more[METADATA])
    assert tuple(json.loads(about["class_names"])) == model.class_names
    assert about.get("experts") == (None if experts is None else "2")
    for images in (experiment.data.test.sample(range(9)), experiment.data.train.sample([3])):
        with torch.inference_mode():
            logits, probabilities = read(images)
            expected = opened("gate").logits(images, experts)
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-4)


def test_a_gate_chooses_in_an_onnx_file_too(
    experiment: Experiment, opened: Open, onnx_file: Callable[..., Exported]
) -> None:
    path = onnx_file("gate", experts=1).path
    for images in (experiment.data.test.sample(range(9)), experiment.data.train.sample([3])):
        with torch.inference_mode():
            expected = opened("gate").logits(images, 1)
        found = answers(path, images)["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# --- what is refused


class Doubtful(nn.Module):
    """A network that no single graph describes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found * 2 if float(x.sum()) > 0 else found


def test_what_cannot_be_exported_is_refused_in_a_sentence(opened: Open, tmp_path: Path) -> None:
    model = opened()
    model.network = Doubtful(model.network)
    with pytest.raises(InvalidInput, match=r"cannot be exported: .*accepted: networks of which"):
        model.export(tmp_path / "network.onnx")
    assert not list(tmp_path.glob("network*"))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("network.pt", r"ends in \.onnx or \.pt2; got 'network\.pt'"),
        ("network", r"ends in \.onnx or \.pt2; got 'network'"),
        (".", r"ends in \.onnx or \.pt2; got '\.'"),
        ("", r"ends in \.onnx or \.pt2; got ''"),
        (7, "the file must be text; got 7"),
        (None, "the file must be text; got None"),
    ],
)
def test_only_files_of_known_kinds_are_written(opened: Open, path: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        opened().export(path)


def test_a_folder_in_the_place_of_the_file_is_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").mkdir()
    with pytest.raises(InvalidInput, match=r"network\.onnx' cannot be written"):
        opened().export(tmp_path / "network.onnx")


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_file_that_answers_otherwise_is_not_written(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    path = tmp_path / "network.onnx"
    path.write_text("the file of yesterday")

    def spoiled(graph: Any, *_: Any) -> Any:
        return b"", lambda images: tuple(factor * each.numpy() for each in graph(images))

    monkeypatch.setattr(export, "_onnx", spoiled)
    with pytest.raises(InvalidInput, match=r"not written: the logits .* accepted: up to 0\.001"):
        opened().export(path)
    assert path.read_text() == "the file of yesterday"


def test_logits_of_0_are_no_reason_to_refuse_a_file(opened: Open, tmp_path: Path) -> None:
    model = opened("base CNN")
    with torch.no_grad():
        for each in model.network.get_submodule("head").parameters():
            each.zero_()
    assert model.export(tmp_path / "network.pt2").logits == 0


def test_a_file_that_fails_for_other_numbers_of_images_is_not_written(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def for_two(graph: Any, *_: Any) -> Any:
        def answer(images: Tensor) -> Any:
            if len(images) != 2:
                raise RuntimeError("got 1 for the first dimension")
            return tuple(each.numpy() for each in graph(images))

        return b"", answer

    monkeypatch.setattr(export, "_onnx", for_two)
    with pytest.raises(InvalidInput, match="cannot be exported: got 1 for the first dimension"):
        opened().export(tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_without_its_packages_onnx_says_how_to_get_them(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"onnxruntime: pip install 'nofe_lab\[export\]'"):
        opened().export(tmp_path / "network.onnx")
    opened("base CNN").export(tmp_path / "network.pt2")


def test_weights_that_no_onnx_file_holds_are_refused_before_any_work(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(InvalidInput, match=r"GB of weights.*accepted: a '\.pt2' file"):
        opened().export(tmp_path / "network.onnx")


def test_experts_are_chosen_by_a_gate_alone(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="this one has none"):
        opened().export(tmp_path / "network.onnx", experts=1)
    with pytest.raises(InvalidInput, match="experts must be"):
        opened("gate").export(tmp_path / "network.onnx", experts=9)
    with pytest.raises(InvalidInput, match="which has no experts"):
        opened("base CNN").export(tmp_path / "network.onnx", experts=1)


# --- one expert alone


@pytest.mark.parametrize("of", ["network of experts", "gate"])
def test_an_expert_alone_gives_the_logits_that_the_whole_gives_to_its_classes(
    experiment: Experiment, opened: Open, of: str
) -> None:
    model = opened(of)
    assert model.specialties is not None
    images = experiment.data.test.sample(range(8))
    for k in model.specialties.nonempty:
        expert = model.expert(k)
        members = list(model.specialties.members(k))
        assert expert.class_names == tuple(model.class_names[c] for c in members)
        with torch.inference_mode():
            assert torch.allclose(expert(images), model(images)[:, members], atol=1e-6)


@pytest.mark.parametrize("of", ["network of experts", "gate"])
def test_an_expert_says_none_of_mine_below_the_threshold_that_val_images_gave(
    experiment: Experiment, opened: Open, of: str
) -> None:
    model = opened(of)
    assert model.specialties is not None
    k = model.specialties.nonempty[0]
    members = list(model.specialties.members(k))
    expert, val = model.expert(k), experiment.data.val
    assert expert.threshold is not None
    images = val.sample(range(len(val)))
    with torch.inference_mode():
        logits = model(images)
        network = model.network
        assert isinstance(network, NofE)
        score = logits[:, members].logsumexp(1)
        if of == "gate":
            assert network.gate is not None
            gate = network.gate(network.features(model.preprocess(images))).softmax(1)
            mine = gate[:, members].sum(1)
            score = (mine / (1 - mine)).log()
    takes = (score >= expert.threshold).numpy()
    found = expert.predict(val)
    assert found.margin is not None
    np.testing.assert_array_equal(found.margin >= 0, takes)
    said = [model.class_names[members[i]] for i in logits[:, members].argmax(1)]
    assert list(found.answers) == [
        name if mine else NONE for name, mine in zip(said, takes, strict=True)
    ]
    assert set(found.table["answer"]) == set(found.answers)
    assert found.table["margin"].tolist() == found.margin.tolist()

    own = np.isin(val.labels.numpy(), members)
    labels = [model.class_names[c] for c in val.labels]
    right = np.array([a == b for a, b in zip(labels, found.answers, strict=True)])
    kept, again = expert.measure(), expert.measure(val)
    for table in (kept, again):
        alone, whole = table.to_dict("records")
        assert alone["found"] == pytest.approx(takes[own].mean())
        assert alone["accuracy"] == pytest.approx(right[own].mean())
        assert alone["false alarms"] == pytest.approx(takes[~own].mean())
        predicted = logits.argmax(1).numpy()
        assert whole["accuracy"] == pytest.approx((predicted == val.labels.numpy())[own].mean())
        assert whole["false alarms"] == pytest.approx(np.isin(predicted, members)[~own].mean())
        assert alone["parameters"] < whole["parameters"]
        assert alone["multiply-accumulates"] < whole["multiply-accumulates"]


@pytest.mark.parametrize("of", ["network of experts", "gate"])
def test_an_expert_is_exported_with_its_threshold(
    experiment: Experiment, opened: Open, onnx_file: Callable[..., Exported], of: str
) -> None:
    path, expert = onnx_file(of, expert=1).path, opened(of).expert(1)
    images = experiment.data.test.sample(range(6))
    found, said = answers(path, images), expert.predict(images)
    assert said.margin is not None
    np.testing.assert_allclose(found["margin"], said.margin, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], said.probabilities, atol=1e-4)
    about = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert tuple(json.loads(about["class_names"])) == expert.class_names
    assert about["none_of_mine"] == "margin below 0"
    assert about["specialty"] == expert.title


def test_an_image_on_the_threshold_is_no_reason_to_refuse_a_file(
    opened: Open, tmp_path: Path
) -> None:
    expert = opened().expert(1)
    images = export._images(expert.image_shape, 1)
    with torch.inference_mode():
        expert.threshold = float(expert._scored(images)[0, -1])
        assert abs(float(expert.outputs(images)["margin"])) < 1e-6
    expert.export(tmp_path / "expert.pt2")


def test_an_expert_is_smaller_than_the_whole_and_shares_its_weights(opened: Open) -> None:
    model = opened()
    whole = {each.data_ptr() for each in model.parameters()}
    own = {each.data_ptr() for each in model.expert(0).parameters()}
    assert own < whole


def test_the_whole_is_counted_without_the_gate_that_it_does_not_need(opened: Open) -> None:
    whole, gated = (opened(of).expert(0).measure() for of in ("network of experts", "gate"))
    columns = ["parameters", "multiply-accumulates"]
    assert whole[columns].iloc[1].tolist() == gated[columns].iloc[1].tolist()
    assert (gated[columns].iloc[0] > whole[columns].iloc[0]).all()  # the expert needs it


def test_an_expert_is_found_by_number_or_name(opened: Open) -> None:
    model = opened()
    assert model.expert("2").k == model.expert("specialty 2").k == 1
    with pytest.raises(InvalidInput, match=r"no specialty is called '9'; accepted: 1, 2, 3"):
        model.expert("9")
    for number in (-1, 3, 1.5, True):
        with pytest.raises(InvalidInput, match="expert must be"):
            model.expert(number)  # type: ignore[arg-type]


def test_specialties_without_classes_and_flat_networks_have_no_expert(
    experiment: Experiment, opened: Open, tiny: Dataset
) -> None:
    partition = Partition(tiny.class_names, (0,) * 3 + (2,) * (tiny.C - 3), 3)
    (run,) = experiment.run(experiment.nofe(partition))
    with pytest.raises(InvalidInput, match=r"specialty 2 has no.*: specialty 1, specialty 3"):
        nofe_lab.load(run).expert(1)
    for of in ("base CNN", "generalist"):
        with pytest.raises(InvalidInput, match="has no experts; accepted: networks of experts"):
            opened(of).expert(0)


def test_without_val_images_a_threshold_is_fitted_on_others(
    tiny_experiment: Make, tmp_path: Path
) -> None:
    experiment = tiny_experiment(val_fraction=0.0)
    (run,) = experiment.run(experiment.nofe())
    expert, images = nofe_lab.load(run).expert(0), experiment.data.test
    for act in (
        lambda: expert.predict(images),
        lambda: expert.measure(images),
        lambda: expert.measure(),
        lambda: expert.export(tmp_path / "expert.onnx"),
    ):
        with pytest.raises(InvalidInput, match=r"no val images.*expert\.fit\(images\)"):
            act()
    fitted = expert.fit(images)
    assert fitted.threshold is not None
    np.testing.assert_allclose(fitted.measure()["found"], fitted.measure(images)["found"])
    assert len(fitted.predict(images)) == len(images)


def test_a_threshold_that_is_fitted_on_training_images_is_said_to_be_too_high(
    experiment: Experiment, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    expert = opened().expert(0)
    expert.fit(experiment.data.val)
    assert "training images" not in caplog.text
    expert.fit(experiment.data.train)
    assert "100% of the images are training images" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "nonsense",
        lambda text: text.replace("threshold", "limit"),
        lambda text: text.replace("\n1,", "\n0,"),
        lambda text: text + text.split("\n")[1],
        lambda text: "\n".join(
            line if n == 0 or not line else ",".join([*line.split(",")[:2], *["7"] * 6])
            for n, line in enumerate(text.split("\n"))
        ),
    ],
)
def test_figures_of_experts_that_are_none_are_refused(
    opened: Open, tmp_path: Path, change: Callable[[str], str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(opened().run.path, path)
    run = edited(open_run(path), "experts.csv", change)
    with pytest.raises(DamagedRun, match=r"experts\.csv"):
        nofe_lab.load(run).expert(0), nofe_lab.load(run).expert(1)


def test_the_best_threshold_tells_most_of_both_apart() -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    own = np.array([False, False, True, False, False, True, True])
    # at 5: 2 of 3 own, and 4 of 4 others left; at 2: 3 of 3 own, 2 of 4 others
    assert 4 < best_threshold(scores, own) < 5
    assert best_threshold(scores, np.ones(7, bool)) < -1e38
    assert best_threshold(scores, scores < 1.5) < -1e38  # the least bad is to take all
    with pytest.raises(InvalidInput, match="needs images of the specialty's classes"):
        best_threshold(scores, np.zeros(7, bool))
    assert 2 < best_threshold(scores, scores > 2.5) < 3


def test_shares_of_a_specialty_are_counted_by_hand() -> None:
    labels = np.array([0, 0, 1, 2, 3, 3])
    said = np.array([0, 1, -1, 0, 3, -1])
    found = on_specialty(labels, said, [0, 1])
    assert found == {
        "found": pytest.approx(2 / 3),
        "accuracy": pytest.approx(1 / 3),
        "false_alarms": pytest.approx(1 / 3),
    }
    assert np.isnan(on_specialty(labels, said, [7])["found"])


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(5, 4)
    members = torch.tensor([True, False, True, False])
    share = logits.softmax(1)[:, members].sum(1)
    assert torch.allclose(log_odds(logits, members), (share / (1 - share)).log(), atol=1e-5)


def test_a_specialty_of_one_class_has_an_expert(experiment: Experiment, tiny: Dataset) -> None:
    partition = Partition(tiny.class_names, (0,) + (1,) * (tiny.C - 1), 2)
    (run,) = experiment.run(experiment.nofe(partition))
    found = nofe_lab.load(run).expert(0).predict(experiment.data.test)
    assert set(found.answers) <= {tiny.class_names[0], NONE}
