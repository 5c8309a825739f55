"""nofe_lab: a workbench for Networks of Experts.

>>> import nofe_lab
>>> experiment = nofe_lab.Experiment("glyphs", K=10)
>>> base, nofe = experiment.run(experiment.base(), experiment.nofe())

After K. Ahmed, M. H. Baig, L. Torresani, "Network of Experts for Large-Scale Image Categorization",
ECCV 2016.
"""

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset, load_dataset
from nofe_lab.evaluation import predict
from nofe_lab.networks import Backbone, NofE, backbone
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties, assign
from nofe_lab.stages import Experiment, load_model, load_specialties, superclass_specialties

__all__ = [
    "Backbone",
    "Dataset",
    "Experiment",
    "InvalidInput",
    "NofE",
    "Run",
    "Specialties",
    "assign",
    "backbone",
    "load_dataset",
    "load_model",
    "load_specialties",
    "predict",
    "superclass_specialties",
]
