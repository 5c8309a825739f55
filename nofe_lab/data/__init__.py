"""Data sets, the sources of their images, and the batches that networks are trained on."""

from nofe_lab.data.batches import Batch, Batches
from nofe_lab.data.dataset import Dataset
from nofe_lab.data.source import Resident, Source
from nofe_lab.data.sources import load_dataset, prepared, source_state
from nofe_lab.data.streaming import Streaming

__all__ = [
    "Batch",
    "Batches",
    "Dataset",
    "Resident",
    "Source",
    "Streaming",
    "load_dataset",
    "prepared",
    "source_state",
]
