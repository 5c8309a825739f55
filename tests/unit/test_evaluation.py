"""Figures from a confusion matrix of four classes, worked out by hand."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nofe_lab import InvalidInput, Specialties, evaluation, predict
from nofe_lab.data import Dataset, Resident
from nofe_lab.evaluation import (
    Predictions,
    coverage_table,
    oracle,
    per_class,
    per_specialty,
    specialty_confusion,
)

CONFUSION = np.array(
    [
        [5, 2, 0, 1],
        [1, 6, 1, 0],
        [0, 0, 8, 0],
        [2, 0, 2, 4],
    ]
)
HALVES = Specialties(tuple("abcd"), (0, 0, 1, 1), 2, ("first", "second"))


def saying(predicted: list[int], labels: list[int], n: int) -> Predictions:
    return Predictions(np.eye(n, dtype=np.float32)[predicted], np.array(labels))


def test_accuracy_and_confusion_count_rows_by_label_and_columns_by_prediction() -> None:
    labels = np.repeat(np.arange(4), 8)
    predicted = np.concatenate([np.repeat(np.arange(4), row) for row in CONFUSION])
    found = saying(predicted.tolist(), labels.tolist(), 4)
    assert found.confusion.tolist() == CONFUSION.tolist()
    assert found.accuracy == pytest.approx((5 + 6 + 8 + 4) / 32)


def test_confusion_has_a_row_for_a_class_that_never_occurs() -> None:
    assert saying([0, 0], [0, 1], 3).confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


class Scripted(nn.Module):
    """Says of each image what stands in its first pixels: as many logits as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0].float() * self.scale


def test_thumbnails_are_the_images_a_network_answers_correctly_with_the_largest_margin() -> None:
    said = [[90, 80], [70, 10], [200, 220], [50, 60], [30, 20], [40, 39]]
    images = torch.tensor(said, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)
    split = Resident(images.contiguous(), torch.tensor([0, 0, 0, 1, 1, 1]))
    data = Dataset("said", ("a", "b"), split, split[:0], split)
    found = evaluation.with_clearest(data, Scripted())
    assert found.clearest is not None
    assert found.clearest.tolist() == [1, 3]
    swapped = evaluation.with_clearest(data, Scripted(), torch.tensor([1, 0]))
    assert swapped.clearest is not None
    assert swapped.clearest.tolist() == [2, 4]
    assert data.clearest is None


def test_top5_counts_labels_among_the_five_largest_logits() -> None:
    falling = np.array([[6, 5, 4, 3, 2, 1, 0]] * 4, dtype=np.float32)
    assert Predictions(falling, np.array([0, 4, 5, 6])).top5 == 0.5


@pytest.mark.parametrize("n", [2, 3, 5])
def test_top5_of_at_most_five_classes_is_1(n: int) -> None:
    assert saying([0] * n, list(range(n)), n).top5 == 1


def test_the_loss_is_the_mean_negative_log_likelihood() -> None:
    logits = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32)
    expected = (log(3) - log(exp(1) / (exp(1) + 2))) / 2
    assert Predictions(logits, np.array([2, 0])).loss == pytest.approx(expected)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    logits = np.array([[0, log(3)]], dtype=np.float32)
    found = Predictions(logits, np.array([0])).probabilities
    np.testing.assert_allclose(found, [[0.25, 0.75]], rtol=1e-6)


class Counting(nn.Module):
    """Logits from the first pixel of an image; wrong on purpose while training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        pixel = images[:, 0, 0, 0].float()
        return torch.stack([pixel, 100 * self.weight - pixel], 1) * (-1 if self.training else 1)


@pytest.mark.parametrize("batch", [2, 3, 1000])
def test_predictions_are_made_in_evaluation_mode_whatever_the_batch(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_PIXELS", batch)  # images of one pixel each
    pixels = torch.tensor([90, 10, 80, 20, 30], dtype=torch.uint8)[:, None, None, None]
    found = predict(Counting().train(), Resident(pixels, torch.tensor([0, 1, 1, 1, 0])))
    assert found.predicted.tolist() == [0, 1, 0, 1, 1]
    assert found.accuracy == pytest.approx(3 / 5)


def test_predictions_of_a_generalist_are_held_against_the_map() -> None:
    pixels = torch.tensor([90, 10, 80], dtype=torch.uint8)[:, None, None, None]
    split = Resident(pixels, torch.tensor([2, 0, 1]))
    found = predict(Counting(), split, target_of_class=torch.tensor([1, 0, 0]))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.accuracy == 1


def test_per_class_names_the_class_that_a_class_is_most_often_mistaken_for() -> None:
    found = per_class(CONFUSION, HALVES.class_names).set_index("class")
    assert found["images"].tolist() == [8, 8, 8, 8]
    assert found["accuracy"].tolist() == [5 / 8, 6 / 8, 1, 4 / 8]
    assert found["mistaken for"].tolist() == ["b", "a", "", "a"]
    assert found["times"].tolist() == [2, 1, 0, 2]


def test_specialty_confusion_adds_up_the_blocks() -> None:
    assert specialty_confusion(CONFUSION, HALVES).tolist() == [[14, 2], [2, 14]]


def test_specialty_confusion_has_zeros_for_an_empty_specialty() -> None:
    gap = Specialties(tuple("abcd"), (0, 0, 2, 2), 3)
    expected = [[14, 0, 2], [0, 0, 0], [2, 0, 14]]
    assert specialty_confusion(CONFUSION, gap).tolist() == expected


def test_per_specialty_tells_errors_inside_from_errors_outside() -> None:
    found = per_specialty(CONFUSION, HALVES).set_index("specialty")
    assert found.index.tolist() == ["first", "second"]
    assert found["classes"].tolist() == [2, 2]
    assert found["images"].tolist() == [16, 16]
    assert found["accuracy"].tolist() == [11 / 16, 12 / 16]
    assert found["right specialty"].tolist() == [14 / 16, 14 / 16]
    assert found["inside"].tolist() == [3 / 5, 2 / 4]
    assert found["inside by chance"].tolist() == [1 / 3, 1 / 3]


def test_a_specialty_without_errors_has_no_share_of_errors_inside() -> None:
    found = per_specialty(np.diag([3, 4, 5, 6]), HALVES)
    assert found["accuracy"].tolist() == [1, 1]
    assert found["inside"].isna().all()


def test_an_empty_specialty_has_no_row() -> None:
    gap = Specialties(tuple("abcd"), (0, 0, 2, 2), 3)
    assert per_specialty(CONFUSION, gap)["specialty"].tolist() == ["1", "3"]


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.log(np.array([[0.9, 0.1]] * 10))
    found = Predictions(sure.astype(np.float32), np.array([0] * 6 + [1] * 4))
    assert found.calibration_error == pytest.approx(0.3)
    assert Predictions(found.logits, np.array([0] * 9 + [1])).calibration_error == pytest.approx(
        0, abs=1e-6
    )


def test_the_oracle_splits_an_answer_into_specialty_and_class() -> None:
    specialties = Specialties(("a", "b", "c", "d"), (0, 0, 1, 1), 2)
    logits = np.log(
        np.array(
            [
                [0.6, 0.2, 0.1, 0.1],  # right
                [0.5, 0.1, 0.2, 0.2],  # wrong within the specialty
                [0.4, 0.05, 0.3, 0.25],  # crosses, though the right specialty has most of the mass
                [0.8, 0.1, 0.06, 0.04],  # crosses
            ]
        )
    ).astype(np.float32)
    found = oracle(Predictions(logits, np.array([0, 1, 2, 3])), specialties)
    assert found.within_specialty == 0.5  # of the last two, the first alone
    assert found.right_specialty == 0.75
    assert found.crossing == pytest.approx(2 / 3)


# --- temperature and coverage


def drawn(n: int, size: int, sharper: float) -> Predictions:
    """Labels that are drawn from the probabilities of logits, which are then made sharper."""
    rng = np.random.default_rng(n)
    logits = 1.5 * rng.normal(size=(size, n))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > rng.random((size, 1))).argmax(axis=1)
    return Predictions((sharper * logits).astype(np.float32), labels)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("sharper", [0.5, 1, 3])
def test_the_temperature_is_what_the_logits_were_multiplied_by(n: int, sharper: float) -> None:
    found = drawn(n, 20_000, sharper)
    assert found.temperature == pytest.approx(sharper, rel=0.05)
    mended = found.at_temperature(found.temperature)
    assert np.array_equal(mended.predicted, found.predicted)
    assert mended.calibration_error < 0.01
    for other in (0.8, 1.25):
        assert mended.loss < found.at_temperature(other * found.temperature).loss


def test_the_temperature_of_two_images_is_that_of_the_formula() -> None:
    """Logits (a, 0), right in 3 of 4: the loss is smallest where the probability is 3 / 4."""
    found = Predictions(np.array([[4.0, 0.0]] * 4, dtype=np.float32), np.array([0, 0, 0, 1]))
    assert found.temperature == pytest.approx(4 / log(3), rel=1e-4)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    from sklearn import __version__
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    if tuple(map(int, __version__.split(".")[:2])) < (1, 8):
        pytest.skip("temperature scaling came with scikit-learn 1.8")

    class Logits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, X: np.ndarray, y: np.ndarray) -> Logits:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X: np.ndarray) -> np.ndarray:
            return X

        def predict(self, X: np.ndarray) -> np.ndarray:
            return X.argmax(axis=1)  # type: ignore[no-any-return]

    found = drawn(5, 3000, 3)
    logits = found.logits.astype(np.float64)
    frozen = FrozenEstimator(Logits().fit(logits, found.labels))
    theirs = CalibratedClassifierCV(frozen, method="temperature")
    theirs.fit(logits, found.labels)
    ours = found.at_temperature(found.temperature).probabilities
    assert ours == pytest.approx(theirs.predict_proba(logits), abs=1e-4)


def test_a_temperature_needs_images_but_not_of_every_class() -> None:
    found = drawn(5, 4000, 2)
    some = Predictions(found.logits[found.labels < 4], found.labels[found.labels < 4])
    assert 1 < some.temperature < 4
    none = Predictions(found.logits[:0], found.labels[:0])
    with pytest.raises(InvalidInput, match="a temperature is fitted on val images; there are none"):
        _ = none.temperature
    right = saying([0, 1], [0, 1], 2)  # the surer, the better
    assert 1 / evaluation.LARGEST_TEMPERATURE <= right.temperature < 0.05


def test_the_coverage_table_counts_classes_and_specialties() -> None:
    """Four images from the surest: right; wrong; wrong, and in the specialty; wrong in all."""
    probabilities = np.array(
        [
            [0.9, 0.05, 0.03, 0.02],
            [0.8, 0.1, 0.05, 0.05],
            [0.6, 0.3, 0.05, 0.05],
            [0.4, 0.3, 0.2, 0.1],
        ]
    )
    said = Predictions(np.log(probabilities).astype(np.float32), np.array([0, 2, 1, 3]))
    certainty = said.certainty(HALVES)
    assert certainty["specialty"].tolist() == [0, 0, 0, 0]
    table = coverage_table(certainty, HALVES, (0.25, 0.5, 1.0))
    assert table["threshold"].tolist() == pytest.approx([0.825, 0.7, 0.4], abs=1e-6)
    assert table["class_right"].tolist() == [1, 0.5, 0.25]
    assert table["specialty_right"].tolist()[:2] == [pytest.approx(1 / 3), 0.5]
    assert np.isnan(table["specialty_right"].iloc[2])
    assert table["right"].tolist() == [0.5, 0.5, 0.25]
