"""How networks are optimised: recipes, and the presets that hold those of all stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any, Literal

from nofe_lab.config import INPUTS, InvalidInput, real_number
from nofe_lab.knobs import KNOBS, Choice, Flag, Real, Whole, check_fields

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel, for pixels from 0 to 1."""


@dataclass(frozen=True)
class Recipe:
    """How one stage is optimised: stochastic gradient descent on softmax cross-entropy."""

    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """The base (steps) or peak (one_cycle) learning rate."""
    batch_size: int = 100
    """Images a step; the last, smaller batch of an epoch is left out."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 0.0
    """L2 penalty, added to the gradient."""
    schedule: Literal["steps", "one_cycle"] = "steps"
    """steps: divided by 10 at each of `drops`; one_cycle: linear to the peak, then linear to 0."""
    drops: tuple[float, ...] = ()
    """Fractions of the stage's length after which the learning rate is divided by 10."""
    flips: bool = False
    """Random horizontal flips of the training images."""
    random_crops: bool = False
    """Training images are random parts of the pictures, resized (see `box_within`)."""
    padding: int = 0
    """Pixels of zeros around a training image before a random window is cut out of it."""
    multipliers: bool = False
    """Use the backbone's published learning-rate and decay multipliers."""
    trunk_rate: float = 1.0
    """Factor on the learning rate of a trunk that has been trained before; 0 freezes it."""
    keep_statistics: bool = False
    """Batch normalisations use and keep the statistics of pretrained weights, instead of each
    batch's: the few steps of a finetuning are too few to learn others."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            momentum=Real(0, 1),
            nesterov=Flag(),
            weight_decay=Real(0),
            schedule=Choice(("steps", "one_cycle")),
            padding=Whole(0),
            multipliers=Flag(),
            trunk_rate=KNOBS["trunk_rate"].kind,
            keep_statistics=Flag(),
        )
        if self.nesterov and self.momentum == 0:
            raise InvalidInput("nesterov needs a momentum above 0; got 0.")
        for drop in self.drops:
            real_number("a drop of the learning rate", drop, 0, 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` of `steps`, counted from 0."""
        if self.schedule == "steps":
            passed = sum(step >= round(drop * steps) for drop in self.drops)
            return self.learning_rate * 0.1**passed
        peak = 0.2 * steps
        rising = (step + 1) / (peak + 1)
        falling = (steps - step) / (steps - peak)
        return self.learning_rate * min(rising, falling)


@dataclass(frozen=True)
class NetworkConfig:
    """How a network's weights begin, and what its pixels look like.

    Which network it is belongs to a stage's backbone, which has an identity of its own.
    """

    initialisation: Literal["kaiming", "published", "fan_in"] = "kaiming"
    """kaiming: Gaussian on fan-in; published: what the network's authors used; fan_in: the same,
    but for the wide layers of a `FlatControl`."""
    inputs: Literal["standardised", "mean_image", "pretrained"] = "standardised"
    """standardised: per channel, mean 0, deviation 1; mean_image: 0..255 minus the mean image;
    pretrained: as the weights that the backbone begins with were made."""

    def __post_init__(self) -> None:
        check_fields(self, inputs=Choice(INPUTS))


@dataclass(frozen=True)
class Preset:
    """The recipes of all stages, and what they share."""

    network: NetworkConfig
    """The network."""
    val_fraction: float
    """Share of the training images that is set aside as validation images."""
    rule: str
    """How the specialty map is updated."""
    generalist: Recipe
    """Of the generalist."""
    nofe: Recipe
    """Of the network of experts."""
    flat: Recipe
    """Of the base CNN."""
    update_every: float
    """Epochs between two updates of the map; it scales with `epochs`."""
    affinity: Literal["counts", "probability"]
    """What the affinity adds up."""
    affinity_images: int | None
    """How many training images the affinity is measured on; None: all."""

    def __post_init__(self) -> None:
        check_fields(self)

    def override(self, **changes: Any) -> Preset:
        """The same preset with `changes` to every stage's recipe; None leaves a value alone."""
        changes = {name: value for name, value in changes.items() if value is not None}
        return replace(
            self,
            generalist=replace(self.generalist, **changes),
            nofe=replace(self.nofe, **changes),
            flat=replace(self.flat, **changes),
        )


FEWEST_PRESENTED = 12_500
"""Images that a stage presents at least, each time counted; with fewer it ends too early."""

FEWEST_FINETUNED = 2000
"""The same where a network begins with pretrained weights."""

SMALLEST_BATCH, BATCHES, FEWEST_BATCHES = 20, 50, 10
"""Images of the smallest batch, and the fewest batches an epoch, that are chosen for small data.
FEWEST_BATCHES: where epochs are given; few data sets are so small."""

MOST_EPOCHS = 60
"""The longest stage that is chosen for small data."""


def fitted_preset(
    preset: Preset, n: int, pretrained: bool, may_be_longer: bool
) -> tuple[Preset, str]:
    """Fit batch size and epochs to n training images; also returns a sentence that says why.

    Few images come in smaller batches, and in more epochs if `may_be_longer`, so that every stage
    presents at least FEWEST_PRESENTED (FEWEST_FINETUNED where it begins with pretrained weights).
    With many images nothing changes, and the sentence is "".  A learning rate that falls with the
    root of the batch size did worse (on val; digits and few glyphs, two seeds).
    """
    usual = preset.nofe
    batch, epochs = usual.batch_size, usual.epochs
    per_epoch = BATCHES if may_be_longer else FEWEST_BATCHES
    if n < per_epoch * batch:
        smaller = max(2 ** round(log2(n / per_epoch)), SMALLEST_BATCH)
        batch = min(smaller, batch, n)
    if may_be_longer:
        fewest = FEWEST_FINETUNED if pretrained else FEWEST_PRESENTED
        epochs = min(max(epochs, ceil(fewest / n)), MOST_EPOCHS)
    if (epochs, batch) == (usual.epochs, usual.batch_size):
        return preset, ""
    if epochs == usual.epochs:
        said = f"Batches of {batch} (usually {usual.batch_size})"
        return preset.override(batch_size=batch), (
            f"{said}, as suits {n:,} training images (batch_size takes others)."
        )
    return preset.override(epochs=epochs, batch_size=batch), (
        f"{epochs} epochs a stage in batches of {batch}, as suits {n:,} training images: the usual "
        f"{usual.epochs} epochs in batches of {usual.batch_size} would be "
        f"{usual.epochs * (n // usual.batch_size)} steps (epochs or batch_size takes others)."
    )


STRONG_EPOCHS = 24
"""Epochs of each stage in the preset `strong`."""

STRONG_PADDING = 4
"""Pixels around a training image there, before a window is cut out of it."""


def strong_preset(quick: Preset) -> Preset:
    """A backbone's quick recipes with what 2016's lack: augmentation, and time to profit from it.

    Random windows and flips in every stage, six times as long, with as many updates of the map; all
    training images are used.
    """
    longer = quick.override(epochs=STRONG_EPOCHS, flips=True, padding=STRONG_PADDING)
    every = quick.update_every * STRONG_EPOCHS / quick.generalist.epochs
    return replace(longer, val_fraction=0.0, update_every=every)


def quick_preset(initialisation: Literal["kaiming", "published"] = "kaiming") -> Preset:
    """Minutes on two CPU cores: one-cycle learning rates, standardised inputs, the exact rule."""
    recipe = Recipe(
        epochs=4,
        learning_rate=0.03,
        nesterov=True,
        weight_decay=5e-4,
        schedule="one_cycle",
    )
    return Preset(
        network=NetworkConfig(initialisation, "standardised"),
        val_fraction=0.1,
        rule="optimal",
        generalist=recipe,
        nofe=recipe,
        flat=recipe,
        update_every=0.5,
        affinity="probability",
        affinity_images=5000,
    )


def finetuning_preset(inputs: Literal["standardised", "pretrained"]) -> Preset:
    """The quick recipes for pretrained weights.

    Small batches make many steps of few images.  The values were chosen with EfficientNet-Lite1, on
    other classes and images than those of the tests.
    """
    quick = quick_preset("published").override(
        learning_rate=0.001, batch_size=20, keep_statistics=True
    )
    return replace(quick, network=replace(quick.network, inputs=inputs))
