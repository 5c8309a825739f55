"""The arms of a comparison: which network, from which partition and trunk, trained for how long.

An arm is a value.  It says everything that tells two networks of one experiment apart, its name is
spelled here alone, and result files carry its fields as columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nofe_lab.config import (
    ABOVE_0,
    BRANCH_STARTS,
    BUDGETS,
    RULES,
    SPECIALTIES,
    TEACHERS,
    TRUNKS,
    InvalidInput,
    check_branch_start,
    one_of,
    real_number,
    text,
    whole_number,
)
from nofe_lab.knobs import KNOBS
from nofe_lab.specialties import Specialties

KINDS = ("base", "control", "nofe")
TWO_AND_GATE = 3
"""Experts that a small flat control is as expensive as: the two that are run, and the gate."""
THESE = "THE FOLDER OF THE RUN/specialties.json"
"""What a command says for a partition that was given."""
CHANGES = (
    *("epochs", "batch_size", "learning_rate", "flips"),
    *("initialisation", "elastic_lambda", "fine_head"),
)
"""What of the recipes, and of the generalist, an arm may change."""
_ENDS = {
    "nofe": "",
    "generalist": ", generalist's budget",
    "total": ", both budgets",
    "arithmetic": ", equal arithmetic",
}


@dataclass(frozen=True)
class Arm:
    """A network of a comparison.  Raises InvalidInput for combinations that mean nothing.

    >>> Arm("nofe").name  # the paper's network, with the exact rule
    'NofE learned, generalist'
    >>> Arm("control", budget="total").name
    'flat control, both budgets'
    """

    kind: str
    """base (the base CNN), control (one branch in place of the experts) or nofe."""
    partition: str | Specialties = ""
    """Of a network of experts: learned, random, superclass, confusion, balanced, features, the path
    of a .json file, or a partition."""
    rule: str = ""
    """Of the generalist that the partition comes from; "" where it comes from none.  A random
    partition with the rule random is the one that a generalist was trained on."""
    trunk: str = ""
    """Where the trunk begins: generalist, base or scratch."""
    trunk_rule: str = ""
    """Of the generalist whose trunk it is."""
    budget: str = ""
    """Of a flat network from scratch: as long as the stage nofe or generalist, as long as both
    (total), or for the arithmetic of both (arithmetic), rounded to whole epochs."""
    recipe: str = ""
    """Of a control from scratch: flat, or nofe for the recipe of the network of experts."""
    experts: int | None = None
    """Of a control: as expensive as so many experts; None: as all."""
    width: float = 1.0
    """Factor on the width of the experiment's experts, or of those that a control stands for."""
    branch_start: str = ""
    """Of a network of experts: fresh, tail or upcycled."""
    overlap: int = 1
    """Of a network of experts: how many experts have an output for a class."""
    teacher: str = ""
    """Whose answers it learns in place of the classes: base (the base CNN's whose trunk others
    take) or control (those of the flat control of all experts, trained for as many epochs)."""
    sparse: int | None = None
    """Of a network of experts: how many of its gate's best experts an image trains beside its own;
    None: all experts see all images, and there is no gate."""
    changes: str = ""
    """Changes of the recipes as JSON, such as '{"flips": true}'."""
    label: str = ""
    """What a partition from a file, or one's own, is called."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        for name, usual in (("teacher", ""), ("overlap", 1)):  # None is a knob's word for it
            if getattr(self, name) is None:
                self._set(**{name: usual})
        if not isinstance(self.partition, Specialties):
            text("partition", self.partition)
            self._set(partition=str(self.partition))
        is_nofe, is_control = self.kind == "nofe", self.kind == "control"
        if is_nofe and self.partition == "":
            self._set(partition="learned")
        if self.partition == "learned" and not self.rule:
            self._set(rule="optimal")
        if not self.trunk:
            self._set(trunk="generalist" if is_nofe else "scratch")
        one_of("trunk", self.trunk, TRUNKS)
        from_scratch = self.trunk == "scratch"
        if self.trunk == "generalist" and not self.trunk_rule:
            self._set(trunk_rule=self.rule or "optimal")
        if not is_nofe and not self.budget:
            self._set(budget="nofe")
        if is_control and from_scratch and not self.recipe:
            self._set(recipe="flat")
        if is_nofe and not self.branch_start:
            self._set(branch_start="fresh")
        belongs = {
            "partition": is_nofe,
            "rule": self.partition in ("learned", "random"),
            "trunk_rule": self.trunk == "generalist",
            "budget": not is_nofe,
            "recipe": is_control and from_scratch,
            "experts": is_control,
            "branch_start": is_nofe,
            "sparse": is_nofe,
            "overlap": is_nofe,
            "label": is_nofe and self._is_given,
        }
        default = {each.name: each.default for each in fields(self)}
        for name, may in belongs.items():
            if not may and getattr(self, name) not in ("", None, default[name]):
                raise InvalidInput(f"{self._what} has no {name}; got {getattr(self, name)!r}.")
        if is_nofe:
            if not self._is_given:
                one_of("partition", self.partition, SPECIALTIES, "the path of a .json file")
            one_of("branch_start", self.branch_start, BRANCH_STARTS)
            check_branch_start(self.branch_start, self.trunk, width=self.width)
        else:
            one_of("budget", self.budget, BUDGETS)
            if not from_scratch and self.budget != "nofe":
                raise InvalidInput(
                    f"budget {self.budget!r} is for a trunk from scratch; on another trunk a flat "
                    f"network is trained as the network of experts is (got trunk {self.trunk!r})."
                )
            if self.kind == "base" and not from_scratch:
                raise InvalidInput(f"a base CNN begins from scratch; got trunk {self.trunk!r}.")
        if self.recipe:
            one_of("recipe", self.recipe, ("flat", "nofe"))
            if self.recipe == "nofe" and self.budget == "generalist":
                raise InvalidInput(
                    "recipe 'nofe' has no budget 'generalist', which is trained by the "
                    "generalist's own recipe; accepted: 'nofe', 'total' or 'arithmetic'."
                )
        if self.teacher:
            one_of("teacher", self.teacher, TEACHERS)
        for name in ("rule", "trunk_rule"):
            if getattr(self, name):
                one_of(name, getattr(self, name), RULES)
        if self.partition == "learned" and self.rule == "random":
            self._set(partition="random")
        if self.partition == "random" and self.rule not in ("", "random"):
            raise InvalidInput(f"a random partition is learned by no rule; got {self.rule!r}.")
        for name in ("experts", "sparse", "overlap"):
            if (number := getattr(self, name)) is not None:
                self._set(**{name: whole_number(name, number, 1)})
        self._set(width=real_number("width", self.width, ABOVE_0), changes=_checked(self.changes))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def _is_given(self) -> bool:
        return isinstance(self.partition, Specialties) or self.partition.endswith(".json")

    @property
    def _what(self) -> str:
        kind = {"base": "a base CNN", "control": "a flat control", "nofe": "a network of experts"}
        where = {"generalist": " on a generalist's trunk", "base": " on a base CNN's trunk"}
        what = kind[self.kind] + where.get(self.trunk, " from scratch")
        if self.kind == "nofe" and not isinstance(self.partition, Specialties):
            what += f" with {self.partition!r} specialties"
        return what

    @property
    def changed(self) -> dict[str, Any]:
        """The changes of the recipes, by the parameters' names."""
        found: dict[str, Any] = json.loads(self.changes) if self.changes else {}
        return found

    @property
    def name(self) -> str:
        """What the network is called in tables and figures: no other place spells a name."""
        if self.kind == "nofe":
            name = f"NofE {self._partition_name}, {self._trunk_name}"
        else:
            name = "base CNN" if self.kind == "base" else "flat control"
            if self.experts == TWO_AND_GATE:
                name = f"small {name}"
            elif self.experts == 1:
                name += f", {self.width:.3g} times as wide as an expert"
            elif self.experts is not None:
                name += f" of {self.experts} experts"
            name += _ENDS[self.budget] if self.trunk == "scratch" else f", {self._trunk_name}"
            name += ", NofE recipe" if self.recipe == "nofe" else ""
        name += f", overlap {self.overlap}" if self.overlap > 1 else ""
        name += f", sparse {self.sparse}" if self.sparse is not None else ""
        name += f", taught by {self.teacher}" if self.teacher else ""
        for key, value in self.changed.items():
            name += f", {key}" if value is True else f", {key} = {value}"
        return name

    @property
    def _partition_name(self) -> str:
        if self._is_given:
            return self.label or "by hand"
        if self.partition == "learned" and self.rule != "optimal":
            return self.rule
        return str(self.partition)

    @property
    def _trunk_name(self) -> str:
        if self.trunk != "generalist":
            return {"base": "base trunk", "scratch": "scratch"}[self.trunk]
        if self.kind == "control":
            return "generalist" if self.trunk_rule == "optimal" else f"{self.trunk_rule} generalist"
        if self.rule == self.trunk_rule:
            return "generalist" if self.rule == "optimal" else "its generalist"
        return f"{'learned' if self.trunk_rule == 'optimal' else self.trunk_rule} generalist"

    @property
    def columns(self) -> dict[str, Any]:
        """The fields as columns of a result file; of a partition's file the name alone."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        if isinstance(self.partition, Specialties):
            found["partition"] = "given"
        elif self._is_given:
            found["partition"] = Path(self.partition).name
        return found

    @property
    def code(self) -> str:
        """The arm in Python; a partition that is given stands for itself as a file."""
        given = dict(self.columns)
        if self._is_given:
            given["partition"] = THESE
        usual = {each.name: each.default for each in fields(self)}
        said = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
        return f"Arm({', '.join(said)})"

    @classmethod
    def of_columns(cls, row: Mapping[str, Any]) -> Arm:
        """The arm of a row of a result file, as `columns` wrote it; empty cells may be NaN.

        A column that is missing, because the row is older than its field, stands for the default.
        """
        given = {each.name: row[each.name] for each in fields(cls) if each.name in row}
        known = {
            name: value
            for name, value in given.items()
            if value is not None and value == value and value != ""
        }
        for name in {"experts", "sparse", "overlap"} & set(known):
            known[name] = int(known[name])
        return cls(**known)

    def with_changes(self, **values: Any) -> Arm:
        """The same arm with other recipes."""
        return replace(self, changes=json.dumps(self.changed | values))


def _checked(changes: str) -> str:
    """Changes of a recipe in one spelling."""
    if not changes:
        return ""
    try:
        found = json.loads(changes)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"changes must be JSON such as '{{\"flips\": true}}'; got {changes!r}.")
    for name, value in found.items():
        value = KNOBS[one_of("change", name, CHANGES)].kind.check(name, value)
        is_whole = isinstance(value, float) and value.is_integer()  # 30.0 is called 30
        found[name] = int(value) if is_whole else value
    return json.dumps(found, sort_keys=True)
