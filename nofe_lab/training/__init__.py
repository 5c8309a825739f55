"""Training: one loop for every network, the tasks it teaches, and the events it reports."""

from nofe_lab.training.events import (
    EpochDone,
    Event,
    Listener,
    MapUpdated,
    Progress,
    StageBegun,
    StageEnded,
    StageLoaded,
    StepDone,
    tell,
    watched,
)
from nofe_lab.training.interrupts import Interrupted, interruptible
from nofe_lab.training.loop import ParameterGroups, fit, seconds_per_step, sgd
from nofe_lab.training.tasks import (
    Classification,
    Distillation,
    Task,
    TrainingDiverged,
    check_finite,
)

__all__ = [
    "Classification",
    "Distillation",
    "EpochDone",
    "Event",
    "Interrupted",
    "Listener",
    "MapUpdated",
    "ParameterGroups",
    "Progress",
    "StageBegun",
    "StageEnded",
    "StageLoaded",
    "StepDone",
    "Task",
    "TrainingDiverged",
    "check_finite",
    "fit",
    "interruptible",
    "seconds_per_step",
    "sgd",
    "tell",
    "watched",
]
