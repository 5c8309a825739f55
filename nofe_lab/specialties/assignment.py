"""From affinity to specialties: the rules, as pure functions with no network in sight.

A[c, k] says how much of class c the generalist puts into specialty k.  A rule turns A into a map
from classes to specialties that gives each class a specialty it already leans to; classes that the
generalist confuses lean to the same one, and so they meet.  The objective is sum_c A[c, map(c)].

What keeps all classes from meeting in one specialty is a constraint on the sizes.  *Balanced* means
here: exactly C mod K specialties have ceil(C / K) classes, the others floor(C / K).

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
"""Affinities are compared as whole multiples of 1 / SCALE (4e-14), with which paths of moves add up
exactly.  A product of many small primes, so that shares of most numbers of images are exact."""

Affinity = NDArray[np.float64]
Map = NDArray[np.int64]


def affinity_matrix(
    outputs: NDArray[np.floating], labels: NDArray[np.int64], C: int, kind: str = "counts"
) -> Affinity:
    """How much of each class the generalist puts into each specialty: A[C, K], rows add up to 1.

    outputs: the generalist's softmax probabilities [N, K].  labels: original classes [N].
    kind: ``counts`` adds up arg-max decisions, ``probability`` adds up the probabilities.
    Rows are divided by the number of images of their class, so classes count alike however many of
    their images were drawn; a class with no image has a row of zeros.
    """
    one_of("affinity", kind, ("counts", "probability"))
    K = outputs.shape[1]
    votes = outputs if kind == "probability" else np.eye(K)[outputs.argmax(axis=1)]
    total = np.zeros((C, K))
    np.add.at(total, labels, votes)
    return total / np.maximum(np.bincount(labels, minlength=C), 1)[:, None]


def objective(affinity: Affinity, specialty_of: Map) -> float:
    """Mean over the classes of A[c, map(c)], 0 to 1 for rows that add up to 1.

    With counts this is the generalist's accuracy on the images that A was measured on, each class
    weighted alike.
    """
    return float(affinity[np.arange(len(affinity)), specialty_of].mean())


def best_objective(affinity: Affinity, specialty_of: Map, K: int) -> float:
    """The objective of any K specialties, whatever their numbers, and even if K is another.

    Each specialty is read as the generalist's output that its classes lean to most, one to one, so
    that the objective is largest (scipy's assignment); one that is left without counts 0.
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

    seed: of the order in which `greedy` and `elastic` visit the classes.
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
    return current.copy()


def optimal(affinity: Affinity) -> Map:
    """The balanced map with the largest objective, exactly.

    Every class begins in its favourite specialty, which is the best map of all, if seldom a
    balanced one.  Then one class after another leaves a specialty that is too large, or enters one
    that is too small, along the chain of moves that costs least: c from j to i, d from i to k ...
    Each map on the way is the best of its sizes (successive shortest paths in a flow of classes
    through specialties; R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, chapter 9).  Where
    specialties are many and small, scipy's assignment of classes to places is faster.
    """
    C, K = affinity.shape
    floor, extra = divmod(C, K)
    ceiling = floor + bool(extra)
    whole = _as_integers(affinity)
    if K > MANY and floor < FEW and C + K < LARGEST:
        return _by_places(whole)
    moves = _Moves(whole)
    while (moves.sizes > ceiling).any():
        moves.shift(moves.sizes > ceiling, moves.sizes < ceiling)
    while (moves.sizes < floor).any():
        moves.shift(moves.sizes > floor, moves.sizes < floor)
    return moves.specialty_of


FAR = 2**61
"""Longer than any path: a move that there is not.  Two of them can be added in 64 bits."""

MANY, FEW, LARGEST = 60, 16, 12_000
"""More specialties than these, of fewer classes than those, are assigned by scipy, in a quarter of
the time at C = 1000 and K = 130, in a thirtieth at K = 500 (measured on two
cores).  Its matrix has as many rows as there are classes and specialties, LARGEST at the most."""


def _as_integers(affinity: Affinity) -> NDArray[np.int64]:
    """Affinities in 1 / SCALE; in a unit of their own if they are no shares."""
    top = float(np.abs(affinity).max(initial=0.0))
    unit = 1.0 if 2.0**-16 <= top <= 1 or not top else top
    return np.rint(affinity / unit * SCALE).astype(np.int64)


def _by_places(affinity: NDArray[np.int64]) -> Map:
    """The best balanced map by scipy's assignment of classes to places.

    A specialty has floor(C / K) places that must be taken and, where K does not divide C, one more
    that only C mod K of them need: what is left of these goes to classes that are none.
    """
    from scipy.optimize import linear_sum_assignment

    C, K = affinity.shape
    floor, extra = divmod(C, K)
    places = np.repeat(np.arange(K), floor)
    if not extra:
        return places[linear_sum_assignment(affinity[:, places], maximize=True)[1]]
    places = np.concatenate([places, np.arange(K)])
    none = np.zeros((K - extra, len(places)))
    none[:, : K * floor] = -np.inf
    gains = np.concatenate([affinity[:, places], none])
    return places[linear_sum_assignment(gains, maximize=True)[1][:C]]


class _Moves:
    """A map, and what it costs to move a class from one specialty to another.

    affinity: in whole numbers, so that sums are exact.  A path is then never shortened by a round
    trip, and as many passes as there are specialties find the shortest.
    """

    def __init__(self, affinity: NDArray[np.int64]) -> None:
        self.affinity = affinity
        self.columns = np.ascontiguousarray(affinity.T)  # read along the classes, again and again
        self.K = affinity.shape[1]
        self.specialty_of: Map = affinity.argmax(axis=1).astype(np.int64)
        self.sizes = np.bincount(self.specialty_of, minlength=self.K)
        self.cost = np.full((self.K, self.K), FAR)
        """[j, k]: what the objective's sum loses when the cheapest class of j moves to k."""
        self.cheapest = np.full((self.K, self.K), -1)
        """[j, k]: that class."""
        for j in range(self.K):
            self._look(j, np.arange(self.K))

    def shift(self, source: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
        """Make a specialty of `source` smaller by one and one of `target` larger, at least cost."""
        distance = np.where(source, 0, FAR)
        before = np.full(self.K, -1)
        changed = np.flatnonzero(source)
        for _ in range(self.K):  # Bellman and Ford: a move may gain, but no round trip does
            if not len(changed):
                break
            through = distance[changed, None] + self.cost[changed]
            nearest = through.argmin(axis=0)
            length = through[nearest, np.arange(self.K)]
            shorter = (length < distance) & (length < FAR // 2)
            distance = np.where(shorter, length, distance)
            before = np.where(shorter, changed[nearest], before)
            changed = np.flatnonzero(shorter)
        k = int(np.where(target, distance, FAR).argmin())
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
        self._look(j, np.flatnonzero(self.cheapest[j] == c))
        costs = self.affinity[c, k] - self.affinity[c]
        costs[k] = FAR
        cheaper = costs < self.cost[k]
        self.cost[k, cheaper] = costs[cheaper]
        self.cheapest[k, cheaper] = c

    def _look(self, j: int, others: NDArray[np.int64]) -> None:
        """Find the cheapest classes of j for moves to `others`."""
        members = np.flatnonzero(self.specialty_of == j)
        self.cost[j, others], self.cheapest[j, others] = FAR, -1
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

    Visit the classes in a random order; each takes the open specialty of largest affinity.  A
    specialty is open until it has floor(C / K) classes, and C mod K of them, the first to be asked
    for, until they have one more.
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


def elastic_cost(affinity: Affinity, specialty_of: Map, elastic_lambda: float) -> float:
    """The paper's elastic cost: -sum_c A[c, map(c)] + lambda * sqrt(sum_k n_k^2).

    n_k is the number of classes in specialty k, and A is rescaled to rows that add up to 100, so
    that one lambda means the same on every data set.
    """
    counts = _per_100(affinity)
    sizes = np.bincount(specialty_of, minlength=affinity.shape[1])
    gained = counts[np.arange(len(counts)), specialty_of].sum()
    return float(-gained + elastic_lambda * np.sqrt((sizes**2).sum()))


def elastic(
    affinity: Affinity, current: Map, elastic_lambda: float, rng: np.random.Generator
) -> Map:
    """The paper's elastic rule: one pass of coordinate descent on `elastic_cost`.

    From the current map, visit the classes in a random order and move each to the specialty that
    makes the cost smallest with all other classes where they are.
    """
    counts = _per_100(affinity)
    result = current.copy()
    sizes = np.bincount(current, minlength=affinity.shape[1])
    for c in rng.permutation(len(result)):
        sizes[result[c]] -= 1
        # with class c in k the sum of squares grows by (n_k + 1)^2 - n_k^2 = 2 n_k + 1
        norm = np.sqrt((sizes**2).sum() + 2 * sizes + 1)
        result[c] = int((-counts[c] + elastic_lambda * norm).argmin())
        sizes[result[c]] += 1
    return result


def free(affinity: Affinity) -> Map:
    """Each class takes its arg-max, with nothing to keep the sizes apart.

    Warns if specialties become empty: this rule tends to collapse into a few.
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


def _per_100(affinity: Affinity) -> Affinity:
    total = affinity.sum(axis=1, keepdims=True)
    return np.divide(100 * affinity, total, out=np.zeros_like(affinity), where=total > 0)
