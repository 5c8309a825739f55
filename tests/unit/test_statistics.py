"""Means, intervals and shares, worked out by hand or by simulation."""

from __future__ import annotations

import re
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_evaluation import CONFUSION, HALVES

from nofe_lab import Specialties
from nofe_lab.statistics import (
    detectable,
    errors_inside,
    in_points,
    inside_by_chance,
    inside_share,
    over_seeds,
    paired_differences,
    paired_interval,
    paired_interval_over_seeds,
    seeds_to_detect,
    standings,
    standings_in_words,
    verdict,
)


def test_the_inside_share_is_that_of_the_errors_against_partitions_of_the_same_sizes() -> None:
    found = inside_share(CONFUSION, HALVES)
    assert found.share == pytest.approx(5 / 9)
    # the three ways to halve four classes hold 5, 0 and 4 of the 9 errors
    assert found.random_mean == pytest.approx((5 + 0 + 4) / 9 / 3, abs=0.03)
    assert (found.random_low, found.random_high) == pytest.approx((0, 5 / 9))
    assert found == inside_share(CONFUSION, HALVES)  # drawn from a fixed seed


def test_without_errors_no_share_of_them_is_inside() -> None:
    assert np.isnan(errors_inside(np.diag([3, 4, 5, 6]), HALVES))


SEEDS = pd.DataFrame(
    {
        "network": ["base", "nofe", "base", "nofe"],
        "seed": [0, 0, 1, 1],
        "test_accuracy": [0.5, 0.6, 0.7, 0.9],
    }
)
T = 12.706204736  # 97.5th percentile of Student's t with one degree of freedom


def test_over_seeds_gives_the_mean_and_a_95_percent_interval() -> None:
    found = over_seeds(SEEDS).set_index("network").loc["base"]
    half = T * (0.2 / sqrt(2)) / sqrt(2)  # the deviation of 0.5 and 0.7 is 0.2 / sqrt(2)
    assert found.to_dict() == pytest.approx(
        {"seeds": 2, "mean": 0.6, "low": 0.6 - half, "high": 0.6 + half}
    )


def test_one_seed_has_no_interval() -> None:
    found = over_seeds(SEEDS[SEEDS.seed == 0])
    assert found["mean"].tolist() == [0.5, 0.6]
    assert found[["low", "high"]].isna().all(axis=None)


def test_paired_differences_are_taken_seed_by_seed() -> None:
    (found,) = paired_differences(SEEDS, "base").drop(columns="detectable").to_dict("records")
    half = T * (0.1 / sqrt(2)) / sqrt(2)  # the differences are 0.1 and 0.2
    expected = {"seeds": 2, "mean": 0.15, "low": 0.15 - half, "high": 0.15 + half}
    assert found.pop("network") == "nofe"
    assert found == pytest.approx(expected)


def test_what_seeds_could_have_shown_is_shown_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(0)
    differences = np.array([0.1, -0.2, 0.3, 0.0, 0.4])
    shift = detectable(differences)
    studies = rng.normal(shift, differences.std(ddof=1), (20_000, 5))
    found = stats.ttest_1samp(studies, 0, axis=1)
    assert (found.pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert np.isnan(detectable(differences[:1]))


def test_the_seeds_to_detect_a_difference_are_the_fewest_that_show_it() -> None:
    pilot = np.array([0.010, -0.002, 0.005])
    n = seeds_to_detect(0.005, pilot)
    assert n is not None
    scores = np.resize([1.0, -1.0], n)
    for seeds, is_shown in ((n, True), (n - 1, False)):
        sample = scores[:seeds] - scores[:seeds].mean()
        sample *= pilot.std(ddof=1) / sample.std(ddof=1)
        assert (detectable(sample) <= 0.005) is is_shown
    assert seeds_to_detect(0.005, pilot, least=n + 1) == n + 1
    assert seeds_to_detect(1.0, pilot) == 2
    assert seeds_to_detect(1e-5, pilot) is None
    assert seeds_to_detect(0.005, 0 * pilot) == 2


def answered(seeds: int, images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two arms that answer rightly or not [seeds, images]; the first is better by 5 points.

    Some images and some seeds favour one arm, by draws whose means are 0.
    """
    ease = rng.uniform(0.45, 0.55, images)
    favour = rng.choice([-0.2, 0.2], images) + rng.normal(0, 0.08, (seeds, 1)).clip(-0.15, 0.15)
    shares = ease + 0.05 + favour, np.broadcast_to(ease, (seeds, images))
    own, other = (rng.random((seeds, images)) < each for each in shares)
    return own, other


def test_the_interval_over_seeds_and_images_holds_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    found = [paired_interval_over_seeds(*answered(5, 400, rng)) for _ in range(200)]
    assert 0.9 <= np.mean([low <= 0.05 <= high for _, low, high in found]) <= 0.99


def test_the_interval_over_seeds_and_images_shrinks_with_both_and_is_drawn_alike() -> None:
    rng = np.random.default_rng(0)

    def width(seeds: int, images: int) -> float:
        _, low, high = paired_interval_over_seeds(*answered(seeds, images, rng))
        return high - low

    assert width(16, 400) < width(4, 400) < width(4, 100)
    own, other = answered(3, 50, rng)
    found = paired_interval_over_seeds(own, other)
    assert found == paired_interval_over_seeds(own, other)
    assert found[0] == pytest.approx(own.mean() - other.mean())
    assert paired_interval_over_seeds(own, own) == (0, 0, 0)


def test_seeds_share_their_images_in_the_interval_over_both() -> None:
    rng = np.random.default_rng(0)
    one = rng.random((1, 300)) < 0.6, rng.random((1, 300)) < 0.5
    alike = (np.repeat(each, 9, axis=0) for each in one)  # nine seeds that say no more than one
    _, low, high = paired_interval_over_seeds(*alike)
    _, low_of_one, high_of_one = paired_interval(one[0][0], one[1][0])
    assert (low, high) == pytest.approx((low_of_one, high_of_one), abs=0.01)


def test_seeds_that_agree_have_an_interval_of_no_width() -> None:
    table = pd.DataFrame({"network": "a", "seed": [0, 1, 2], "test_accuracy": 0.1})
    (found,) = over_seeds(table).to_dict("records")
    assert found["low"] == found["high"] == found["mean"]


def test_shares_become_percentage_points_in_tables_and_in_rows() -> None:
    table = paired_differences(SEEDS, "base")
    (row,) = in_points(table).to_dict("records")
    of = table.iloc[0]
    assert (row["network"], row["seeds"]) == ("nofe", 2)
    for name in ("mean", "low", "high", "detectable"):
        assert row[name] == in_points(of)[name] == 100 * of[name]
    assert "detectable" not in in_points(over_seeds(SEEDS))


def test_standings_tell_apart_only_what_the_seeds_tell_apart() -> None:
    accuracies = {"own": [0.5, 0.6, 0.7], "low": [0.4, 0.51, 0.6], "tie": [0.49, 0.63, 0.69]}
    accuracies["high"] = [0.6, 0.7, 0.81]
    rows = [
        {"network": name, "seed": seed, "test_accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    rows.append({"network": "once", "seed": 0, "test_accuracy": 0.1})
    found = standings(pd.DataFrame(rows), "own")
    assert found["standing"].tolist() == ["", "ahead", "tie", "behind", "one seed"]
    assert found["lead"].tolist()[1:4] == pytest.approx([0.29 / 3, -0.01 / 3, -0.31 / 3])
    assert (found["lead_low"] < found["lead"])[1:4].all()
    assert (found["lead"] < found["lead_high"])[1:4].all()
    assert standings_in_words(found) == (
        "own: ahead of low; behind high; not told apart from tie; one seed says nothing about "
        "chance."
    )
    assert standings_in_words(found[:3]) == (
        "own: ahead of low; not told apart from tie; over 3 seeds."
    )


def test_inside_by_chance_is_what_random_partitions_hold_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 9, (12, 12))
    specialties = Specialties(tuple(map(str, range(12))), (0,) * 2 + (1,) * 3 + (2,) * 7, 3)
    found = inside_share(confusion, specialties)
    assert inside_by_chance(specialties.sizes) == pytest.approx(found.random_mean, abs=0.005)
    assert inside_by_chance((1,)) == 0


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        (
            [0.010, 0.012, 0.011],
            r"^Use experts: \+1\.1 points \[\+0\.9, \+1\.3\] over 3 seeds, on ",
        ),
        (
            [-0.02, -0.022],
            r"^Keep your CNN: with experts -2\.1 points \[-3\.4, -0\.8\] over 2 seed",
        ),
        (
            [0.010, -0.002, 0.005],
            r"^Not told apart: \+0\.4 points ± 1\.5 over 3 seeds; .* take about",
        ),
        ([0.0, 0.0], r"^Not told apart: \+0\.0 points ± 0\.0 over 2 seeds; .* more than 200 seeds"),
        ([0.01], r"^Not told apart: one seed \(\+1\.0 points\) says nothing .* about 2 min more"),
    ],
)
def test_a_verdict_uses_keeps_or_does_not_tell_apart(differences: list[float], said: str) -> None:
    assert re.search(said, verdict(differences, 60))


def test_the_seeds_that_a_verdict_proposes_would_show_such_a_difference() -> None:
    rng = np.random.default_rng(0)
    found = np.array([0.010, -0.002, 0.005])
    said = verdict(found.tolist(), 60)
    (seeds, minutes) = map(int, re.findall(r"about (\d+) seeds, (\d+) min", said)[0])
    assert minutes == seeds - 3
    for n, power in ((seeds, 0.8), (seeds - 1, 0.77)):
        studies = rng.normal(found.mean(), found.std(ddof=1), (40_000, n))
        shown = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
        assert shown == pytest.approx(power, abs=0.03)
