"""Specialties from a CNN trained on all classes: baselines for the learned ones.

These need no generalist: a base CNN's confusions, or the mean features of its classes, also tell
which classes are alike.  Clusters differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, derive_seed, whole_number
from nofe_lab.specialties.partition import Specialties

MIN_AFFINITY = 1e-6
"""Affinity of classes that are never confused: spectral clustering needs a connected graph."""


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
    if confusion.shape != (C, C):
        raise InvalidInput(f"confusions of {C} classes are [{C}, {C}]; got {confusion.shape}.")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    affinity = (shares + shares.T) / 2 + MIN_AFFINITY
    np.fill_diagonal(affinity, 0)
    clustering = SpectralClustering(
        whole_number("K", K, 2, C - 1),
        affinity="precomputed",
        random_state=derive_seed(seed, "confusion clusters") % 2**32,
    )
    return Specialties(tuple(class_names), tuple(clustering.fit_predict(affinity)), K)


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
