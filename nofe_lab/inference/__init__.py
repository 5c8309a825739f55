"""Inference: trained networks that answer, without the data or the experiment that made them.

A run keeps what its network is made of, how images are prepared for it, the names of its classes,
thumbnails of each, and how certain it was of val images (`kept`).  `load` builds the network again
from that, and `Classifier.predict` takes pictures of any size (`classifier`).  A run never names
code to import: a network of one's own is passed.
"""

from nofe_lab.inference.answers import Answers
from nofe_lab.inference.classifier import Classifier, assembled, load
from nofe_lab.inference.kept import (
    MODEL,
    THUMBNAILS,
    VAL,
    Description,
    certainty_of,
    class_names_of,
    hashes_of,
    kept_files,
    load_specialties,
    thumbnails_of,
)

__all__ = [
    "MODEL",
    "THUMBNAILS",
    "VAL",
    "Answers",
    "Classifier",
    "Description",
    "assembled",
    "certainty_of",
    "class_names_of",
    "hashes_of",
    "kept_files",
    "load",
    "load_specialties",
    "thumbnails_of",
]
