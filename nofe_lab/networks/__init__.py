"""Networks: the backbone contract, the published networks, and the network of experts."""

from nofe_lab.networks.backbone import CNN, Backbone
from nofe_lab.networks.catalogue import backbone, described, preset
from nofe_lab.networks.control import FlatControl, OnFeatures
from nofe_lab.networks.nofe import NofE
from nofe_lab.networks.paper import PAPER

__all__ = [
    "CNN",
    "PAPER",
    "Backbone",
    "FlatControl",
    "NofE",
    "OnFeatures",
    "backbone",
    "described",
    "preset",
]
