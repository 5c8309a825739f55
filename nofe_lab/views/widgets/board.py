"""The specialty board: edit a partition by hand and see how good it looks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, whole_number
from nofe_lab.data import Dataset
from nofe_lab.log import quiet
from nofe_lab.specialties import Specialties, best_objective, class_number
from nofe_lab.statistics import (
    errors_inside,
    inside_by_chance,
    standings,
    standings_in_words,
)
from nofe_lab.training.events import Event, Listener, StageAwaited
from nofe_lab.training.interrupts import Interrupted, ask_to_stop
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import (
    ClassView,
    TrainingView,
    cards,
    check,
    check_table,
    hex_colours,
    script,
    sentence,
    thumbnails,
)

VISIBLE = 0.0005
"""Differences of shares below this are not visible in print."""

State = tuple[Specialties, tuple[int, ...]]
"""What can be undone: the partition, and the classes that are locked."""
Train = Callable[[Specialties, Listener], pd.DataFrame]
"""Trains experts for a partition, telling the listener the events of it.  Returns the accuracies on
val of their network, first, and of others beside it, as rows of network, seed and val_accuracy."""


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

    @property
    def beyond(self) -> float | None:
        """Share of the confusions inside, minus that by chance."""
        return None if self.inside is None else self.inside - self.chance

    def since(self, before: Judgement) -> str:
        """What is better here than before, and what is worse, in words; "" if neither."""
        changes = {
            "the objective": _change(self.objective, before.objective),
            "the confusions inside, beyond chance": _change(self.beyond, before.beyond),
        }
        found = []
        for word, sign in (("Better", 1), ("Worse", -1)):
            those = [f"{name} ({_points(by)})" for name, by in changes.items() if sign * by > 0]
            if those:
                found.append(f"{word} than at first: {', '.join(those)}.")
        return " ".join(found)


class SpecialtyBoard(TrainingView, ClassView):
    """Edit specialties by hand: drag classes, or move them with the keyboard.

    >>> board = SpecialtyBoard(dataset, specialties, affinity=affinity, confusion=counts)
    >>> board.move("shark", 2)
    >>> experiment.nofe(specialties=board.specialties)  # straight into the NofE stage

    affinity: A[C, K] of the generalist, for the objective.  confusion: counts [C, C] of a base
    CNN, for the share of confusions inside.  `specialties` and `locked` (labels) can be read and
    set; every change of either can be undone.
    train: what the button that trains experts for the partition calls, in a thread of its own (see
    `Train`).  `scores` then holds what it returned, and `trained` the partition that it was for.
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
    can_train = traitlets.Bool(False).tag(sync=True)
    training = traitlets.Unicode(help="'training', 'stopping', or '' while neither.").tag(sync=True)
    standing = traitlets.Dict(help="Experts for a partition beside other networks.").tag(sync=True)
    outdated = traitlets.Bool(help="Whether the partition has changed since.").tag(sync=True)
    can_undo = traitlets.Bool(False).tag(sync=True)
    can_redo = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        dataset: Dataset,
        specialties: Specialties,
        *,
        affinity: NDArray[np.floating] | None = None,
        confusion: NDArray[np.int64] | None = None,
        train: Train | None = None,
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
        self.trained: Specialties | None = None
        self.scores: pd.DataFrame | None = None
        self._train = train
        self._before = self.judge(specialties)
        self._now = specialties, tuple[int, ...]()
        self._past: list[State] = []
        self._future: list[State] = []
        super().__init__(
            can_train=train is not None,
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
        """Undo the last change, of the specialties or of what is locked."""
        if self._past:
            self._future.append(self._now)
            self._become(self._past.pop())

    def redo(self) -> None:
        """Redo the last change that was undone."""
        if self._future:
            self._past.append(self._now)
            self._become(self._future.pop())

    def reset(self) -> None:
        """Back to the specialties that the board began with, nothing locked."""
        if self._now != (self.start, ()):
            self._past.append(self._now)
            self._future.clear()
            self._become((self.start, ()))

    def train(self) -> None:
        """Train experts for the partition as it is now.

        In a notebook this returns at once, and the board can be used meanwhile; where no event loop
        runs, it waits for the result.
        """
        if self._train is None:
            raise InvalidInput("this board trains nothing; make it with SpecialtyBoard(train=...).")
        if self.training:
            raise InvalidInput("experts are being trained; accepted: stop, or wait for them.")
        self.training, self.standing = "training", {}
        try:
            in_loop = asyncio.get_running_loop().call_soon_threadsafe
        except RuntimeError:
            self._work(self._train, self.specialties, lambda call, *given: call(*given))
        else:
            given = self._train, self.specialties, in_loop
            threading.Thread(target=self._work, args=given, daemon=True).start()

    def stop(self) -> None:
        """Stop the training after its step; what was trained is kept."""
        if self.training:
            self.training = "stopping"

    # --- how it is done

    def _work(self, train: Train, partition: Specialties, tell: Callable[..., object]) -> None:
        """Train; `tell` calls what changes the board where its other messages are handled."""

        def listen(event: Event) -> None:
            if self.training == "stopping":
                ask_to_stop()
            tell(self, event)
            if self.training == "stopping" and isinstance(event, StageAwaited):
                raise Interrupted("nothing of it was trained here")

        scores, standing = None, {"columns": [], "rows": [], "said": ""}
        try:
            with quiet():
                found = train(partition, listen)
            standing, scores = _scoreboard(found), found
        except Interrupted:
            standing["said"] = "Stopped; what was trained is kept: press the button again to go on."
        except Exception as error:
            standing["said"] = sentence(error)
        finally:  # also of a KeyboardInterrupt, which goes on
            with suppress(RuntimeError):  # the kernel's loop has ended
                tell(self._have_trained, partition, scores, standing)

    def _have_trained(
        self, partition: Specialties, scores: pd.DataFrame | None, standing: dict[str, Any]
    ) -> None:
        self.training = self.stage = ""
        if scores is not None:
            self.trained, self.scores = partition, scores
            self.outdated = self.specialties != partition
        self.standing = standing

    def _label_of(self, class_: str | int) -> int:
        if isinstance(class_, str):
            return class_number(class_, self.class_names)
        return whole_number("label", _plain(class_), 0, len(self.class_names) - 1)

    def _become(self, state: State) -> None:
        """Take up a state that the board was in, whatever is locked now."""
        self._now = state
        self.specialties, self.locked = state[0], list(state[1])

    @check("specialties")
    def _check_specialties(self, proposal: Any) -> Specialties:
        found: Specialties = proposal["value"]
        self.start.check_classes(found.class_names)
        twice = [name for name in found.names if found.names.count(name) > 1]
        if twice:
            raise InvalidInput(
                f"a board's specialties need different names; got {twice[0]!r} twice."
            )
        locked = set(self.locked) if found != self._now[0] else set()
        for label in locked.intersection(_moved(self.specialties, found) if locked else ()):
            raise InvalidInput(f"class {self.class_names[label]!r} is locked; unlock it first.")
        return found

    @check("locked")
    def _check_locked(self, proposal: Any) -> list[int]:
        return sorted({self._label_of(label) for label in proposal["value"]})

    @traitlets.observe("specialties", "locked")
    def _changed(self, change: Any) -> None:
        now = self.specialties, tuple(self.locked)
        part = 0 if change["name"] == "specialties" else 1
        if now[part] != self._now[part]:  # no undo or redo, which is there already
            self._past.append(self._now)
            self._future.clear()
            self._now = now
        if part == 0:
            self._tell()
        self.can_undo, self.can_redo = bool(self._past), bool(self._future)
        self.words = self._in_words()

    @traitlets.observe("label")
    def _chosen(self, change: Any) -> None:
        self.words = self._in_words()

    def _tell(self) -> None:
        """Send everything that depends on the partition to the browser."""
        now, start = self.specialties, self.start
        judged, before = self.judge(now), self._before
        with self.hold_sync():
            self.changed = _moved(start, now)
            self.cards = cards(now, self._colours())
            self.judgement = {
                "columns": ["at first", "now", "change"],
                "rows": [
                    {"name": name, "values": [*map(_share, pair), _points(_change(*pair[::-1]))]}
                    for name, share in ROWS.items()
                    for pair in [(share(before), share(judged))]
                ],
                "said": judged.since(before),
            }
            self.outdated = self.trained not in (None, now)

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
            f"{min(now.sizes)} to {max(now.sizes)} classes."
        )

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
            "train": self.train,
            "stop": self.stop,
        }
        deeds[what["do"]]()

    def figures(self) -> dict[str, Figure]:
        colours = [to_rgb(colour) for colour in self._colours()]
        return {"board": plots.plot_specialties(self.dataset, self.specialties, colours=colours)}


def _scoreboard(scores: pd.DataFrame) -> dict[str, Any]:
    """The standings of the first network of `scores` beside the others, for the browser."""
    own = scores["network"].iloc[0]
    found = standings(scores, own, "val_accuracy")
    rows = []
    for row in found.to_dict("records"):
        half = "" if np.isnan(row["high"]) else f" ± {100 * (row['high'] - row['mean']):.1f}"
        lead = "" if row["network"] == own else f"{100 * row['lead']:+.1f}"
        if row["standing"] in ("ahead", "behind", "tie"):
            lead += f" [{100 * row['lead_low']:+.1f}, {100 * row['lead_high']:+.1f}]"
        shown = [f"{100 * row['mean']:.1f}{half} %", lead, row["standing"]]
        rows.append({"name": row["network"], "values": shown})
    columns = ["accuracy on val", "lead of the first, in points", ""]
    return {"columns": columns, "rows": rows, "said": standings_in_words(found)}


def _moved(before: Specialties, after: Specialties) -> list[int]:
    """The classes whose specialty has another name."""
    names = zip(before.of, after.of, strict=True)
    return [c for c, (old, new) in enumerate(names) if before.names[old] != after.names[new]]


def _plain(number: Any) -> Any:
    """NumPy's integers as Python's; anything else unchanged, to be rejected later."""
    return int(number) if isinstance(number, Integral) else number


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _change(now: float | None, before: float | None) -> float:
    """By how much a share changed; 0 where that would not be seen in print."""
    change = 0.0 if now is None or before is None else now - before
    return change if abs(change) >= VISIBLE else 0.0


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points" if change else ""


ROWS: dict[str, Callable[[Judgement], float | None]] = {
    "objective: affinity of the classes for their specialties": lambda j: j.objective,
    "confusions of the base CNN inside a specialty": lambda j: j.inside,
    "the same by chance, for these sizes": lambda j: j.chance,
    "inside, beyond chance": lambda j: j.beyond,
}
"""The rows of the board's table: name -> share for a partition."""
