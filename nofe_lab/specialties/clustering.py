"""Specialties from a CNN trained on all classes: baselines for the learned ones.

These need no generalist: a base CNN's confusions, or the mean features of its classes, also tell
which classes are alike.  Clusters differ in size, except those of `balanced_clusters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, derive_seed, whole_number
from nofe_lab.specialties.partition import Specialties

MIN_AFFINITY = 1e-6
"""Affinity of classes that are never confused: spectral clustering needs a connected graph."""

MAX_OPTIMAL_LEAVES = 2000
"""Most classes whose leaf order is optimal: the time grows with the square of their number."""


def confusion_clusters(
    confusion: NDArray[np.int64], class_names: Sequence[str], K: int, seed: int = 0
) -> Specialties:
    """Spectral clusters of the classes that a CNN confuses, from counts [C, C] (row = label).

    The affinity of two classes is the share of their images that are mistaken for the other, as in
    Z. Yan et al., "HD-CNN: Hierarchical Deep Convolutional Neural Network for Large Scale Visual
    Recognition", ICCV 2015, who let clusters overlap.  Clustering by scikit-learn.
    """
    from sklearn.cluster import SpectralClustering

    C = len(class_names)
    affinity = _affinity(confusion, C) + MIN_AFFINITY
    np.fill_diagonal(affinity, 0)
    clustering = SpectralClustering(
        whole_number("K", K, 2, C - 1),
        affinity="precomputed",
        random_state=derive_seed(seed, "confusion clusters") % 2**32,
    )
    return Specialties(tuple(class_names), tuple(clustering.fit_predict(affinity)), K)


def _affinity(confusion: NDArray[np.int64], C: int) -> NDArray[np.float64]:
    """The share of two classes' images that are mistaken for the other: [C, C], 0 on the diagonal.

    Raises InvalidInput unless the counts are [C, C].
    """
    if confusion.shape != (C, C):
        raise InvalidInput(f"confusions of {C} classes are [{C}, {C}]; got {confusion.shape}.")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    affinity: NDArray[np.float64] = (shares + shares.T) / 2
    np.fill_diagonal(affinity, 0)
    return affinity


def leaf_order(confusion: NDArray[np.int64], optimal: bool = True) -> NDArray[np.int64]:
    """Order the classes so that those that are confused are neighbours, from counts [C, C].

    The leaves of average linkage, ordered so that the distances of neighbours are least (Z.
    Bar-Joseph, D. Gifford, T. Jaakkola, "Fast optimal leaf ordering for hierarchical clustering",
    Bioinformatics 2001; scipy's).  optimal: whether to order them so, a second's work for 1,000
    classes; else, and above `MAX_OPTIMAL_LEAVES`, they are in the order of the linkage.
    Returns int64 [C].
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    affinity = _affinity(confusion, len(confusion))
    if len(affinity) < 2:
        return np.arange(len(affinity))
    distance = 1 - affinity / (affinity.max() or 1)
    np.fill_diagonal(distance, 0)
    optimal = optimal and len(affinity) <= MAX_OPTIMAL_LEAVES
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=optimal)
    return leaves_list(tree).astype(np.int64)


def balanced_clusters(
    confusion: NDArray[np.int64],
    class_names: Sequence[str],
    K: int,
    order: NDArray[np.int64] | None = None,
) -> Specialties:
    """Groups of equal size that hold many of the errors, from counts [C, C] (row = label).

    The leaf order is cut into K pieces, whose sizes differ by at most one.  Then pairs of classes
    in different groups swap places, the best swap of each group first, until no swap brings more
    errors inside (after B. Kernighan and S. Lin, "An Efficient Heuristic Procedure for Partitioning
    Graphs", Bell System Technical Journal 1970).  That is a local optimum, without any draw.
    (Assigning all classes anew, exactly, to the groups that they err with mostly ends in a worse
    one.)
    order: the `leaf_order` to cut, if it is known already.
    """
    whole_number("K", K, 2, len(class_names))
    _affinity(confusion, len(class_names))
    *_, of = balanced_maps(confusion, K, order)
    return Specialties(tuple(class_names), tuple(of.tolist()), K)


def clusters_history(
    confusion: NDArray[np.int64], maps: Iterable[Sequence[int] | NDArray[np.int64]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How clusters came about, as tables of a generalist's run.

    confusion: counts [C, C], row = label.  maps: from the start to the clusters, each [C], as
    `balanced_maps` gives them.  Returns map_history (update, class, specialty) and map_updates
    (update, moved, objective_before, objective_after); the objective is the share of the errors
    inside.
    """
    C = len(confusion)
    way = np.array(list(maps), dtype=np.int64)
    errors = confusion * (1 - np.eye(C))
    inside = [(errors * (of[:, None] == of)).sum() / max(errors.sum(), 1) for of in way]
    parts = [
        pd.DataFrame({"update": update, "class": np.arange(C), "specialty": of})
        for update, of in enumerate(way)
    ]
    updates = {
        "update": np.arange(1, len(way)),
        "moved": (way[1:] != way[:-1]).sum(axis=1),
        "objective_before": inside[:-1],
        "objective_after": inside[1:],
    }
    return pd.concat(parts, ignore_index=True), pd.DataFrame(updates)


def balanced_maps(
    confusion: NDArray[np.int64], K: int, order: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """The leaf order cut into K pieces, then the map int64 [C] after every round of swaps."""
    C = len(confusion)
    of = np.empty(C, dtype=np.int64)
    of[leaf_order(confusion, optimal=False) if order is None else order] = np.arange(C) * K // C
    errors = (confusion + confusion.T).astype(np.float64)  # whole numbers, but multiplied fast
    np.fill_diagonal(errors, 0)
    inside = errors @ np.eye(K)[of]  # [c, k]: errors between class c and group k
    rows = np.arange(C)
    changed: set[int] = {0}
    while changed:
        yield of.copy()
        there = inside[:, of]
        own = inside[rows, of]
        gains = there + there.T - own[:, None] - own - 2 * errors
        partner = gains.argmax(axis=1)
        gain = gains[rows, partner]
        changed = set()
        for a in np.argsort(-gain, kind="stable"):
            b = partner[a]
            j, k = int(of[a]), int(of[b])
            if gain[a] <= 0:
                break
            if j == k or changed & {j, k}:  # the gains of changed groups are out of date
                continue
            changed |= {j, k}
            of[a], of[b] = k, j
            moved = errors[:, b] - errors[:, a]
            inside[:, j] += moved
            inside[:, k] -= moved


def feature_clusters(
    means: NDArray[np.float64], class_names: Sequence[str], K: int, seed: int = 0
) -> Specialties:
    """K-means clusters of the classes' mean features [C, d].  Clustering by scikit-learn."""
    from sklearn.cluster import KMeans

    C = len(class_names)
    if means.ndim != 2 or len(means) != C:
        raise InvalidInput(f"mean features of {C} classes are [{C}, d]; got {means.shape}.")
    clustering = KMeans(
        whole_number("K", K, 2, C),
        n_init=10,
        random_state=derive_seed(seed, "feature clusters") % 2**32,
    )
    return Specialties(tuple(class_names), tuple(clustering.fit_predict(means)), K)
