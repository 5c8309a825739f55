"""Every knob, declared once: name, default, what is accepted, a line of help, and where it belongs.

Stage configs and `Experiment` check their fields by these declarations; the command line and the
table in docs/guide.md are made of them, and a test compares the notebooks' parameter cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nofe_lab.config import (
    ABOVE_0,
    BRANCH_STARTS,
    INITIALISATIONS,
    MAX_BRANCH_WIDTH,
    MAX_EPOCHS,
    MAX_IMAGE_SIZE,
    MAX_LAMBDA,
    MAX_UPDATES,
    MAX_VAL_FRACTION,
    PRESETS,
    RULES,
    SPECIALTIES,
    TEACHERS,
    TRUNKS,
    one_of,
    real_number,
    text,
    true_or_false,
    whole_number,
)
from nofe_lab.files import writable_path

NOTHING = ("none", "null", "~")
"""What people write for None, in lower case."""


@dataclass(frozen=True)
class Kind:
    """What a knob accepts.  Errors are InvalidInput, one sentence with the value and the limits."""

    annotation = "str"
    """Of the knob in a notebook's parameters cell."""

    @property
    def accepted(self) -> str:
        """For the table of knobs."""
        return "text"

    def check(self, name: str, value: Any) -> Any:
        """A value from Python: returned as the type that it stands for."""
        text(name, value)
        return value

    def parse(self, name: str, value: Any) -> Any:
        """A value from papermill, YAML or a command line, where numbers and lists may be text."""
        return self.check(name, value)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `low` to `high`."""

    low: int
    high: int | None = None
    annotation = "int"

    @property
    def accepted(self) -> str:
        return f"{self.low} to {self.high:,}" if self.high is not None else f"from {self.low}"

    def check(self, name: str, value: Any) -> int:
        return whole_number(name, value, self.low, self.high)

    def parse(self, name: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value, re.ASCII):
            value = int(value)
        return self.check(name, value)


@dataclass(frozen=True)
class Real(Kind):
    """A finite number from `low` to `high`."""

    low: float
    high: float = math.inf
    annotation = "float"

    @property
    def accepted(self) -> str:
        low = "above 0" if self.low == ABOVE_0 else f"from {self.low:g}"
        return f"{low}, at most {self.high:g}" if math.isfinite(self.high) else low

    def check(self, name: str, value: Any) -> float:
        return real_number(name, value, self.low, self.high)

    def parse(self, name: str, value: Any) -> float:
        if isinstance(value, str):  # YAML reads 1e-2 as text
            with suppress(ValueError):
                value = float(value)
        return self.check(name, value)


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    annotation = "bool"

    @property
    def accepted(self) -> str:
        return "true, false"

    def check(self, name: str, value: Any) -> bool:
        return true_or_false(name, value)

    def parse(self, name: str, value: Any) -> bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        known = words.get(str(value).strip().lower()) if isinstance(value, (str, int)) else None
        return self.check(name, value if known is None else known)


@dataclass(frozen=True)
class Choice(Kind):
    """One of several words; `also` says what else is accepted, and is checked elsewhere."""

    options: tuple[str, ...]
    also: str = ""

    @property
    def accepted(self) -> str:
        return ", ".join((*self.options, *([self.also] if self.also else [])))

    def check(self, name: str, value: Any) -> str:
        text(name, value)
        return str(value) if self.also else one_of(name, value, self.options)


@dataclass(frozen=True)
class Many(Kind):
    """Several values of one kind: a list, or text such as "2, 5" or "[a, b]"."""

    of: Kind

    @property
    def accepted(self) -> str:
        return f"several: {self.of.accepted}"

    def check(self, name: str, value: Any) -> list[Any]:
        if isinstance(value, str):
            bare = value.strip()
            bare = bare[1:-1] if bare[:1] + bare[-1:] in ("[]", "()") else bare
            value = [part.strip().strip("'\"") for part in bare.split(",") if part.strip()]
        elif not isinstance(value, (list, tuple)):
            value = [value]
        return [self.of.parse(name, each) for each in value]

    def parse(self, name: str, value: Any) -> list[Any]:
        nothing = value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)
        return [] if nothing else self.check(name, value)


@dataclass(frozen=True)
class Output(Kind):
    """A file to be written; ``~`` and environment variables in its path are expanded."""

    @property
    def accepted(self) -> str:
        return "the path of a file"

    def check(self, name: str, value: Any) -> Path:
        text(name, value)
        return writable_path(name, value)


@dataclass(frozen=True)
class Knob:
    """A parameter that people may set."""

    name: str
    default: Any
    kind: Kind
    help: str

    def check(self, value: Any) -> Any:
        """The value as its type, from Python.  Raises InvalidInput."""
        return None if value is None and self.default is None else self.kind.check(self.name, value)

    def parse(self, value: Any) -> Any:
        """The value as its type, where it may have come as text.  Raises InvalidInput."""
        if self.default is None and (
            value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)
        ):
            return None
        return self.kind.parse(self.name, value)

    @property
    def line(self) -> str:
        """Its line in a notebook's parameters cell."""
        default = f'"{self.default}"' if isinstance(self.default, str) else repr(self.default)
        return f"{self.name}: {self.kind.annotation} = {default}  # {self.help}"


TEXT, FROM_1, FROM_0 = Kind(), Whole(1), Whole(0)
WIDTH, UPDATES = Real(ABOVE_0, MAX_BRANCH_WIDTH), Whole(1, MAX_UPDATES)
AFFINITY = Choice(("evaluation", "training"))
PARTITION = Choice(SPECIALTIES, "the path of a .json file")

_DECLARED = {
    "data": (
        Knob("dataset", "glyphs", TEXT, "glyphs, digits, cifar100, folder:DIR, parquet:DIR ..."),
        Knob("image_size", None, Whole(1, MAX_IMAGE_SIZE), "side of resized images in pixels"),
        Knob("train_per_class", None, FROM_1, "how many training images of every class to use"),
        Knob("val_fraction", None, Real(0, MAX_VAL_FRACTION), "share of train set aside as val"),
        Knob("data_seed", 0, FROM_0, "draws val, and the pixels of glyphs"),
        Knob("skip_unreadable", False, Flag(), "go on without images that cannot be decoded"),
        Knob(
            "streaming",
            None,
            Flag(),
            "decode images while training; None: if they do not fit into memory",
        ),
        Knob(
            "loader_workers",
            None,
            Whole(0, 256),
            "processes that decode them; None: one a core, up to 8",
        ),
        Knob("groups", None, TEXT, "folder, or a CSV of file and group: images to keep together"),
        Knob(
            "corrections", None, TEXT, "a CSV of nofe_lab.relabel: mended labels, images left out"
        ),
    ),
    "network": (
        Knob("backbone", "alexnet_quick", TEXT, "the base CNN: published, resnet18 ..., timm:NAME"),
        Knob("split", None, TEXT, "the module of a cut network where branches begin"),
        Knob("stem", "auto", TEXT, "first layers of a cut network: original, or small"),
        Knob("weights", None, TEXT, "pretrained: a file, or a name of torchvision or timm"),
        Knob(
            "initialisation",
            None,
            Choice(INITIALISATIONS),
            "of new weights: published, fan_in (scaled to wide layers), kaiming",
        ),
        Knob("branch_width", 1.0, WIDTH, "factor on the experts' hidden channels"),
        Knob("branch_start", "fresh", Choice(BRANCH_STARTS), "fresh, the trunk's tail, upcycled"),
        Knob("overlap", 1, FROM_1, "experts that have an output for a class; K: all"),
        Knob(
            "sparse", None, Whole(1), "experts an image trains beside its own, by a gate; None: all"
        ),
        Knob(
            "trunk",
            "generalist",
            Choice(TRUNKS),
            "whose trunk starts the NofE: generalist, base, scratch",
        ),
    ),
    "specialties": (
        Knob("K", None, Whole(2), "number of specialties and experts; None: from the classes"),
        Knob("rule", None, Choice(RULES), "how they are learned: optimal, greedy, random ..."),
        Knob("specialties", "learned", PARTITION, "learned, random, superclass ... or a .json"),
        Knob("map_updates", None, UPDATES, "how many times the specialties are updated"),
        Knob("affinity", None, Choice(("counts", "probability")), "what the affinity adds up"),
        Knob("affinity_images", None, FROM_0, "training images that affinity uses; 0: all"),
        Knob("affinity_from", "evaluation", AFFINITY, "by a pass of its own, or in training"),
        Knob("elastic_lambda", 1000.0, Real(0, MAX_LAMBDA), "the elastic rule's size penalty"),
        Knob("fine_head", False, Flag(), "the generalist learns the classes too"),
    ),
    "training": (
        Knob("preset", "quick", Choice(PRESETS), "quick: minutes; paper: as published; strong"),
        Knob(
            "epochs",
            None,
            Whole(1, MAX_EPOCHS),
            "length of every stage; None: as the preset has it",
        ),
        Knob(
            "trunk_epochs",
            None,
            Whole(1, MAX_EPOCHS),
            "epochs of the stage that trains the trunk; None: as epochs",
        ),
        Knob("batch_size", None, FROM_1, "images a step"),
        Knob("learning_rate", None, Real(ABOVE_0), "base or peak learning rate"),
        Knob("nofe_rate", None, Real(ABOVE_0), "learning rate of the NofE; None: as the others"),
        Knob("teacher", None, Choice(TEACHERS), "whose answers the NofE learns: base, control"),
        Knob("trunk_rate", None, Real(0, 1), "of a trained trunk, of the learning rate; 0: frozen"),
        Knob("flips", None, Flag(), "mirror training images at random"),
        Knob("random_crops", False, Flag(), "train on random parts of pictures that are streamed"),
        Knob("seed", 0, FROM_0, "of weights, order, augmentation and random partitions"),
    ),
    "machine": (
        Knob("device", "auto", TEXT, "auto, cpu, cuda, cuda:1 or mps"),
        Knob("precision", "auto", TEXT, "of training: bf16, fp32, or auto"),
        Knob("ranks", 1, FROM_1, "processes that share each batch: one a GPU, or on one CPU"),
        Knob("runs_dir", None, TEXT, "folder of the runs; None: data/runs"),
        Knob("checkpoint_seconds", 60.0, Real(0), "the longest time between two checkpoints"),
    ),
    "notebook": (
        Knob("n_seeds", 3, FROM_1, "how many seeds: seed, seed + 1, ..."),
        Knob("results", None, Output(), "a CSV file for the final table"),
        Knob("with_nofe", True, Flag(), "train the network of experts too, to see what it changes"),
        Knob("with_gate", False, Flag(), "train a gate too: which expert would it choose?"),
        Knob("own", None, TEXT, "a .json file of specialties of your own, as one more opponent"),
        Knob("moves", None, TEXT, '"shark: 3, whale: 3": classes to move; None: three of them'),
        Knob("table", None, TEXT, "a table of the benchmark; None: that of data/results"),
        Knob("Ks", "5, 20", Many(Whole(2)), "other numbers of specialties"),
        Knob("rules", "greedy, elastic, random", Many(Choice(RULES)), "other rules"),
        Knob("updates", "1, 15", Many(UPDATES), "other numbers of updates of the specialties"),
        Knob("at_once", None, FROM_1, "trainings at once; None: one for each core"),
        Knob("executor", None, TEXT, "where: a Dask scheduler, tcp://host:8786; None: here"),
        Knob("trunks", "base, scratch", Many(Choice(TRUNKS)), "other trunks"),
    ),
}
"""By heading of the table.  Those under "notebook" belong to single notebooks, all others to
`nofe_lab.Experiment`."""

KNOBS = {knob.name: knob for knobs in _DECLARED.values() for knob in knobs}
"""All knobs by name."""

OBJECTS = ("dataset", "backbone")
"""Knobs that take objects too, which are checked where they are used."""


def default(name: str) -> Any:
    """The default of a knob, for a dataclass's field of that name."""
    return KNOBS[name].default


def check_fields(config: Any, **kinds: Kind) -> None:
    """Check the fields of a frozen dataclass, by the knob of their name or by `kinds`.

    Values become what they stand for (1 becomes 1.0 where a real number is wanted, NumPy's numbers
    become Python's), so that both ask for the same run.  Raises InvalidInput.
    """
    for each in fields(config):
        value = getattr(config, each.name, None)
        kind = kinds.get(each.name) or (KNOBS[each.name].kind if each.name in KNOBS else None)
        is_object = each.name in OBJECTS and not isinstance(value, (str, Path))
        if not each.init or kind is None or is_object or (value is None and each.default is None):
            continue
        object.__setattr__(config, each.name, kind.check(each.name, value))


def understood(given: Mapping[str, Any], known: Iterable[str] = KNOBS) -> dict[str, Any]:
    """Values of knobs that may have come as text, as their types.

    Raises InvalidInput for a name that is not in `known`, with the nearest that is.
    """
    known = sorted(known)
    for name in given:
        one_of("parameter", name, known)
    return {name: KNOBS[name].parse(value) for name, value in given.items()}


def table() -> str:
    """The knobs as a Markdown table, for docs/guide.md."""
    lines = ["| parameter | default | accepted | |", "|---|---|---|---|"]
    for home, knobs in _DECLARED.items():
        lines.append(f"| **{home}** | | | |")
        for knob in knobs:
            cells = (f"`{knob.name}`", f"`{knob.default}`", knob.kind.accepted, knob.help)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
