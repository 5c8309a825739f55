"""nofe_lab: a workbench for Networks of Experts.

>>> import nofe_lab
>>> experiment = nofe_lab.Experiment("glyphs", K=10)
>>> base, nofe = experiment.run(experiment.base(), experiment.nofe())

After K. Ahmed, M. H. Baig, L. Torresani, "Network of Experts for Large-Scale Image Categorization",
ECCV 2016.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nofe_lab.config import InvalidInput
    from nofe_lab.data import Dataset, Resident, load_dataset
    from nofe_lab.diagnosis import look, relabel
    from nofe_lab.evaluation import predict
    from nofe_lab.inference import Answers, Classifier, load, load_specialties
    from nofe_lab.networks import Backbone, NofE, backbone
    from nofe_lab.runs import Run
    from nofe_lab.specialties import Specialties, assign
    from nofe_lab.stages import Arm, Experiment, superclass_specialties
    from nofe_lab.sweeps import Sweep, sweep

__all__ = [
    "Answers",
    "Arm",
    "Backbone",
    "Classifier",
    "Dataset",
    "Experiment",
    "InvalidInput",
    "NofE",
    "Resident",
    "Run",
    "Specialties",
    "Sweep",
    "assign",
    "backbone",
    "load",
    "load_dataset",
    "load_specialties",
    "look",
    "predict",
    "relabel",
    "superclass_specialties",
    "sweep",
]

_HOMES = {
    "config": ("InvalidInput",),
    "data": ("Dataset", "Resident", "load_dataset"),
    "diagnosis": ("look", "relabel"),
    "evaluation": ("predict",),
    "networks": ("Backbone", "NofE", "backbone"),
    "runs": ("Run",),
    "specialties": ("Specialties", "assign"),
    "inference": ("Answers", "Classifier", "load", "load_specialties"),
    "stages": ("Arm", "Experiment", "superclass_specialties"),
    "sweeps": ("Sweep", "sweep"),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: pandas alone takes longer than all of this."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"nofe_lab.{home}"), name)
            return value
    raise AttributeError(f"module 'nofe_lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
