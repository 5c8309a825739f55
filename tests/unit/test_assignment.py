"""The rules that make specialties, against maps worked out by hand and by brute force."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from nofe_lab.config import RULES, InvalidInput
from nofe_lab.specialties.assignment import (
    affinity_matrix,
    assign,
    best_objective,
    elastic,
    free,
    greedy,
    objective,
    optimal,
)

SHAPES = [(C, K) for C in range(2, 15) for K in range(2, C + 1)]


def visiting(*order: int) -> Any:
    """A stand-in for a random generator: the classes are visited in this order."""
    return SimpleNamespace(permutation=lambda n: np.array(order))


def affinities(max_C: int, max_K: int) -> st.SearchStrategy[np.ndarray]:
    """Affinities of small whole numbers, so that ties are common."""
    shapes = st.sampled_from([(C, K) for C, K in SHAPES if max_C >= C and max_K >= K])
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.integers(0, 5)))


def votes(max_C: int, max_K: int) -> st.SearchStrategy[np.ndarray]:
    """Affinities as counts of a few images make them; a class may have no image at all."""
    sizes = st.tuples(st.integers(2, max_C), st.integers(2, max_K))
    shapes = sizes.filter(lambda shape: shape[0] >= shape[1])
    counts = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 4)))
    return counts.map(lambda A: A / np.maximum(A.sum(axis=1, keepdims=True), 1))


def best_sum(A: np.ndarray) -> float:
    """Sum of the affinities of the best balanced map, from scipy's Hungarian method.

    Each specialty has floor(C / K) places and, where sizes differ, one more that may stay empty:
    stand-ins for classes take as many of these as nobody needs.
    """
    C, K = A.shape
    floor, extra = divmod(C, K)
    stand_ins = K - extra if extra else 0
    must, may = np.repeat(A, floor, axis=1), A if extra else A[:, :0]
    places = np.block(
        [
            [must, may],
            [np.full((stand_ins, K * floor), -np.inf), np.zeros((stand_ins, may.shape[1]))],
        ]
    )
    rows, columns = linear_sum_assignment(places, maximize=True)
    return float(places[rows, columns].sum())


def preferring_one(C: int, K: int) -> np.ndarray:
    """All classes lean to specialty 0, and to the others each a little in its own way."""
    A = np.random.default_rng(C).random((C, K)) / 10 + np.eye(1, K)
    return A / A.sum(axis=1, keepdims=True)


def check_best(A: np.ndarray) -> None:
    """`optimal` is balanced, and no balanced map is better."""
    C, K = A.shape
    found = optimal(A)
    assert sorted(np.bincount(found, minlength=K)) == balanced_sizes(C, K)
    assert A[np.arange(C), found].sum() == pytest.approx(best_sum(A), abs=1e-9)


def balanced_sizes(C: int, K: int) -> list[int]:
    return [C // K] * (K - C % K) + [C // K + 1] * (C % K)


# --- affinity and objective

OUTPUTS = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
LABELS = np.array([0, 0, 0, 1])


def test_counts_are_the_share_of_a_class_s_images_whose_argmax_is_a_specialty() -> None:
    A = affinity_matrix(OUTPUTS, LABELS, C=2)
    np.testing.assert_allclose(A, [[1 / 3, 2 / 3], [1, 0]])


def test_probability_is_the_mean_of_a_class_s_outputs() -> None:
    A = affinity_matrix(OUTPUTS, LABELS, C=2, kind="probability")
    np.testing.assert_allclose(A, [[0.5, 0.5], [0.7, 0.3]])


@pytest.mark.parametrize("kind", ["counts", "probability"])
def test_a_class_without_images_has_a_row_of_zeros(kind: str) -> None:
    A = affinity_matrix(OUTPUTS, LABELS, C=3, kind=kind)
    assert A[2].tolist() == [0, 0]


def test_an_unknown_kind_of_affinity_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"affinity 'count' is unknown .*'counts'"):
        affinity_matrix(OUTPUTS, LABELS, C=2, kind="count")


def test_the_objective_is_the_mean_affinity_of_the_classes_to_their_specialties() -> None:
    A = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert objective(A, np.array([0, 0])) == pytest.approx((0.9 + 0.4) / 2)


def test_with_counts_the_objective_is_the_accuracy_on_as_many_images_a_class() -> None:
    outputs = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    of = np.array([0, 1])
    right = (outputs.argmax(1) == of[labels]).mean()
    assert objective(affinity_matrix(outputs, labels, 2), of) == pytest.approx(right)


# --- balanced rules

GREEDY_TRAP = np.array([[0.6, 0.4], [1.0, 0.0]])


def test_optimal_gives_up_a_small_wish_for_a_large_one() -> None:
    assert optimal(GREEDY_TRAP).tolist() == [1, 0]


def test_greedy_gives_the_first_visited_class_its_wish() -> None:
    assert greedy(GREEDY_TRAP, visiting(0, 1)).tolist() == [0, 1]
    assert greedy(GREEDY_TRAP, visiting(1, 0)).tolist() == [1, 0]


def test_greedy_sends_a_class_that_finds_its_specialty_full_to_its_next_best() -> None:
    A = np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.6, 0.3, 0.1]])
    # class 2 takes 0; class 0 finds 0 full and takes 1; class 1 is left with 2
    assert greedy(A, visiting(2, 0, 1)).tolist() == [1, 2, 0]


def test_greedy_gives_the_odd_place_to_the_specialty_that_is_asked_for_first() -> None:
    A = np.array([[0.1, 0.9]] * 5)
    assert greedy(A, visiting(4, 3, 2, 1, 0)).tolist() == [0, 0, 1, 1, 1]


def test_optimal_gives_the_odd_place_to_the_specialty_that_is_worth_most() -> None:
    A = np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    assert optimal(A).tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("rule", ["optimal", "greedy"])
@pytest.mark.parametrize(("C", "K"), SHAPES)
def test_sizes_are_balanced_exactly(rule: str, C: int, K: int) -> None:
    A = np.random.default_rng(100 * C + K).dirichlet([0.1] * K, C)
    found = assign(rule, A, np.arange(C) % K)
    assert sorted(np.bincount(found, minlength=K)) == balanced_sizes(C, K)


@given(affinities(14, 14), st.integers(0, 1000))
def test_sizes_are_balanced_whatever_the_ties(A: np.ndarray, seed: int) -> None:
    C, K = A.shape
    for rule in ("optimal", "greedy"):
        found = assign(rule, A, np.zeros(C, dtype=int), seed=seed)
        assert sorted(np.bincount(found, minlength=K)) == balanced_sizes(C, K)


@given(affinities(14, 14), st.integers(0, 1000))
def test_greedy_is_never_better_than_optimal(A: np.ndarray, seed: int) -> None:
    current = np.zeros(len(A), dtype=int)
    found = assign("greedy", A, current, seed=seed)
    assert objective(A, found) <= objective(A, optimal(A)) + 1e-12


@given(affinities(6, 3))
def test_optimal_is_the_best_of_all_balanced_maps(A: np.ndarray) -> None:
    C, K = A.shape
    best = max(
        objective(A, np.array(of))
        for of in itertools.product(range(K), repeat=C)
        if sorted(np.bincount(of, minlength=K)) == balanced_sizes(C, K)
    )
    assert objective(A, optimal(A)) == pytest.approx(best)


@settings(max_examples=200)
@given(votes(30, 6))
def test_optimal_is_as_good_as_the_hungarian_method(A: np.ndarray) -> None:
    check_best(A)


@pytest.mark.parametrize(("C", "K"), [(2, 2), (30, 6), (31, 6), (35, 6), (100, 10), (101, 100)])
def test_optimal_is_as_good_on_affinities_without_ties(C: int, K: int) -> None:
    for seed in range(5):
        check_best(np.random.default_rng(seed).dirichlet([0.2] * K, C))


@pytest.mark.parametrize(("C", "K"), [(6, 2), (7, 3), (40, 6), (100, 10), (101, 10)])
def test_optimal_is_as_good_where_all_classes_lean_to_one_specialty(C: int, K: int) -> None:
    check_best(preferring_one(C, K))
    check_best(np.eye(1, K).repeat(C, axis=0))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize(("C", "K"), [(6, 6), (20, 6), (101, 10), (5, 1)])
def test_optimal_balances_classes_that_lean_nowhere(C: int, K: int, value: float) -> None:
    check_best(np.full((C, K), value))


def confident(C: int, K: int, scale: float, seed: int) -> np.ndarray:
    """Outputs of a network that is sure of itself and favours a few of them."""
    rng = np.random.default_rng(seed)
    logits = scale * (2 * rng.normal(size=(1, K)) + 0.5 * rng.normal(size=(C, K)))
    shares: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("C", "K", "scale", "seed"),
    [(100, 50, 3, 3), (100, 50, 5, 1), (100, 20, 5, 35), (200, 20, 5, 14), (1200, 40, 8, 1)],
)
def test_optimal_ends_where_many_classes_are_sure_of_the_same(
    C: int, K: int, scale: float, seed: int
) -> None:
    """It walked round trips that gained less than a rounding error, for ever."""
    check_best(confident(C, K, scale, seed))


@pytest.mark.parametrize("count", [pytest.param(3000, marks=pytest.mark.long), 100])
def test_optimal_is_as_good_on_confident_outputs(count: int) -> None:
    rng = np.random.default_rng(0)
    for seed in range(count):
        K = int(rng.integers(2, 40))
        check_best(
            confident(int(rng.integers(K, 120)), K, float(rng.choice([0.5, 3, 8, 20])), seed)
        )


@pytest.mark.parametrize(("C", "K"), [(200, 100), (207, 100), (150, 61), (130, 129)])
def test_optimal_is_as_good_for_many_small_specialties(C: int, K: int) -> None:
    check_best(confident(C, K, 2.0, 0))
    check_best(np.random.default_rng(0).dirichlet([0.2] * K, C))


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 40.0, 1e12])
def test_optimal_does_not_depend_on_the_unit(factor: float) -> None:
    A = np.random.default_rng(1).dirichlet([0.2] * 7, 40)
    assert optimal(factor * A).tolist() == optimal(A).tolist()


def test_optimal_moves_classes_along_a_chain() -> None:
    # specialty 0 has a class too many; the cheapest way to 2 is over 1, whose own class makes room
    A = np.array([[0.9, 0.0, 0.0], [0.8, 0.7, 0.0], [0.0, 0.6, 0.5]])
    assert optimal(A).tolist() == [0, 1, 2]


@pytest.mark.slow
def test_optimal_is_as_good_for_a_thousand_classes() -> None:
    check_best(np.random.default_rng(0).dirichlet([0.05] * 100, 1000))
    check_best(preferring_one(1000, 100))


ALL_OF_IMAGENET = """
import json, re
from pathlib import Path
import numpy as np
from nofe_lab.specialties.assignment import optimal

C, K = 21841, 200
rng = np.random.default_rng(0)
leaning = rng.random((C, K)) / 10 + np.eye(1, K)
sizes = [np.bincount(optimal(A), minlength=K) for A in (rng.dirichlet([0.05] * K, C), leaning)]
# ru_maxrss would begin with what the tests' own process has had
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({"sizes": [sorted(each.tolist()) for each in sizes], "peak": peak}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of the memory")
def test_optimal_needs_little_memory_for_all_classes_of_imagenet() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_OF_IMAGENET], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["sizes"] == [balanced_sizes(21841, 200)] * 2
    assert found["peak"] < 4 * 2**30


# --- elastic


@pytest.mark.parametrize(("elastic_lambda", "specialty"), [(59, 0), (61, 1)])
def test_an_elastic_step_weighs_the_lost_affinity_against_the_sizes(
    elastic_lambda: float, specialty: int
) -> None:
    # class 0 of three in specialty 0, one in 1: staying costs -60 + lambda sqrt(9 + 1),
    # moving costs -40 + lambda sqrt(4 + 4), so it moves where lambda > 20 / 0.3338 = 59.9
    A = np.array([[0.6, 0.4], [1, 0], [1, 0], [0, 1]])
    current = np.array([0, 0, 0, 1])
    found = elastic(A, current, elastic_lambda, visiting(0))
    assert found.tolist() == [specialty, 0, 0, 1]


def test_an_elastic_pass_sees_the_moves_made_before_in_the_same_pass() -> None:
    A = np.full((2, 2), 0.5)
    found = elastic(A, np.array([0, 0]), 1000, visiting(0, 1))
    assert found.tolist() == [1, 0]  # class 0 leaves 1 alone in 0, where it then stays


def test_without_a_penalty_elastic_is_free() -> None:
    A = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert elastic(A, np.array([1, 1, 1]), 0, visiting(0, 1, 2)).tolist() == free(A).tolist()


@given(affinities(10, 5), st.integers(0, 1000), st.sampled_from([0.0, 10.0, 300.0, 1e5]))
def test_the_elastic_cost_never_rises_in_a_pass(A: np.ndarray, seed: int, weight: float) -> None:
    current = np.random.default_rng(seed).integers(0, A.shape[1], len(A))
    found = assign("elastic", A, current, seed=seed, elastic_lambda=weight)
    total = np.maximum(A.sum(1, keepdims=True), 1e-300)

    def cost(of: np.ndarray) -> float:
        gained = (100 * A / total)[np.arange(len(A)), of].sum()
        return float(-gained + weight * np.sqrt((np.bincount(of) ** 2).sum()))

    before, after = cost(current), cost(found)
    assert after <= before + 1e-9 * abs(before)


@given(affinities(12, 6), st.integers(0, 1000))
def test_a_large_penalty_makes_elastic_keep_a_balanced_map_balanced(
    A: np.ndarray, seed: int
) -> None:
    C, K = A.shape
    found = assign("elastic", A, np.arange(C) % K, seed=seed, elastic_lambda=1e7)
    assert sorted(np.bincount(found, minlength=K)) == balanced_sizes(C, K)


# --- free, random, and all of them


def test_free_takes_the_argmax_without_a_warning_where_no_specialty_is_left_empty() -> None:
    assert free(np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])).tolist() == [0, 0, 1]


def test_free_warns_about_a_collapse() -> None:
    A = np.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
    with pytest.warns(UserWarning, match="1 of 2 have classes, the largest 3 of 3"):
        found = free(A)
    assert found.tolist() == [0, 0, 0]


def test_random_leaves_the_map_alone() -> None:
    current = np.array([1, 0, 1])
    found = assign("random", np.eye(3)[:, :2], current)
    assert found.tolist() == [1, 0, 1]
    assert found is not current


@pytest.mark.parametrize("rule", ["optimal", "greedy", "elastic", "random"])
def test_a_rule_changes_neither_its_affinity_nor_the_current_map(rule: str) -> None:
    A, current = np.array([[0.6, 0.4], [1, 0], [0, 1]]), np.array([1, 0, 1])
    A.setflags(write=False)
    current.setflags(write=False)
    assign(rule, A, current)


@pytest.mark.parametrize("rule", ["greedy", "elastic"])
def test_the_same_seed_visits_the_classes_in_the_same_order(rule: str) -> None:
    A, current = np.full((12, 4), 0.25), np.zeros(12, dtype=int)
    found = [assign(rule, A, current, seed=seed).tolist() for seed in (3, 3, *range(4, 20))]
    assert found[0] == found[1]
    assert any(other != found[0] for other in found)


def test_an_unknown_rule_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidInput, match=r"rule 'optimum' is unknown \(did you mean 'optimal'"):
        assign("optimum", np.eye(2), np.array([0, 1]))


def test_a_current_map_of_other_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"must hold 2 specialties; got \(3,\)"):
        assign("optimal", np.eye(2), np.array([0, 1, 1]))


def test_more_specialties_than_classes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="K must be a whole number from 1 to 2; got 3"):
        assign("optimal", np.zeros((2, 3)), np.array([0, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affinity_that_is_not_finite_is_refused(value: float) -> None:
    affinity = np.full((4, 2), 0.5)
    affinity[3, 1] = value
    with pytest.raises(
        InvalidInput, match=r"must be finite numbers; that of class 3 to specialty 1"
    ):
        assign("optimal", affinity, np.array([0, 1, 0, 1]))


def test_the_best_objective_does_not_depend_on_the_specialties_numbers() -> None:
    rng = np.random.default_rng(0)
    affinity = rng.dirichlet(np.ones(3), 7)
    of = np.array([0, 0, 1, 1, 2, 2, 2])
    every = [objective(affinity, np.array(order)[of]) for order in itertools.permutations(range(3))]
    assert best_objective(affinity, of, 3) == pytest.approx(max(every))
    # a fourth specialty has no output of the generalist: its class counts nothing
    more = of.copy()
    more[0] = 3
    pairs = itertools.permutations(range(4), 3)
    drawn = np.zeros((4, 3))
    np.add.at(drawn, more, affinity)
    expected = max(sum(drawn[k, n] for n, k in enumerate(chosen)) for chosen in pairs) / 7
    assert best_objective(affinity, more, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    "affinity", [np.ones(3), np.ones((2, 2, 2)), [[1.0]], None, np.ones((2, 2)) * 1j,
                 np.array([["a", "b"]])]
)  # fmt: skip
def test_what_is_no_table_of_affinities_is_refused(affinity: Any) -> None:
    with pytest.raises(InvalidInput, match=r"affinities must be an array \[C, K\] of real numbers"):
        assign("optimal", affinity, np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize("rule", RULES)
def test_every_declared_rule_has_a_function(rule: str) -> None:
    affinity = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    found = assign(rule, affinity, np.array([0, 1, 0, 1]), elastic_lambda=0.0)
    assert found.tolist() == ([0, 1, 0, 1] if rule == "random" else [0, 0, 1, 1])


def test_a_rule_without_a_function_is_no_random_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nofe_lab.specialties.assignment.RULES", (*RULES, "new"))
    with pytest.raises(NotImplementedError, match="'new' is declared but has no function"):
        assign("new", np.ones((4, 2)), np.array([0, 1, 0, 1]))
