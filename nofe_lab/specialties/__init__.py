"""Specialties: the partition of the classes as a value, assignment rules and clusterings."""

from nofe_lab.specialties.assignment import affinity_matrix, assign, best_objective, objective
from nofe_lab.specialties.clustering import (
    balanced_clusters,
    balanced_maps,
    clusters_history,
    confusion_clusters,
    feature_clusters,
    leaf_order,
)
from nofe_lab.specialties.history import maps_of, settling
from nofe_lab.specialties.partition import (
    FEWEST_CLASSES,
    Specialties,
    class_number,
    read_moves,
    usual_specialties,
)

__all__ = [
    "FEWEST_CLASSES",
    "Specialties",
    "affinity_matrix",
    "assign",
    "balanced_clusters",
    "balanced_maps",
    "best_objective",
    "class_number",
    "clusters_history",
    "confusion_clusters",
    "feature_clusters",
    "leaf_order",
    "maps_of",
    "objective",
    "read_moves",
    "settling",
    "usual_specialties",
]
