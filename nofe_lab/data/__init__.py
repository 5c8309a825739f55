"""Data sets: what one is, where it comes from, and how its images reach the device."""

from nofe_lab.data.dataset import Dataset, Split
from nofe_lab.data.sources import load_dataset, source_state

__all__ = ["Dataset", "Split", "load_dataset", "source_state"]
