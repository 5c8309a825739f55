"""The relabelling list: who is listed, who judges, and decisions that are in the file at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nofe_lab
from nofe_lab import Classifier, Dataset, Experiment, InvalidInput
from nofe_lab.data.corrections import Corrections
from nofe_lab.views.widgets.relabel import UNDECIDED, RelabelList

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (90,) * 3}
NEXT = dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1], strict=True))
WRONG = {f"{label}/{i}.png": shown for label, shown in NEXT.items() for i in (3, 11, 20)}
"""Images that are labelled wrongly, and what they show."""

pytestmark = pytest.mark.xdist_group("relabel")  # one training for all


def paint(root: Path, count: int = 30) -> None:
    """Noise in the colour that its folder is called after, but for a few images."""
    rng = np.random.default_rng(0)
    for label in COLOURS:
        (root / label).mkdir(parents=True)
        for i in range(count):
            shown = COLOURS[WRONG.get(f"{label}/{i}.png", label)]
            pixels = rng.normal(shown, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> list[Experiment]:
    """Two, whose val splits differ; val is half, so that many images are judged."""
    root = tmp_path_factory.mktemp("painted")
    paint(root / "data")
    given: dict[str, Any] = {
        **{
            "dataset": f"folder:{root / 'data'}",
            "K": 2,
            "epochs": 12,
            "batch_size": 10,
            "learning_rate": 0.003,
        },
        **{"device": "cpu", "runs_dir": str(root / "runs"), "val_fraction": 0.5},
    }
    return [Experiment(**given, data_seed=0), Experiment(**given, data_seed=1)]


@pytest.fixture(scope="module")
def networks(experiments: list[Experiment]) -> list[Classifier]:
    """Base CNN and network of experts of the one, then of the other."""
    return [each.model(stage) for each in experiments for stage in (each.base(), each.nofe())]


def where(data: Dataset) -> dict[str, str]:
    """The split of each file."""
    file_of = {image.key: file for file, image in data.files.items()}
    return {
        file_of[key.tobytes()]: split
        for split in ("train", "val", "test")
        for key in getattr(data, split).keys.numpy()
    }


def listed(found: RelabelList, which: str = "labelled wrongly?") -> dict[str, dict[str, Any]]:
    return {each["file"]: each for each in found.lists[which]}


def test_labels_that_all_judges_doubt_are_listed(
    experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    data = experiments[0].data
    found = nofe_lab.relabel(data, networks[:2], tmp_path / "c.csv", ("train", "val", "test"))
    judged = {file for file, split in where(data).items() if split != "train"}
    expected = {file: shown for file, shown in WRONG.items() if file in judged}
    assert expected
    suspects = listed(found)
    assert {file: each["suggested"] for file, each in suspects.items()} == expected
    for file, each in suspects.items():
        assert each["label"] == file.split("/")[0]
        assert [name for name, *_ in each["said"]] == [m.run.about["title"] for m in networks[:2]]


def test_nobody_judges_an_image_that_it_has_trained_on(
    experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    """Train images are judged by the networks that did not see them, in pairs at least."""
    data, other = experiments[0].data, experiments[1].data
    found = nofe_lab.relabel(data, networks, tmp_path / "c.csv")
    mine, its = where(data), where(other)
    everything = {**listed(found), **listed(found, "worst confusions")}
    assert not any(mine[file] == "test" for file in everything)  # unless it is asked for
    for file, each in everything.items():
        judges = 2 * (mine[file] != "train") + 2 * (its[file] != "train")
        assert len(each["said"]) == judges >= 2, file
    unseen_by_two = [f for f in WRONG if mine[f] == "train" and its[f] != "train"]
    assert unseen_by_two
    assert set(unseen_by_two) <= set(listed(found))


def test_the_worst_confusions_are_listed_with_what_was_said(
    experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    found = nofe_lab.relabel(experiments[0].data, networks[:2], tmp_path / "c.csv")
    confused = listed(found, "worst confusions")
    assert set(listed(found)) <= set(confused)
    for each in confused.values():
        assert each["suggested"] != each["label"]
        assert each["suggested"] in {said for _, said, *_ in each["said"]}


@pytest.fixture
def found(experiments: list[Experiment], networks: list[Classifier], tmp_path: Path) -> RelabelList:
    return nofe_lab.relabel(experiments[0].data, networks, tmp_path / "c.csv")


def test_each_decision_is_in_the_file_at_once(found: RelabelList, tmp_path: Path) -> None:
    first, second = (each["file"] for each in found.items[:2])
    assert not (tmp_path / "c.csv").exists()
    found.decide(0, "relabel", found.items[0]["suggested"])
    found.decide(1, "exclude")
    kept = Corrections.read(tmp_path / "c.csv").by_file
    assert [(each.file, each.decision, each.corrected) for each in kept.values()] == [
        (first, "relabel", WRONG[first]),
        (second, "exclude", ""),
    ]
    found.undo()
    assert list(Corrections.read(tmp_path / "c.csv").by_file) == [first]


def test_undo_goes_back_to_the_image_and_to_what_was_decided_before(found: RelabelList) -> None:
    found.decide(1, "exclude")
    found.decide(1, "keep")
    found.which = "worst confusions"
    found.decide(0, "keep")
    found.undo()
    assert (found.which, found.place, found.decisions[0]) == ("worst confusions", 0, None)
    found.undo()
    assert (found.which, found.place) == ("labelled wrongly?", 1)
    assert found.decisions[1] == ["exclude", ""]
    found.undo()
    assert found.decisions == [None] * len(found.items)
    found.undo()  # nothing is left to be undone
    assert found.decisions == [None] * len(found.items)


def test_a_change_of_the_list_and_a_new_widget_show_what_was_decided(
    found: RelabelList, experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    found.decide(0, "keep")
    file = found.items[0]["file"]
    found.which = "worst confusions"
    assert found.decisions[[each["file"] for each in found.items].index(file)] == ["keep", ""]
    again = nofe_lab.relabel(experiments[0].data, networks, tmp_path / "c.csv")
    assert again.items[0]["file"] == file
    assert again.decisions[0] == ["keep", ""]
    assert again.place == 1  # it goes on with the first that is undecided
    assert "1 of" in again.words


def test_two_lists_of_one_file_lose_nothing(
    found: RelabelList, experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    other = nofe_lab.relabel(experiments[0].data, networks, tmp_path / "c.csv")
    found.decide(0, "keep")
    other.decide(1, "exclude")
    assert len(Corrections.read(tmp_path / "c.csv").by_file) == 2


def test_what_was_decided_is_read_back_by_the_knob(
    found: RelabelList, experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    for n, each in enumerate(found.items):
        if each["file"] in WRONG:
            found.decide(n, "relabel", WRONG[each["file"]])
    mended = replace(experiments[0], corrections=str(tmp_path / "c.csv"))
    assert mended.data.fingerprint != experiments[0].data.fingerprint
    assert mended.base().id != experiments[0].base().id
    with pytest.raises(
        InvalidInput, match=r"has been corrected: load the data without corrections"
    ):
        nofe_lab.relabel(mended.data, networks, tmp_path / "other.csv")


def test_a_decision_that_cannot_be_written_is_said_and_not_shown(
    found: RelabelList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def keep(item: int) -> None:
        file = found.items[item]["file"]
        found._hear(found, {"do": "decide", "file": file, "decision": "keep", "corrected": ""}, [])

    monkeypatch.setattr("nofe_lab.data.corrections.write_file", full)
    told: list[dict[str, str]] = []
    monkeypatch.setattr(found, "send", told.append)
    keep(0)
    assert told[0]["file"] == found.items[0]["file"]
    assert told[0]["refused"].endswith("(No space left on device).")
    assert found.decisions[0] is None
    monkeypatch.undo()
    monkeypatch.setattr(found, "send", told.append)
    keep(0)
    assert len(told) == 1
    assert found.decisions[0] == ["keep", ""]
    (tmp_path / "c.csv").write_text("nonsense")
    keep(1)
    assert "must be a CSV with the columns" in told[1]["refused"]
    assert (tmp_path / "c.csv").read_text() == "nonsense"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((99, "keep"), "item must be a whole number from 0"),
        ((0, "drop"), "the decision 'drop' is unknown"),
        ((0, "relabel", "cow"), "class 'cow' is unknown"),
        ((0, "relabel", ""), "class '' is unknown"),
    ],
)
def test_decisions_that_are_none_are_refused(
    found: RelabelList, given: tuple[Any, ...], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        found.decide(*given)
    with pytest.raises(InvalidInput, match="is the label that the image has: keep it"):
        found.decide(0, "relabel", found.items[0]["label"])


def test_the_list_is_drawn_where_no_kernel_runs(found: RelabelList) -> None:
    assert found.png.startswith(b"\x89PNG")


def test_a_long_list_ends_with_what_is_decided(found: RelabelList, tmp_path: Path) -> None:
    items = [{**found.items[0], "file": str(n)} for n in range(UNDECIDED + 100)]
    known = {str(n): None for n in (5, UNDECIDED + 50)}
    longer = RelabelList(
        Corrections(tmp_path / "x.csv", known),  # type: ignore[arg-type]
        found.data,
        found._images,
        {"all": []},
    )
    files = [each["file"] for each in longer._first(items)]
    assert len(files) == UNDECIDED + 2
    assert str(UNDECIDED + 50) in files


Refused = Callable[[Experiment, list[Classifier]], Any]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda e, m: (nofe_lab.load_dataset("glyphs:4"), m), "is for data sets of files"),
        (lambda e, m: (e.data, m[:1]), "needs 2 networks or more"),
        (lambda e, m: (e.data, [*m, e.model(e.generalist())]), "for other classes or images"),
        (lambda e, m: (replace(e, image_size=40).data, m), "for other classes or images"),
        (lambda e, m: (e.data, m, ("train", "dev")), "split 'dev' is unknown"),
        (lambda e, m: (e.data, m[:2], ("train",)), "no image of train is unknown to two networks"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    experiments: list[Experiment],
    networks: list[Classifier],
    tmp_path: Path,
    ask: Refused,
    sentence: str,
) -> None:
    data, models, *splits = ask(experiments[0], networks)
    with pytest.raises(InvalidInput, match=sentence):
        nofe_lab.relabel(data, models, tmp_path / "c.csv", *splits)


def test_a_run_that_does_not_know_what_it_has_seen_does_not_judge(
    experiments: list[Experiment], networks: list[Classifier], tmp_path: Path
) -> None:
    forgetful = experiments[0].model(experiments[0].base())
    forgetful.__dict__["_seen"] = np.empty(0, np.uint32)
    with pytest.raises(InvalidInput, match="does not say which images it has trained on"):
        nofe_lab.relabel(experiments[0].data, [forgetful, networks[1]], tmp_path / "c.csv")


def test_a_csv_that_does_not_fit_is_refused_before_any_network_runs(
    experiments: list[Experiment], tmp_path: Path
) -> None:
    (tmp_path / "c.csv").write_text("file,checksum,label,decision,corrected\nx.png,1,red,keep,\n")
    with pytest.raises(InvalidInput, match=r"'x.png', which is no image of folder:"):
        nofe_lab.relabel(experiments[0].data, [], tmp_path / "c.csv")
    with pytest.raises(InvalidInput, match=r"cannot be written"):
        nofe_lab.relabel(experiments[0].data, [], "/dev/null/c.csv")
