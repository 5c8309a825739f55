"""What can be asked for: one small frozen dataclass a stage, every field documented.

Whatever can be refused without looking at the data is refused when the dataclass is built, with
one sentence that names the value and what would be accepted.  Everything in these dataclasses is
part of a run's identity; device, folders and progress are not and live elsewhere.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

RULES = ("optimal", "greedy", "elastic", "free", "random")
"""How the generalist's specialty map is updated (see `nofe_lab.specialties.assignment`)."""

TRUNKS = ("generalist", "base", "scratch")
"""Where the trunk of a network of experts comes from."""

CLUSTERED = ("confusion", "features")
"""Partitions that are clusters of a trained base CNN: of its confusions, of its classes' features.
"""

SPECIALTIES = ("learned", "random", "superclass", *CLUSTERED)
"""Where the partition of the classes comes from; a path to a JSON file is accepted as well."""

BUDGETS = ("nofe", "generalist", "total", "arithmetic")
"""How long a flat network trains: as long as one stage of the network of experts, as long as both,
or for as much arithmetic as both."""

PRESETS = ("quick", "paper", "strong")
"""Sets of recipes: minutes on a CPU, as published, or longer and with more augmentation."""

BRANCH_STARTS = ("fresh", "tail")
"""How a branch begins: with weights of its own, or with those of the network its trunk is from."""


MAX_INT, MAX_FLOAT = 2**63 - 1, sys.float_info.max

MAX_VAL_FRACTION = 0.9
"""The largest share of the training images that may be set aside as validation images."""

MAX_LAMBDA = 1e12
"""The largest weight of the elastic rule's penalty, with which sums stay numbers."""

MAX_EPOCHS = 10**6
"""The longest training."""

MAX_BRANCH_WIDTH = 16.0
"""The largest factor on the hidden channels of a branch."""


ADDED_LATER = {"added later": True}
"""Marks a field that is left out of a run's identity where it has its default, so that runs from
before there was such a field are found again."""


MAX_SENTENCE = 3000
"""Characters of the longest message."""


class InvalidInput(ValueError):
    """Bad input, refused in one sentence; notebooks show the sentence without a traceback."""

    def __init__(self, sentence: str) -> None:
        said = printable(sentence)
        if len(said) > MAX_SENTENCE:  # a stranger's name can be a megabyte
            said = f"{said[: MAX_SENTENCE // 2]} ... {said[-MAX_SENTENCE // 3 :]}"
        super().__init__(said)

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def printable(text: str) -> str:
    """The text with characters written out that nobody sees, as ``\\x1b`` or ``\\u202e``.

    Names of strangers come in messages; a terminal must not take a part of them for a command, nor
    show them in another order than they have.
    """
    if text.isprintable():
        return text
    return "".join(
        ch.encode("unicode_escape").decode() if _is_unseen(text, i) else ch
        for i, ch in enumerate(text)
    )


def _is_unseen(text: str, i: int) -> bool:
    """Whether a character is a control, a half of one, or changes what is seen of its neighbours.

    Persian, Indic scripts and emoji are written with zero-width joiners between their letters.
    """
    if text[i] in "\u200c\u200d":
        around = (text[max(i - 1, 0)], text[min(i + 1, len(text) - 1)])
        return not (
            0 < i < len(text) - 1 and all(ord(ch) > 127 and ch.isprintable() for ch in around)
        )
    return unicodedata.category(text[i]) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def check_names(what: str, names: Iterable[str]) -> None:
    """Raise InvalidInput for names that no file or terminal takes as they are."""
    for name in names:
        if printable(name) != name:
            raise InvalidInput(
                f"{what} must be text without control or invisible characters; got {name!r}, which "
                "may be the name of a folder or a file in another encoding: rename it."
            )


def composed(name: str) -> str:
    """The name with its accents as most systems write them (NFC); macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Raise InvalidInput for names that are equal, or equal to the eye."""
    seen: dict[str, str] = {}
    for name in names:
        bare = "".join(ch for ch in composed(name) if unicodedata.category(ch) != "Cf")
        bare = " ".join(bare.split())
        if not bare:
            raise InvalidInput(f"{what} must be more than blanks; got {name!r}.")
        if bare not in seen:
            seen[bare] = name
        elif composed(seen[bare]) == composed(name):
            raise InvalidInput(f"{what} must differ; {name!r} repeats.")
        else:
            raise InvalidInput(
                f"{what} must differ in more than blanks; got {seen[bare]!r} and {name!r}: rename "
                "one."
            )


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    return str(error).partition("\n")[0] or type(error).__name__


def one_of(what: str, value: Any, options: Iterable[str], also: str = "") -> str:
    """Return `value` if it is one of `options`; otherwise raise, naming the nearest one."""
    options = tuple(options)
    if isinstance(value, (str, Path)) and str(value) in options:
        return str(value)
    written = shown(value)
    nearest = difflib.get_close_matches(written.strip("'\""), options, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    accepted = ", ".join(repr(option) for option in options) + (f" or {also}" if also else "")
    raise InvalidInput(f"{what} {written} is unknown{hint}; accepted: {accepted}.")


def text(what: str, value: Any, may_be_none: bool = False) -> None:
    """Raise unless `value` is text or a path."""
    if not isinstance(value, (str, Path)) and not (may_be_none and value is None):
        raise InvalidInput(f"{what} must be text; got {shown(value)}.")


def true_or_false(what: str, value: Any) -> bool:
    """Return `value` if it is a bool; otherwise raise."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{what} must be true or false; got {shown(value)}.")
    return value


def whole_number(what: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int if it is a whole number in [low, high]; otherwise raise.

    NumPy's integers are whole numbers too.  Without `high` the limit is that of 64 bits.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not low <= value <= (MAX_INT if high is None else high):
        limits = f"from {low} to {high}" if high is not None else f"of at least {low}"
        if high is None and is_whole and value > MAX_INT:
            limits += ", in 64 bits"
        raise InvalidInput(f"{what} must be a whole number {limits}; got {shown(value)}.")
    return int(value)


def whole_numbers(what: str, value: str) -> list[int]:
    """The numbers of a text like "5,20"; "" is none.  Raises unless each is a whole one, from 1."""
    parts = [part.strip() for part in str(value).split(",") if part.strip()]
    # of so few digits that none is too large
    if not all(
        part.isdecimal() and part.isascii() and len(part) < 10 and int(part) for part in parts
    ):
        raise InvalidInput(f"{what} must be whole numbers from 1, like '5,20'; got {shown(value)}.")
    return list(map(int, parts))


ABOVE_0 = math.ulp(0.0)
"""The lowest limit of a number that must not be 0."""


def real_number(what: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return `value` as a float if low <= value <= high and it is finite; otherwise raise."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf or not low <= value <= min(high, MAX_FLOAT):
        if low == ABOVE_0:
            limits = "above 0" + (f", at most {high:g}" if math.isfinite(high) else "")
        else:
            limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise InvalidInput(f"{what} must be a number {limits}; got {shown(value)}.")
    return float(value)


def shown(value: object) -> str:
    """A value as messages show it, whatever it is and however long."""
    try:
        written = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return written if len(written) <= 200 else f"{written[:120]}... ({len(written)} characters)"


def _as_ints(config: Any, **lows: int) -> None:
    """Check fields of a frozen dataclass and turn NumPy's whole numbers into Python's."""
    for name, low in lows.items():
        object.__setattr__(config, name, whole_number(name, getattr(config, name), low))


def _as_floats(config: Any, **limits: tuple[float, float]) -> None:
    """Check fields of a frozen dataclass and turn 1 into 1.0: both ask for the same run."""
    for name, (low, high) in limits.items():
        object.__setattr__(config, name, real_number(name, getattr(config, name), low, high))


def identity_of(config: Any) -> dict[str, Any]:
    """The fields of a stage's config that tell its runs apart."""
    known = asdict(config)
    for each in fields(config):
        if each.metadata == ADDED_LATER and known[each.name] == each.default:
            del known[each.name]
    return known


def data_folder() -> Path:
    """Where downloads and runs go by default, the same wherever a notebook is started from.

    ``data`` of the checkout that this library is installed from (editable), else ``~/nofe_lab``.
    """
    root = Path(__file__).resolve().parents[1]
    is_checkout = (root / "pyproject.toml").is_file()
    return root / "data" if is_checkout else Path.home() / "nofe_lab"


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part: ``derive_seed(seed, "order", epoch)``.

    Independent of the platform, of hash randomisation and of the order of other draws, so each use
    of randomness has its own stream and a run can be taken up anywhere.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
    padding: int = 0
    """Pixels of zeros around a training image before a random window is cut out of it."""
    multipliers: bool = False
    """Use the backbone's published learning-rate and decay multipliers."""

    def __post_init__(self) -> None:
        _as_ints(self, epochs=1, batch_size=1, padding=0)
        whole_number("epochs", self.epochs, 1, MAX_EPOCHS)
        true_or_false("flips", self.flips)
        _as_floats(self, learning_rate=(ABOVE_0, math.inf))
        _as_floats(self, momentum=(0, 1), weight_decay=(0, math.inf))
        if self.nesterov and self.momentum == 0:
            raise InvalidInput("nesterov needs a momentum above 0; got 0.")
        one_of("schedule", self.schedule, ("steps", "one_cycle"))
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

    initialisation: Literal["kaiming", "published"] = "kaiming"
    """kaiming: Gaussian on fan-in; published: what the network's authors used."""
    inputs: Literal["standardised", "mean_image"] = "standardised"
    """standardised: per channel, mean 0, deviation 1; mean_image: 0..255 minus the mean image."""

    def __post_init__(self) -> None:
        one_of("initialisation", self.initialisation, ("kaiming", "published"))
        one_of("inputs", self.inputs, ("standardised", "mean_image"))


@dataclass(frozen=True)
class FlatConfig:
    """A base CNN: trunk + head over all C classes."""

    network: NetworkConfig
    """The network."""
    recipe: Recipe
    """Its optimisation."""
    seed: int = 0
    """Of the weights, the order of the images and their augmentation."""
    trunk: str = field(default="scratch", metadata=ADDED_LATER)
    """Whose trunk it starts from: scratch, or the generalist's or the base CNN's."""

    def __post_init__(self) -> None:
        _as_ints(self, seed=0)
        one_of("trunk", self.trunk, TRUNKS)


@dataclass(frozen=True)
class GeneralistConfig:
    """A base CNN over K specialties that are learned together with its weights."""

    network: NetworkConfig
    """The network."""
    recipe: Recipe
    """Its optimisation."""
    K: int = 10
    """Number of specialties."""
    rule: str = "optimal"
    """How the map is updated; with `random` it is drawn once and never updated."""
    update_every: float = 1.0
    """Length of a training interval between two updates of the map, in `update_unit`."""
    update_unit: Literal["epochs", "iterations"] = "epochs"
    """Unit of `update_every`."""
    affinity: Literal["counts", "probability"] = "counts"
    """What A[c, k] adds up: arg-max decisions, or softmax probabilities."""
    affinity_images: int | None = None
    """Size of the random subset of the training images that A is measured on; None: all."""
    affinity_from: Literal["evaluation", "training"] = field(
        default="evaluation", metadata=ADDED_LATER
    )
    """evaluation: A is measured by a pass over these images, as published; training: from the
    predictions of the steps since the last update, which costs no pass."""
    elastic_lambda: float = 1000.0
    """Weight of the size penalty of the elastic rule, for counts rescaled to 100 a class."""
    seed: int = 0
    """Of the first map, the weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        _as_ints(self, seed=0, K=2)
        one_of("rule", self.rule, RULES)
        _as_floats(self, update_every=(ABOVE_0, math.inf), elastic_lambda=(0, MAX_LAMBDA))
        one_of("update_unit", self.update_unit, ("epochs", "iterations"))
        one_of("affinity", self.affinity, ("counts", "probability"))
        if self.affinity_images is not None:
            _as_ints(self, affinity_images=1)
        one_of("affinity_from", self.affinity_from, ("evaluation", "training"))
        if self.affinity_from == "training" and self.affinity_images is not None:
            raise InvalidInput(
                "affinity_images must be 0 (all) with affinity_from 'training', which counts the "
                f"images of every step; got {self.affinity_images}."
            )
        if self.rule != "elastic":  # no other rule reads it: it must not make another run
            object.__setattr__(self, "elastic_lambda", type(self).elastic_lambda)


@dataclass(frozen=True)
class NofEConfig:
    """A trunk and one expert branch a specialty, trained end to end under one softmax."""

    network: NetworkConfig
    """The network."""
    recipe: Recipe
    """Its optimisation."""
    specialties: str = "learned"
    """learned (the generalist's), random (balanced), superclass, confusion or features (clusters of
    a trained base CNN's confusions, or of the features of its classes), or file (given by its
    content)."""
    trunk: str = "generalist"
    """Whose trunk it starts from: the generalist's, the base CNN's, or a fresh one (scratch),
    which begins with the backbone's pretrained weights where it has any."""
    branch_width: float = 1.0
    """Factor on the hidden channels of a branch."""
    branch_start: str = "fresh"
    """fresh: weights of its own; tail: the layers behind the trunk it starts from."""
    seed: int = 0
    """Of the fresh weights, the random specialties, the order and the augmentation."""
    clusters: int | None = field(default=None, metadata=ADDED_LATER)
    """How many specialties confusion and features make; None for all others, which know it."""

    def __post_init__(self) -> None:
        _as_ints(self, seed=0)
        _as_floats(self, branch_width=(ABOVE_0, MAX_BRANCH_WIDTH))
        one_of("branch_start", self.branch_start, BRANCH_STARTS)
        one_of("specialties", self.specialties, (*SPECIALTIES, "file"))
        one_of("trunk", self.trunk, TRUNKS)
        if self.branch_start == "tail" and (self.trunk == "scratch" or self.branch_width != 1):
            raise InvalidInput(
                "branch_start 'tail' needs a trunk that has been trained and branch_width 1; "
                f"got trunk {self.trunk!r} and branch_width {self.branch_width:g}."
            )
        if self.clusters is not None:
            whole_number("K", self.clusters, 2)


@dataclass(frozen=True)
class GateConfig:
    """A gate that chooses which experts of a trained network of experts are run for an image."""

    network: NetworkConfig
    """The network."""
    recipe: Recipe
    """Its optimisation; everything but the gate stays as it is."""
    width: float = 1.0
    """Factor on the hidden channels of a branch as the backbone makes it."""
    seed: int = 0
    """Of the gate's weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        _as_ints(self, seed=0)
        _as_floats(self, width=(ABOVE_0, MAX_BRANCH_WIDTH))


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
    """Epochs between two updates of the map."""
    affinity: Literal["counts", "probability"]
    """What the affinity adds up."""
    affinity_images: int | None
    """How many training images the affinity is measured on; None: all."""

    def __post_init__(self) -> None:
        _as_floats(self, val_fraction=(0, MAX_VAL_FRACTION))

    def override(self, **changes: Any) -> Preset:
        """The same preset with `changes` to every stage's recipe; None leaves a value alone."""
        changes = {name: value for name, value in changes.items() if value is not None}
        return replace(
            self,
            generalist=replace(self.generalist, **changes),
            nofe=replace(self.nofe, **changes),
            flat=replace(self.flat, **changes),
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
