"""Stages: what to train and in which order."""

from nofe_lab.stages.arms import Arm
from nofe_lab.stages.experiment import Experiment, superclass_specialties
from nofe_lab.stages.flat import FlatStage
from nofe_lab.stages.generalist import GeneralistStage
from nofe_lab.stages.nofe import NofEStage
from nofe_lab.stages.runner import Runner
from nofe_lab.stages.stage import Stage, load_model

__all__ = [
    "Arm",
    "Experiment",
    "FlatStage",
    "GeneralistStage",
    "NofEStage",
    "Runner",
    "Stage",
    "load_model",
    "superclass_specialties",
]
