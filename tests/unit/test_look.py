"""What any classifier confuses: figures by hand, tables of any framework, modules, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import nofe_lab
from nofe_lab import Dataset, InvalidInput, Specialties
from nofe_lab.data import Resident
from nofe_lab.data.thumbnails import Thumbnails
from nofe_lab.diagnosis import Look
from nofe_lab.specialties import (
    balanced_clusters,
    balanced_maps,
    clusters_history,
    leaf_order,
    maps_of,
)
from nofe_lab.specialties.assignment import optimal
from nofe_lab.statistics import errors_inside

COUNTS = np.array([[5, 3, 0, 0], [1, 7, 0, 0], [0, 0, 6, 2], [0, 1, 1, 6]])
"""Of four classes: 0 and 1, 2 and 3 are mistaken for each other, and once 3 for 1."""
PAIRS = Specialties(tuple("0123"), (0, 0, 1, 1), 2)


def rows_of(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels, predicted = np.nonzero(counts)
    times = counts[labels, predicted]
    return labels.repeat(times), predicted.repeat(times)


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.uint8]]:
    """Labels, probabilities and images of scikit-learn's digits, by its logistic regression."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    data = load_digits()
    x = data.data / 16
    model = LogisticRegression(max_iter=200).fit(x[:600], data.target[:600])
    images = (data.images[600:] * 15.9).astype(np.uint8)[:, None]
    return data.target[600:], model.predict_proba(x[600:]), images


# --- figures


def test_confusions_of_scikit_learn_s_digits_are_those_counted_by_hand(digits: Any) -> None:
    labels, probabilities, _ = digits
    by_hand = np.zeros((10, 10), dtype=int)
    for label, row in zip(labels, probabilities, strict=True):
        by_hand[label, max(range(10), key=lambda c: row[c])] += 1
    for given in ((labels, probabilities), (labels, probabilities.argmax(1))):
        page = nofe_lab.look(given)
        assert page.class_names == tuple("0123456789")
        assert page.confusion.tolist() == by_hand.tolist()
        assert page.accuracy == pytest.approx(np.trace(by_hand) / len(labels))


def test_a_ceiling_mends_the_errors_inside_and_random_groups_those_of_all_draws() -> None:
    page = nofe_lab.look(rows_of(COUNTS))
    found = page.ceiling(PAIRS)
    assert found.accuracy == 24 / 32
    assert found.mended == 31 / 32  # all errors but the one of 3 for 1
    # pairs of four classes: {01 23} holds 7 of 8 errors, {02 13} 1, {03 12} none
    assert found.random == pytest.approx((24 + (7 + 1 + 0) / 3) / 32)
    assert str(found) == (
        "Were every error inside these groups mended: 75.0 -> 96.9; random groups of the same "
        "sizes: 83.3."
    )
    assert page.ceiling(2) == found
    assert page.ceiling() == found


def test_a_ceiling_without_errors_is_the_accuracy() -> None:
    found = nofe_lab.look(rows_of(np.diag([3, 3, 3]))).ceiling(2)
    assert (found.accuracy, found.mended, found.random) == (1, 1, 1)


def test_the_ceiling_of_chance_finds_does_not_hold_on_other_images() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(30, size=(2, 900))  # nothing is alike
    chance = nofe_lab.look((labels, predicted))
    found, crossed = chance.ceiling(5), chance.crossed_ceiling(5)
    assert found.mended - found.random > 0.05
    assert abs(crossed.mended - crossed.random) < 0.03
    counts, _ = shuffled_blocks(30, 6)
    real = nofe_lab.look(rows_of(counts))
    assert real.crossed_ceiling(5).mended == pytest.approx(real.ceiling(5).mended, abs=0.02)
    assert real.crossed_ceiling(5).accuracy == pytest.approx(real.accuracy)


def test_worst_pairs_count_errors_in_both_directions() -> None:
    found = nofe_lab.look(rows_of(COUNTS)).worst_pairs(2)
    assert found.to_dict("list") == {
        "class": ["0", "2"],
        "rival": ["1", "3"],
        "errors": [4, 3],
        "mistaken": [3, 2],
        "share": [0.5, 0.375],
    }
    assert len(nofe_lab.look(rows_of(COUNTS)).worst_pairs(100)) == 3


def test_suspects_are_images_that_look_more_like_those_of_another_class() -> None:
    probabilities = [[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.45, 0.55], [0.2, 0.8], [0.1, 0.9]]
    page = nofe_lab.look(([0, 0, 0, 0, 1, 1], np.array(probabilities)))
    # images of class 1 have 0.85 on average: the third looks like one, the fourth does not
    found = page.mislabelled()
    assert found["row"].tolist() == [2]
    assert found.loc[0, ["label", "suggested"]].tolist() == ["0", "1"]
    assert found.loc[0, ["p_label", "p_suggested"]].tolist() == pytest.approx([0.05, 0.95])


def test_a_suspect_is_less_probable_as_its_label_than_as_what_is_suggested() -> None:
    # the first image is most probably of class 1, but not as probable as those of class 1 are
    probabilities = [[0.40, 0.45, 0.15], [0.9, 0.05, 0.05], [0.01, 0.98, 0.01], [0.4, 0.45, 0.15]]
    found = nofe_lab.look(([0, 0, 1, 2], np.array(probabilities, np.float32))).mislabelled()
    assert (found["p_suggested"] > found["p_label"]).all()
    assert 0 not in found["row"].tolist()


@pytest.mark.parametrize("as_text", [True, False])
def test_classes_that_are_called_by_numbers_are_known_by_their_names(as_text: bool) -> None:
    names = sorted(map(str, range(12)))  # as folders are: 0, 1, 10, 11, 2, ...
    labels = [int(name) for name in names]
    table = pd.DataFrame(np.eye(12), columns=names)
    table.insert(0, "label", names if as_text else labels)
    found = nofe_lab.look(table)
    assert found.class_names == tuple(names)
    assert found.accuracy == 1


def test_a_number_that_is_no_column_is_refused_and_not_counted_from_0() -> None:
    table = pd.DataFrame(np.eye(3), columns=["1", "2", "3"]).assign(label=[0, 1, 2])
    with pytest.raises(InvalidInput, match=r"the label 0 is no column of probabilities; there are"):
        nofe_lab.look(table)
    # numbers beside an array are indices, whatever the classes are called
    found = nofe_lab.look(([1, 2], np.eye(3)[1:]), class_names=["1", "2", "3"])
    assert found.accuracy == 1


def test_planted_wrong_labels_are_found_first(digits: Any) -> None:
    labels, probabilities, _ = digits
    sure = np.flatnonzero((probabilities.max(1) > 0.99) & (probabilities.argmax(1) == labels))[:5]
    planted = labels.copy()
    planted[sure] = (labels[sure] + 1) % 10
    found = nofe_lab.look((planted, probabilities)).mislabelled(5)
    assert sorted(found["row"]) == sorted(sure)
    assert found["suggested"].astype(int).tolist() == labels[found["row"]].tolist()


def test_reliability_compares_confidence_with_accuracy_bin_by_bin() -> None:
    page = nofe_lab.look(([0, 0, 1, 1], np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])))
    bins = page.reliability
    assert bins["images"].sum() == 4
    sure = bins.loc[bins["images"] == 3].iloc[0]
    assert sure["low"] < 0.9 <= sure["high"]
    assert (sure["confidence"], sure["accuracy"]) == pytest.approx((0.9, 2 / 3))
    assert bins["accuracy"].isna().sum() == 13


def test_what_needs_probabilities_says_so() -> None:
    page = nofe_lab.look(rows_of(COUNTS))
    with pytest.raises(InvalidInput, match="labelled wrongly cannot be told from predicted"):
        page.mislabelled()
    with pytest.raises(InvalidInput, match="a column of probabilities for each class"):
        page.reliability  # noqa: B018


# --- groups and order


def shuffled_blocks(C: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts with errors inside groups of `size` classes, and the group of each class."""
    rng = np.random.default_rng(0)
    of = rng.permutation(C) // size
    counts = 20 * np.eye(C, dtype=int) + 3 * (of[:, None] == of)
    return counts + (rng.random((C, C)) < 0.05), of


def test_balanced_clusters_find_groups_that_are_there() -> None:
    counts, of = shuffled_blocks(60, 6)
    names = [f"c{i}" for i in range(60)]
    found = balanced_clusters(counts, names, 10)
    assert found.agreement(Specialties(tuple(names), tuple(of), 10))["ari"] == pytest.approx(1)


def test_the_history_of_balanced_clusters_never_loses_and_ends_in_them() -> None:
    rng = np.random.default_rng(0)
    counts, names = rng.integers(0, 9, (30, 30)), [f"class {c}" for c in range(30)]
    history, updates = clusters_history(counts, balanced_maps(counts, 5))
    maps = maps_of(history, balanced_clusters(counts, names, 5))
    assert (np.sort(maps) == np.arange(30) // 6).all()
    assert len(updates)
    assert (updates["objective_after"] > updates["objective_before"]).all()
    last = errors_inside(counts, Specialties(tuple(names), tuple(maps[-1].tolist()), 5))
    assert updates["objective_after"].iloc[-1] == pytest.approx(last)
    assert list(updates["moved"]) == [int((a != b).sum()) for a, b in pairwise(maps)]


def test_swaps_hold_more_errors_than_assigning_all_classes_anew() -> None:
    """Exactly, to the groups that they err with, from the same start, the best of 50 rounds."""
    K, C, ahead = 5, 40, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        place = rng.normal(size=(C, 8))
        near = np.exp(-0.3 * ((place[:, None] - place) ** 2).sum(axis=-1))
        counts = np.stack([rng.multinomial(100, p) for p in near / near.sum(axis=1, keepdims=True)])
        first, *_, swapped = balanced_maps(counts, K)
        errors = (counts + counts.T) * (1 - np.eye(C))
        best, of = 0.0, first
        for _ in range(50):
            of = optimal(errors @ np.eye(K)[of] / np.maximum(errors.sum(axis=1, keepdims=True), 1))
            best = max(best, float((errors * (of[:, None] == of)).sum()))
        ahead.append(float((errors * (swapped[:, None] == swapped)).sum()) >= best)
    assert np.mean(ahead) >= 0.8


@pytest.mark.parametrize("K", [2, 3, 7, 11])
def test_balanced_clusters_have_one_size_and_no_swap_betters_them(K: int) -> None:
    counts = np.random.default_rng(K).poisson(1.0, (11, 11))
    found = balanced_clusters(counts, list("abcdefghijk"), K)
    assert max(found.sizes) - min(found.sizes) <= 1
    best = errors_inside(counts, found)
    for a in range(11):
        for b in range(a):
            swapped = found.moved(a, found.of[b]).moved(b, found.of[a])
            assert errors_inside(counts, swapped) <= best + 1e-12


def test_the_leaf_order_puts_confused_classes_side_by_side() -> None:
    counts, of = shuffled_blocks(60, 6)
    order = leaf_order(counts)
    assert sorted(order) == list(range(60))
    assert (np.diff(of[order]) != 0).sum() == 9  # each of ten groups in one piece


def test_the_order_of_classes_that_are_never_confused_is_any() -> None:
    assert sorted(leaf_order(np.diag([2, 2, 2]))) == [0, 1, 2]
    assert nofe_lab.look(rows_of(np.array([[2, 1], [0, 2]]))).specialties().sizes == (1, 1)


# --- tables


def test_all_forms_of_a_table_say_the_same(digits: Any, tmp_path: Path) -> None:
    labels, probabilities, _ = digits
    frame = pd.DataFrame(probabilities, columns=[f"class {c}" for c in range(10)])
    frame.insert(0, "label", [f"class {c}" for c in labels])
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_parquet(tmp_path / "table.parquet")
    names = [f"class {c}" for c in range(10)]
    mapping = {"label": labels, "probabilities": torch.tensor(probabilities)}
    looks = [
        nofe_lab.look(frame),
        nofe_lab.look(str(tmp_path / "table.csv")),
        nofe_lab.look(tmp_path / "table.parquet"),
        nofe_lab.look(mapping, class_names=names),
        nofe_lab.look(probabilities.tolist(), labels=torch.tensor(labels), class_names=names),
    ]
    for page in looks:
        assert page.class_names == tuple(names)
        assert page.confusion.tolist() == looks[0].confusion.tolist()
        assert page.probabilities is not None
        assert np.allclose(page.probabilities, probabilities, atol=1e-6)
        assert page.mislabelled()["row"].tolist() == looks[0].mislabelled()["row"].tolist()


@pytest.mark.parametrize(
    ("labels", "predictions", "names"),
    [
        (["cat", "dog", "cat"], ["cat", "cat", "cat"], ("cat", "dog")),
        ([3, 10, 3], [3, 3, 3], ("3", "10")),
        ([3.0, 10.0, 3.0], ["3", "3", "3"], ("3", "10")),
    ],
)
def test_classes_without_given_names_are_those_that_occur(
    labels: list[Any], predictions: list[Any], names: tuple[str, ...]
) -> None:
    page = nofe_lab.look((labels, predictions))
    assert page.class_names == names
    assert page.confusion.tolist() == [[2, 0], [1, 0]]


def test_text_is_a_name_before_it_is_an_index(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,prediction\n2,1\n1,1\n")
    page = nofe_lab.look(tmp_path / "t.csv", class_names=["1", "2"])
    assert page.labels.tolist() == [1, 0]
    page = nofe_lab.look(tmp_path / "t.csv", class_names=["a", "b", "c"])
    assert page.labels.tolist() == [2, 1]


def test_names_with_leading_zeros_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,prediction\n007,008\n008,008\n")
    assert nofe_lab.look(tmp_path / "t.csv").class_names == ("007", "008")


def test_columns_that_are_not_read_are_named() -> None:
    frame = pd.DataFrame({"label": ["a", "b"], "prediction": ["a", "a"], "id": [7, 8]})
    assert nofe_lab.look(frame).notes == ("Columns that were not read: id.",)


# --- images


def picture(folder: Path, name: str, grey: int, size: tuple[int, int] = (20, 30)) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(folder / name)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A table beside its pictures, each in the grey of its row."""
    for row in range(4):
        picture(tmp_path, f"pictures/{row}.png", 50 * row, (20 + row, 30))
    files = [f"pictures/{row}.png" for row in range(4)]
    table = {
        "file": files,
        "label": list("abab"),
        "a": [0.9, 0.8, 0.1, 0.1],
        "b": [0.1, 0.2, 0.9, 0.9],
    }
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def test_the_column_file_leads_to_each_row_s_image(album: Path) -> None:
    page = nofe_lab.look(album / "t.csv")
    assert page.images is not None
    assert page.images.sample([3, 1])[:, 0, 0, 0].tolist() == [150, 50]
    assert page.mislabelled()["file"].tolist() == ["pictures/2.png", "pictures/1.png"]
    frame = pd.read_csv(album / "t.csv")
    assert nofe_lab.look(frame, album).images is not None


def test_a_missing_image_is_named_before_any_work(album: Path) -> None:
    (album / "pictures" / "2.png").unlink()
    with pytest.raises(InvalidInput, match=r"file in row 2, 'pictures/2\.png', is not in"):
        nofe_lab.look(album / "t.csv")


def test_a_damaged_image_is_a_grey_square_that_the_page_names(album: Path) -> None:
    (album / "pictures" / "2.png").write_bytes(b"no image")
    page = nofe_lab.look(album / "t.csv")
    text = page.save(album / "page.html").read_text(encoding="utf-8")
    assert "pictures/2.png cannot be decoded (no image, or of an unknown format)" in text


def test_images_stay_beside_their_rows(digits: Any) -> None:
    labels, probabilities, images = digits
    page = nofe_lab.look((labels, probabilities), images)
    assert page.images is not None
    row = page.mislabelled()["row"][0]
    assert page.images.sample([row])[0].tolist() == images[row].tolist()
    source = Resident(torch.from_numpy(images), torch.from_numpy(labels))
    assert nofe_lab.look((labels, probabilities), source).images is source
    assert nofe_lab.look((labels, probabilities), source).line(2).startswith("nofe_lab.Experiment")
    with pytest.raises(InvalidInput, match="there are 1197 predictions, but 1196 images"):
        nofe_lab.look((labels, probabilities), source[1:])
    turned = torch.arange(len(labels)).roll(1)
    with pytest.raises(InvalidInput, match=r"labels in row 0 differ: .* both must be in one order"):
        nofe_lab.look((labels, probabilities), source[turned])


def test_a_data_set_illustrates_predictions_and_names_their_classes(tiny: Dataset) -> None:
    labels = tiny.test.labels
    page = nofe_lab.look((labels, labels.flip(0)), tiny)
    assert page.images is tiny.test
    assert page.class_names == tiny.class_names
    assert page.line(2) == "nofe_lab.Experiment(data, K=2).nofe(page.specialties(2))"


# --- modules


class Mean(nn.Module):
    """Tells the classes of `shades` apart by the mean of an image from 0 to 1."""

    def __init__(self, C: int = 3) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(0, 1, C))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return -100 * (x.mean((1, 2, 3))[:, None] - self.levels).square()


def scaled(image: Tensor) -> Tensor:
    return image.float() / 255


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of dark, grey and white pictures of several sizes; one white one lies among dark."""
    for name, grey in (("dark", 10), ("grey", 125), ("white", 250)):
        for i in range(3):
            picture(tmp_path, f"shades/{name}/{i}.png", grey, (20 + i, 16))
    picture(tmp_path, "shades/dark/wrong.png", 250)
    return tmp_path / "shades"


def resized(image: Image.Image) -> Tensor:
    """As a transform that only takes PIL's images."""
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("prefix", ["folder:", ""])
def test_a_module_looks_at_a_folder_s_files_as_its_own_preparation_makes_them(
    shades: Path, prefix: str
) -> None:
    model = Mean()
    model.train()
    page = nofe_lab.look(model, f"{prefix}{shades}", prepare=resized)
    assert model.training
    assert set(model.seen) == {(10, 3, 8, 8)}
    assert page.class_names == ("dark", "grey", "white")
    assert page.confusion.tolist() == [[3, 0, 1], [0, 3, 0], [0, 0, 3]]
    assert page.mislabelled()["file"].tolist() == ["dark/wrong.png"]
    assert page.line(2) == (
        f"nofe_lab.Experiment('folder:{shades}', K=2).nofe(page.specialties(2))"
    )


def test_torchvision_s_transforms_prepare_images(shades: Path) -> None:
    from nofe_lab.compat import import_torchvision

    import_torchvision()
    from torchvision import transforms

    prepare = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
    page = nofe_lab.look(Mean(), shades, prepare=prepare)
    assert page.accuracy == 0.9


def test_a_module_whose_outputs_are_in_another_order_says_so_by_names(shades: Path) -> None:
    class Backwards(Mean):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1).softmax(1)  # probabilities, left as they are

    names = ["black hole", "white", "grey", "dark"]
    page = nofe_lab.look(Backwards(3), shades, prepare=resized, class_names=names[1:])
    assert page.class_names == ("white", "grey", "dark")
    assert page.confusion.tolist() == [[3, 0, 0], [0, 3, 0], [1, 0, 3]]
    with pytest.raises(InvalidInput, match="has 3 outputs, but there are 4 classes; class_names"):
        nofe_lab.look(Backwards(3), shades, prepare=resized, class_names=names)


def test_a_data_set_shows_what_was_not_trained_on(tiny: Dataset) -> None:
    page = nofe_lab.look(Mean(6), tiny, prepare=scaled)
    assert page.about == "Mean on 30 test images of tiny"
    assert page.labels.tolist() == tiny.test.labels.tolist()
    with_val = tiny.with_val(0.2, 0)
    page = nofe_lab.look(Mean(6), with_val, prepare=scaled)
    assert page.about == "Mean on 24 val images of tiny"
    assert "test images" in nofe_lab.look(Mean(6), with_val, prepare=scaled, split="test").about
    assert nofe_lab.look(Mean(6), tiny.test, prepare=scaled).class_names == tuple("012345")


def test_a_network_of_this_library_needs_no_preparation(
    tiny: Dataset, tiny_experiment: Callable[..., nofe_lab.Experiment]
) -> None:
    experiment = tiny_experiment()
    base = experiment.base()
    experiment.run(base)
    model = experiment.model(base)
    page = nofe_lab.look(model, tiny)
    found = nofe_lab.predict(model, tiny.test)
    assert page.confusion.tolist() == found.confusion.tolist()
    assert np.allclose(page.probabilities, found.probabilities, atol=1e-6)


def test_one_line_leads_to_an_experiment(
    tiny: Dataset, tiny_experiment: Callable[..., nofe_lab.Experiment]
) -> None:
    page = nofe_lab.look(Mean(6), tiny, prepare=scaled)
    stage = tiny_experiment().nofe(page.specialties(3))
    assert stage.arm is not None
    assert stage.arm.partition == page.specialties(3)


# --- bad input

HALF = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (([0, 1], [[0.5, 0.5], [0.9, 0.3]]), {}, "those in row 1 sum to 1.2: apply a softmax"),
        (([0, 1], [[0.5, 0.5], [1.2, -0.2]]), {}, "of class '1' in row 1 is -0.2"),
        (([0, 1], [[np.nan, 0.5], [0.5, 0.5]]), {}, "of class '0' in row 0 is nan"),
        (([0, 1], [[np.inf, 0.5], [0.5, 0.5]]), {}, "of class '0' in row 0 is inf"),
        (([0, 2], HALF), {}, "the label in row 1 is 2; accepted: 0 to 1"),
        (([0, -1], HALF), {}, "the label in row 1 is -1; accepted: 0 to 1"),
        (([0, 1], [0, 5]), {"class_names": "ab"}, "class_names must be a list of names"),
        (([0, 1], [0, 5]), {"class_names": ["a", "b"]}, "the prediction in row 1 is 5"),
        ((["a", "dig"], HALF), {"class_names": ["a", "dog"]}, "'dig' is none of the 2 classes"),
        ((["a", "b"], HALF), {}, "class_names must say which of the 2 columns"),
        (([0, 1], HALF), {"class_names": list("abc")}, "3 class names, but 2 columns"),
        (([0, 1], HALF), {"class_names": ["a", "a"]}, "class names must differ; 'a' repeats"),
        (([0, 1.5], [0, 1]), {}, "the label in row 1 is 1.5; accepted: whole numbers or names"),
        (([0, np.inf], HALF), {}, "the label in row 1 is inf; accepted: whole numbers or names"),
        (([0, 1e30], HALF), {}, "the label in row 1 is"),
        ((["a", None], ["a", "b"]), {}, "row 1 has no label"),
        (([0, 1, 1], [0, 1]), {}, "got 3 labels and 2 predictions"),
        (([], []), {}, "got 0 labels and 0 predictions"),
        (([0, 0], [0, 0]), {}, "there must be 2 to 10,000 classes; got 1: 0"),
        (([0, 1], [[[1]]]), {}, "classes [N] or probabilities [N, C]; got [1, 1, 1]"),
        (([0, 1],), {}, "got 1 arrays"),
        (([0, 1], [[0.5, 0.5], [1.0]]), {}, "predictions must be an array"),
        (([0, 1], [["a", "b"], ["c", "d"]]), {}, "probabilities must be numbers; got"),
        ([0, 1], {}, "there are no labels"),
        ({"label": [0, 1], "score": HALF}, {}, "got 'score'"),
        (3, {}, "a look needs a torch module with images, a pair"),
        (([0, 1], HALF), {"K": 3}, "K must be a whole number from 2 to 2; got 3"),
        (([0, 1], HALF), {"prepare": scaled}, "prepare is for modules"),
        (([0, 1], HALF), {"labels": [0, 1]}, "labels are given twice"),
        (([0, 1], HALF), {"images": "pictures"}, "the predictions have no column 'file'"),
        (([0, 1], HALF), {"images": 3}, "images of predictions must be"),
        ("table.xlsx", {}, "ends in .csv or .parquet; got 'table.xlsx'"),
        ("missing.csv", {}, "the table 'missing.csv' cannot be read"),
    ],
)
def test_bad_predictions_are_refused_in_one_sentence(
    given: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        nofe_lab.look(given, **options)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the table 'bad.csv' cannot be read"),
        ("label,prediction\na,b,c\n", "the table 'bad.csv' cannot be read"),
        ("labels,prediction\na,b\n", "no column 'label', but labels, prediction"),
        ("label,label,prediction\na,a,b\n", "2 columns 'label'"),
        ("label,a,b\na,high,0.5\n", "the column 'a' must hold probabilities; got 'high'"),
        ("label,a,b\na,0.5,0.5\na,,1\n", "of class 'a' in row 1 is nan"),
        ("label,a,b\nc,0.5,0.5\n", "the label in row 0 does not fit: class 'c' is none of the 2"),
        ("label,prediction\na,b\n,b\n", "row 1 has no label"),
        ("label,a,a\na,0.5,0.5\n", "class names must differ; 'a' repeats"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        nofe_lab.look("bad.csv")
    assert sentence in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", b"\x00" * 100])
def test_a_file_that_is_no_parquet_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"the table '.*t\.parquet' cannot be read"):
        nofe_lab.look(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (Mean(), {}, "prepare must say how an image becomes an input of Mean"),
        (Mean(), {"prepare": str}, "it made of a PIL image: str; of a tensor: str"),
        (Mean(4), {"prepare": resized}, "Mean has 4 outputs, but there are 3 classes"),
        (Mean(), {"prepare": resized, "labels": [1]}, "labels are for predictions"),
        (Mean(), {"prepare": resized, "split": "val"}, "no folders of splits; got split='val'"),
        (Mean(), {"prepare": resized, "split": "dev"}, "split 'dev' is unknown"),
        (Mean(), {"prepare": scaled}, "inputs of one size; got [3, 16, 20] and [3, 16, 21]"),
        (nn.Flatten(), {"prepare": resized}, "Flatten has 192 outputs"),
        (nn.Linear(3, 3), {"prepare": resized}, "Linear does not take the images as prepared"),
        (nn.Identity(), {"prepare": resized}, "Identity must give logits [10, 3] for 10 images"),
    ],
)
def test_modules_that_do_not_fit_are_refused_in_one_sentence(
    model: nn.Module, options: dict[str, Any], sentence: str, shades: Path
) -> None:
    with pytest.raises(InvalidInput) as refused:
        nofe_lab.look(model, shades, **options)
    assert sentence in str(refused.value)


def test_a_module_needs_images_that_can_be_read(shades: Path) -> None:
    with pytest.raises(InvalidInput, match="a module needs images"):
        nofe_lab.look(Mean(), prepare=resized)
    with pytest.raises(InvalidInput, match=r"images must be a Dataset, a Source, .*; got int"):
        nofe_lab.look(Mean(), 7, prepare=resized)
    (shades / "grey" / "1.png").write_bytes(b"no image")
    with pytest.raises(
        InvalidInput, match=r"grey/1\.png cannot be decoded .* skip_unreadable=True"
    ):
        nofe_lab.look(Mean(), shades, prepare=resized)
    (shades / "dark" / "0.png").write_bytes(b"no image")  # the first of all
    page = nofe_lab.look(Mean(), shades, prepare=resized, skip_unreadable=True)
    assert page.confusion.tolist() == [[2, 0, 1], [0, 2, 0], [0, 0, 3]]
    assert isinstance(page.images, Thumbnails)
    assert page.images.names == [
        *("dark/1.png", "dark/2.png", "dark/wrong.png", "grey/0.png", "grey/2.png"),
        *("white/0.png", "white/1.png", "white/2.png"),
    ]
    (note,) = page.notes
    assert note.startswith("Left out, since they cannot be decoded: dark/0.png (no image")
    for path in shades.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InvalidInput, match="none of 10 images can be decoded"):
        nofe_lab.look(Mean(), shades, prepare=resized, skip_unreadable=True)


def test_an_image_that_cannot_be_prepared_is_named(shades: Path) -> None:
    def no_white(image: Image.Image) -> Tensor:
        if np.array(image).mean() > 240:
            raise ValueError("too bright")
        return resized(image)

    with pytest.raises(InvalidInput, match=r"prepare fails for dark/wrong\.png \(too bright\)"):
        nofe_lab.look(Mean(), shades, prepare=no_white)


def test_outputs_that_are_not_finite_are_named(shades: Path) -> None:
    class Broken(Mean):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(InvalidInput, match="outputs of Broken for image 0 are not finite"):
        nofe_lab.look(Broken(), shades, prepare=resized)


# --- the page


def found_in(page: str) -> dict[str, Any]:
    text = page.split('querySelector("main"), ')[1].split(");\n</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_page_is_one_file_with_everything_on_it(digits: Any, tmp_path: Path) -> None:
    labels, probabilities, images = digits
    page = nofe_lab.look((labels, probabilities), images)
    text = page.save(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text
    found = found_in(text)
    for each in found["partitions"]:
        assert each["of"] == list(page.specialties(each["K"]).of)
        assert each["sentence"] == str(page.ceiling(each["K"]))
    rows, columns, counts = found["counts"]
    assert np.array_equal(page.confusion[rows, columns], counts)
    assert sum(counts) == len(labels)
    assert [pair["errors"] for pair in found["pairs"]] == page.worst_pairs()["errors"].tolist()
    assert found["sheet"]["data"]


def test_names_that_are_html_stay_text(tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "<b>a</b>", "c", "d"]
    text = nofe_lab.look(rows_of(COUNTS), class_names=names).save(tmp_path / "p.html").read_text()
    assert text.count("</script>") == 1
    assert found_in(text)["names"] == names


@pytest.mark.parametrize("C", [2, 3])
def test_a_page_without_errors_says_so(C: int, tmp_path: Path) -> None:
    page = nofe_lab.look((np.arange(C), np.eye(C)))
    found = found_in(page.save(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found["summary"] == f"{C} classes, accuracy 100.0%, 0 errors"
    assert found["pairs"] == found["suspects"] == []


def test_names_of_files_in_another_encoding_are_shown_escaped(tmp_path: Path) -> None:
    table = tmp_path / "t\udcff.csv"
    table.write_text("label,prediction\na,b\nb,b\n")
    found = found_in(nofe_lab.look(table).save(tmp_path / "page.html").read_text())
    assert found["title"] == "2 predictions of t\\udcff.csv"


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"page '.*' cannot be written"):
        nofe_lab.look(rows_of(COUNTS)).save(tmp_path)


def test_a_notebook_shows_the_page_and_a_picture_of_it(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "nofe_lab.views.widgets.base.display", lambda data, **options: shown.append(data)
    )
    labels, probabilities, images = digits
    nofe_lab.look((labels, probabilities), images)._ipython_display_()
    live, picture = shown
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "image/png" in picture
    assert "Were every error inside these groups mended" in picture["text/plain"]


def test_the_slider_of_a_page_offers_some_numbers_of_groups(digits: Any) -> None:
    from nofe_lab.views.widgets.look import LookPage

    page = LookPage(nofe_lab.look((digits[0], digits[1]), K=9)._page())
    assert [each["K"] for each in page.found["partitions"]] == [2, 3, 4, 5, 9]
    assert page.K == 9
    page.K = 2
    assert page.specialties.K == 2
    assert "K = 2" in page.words
    with pytest.raises(InvalidInput, match="K must be one of 2, 3, 4, 5, 9; got 6"):
        page.K = 6
    assert page.K == 2


def test_pages_of_1000_classes_hold_every_error() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(1000, size=(2, 5000))
    page = nofe_lab.look((labels, predicted), class_names=[f"c{i}" for i in range(1000)])
    assert (page.C, page.K) == (1000, 32)
    assert sum(map(sum, page.confusion.tolist())) == 5000
    assert max(page.specialties(7).sizes) == 143


def test_thumbnails_are_a_source(album: Path) -> None:
    files = [album / "pictures" / f"{row}.png" for row in range(3)]
    found = Thumbnails(files, torch.arange(3), ["a", "b", "c"])
    assert found.sample([]).shape == (0, 3, 96, 96)
    assert found[1:].sample([0])[0, 0, 0, 0] == 50
    assert found.to(torch.device("cpu")).names == ["a", "b", "c"]
    assert len(set(map(bytes, found.keys.numpy()))) == 3


def test_look_is_the_function_whatever_was_imported_before() -> None:
    for lines in (
        "import nofe_lab; import nofe_lab.stages; import nofe_lab.diagnosis.report",
        "import nofe_lab.diagnosis; import nofe_lab.views.widgets.look; import nofe_lab",
    ):
        code = f"{lines}; print(nofe_lab.look(([0, 1, 1], [0, 1, 0])))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "<3 predictions: 2 classes, accuracy 66.7%, 1 error>\n", done.stderr


def test_a_look_is_a_value_of_plain_arrays() -> None:
    page = Look(("a", "b"), np.array([0, 1]), np.array([0, 0]))
    assert (page.C, page.K, page.accuracy) == (2, 2, 0.5)
