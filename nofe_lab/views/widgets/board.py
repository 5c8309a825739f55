"""The specialty board: edit a partition by hand and see how good it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import traitlets
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.data import Dataset
from nofe_lab.specialties import Specialties, best_objective, class_number
from nofe_lab.statistics import errors_inside, inside_by_chance
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import (
    ClassView,
    cards,
    check,
    check_table,
    hex_colours,
    script,
    thumbnails,
)

VISIBLE = 0.0005
"""Differences of shares below this are not visible in print."""


@dataclass(frozen=True)
class Judgement:
    """How good a partition looks before anything is trained with it."""

    objective: float | None
    """Mean affinity of the classes for their specialties (`best_objective`)."""
    inside: float | None
    """Share of the confusions that stay inside a specialty."""
    chance: float
    """The same for random partitions of these sizes."""
    sizes: tuple[int, ...]

    def worse_than(self, other: Judgement) -> list[str]:
        """What is worse here than in `other`, a clause for each reason."""
        found = []
        if (self.objective or 0) < (other.objective or 0) - VISIBLE:
            found.append(f"the objective is {self.objective:.1%} (was {other.objective:.1%})")
        if self.inside is not None and other.inside is not None:
            gain, before = self.inside - self.chance, other.inside - other.chance
            if gain < before - VISIBLE:
                found.append(
                    f"it holds {100 * gain:.1f} points more of the confusions than chance "
                    f"(was {100 * before:.1f})"
                )
        return found


class SpecialtyBoard(ClassView):
    """Edit specialties by hand: drag classes, or move them with the keyboard.

    >>> board = SpecialtyBoard(dataset, specialties, affinity=affinity, confusion=counts)
    >>> board.move("shark", 2)
    >>> experiment.nofe(specialties=board.specialties)  # straight into the NofE stage

    affinity: A[C, K] of the generalist, for the objective.  confusion: counts [C, C] of a base
    CNN, for the share of confusions inside.  `specialties` and `locked` (labels) can be read and
    set; every change of the specialties can be undone, except over a locked class.
    Raises InvalidInput if a class or specialty is unknown, two specialties would have one name, a
    locked class is moved, or a specialty with classes is removed; the board stays as it was.
    """

    _esm = script("cards", "board")
    what = "board"

    specialties = traitlets.Instance(Specialties, help="The partition as it is now.")
    locked = traitlets.List(traitlets.Int(), help="Classes that stay where they are.").tag(
        sync=True
    )
    search = traitlets.Unicode(help="Classes whose names do not hold it are dimmed.").tag(sync=True)
    thumbnails = traitlets.Dict().tag(sync=True)
    cards = traitlets.List(traitlets.Dict()).tag(sync=True)
    changed = traitlets.List(traitlets.Int(), help="Classes that are not where they began.").tag(
        sync=True
    )
    judgement = traitlets.Dict(help="The learned map and the current one, judged.").tag(sync=True)
    can_undo = traitlets.Bool(False).tag(sync=True)
    can_redo = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        dataset: Dataset,
        specialties: Specialties,
        *,
        affinity: NDArray[np.floating] | None = None,
        confusion: NDArray[np.int64] | None = None,
    ) -> None:
        specialties.check_classes(dataset.class_names)
        if affinity is not None:
            check_table("the affinity", affinity, (specialties.C, specialties.K))
        if confusion is not None:
            check_table("the confusion", confusion, (specialties.C, specialties.C))
        self.dataset = dataset
        self.start = specialties
        self.affinity = affinity
        self.confusion = confusion
        self._before = self.judge(specialties)
        self._past: list[Specialties] = []
        self._future: list[Specialties] = []
        super().__init__(
            class_names=list(specialties.class_names),
            thumbnails=thumbnails(dataset),
            specialties=specialties,
        )
        self.label = specialties.order[0]

    def judge(self, specialties: Specialties) -> Judgement:
        """Judge a partition of these classes."""
        objective = inside = None
        if self.affinity is not None:
            of = np.array(specialties.of)
            objective = best_objective(self.affinity.astype(float), of, specialties.K)
        if self.confusion is not None:
            share = errors_inside(self.confusion, specialties)
            inside = None if np.isnan(share) else share
        return Judgement(objective, inside, inside_by_chance(specialties.sizes), specialties.sizes)

    # --- what can be done with it

    def move(self, class_: str | int, k: int) -> None:
        """Put a class, by name or number, into specialty k (0 to K - 1)."""
        label = self._label_of(class_)
        if label in self.locked:
            raise InvalidInput(f"class {self.class_names[label]!r} is locked; unlock it first.")
        moved = self.specialties.moved(label, _plain(k))
        self.label = label
        if moved != self.specialties:
            self.specialties = moved

    def add(self, name: str | None = None) -> None:
        """Add an empty specialty after the others."""
        taken = {*self.specialties.names, *self.start.names}
        free = (str(n) for n in range(1, len(taken) + 2) if str(n) not in taken)
        self.specialties = self.specialties.with_one_more(next(free) if name is None else name)

    def shift(self, class_: str | int, by: int) -> None:
        """Move a class by so many specialties, at most to the first or the last."""
        label = self._label_of(class_)
        self.move(label, min(max(self.specialties.of[label] + by, 0), self.specialties.K - 1))

    def remove(self, k: int) -> None:
        """Remove specialty k, which must have no classes."""
        self.specialties = self.specialties.without(k)

    def lock(self, class_: str | int) -> None:
        """Lock a class to its specialty, or unlock it if it is locked."""
        label = self._label_of(class_)
        rest = [each for each in self.locked if each != label]
        self.locked = rest if label in self.locked else sorted([*rest, label])

    def undo(self) -> None:
        """Undo the last change."""
        self._travel(self._past, self._future)

    def redo(self) -> None:
        """Redo the last change that was undone."""
        self._travel(self._future, self._past)

    def reset(self) -> None:
        """Back to the specialties that the board began with, nothing locked."""
        self.locked = []
        if self.specialties != self.start:
            self.specialties = self.start

    # --- how it is done

    def _label_of(self, class_: str | int) -> int:
        if isinstance(class_, str):
            return class_number(class_, self.class_names)
        return whole_number("label", _plain(class_), 0, len(self.class_names) - 1)

    def _travel(self, here: list[Specialties], there: list[Specialties]) -> None:
        if here:
            now, self._travelling = self.specialties, True
            try:
                self.specialties = here[-1]
            finally:
                self._travelling = False
            here.pop()
            there.append(now)
            self.can_undo, self.can_redo = bool(self._past), bool(self._future)

    _travelling = False

    @check("specialties")
    def _check_specialties(self, proposal: Any) -> Specialties:
        found: Specialties = proposal["value"]
        self.start.check_classes(found.class_names)
        twice = [name for name in found.names if found.names.count(name) > 1]
        if twice:
            raise InvalidInput(
                f"a board's specialties need different names; got {twice[0]!r} twice."
            )
        locked = set(self.locked)
        for label in locked.intersection(_moved(self.specialties, found) if locked else ()):
            raise InvalidInput(f"class {self.class_names[label]!r} is locked; unlock it first.")
        return found

    @check("locked")
    def _check_locked(self, proposal: Any) -> list[int]:
        return sorted({self._label_of(label) for label in proposal["value"]})

    @traitlets.observe("specialties")
    def _changed(self, change: Any) -> None:
        if isinstance(change["old"], Specialties) and not self._travelling:
            self._past.append(change["old"])
            self._future.clear()
        self._tell()

    @traitlets.observe("label", "locked")
    def _chosen(self, change: Any) -> None:
        self.words = self._in_words()

    def _tell(self) -> None:
        """Send everything that depends on the partition to the browser."""
        now, start = self.specialties, self.start
        judged = self.judge(now)
        worse = judged.worse_than(self._before)
        with self.hold_sync():
            self.changed = _moved(start, now)
            self.cards = cards(now, self._colours())
            self.judgement = {
                "columns": ["at first", "now"],
                "rows": [
                    {"name": name, "values": [tell(self._before), tell(judged)]}
                    for name, tell in ROWS.items()
                ],
                "warning": f"Worse than at first: {' and '.join(worse)}." if worse else "",
            }
            self.can_undo, self.can_redo = bool(self._past), bool(self._future)
            self.words = self._in_words()

    def _colours(self) -> list[str]:
        """A colour for each specialty, which it keeps when others are added or removed."""
        known = list(self.start.names)
        known += [name for name in self.specialties.names if name not in known]
        colours = hex_colours(len(known))
        return [colours[known.index(name)] for name in self.specialties.names]

    def _in_words(self) -> str:
        if self.label < 0:
            return ""
        now = self.specialties
        k = now.of[self.label]
        locked = " (locked)" if self.label in self.locked else ""
        return (
            f"Class {self.class_name}{locked} is in {now.title(k)}. "
            f"{len(self.changed)} of {now.C} classes were moved; {now.K} specialties have "
            f"{min(now.sizes)} to {max(now.sizes)} classes. {self.judgement['warning']}"
        ).strip()

    def obey(self, what: dict[str, Any], buffers: list[Any]) -> None:
        deeds: dict[str, Callable[[], None]] = {
            "move": lambda: self.move(int(what["label"]), int(what["k"])),
            "shift": lambda: self.shift(int(what["label"]), int(what["by"])),
            "lock": lambda: self.lock(int(what["label"])),
            "remove": lambda: self.remove(int(what["k"])),
            "add": self.add,
            "undo": self.undo,
            "redo": self.redo,
            "reset": self.reset,
        }
        try:
            deeds[what["do"]]()
        except InvalidInput as error:
            self.words = str(error)

    def figures(self) -> dict[str, Figure]:
        colours = [to_rgb(colour) for colour in self._colours()]
        return {"board": plots.plot_specialties(self.dataset, self.specialties, colours=colours)}


def _moved(before: Specialties, after: Specialties) -> list[int]:
    """The classes whose specialty has another name."""
    names = zip(before.of, after.of, strict=True)
    return [c for c, (old, new) in enumerate(names) if before.names[old] != after.names[new]]


def _plain(number: Any) -> Any:
    """NumPy's integers as Python's; anything else unchanged, to be rejected later."""
    return int(number) if isinstance(number, Integral) else number


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


ROWS: dict[str, Callable[[Judgement], str]] = {
    "objective: affinity of the classes for their specialties": lambda j: _share(j.objective),
    "confusions of the base CNN inside a specialty": lambda j: _share(j.inside),
    "the same by chance, for these sizes": lambda j: _share(j.chance),
    "classes of the smallest and the largest": lambda j: f"{min(j.sizes)} and {max(j.sizes)}",
}
"""The rows of the board's table: name -> text for a partition."""
