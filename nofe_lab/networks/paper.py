"""The published networks and their published recipes.

From the layer and solver files that the authors of the paper published (Caffe).  Two habits of
Caffe matter: pooling rounds the output size up (``ceil_mode``), with averages over the cells inside
the map only, and biases have learning-rate and decay multipliers of their own.
"""

from __future__ import annotations

from torch import nn

from nofe_lab.config import PRESETS, NetworkConfig, Preset, Recipe, one_of, quick_preset
from nofe_lab.networks.backbone import Backbone


def _gaussian(module: nn.Module, deviation: float) -> None:
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    nn.init.normal_(module.weight, std=deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class AlexNetQuick(Backbone):
    """AlexNet-Quick-C100: three convolutions, made for 32x32 images and quick experiments."""

    name = "alexnet_quick"

    def make_trunk(self) -> nn.Module:
        """[N, 3, 32, 32] -> [N, 64, 4, 4]."""
        return nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, ceil_mode=True),
        )

    def make_head(self, n: int) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.Linear(64, n))

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        """[N, 64, 4, 4] -> [N, n]."""
        channels = max(round(64 * width), 1)
        return nn.Sequential(
            nn.Conv2d(64, channels, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(channels * 2 * 2, channels),
            nn.Linear(channels, n),
        )

    def initialise(self, part: nn.Module, scheme: str) -> None:
        """published: Gaussian, deviation 1e-4 for the first convolution, .01 others, .1 for fc."""
        if scheme != "published":
            return super().initialise(part, scheme)
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                _gaussian(module, 1e-4 if module.in_channels == 3 else 0.01)
            elif isinstance(module, nn.Linear):
                _gaussian(module, 0.1)
        return None

    def multipliers(self, parameter_name: str) -> tuple[float, float]:
        """Biases train at twice the learning rate, with the same decay as weights."""
        return (2.0, 1.0) if parameter_name.endswith("bias") else (1.0, 1.0)

    def published_preset(self) -> Preset:
        """8 epochs at 1e-3, the map updated every 2; NofE 8 epochs at 1e-3 and 2 at 1e-4.

        No schedule of the base CNN was published: it has the NofE stage's, with flips.
        """
        generalist = Recipe(
            epochs=8, learning_rate=1e-3, weight_decay=4e-3, flips=True, multipliers=True
        )
        nofe = Recipe(
            epochs=10, learning_rate=1e-3, weight_decay=4e-3, drops=(0.8,), multipliers=True
        )
        flat = Recipe(
            epochs=10,
            learning_rate=1e-3,
            weight_decay=4e-3,
            drops=(0.8,),
            flips=True,
            multipliers=True,
        )
        return Preset(
            network=NetworkConfig(self.name, "published", "mean_image"),
            val_fraction=0.0,
            rule="greedy",
            generalist=generalist,
            nofe=nofe,
            flat=flat,
            update_every=2.0,
            affinity="counts",
            affinity_images=10_000,
        )


BACKBONES: dict[str, type[Backbone]] = {AlexNetQuick.name: AlexNetQuick}


def backbone(name: str) -> Backbone:
    """The backbone of that name.  Raises InvalidInput with the nearest name if there is none."""
    return BACKBONES[one_of("backbone", name, BACKBONES)]()


def preset(name: str, backbone_name: str) -> Preset:
    """The recipes called `name` for a backbone: ``quick`` or ``paper``."""
    if one_of("preset", name, PRESETS) == "paper":
        return backbone(backbone_name).published_preset()
    return quick_preset(backbone(backbone_name).name)
