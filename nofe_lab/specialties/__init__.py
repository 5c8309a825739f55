"""Specialties: the partition of the classes as a value, and the rules that make one."""

from nofe_lab.specialties.assignment import affinity_matrix, assign, objective
from nofe_lab.specialties.partition import Specialties

__all__ = ["Specialties", "affinity_matrix", "assign", "objective"]
