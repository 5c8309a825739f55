"""Assignment rules: pure functions from the affinity of classes to their specialties.

A[c, k] is the share of class c that the generalist puts into specialty k.  A rule turns A into a
map that gives each class a specialty of high affinity; classes that the generalist confuses favour
the same one and end up together.  The objective is sum_c A[c, map(c)].

A constraint on the sizes keeps the classes from collapsing into one specialty.  *Balanced* means:
exactly C mod K specialties have ceil(C / K) classes, the others floor(C / K).

Rules after K. Ahmed, M. H. Baig, L. Torresani, "Network of Experts for Large-Scale Image
Categorization", ECCV 2016; `optimal` is ours, the exact solution of the problem that the paper's
balanced rule (`greedy`) approximates.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from nofe_lab.config import RULES, InvalidInput, one_of, shown, whole_number

SCALE = 2**16 * 3**4 * 5**4 * 7**2 * 11 * 13
"""Affinities are rounded to multiples of 1 / SCALE (4e-14), so that path costs add up exactly.  A
product of many small primes, which makes the shares of most numbers of images exact."""

Affinity = NDArray[np.float64]
Map = NDArray[np.int64]


def affinity_matrix(
    outputs: NDArray[np.floating], labels: NDArray[np.int64], C: int, kind: str = "counts"
) -> Affinity:
    """The share of each class that the generalist puts into each specialty: A[C, K], rows sum to 1.

    outputs: the generalist's softmax probabilities [N, K].  labels: original classes [N].
    kind: ``counts`` averages arg-max decisions over the images of a class, ``probability`` the
    probabilities.  A class without images has a row of zeros.
    """
    one_of("affinity", kind, ("counts", "probability"))
    K = outputs.shape[1]
    votes = outputs if kind == "probability" else np.eye(K)[outputs.argmax(axis=1)]
    total = np.zeros((C, K))
    np.add.at(total, labels, votes)
    return total / np.maximum(np.bincount(labels, minlength=C), 1)[:, None]


def objective(affinity: Affinity, specialty_of: Map) -> float:
    """The mean of A[c, map(c)] over the classes, 0 to 1 for rows that sum to 1.

    With counts this is the generalist's class-balanced accuracy on the images that gave A.
    """
    return float(affinity[np.arange(len(affinity)), specialty_of].mean())


def best_objective(affinity: Affinity, specialty_of: Map, K: int) -> float:
    """The objective of any K specialties, however they are numbered; K may differ from A's.

    Specialties are matched to the generalist's outputs one to one, so that the objective is largest
    (scipy's assignment); a specialty without an output counts 0.
    """
    from scipy.optimize import linear_sum_assignment

    drawn = np.zeros((K, affinity.shape[1]))
    np.add.at(drawn, specialty_of, affinity)
    return float(drawn[linear_sum_assignment(-drawn)].sum() / len(affinity))


def assign(
    rule: str, affinity: Affinity, current: Map, *, seed: int = 0, elastic_lambda: float = 1000.0
) -> Map:
    """Apply a rule by name: affinity [C, K] and the current map [C] give the new map [C].

    >>> A = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    >>> assign("optimal", A, current=np.array([0, 1, 0, 1])).tolist()
    [0, 0, 1, 1]

    seed: draws the order in which `greedy` and `elastic` visit the classes.
    Raises InvalidInput if the rule is unknown or the shapes do not fit.
    """
    one_of("rule", rule, RULES)
    is_table = isinstance(affinity, np.ndarray) and affinity.ndim == 2
    if not is_table or affinity.dtype.kind not in "fiub":
        raise InvalidInput(
            f"affinities must be an array [C, K] of real numbers; got {shown(affinity)}."
        )
    C, K = affinity.shape
    current = np.asarray(current)
    if current.shape != (C,):
        raise InvalidInput(f"the current map must hold {C} specialties; got {current.shape}.")
    whole_number("K", K, 1, C)
    if not np.isfinite(affinity).all():
        c, k = np.argwhere(~np.isfinite(affinity))[0]
        raise InvalidInput(
            f"affinities must be finite numbers; that of class {c} to specialty {k} is "
            f"{affinity[c, k]}."
        )
    rng = np.random.default_rng(seed)
    if rule == "optimal":
        return optimal(affinity)
    if rule == "greedy":
        return greedy(affinity, rng)
    if rule == "elastic":
        return elastic(affinity, current, elastic_lambda, rng)
    if rule == "free":
        return free(affinity)
    if rule == "random":
        return current.copy()
    raise NotImplementedError(f"the rule {rule!r} is declared but has no function")


def optimal(affinity: Affinity) -> Map:
    """The balanced map with the largest objective, exactly.

    Every class starts in its favourite specialty, the best map of all but seldom a balanced one.
    Each step then shrinks a specialty that is too large, or fills one that is too small, along the
    cheapest chain of moves: c from j to i, d from i to k ...  Each map on the way is the best for
    its sizes (successive shortest paths in a min-cost flow; R. Ahuja, T. Magnanti, J. Orlin,
    "Network Flows", 1993, chapter 9).  For many small specialties, scipy's assignment is faster.
    """
    C, K = affinity.shape
    floor, extra = divmod(C, K)
    ceiling = floor + bool(extra)
    whole = _as_integers(affinity)
    if K > SCIPY_MIN_K and floor < SCIPY_MAX_SIZE and C + K < SCIPY_MAX_ROWS:
        return _by_slots(whole)
    moves = _Moves(whole)
    while (moves.sizes > ceiling).any():
        moves.shift(moves.sizes > ceiling, moves.sizes < ceiling)
    while (moves.sizes < floor).any():
        moves.shift(moves.sizes > floor, moves.sizes < floor)
    return moves.specialty_of


NO_MOVE = 2**61
"""Cost of an impossible move: more than any path's, and two of them add up within 64 bits."""

SCIPY_MIN_K, SCIPY_MAX_SIZE, SCIPY_MAX_ROWS = 60, 16, 12_000
"""Scipy assigns more specialties than SCIPY_MIN_K of fewer classes than SCIPY_MAX_SIZE: in a
quarter of the time at C = 1000 and K = 130, in a thirtieth at K = 500 (on two cores).  Its matrix
has C + K rows, fewer than SCIPY_MAX_ROWS."""


def _as_integers(affinity: Affinity) -> NDArray[np.int64]:
    """Affinities as multiples of 1 / SCALE; scaled by their largest unless they are shares."""
    top = float(np.abs(affinity).max(initial=0.0))
    unit = 1.0 if 2.0**-16 <= top <= 1 or not top else top
    return np.rint(affinity / unit * SCALE).astype(np.int64)


def _by_slots(affinity: NDArray[np.int64]) -> Map:
    """The best balanced map by scipy's assignment of classes to slots.

    A specialty has floor(C / K) slots that must be filled and, where K does not divide C, one more
    that only C mod K specialties fill: dummy classes take the rest.
    """
    from scipy.optimize import linear_sum_assignment

    C, K = affinity.shape
    floor, extra = divmod(C, K)
    slots = np.repeat(np.arange(K), floor)
    if not extra:
        return slots[linear_sum_assignment(affinity[:, slots], maximize=True)[1]]
    slots = np.concatenate([slots, np.arange(K)])
    dummies = np.zeros((K - extra, len(slots)))
    dummies[:, : K * floor] = -np.inf
    gains = np.concatenate([affinity[:, slots], dummies])
    return slots[linear_sum_assignment(gains, maximize=True)[1][:C]]


class _Moves:
    """A map, and the cheapest move from each specialty to each other.

    affinity: integers, so that sums are exact.  No cycle then has a negative cost, and K passes of
    Bellman-Ford find the shortest path.
    """

    def __init__(self, affinity: NDArray[np.int64]) -> None:
        self.affinity = affinity
        self.columns = np.ascontiguousarray(affinity.T)  # fast to read along the classes
        self.K = affinity.shape[1]
        self.specialty_of: Map = affinity.argmax(axis=1).astype(np.int64)
        self.sizes = np.bincount(self.specialty_of, minlength=self.K)
        self.cost = np.full((self.K, self.K), NO_MOVE)
        """[j, k]: what the objective loses when the cheapest class of j moves to k."""
        self.cheapest = np.full((self.K, self.K), -1)
        """[j, k]: that class."""
        for j in range(self.K):
            self._find_cheapest(j, np.arange(self.K))

    def shift(self, source: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
        """Shrink one specialty of `source` and grow one of `target` by a class, at least cost."""
        distance = np.where(source, 0, NO_MOVE)
        before = np.full(self.K, -1)
        changed = np.flatnonzero(source)
        for _ in range(self.K):  # Bellman-Ford: moves may have negative costs, cycles do not
            if not len(changed):
                break
            through = distance[changed, None] + self.cost[changed]
            nearest = through.argmin(axis=0)
            length = through[nearest, np.arange(self.K)]
            shorter = (length < distance) & (length < NO_MOVE // 2)
            distance = np.where(shorter, length, distance)
            before = np.where(shorter, changed[nearest], before)
            changed = np.flatnonzero(shorter)
        k = int(np.where(target, distance, NO_MOVE).argmin())
        chain = []
        while before[k] >= 0:
            chain.append((int(before[k]), k))
            k = int(before[k])
        for j, k, c in [(j, k, int(self.cheapest[j, k])) for j, k in chain]:
            self._move(c, j, k)

    def _move(self, c: int, j: int, k: int) -> None:
        self.specialty_of[c] = k
        self.sizes[j] -= 1
        self.sizes[k] += 1
        self._find_cheapest(j, np.flatnonzero(self.cheapest[j] == c))
        costs = self.affinity[c, k] - self.affinity[c]
        costs[k] = NO_MOVE
        cheaper = costs < self.cost[k]
        self.cost[k, cheaper] = costs[cheaper]
        self.cheapest[k, cheaper] = c

    def _find_cheapest(self, j: int, others: NDArray[np.int64]) -> None:
        """Find the cheapest class of j to move to each of `others`."""
        members = np.flatnonzero(self.specialty_of == j)
        self.cost[j, others], self.cheapest[j, others] = NO_MOVE, -1
        others = others[others != j]
        if not len(members) or not len(others):
            return
        stays = self.columns[j, members]
        for k in others:
            costs = stays - self.columns[k, members]
            first = costs.argmin()
            self.cost[j, k], self.cheapest[j, k] = costs[first], members[first]


def greedy(affinity: Affinity, rng: np.random.Generator) -> Map:
    """The paper's balanced rule.

    Visits the classes in a random order; each takes the open specialty of largest affinity.  A
    specialty is open until it has floor(C / K) classes; the first C mod K to be asked for one more
    accept it.
    """
    C, K = affinity.shape
    floor, extra = divmod(C, K)
    sizes = np.zeros(K, dtype=np.int64)
    result = np.empty(C, dtype=np.int64)
    for c in rng.permutation(C):
        is_open = (sizes < floor) | ((sizes == floor) & ((sizes > floor).sum() < extra))
        k = int(np.where(is_open, affinity[c], -np.inf).argmax())
        result[c] = k
        sizes[k] += 1
    return result


def elastic(
    affinity: Affinity, current: Map, elastic_lambda: float, rng: np.random.Generator
) -> Map:
    """The paper's elastic rule: one pass of coordinate descent from the current map.

    Visits the classes in a random order and moves each to the specialty with the least cost
    -sum_c A[c, map(c)] + lambda * sqrt(sum_k n_k^2), for n_k classes in specialty k.  A is rescaled
    to rows that sum to 100, so that one lambda means the same on every data set.
    """
    total = affinity.sum(axis=1, keepdims=True)
    counts = np.divide(100 * affinity, total, out=np.zeros_like(affinity), where=total > 0)
    result = current.copy()
    sizes = np.bincount(current, minlength=affinity.shape[1])
    for c in rng.permutation(len(result)):
        sizes[result[c]] -= 1
        # adding c to k grows the sum of squares by (n_k + 1)^2 - n_k^2 = 2 n_k + 1
        norm = np.sqrt((sizes**2).sum() + 2 * sizes + 1)
        result[c] = int((-counts[c] + elastic_lambda * norm).argmin())
        sizes[result[c]] += 1
    return result


def free(affinity: Affinity) -> Map:
    """Each class takes its arg-max, without a constraint on the sizes.

    Tends to collapse into a few specialties; warns if some become empty.
    """
    result = affinity.argmax(axis=1).astype(np.int64)
    K = affinity.shape[1]
    used = len(set(result.tolist()))
    if used < K:
        warnings.warn(
            f"rule 'free' has collapsed the specialties: {used} of {K} have classes, the largest "
            f"{np.bincount(result).max()} of {len(result)}; rule 'optimal' keeps them balanced.",
            stacklevel=2,
        )
    return result
