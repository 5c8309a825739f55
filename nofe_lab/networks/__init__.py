"""Networks: the backbone contract, the published networks, and the network of experts."""

from nofe_lab.networks.backbone import CNN, Backbone
from nofe_lab.networks.nofe import NofE
from nofe_lab.networks.paper import BACKBONES, backbone, preset

__all__ = ["BACKBONES", "CNN", "Backbone", "NofE", "backbone", "preset"]
