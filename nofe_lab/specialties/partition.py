"""The partition of the classes into specialties, as an immutable value.

Rules, taxonomies, random draws and edits by hand all return a `Specialties`, and everything that
needs a partition takes one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nofe_lab.config import (
    InvalidInput,
    check_distinct,
    check_names,
    composed,
    derive_seed,
    shown,
    some_of,
    whole_number,
)
from nofe_lab.files import parse_json, read_text, redact_path, user_path


@dataclass(frozen=True)
class Specialties:
    """C named classes, each in one of K specialties.

    >>> s = Specialties(("cat", "dog", "bus"), (0, 0, 1), K=2)
    >>> s.sizes, s.members(0), s.class_names_of(1)
    ((2, 1), (0, 1), ('bus',))

    class_names: C different names.  of: the specialty of each class, C integers from 0 to K - 1.
    K: number of specialties; some may be empty.  names: K names, by default "1" to "K".
    Raises InvalidInput if these do not fit together.
    """

    class_names: tuple[str, ...]
    of: tuple[int, ...]
    K: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = tuple(composed(str(name)) for name in self.class_names)
        object.__setattr__(self, "class_names", named)
        try:
            are_whole = all(int(k) == k for k in self.of)
        except (TypeError, ValueError, OverflowError):
            are_whole = False
        if not are_whole:
            raise InvalidInput(f"specialties must be whole numbers; got {shown(self.of)}.")
        object.__setattr__(self, "of", tuple(int(k) for k in self.of))
        if not self.class_names:
            raise InvalidInput("a partition needs at least 1 class; got none.")
        object.__setattr__(self, "K", whole_number("K", self.K, 1, self.C))
        default = tuple(str(k + 1) for k in range(self.K))
        object.__setattr__(self, "names", tuple(str(name) for name in self.names) or default)
        if len(self.of) != self.C:
            raise InvalidInput(
                f"a partition of {self.C} classes needs {self.C} specialties; got {len(self.of)}."
            )
        check_names("names of a partition", (*self.class_names, *self.names))
        check_distinct("class names of a partition", self.class_names)
        if len(self.names) != self.K:
            raise InvalidInput(f"{self.K} specialties need {self.K} names; got {len(self.names)}.")
        for class_name, k in zip(self.class_names, self.of, strict=True):
            if not 0 <= k < self.K:
                raise InvalidInput(
                    f"class {class_name!r} is in specialty {k}; accepted: 0 to {self.K - 1}."
                )

    @property
    def C(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each specialty, K integers."""
        return tuple(int(n) for n in np.bincount(self.of, minlength=self.K))

    def members(self, k: int) -> tuple[int, ...]:
        """The classes of specialty k, in class order."""
        return self._members[k]

    @cached_property
    def _members(self) -> tuple[tuple[int, ...], ...]:
        """The members of all specialties, in time linear in the classes."""
        ends = np.cumsum(self.sizes)[:-1]
        return tuple(tuple(part.tolist()) for part in np.split(np.array(self.order), ends))

    def overlapping(self, overlap: int) -> tuple[tuple[int, ...], ...]:
        """The classes of K experts that share them: each class is in `overlap` of them.

        Those of specialty k first, in class order, then others.  A specialty's classes are spread
        evenly over the other specialties that have classes; with as many experts as there are,
        every expert has all classes.  Raises InvalidInput if there are fewer specialties.
        """
        experts = self.nonempty
        whole_number("overlap", overlap, 1, len(experts))
        found = [list(self.members(k)) for k in range(self.K)]
        for place, k in enumerate(experts):
            others = experts[place + 1 :] + experts[:place]
            for i, c in enumerate(self.members(k)):
                for j in range(overlap - 1):
                    found[others[(i + j) % len(others)]].append(c)
        return tuple(map(tuple, found))

    def class_names_of(self, k: int) -> tuple[str, ...]:
        """The names of the classes of specialty k, in class order."""
        return tuple(self.class_names[c] for c in self.members(k))

    @property
    def nonempty(self) -> tuple[int, ...]:
        """The specialties that have a class."""
        return tuple(sorted(set(self.of)))

    @property
    def order(self) -> tuple[int, ...]:
        """All classes, specialty by specialty: in this order confusions form blocks."""
        return tuple(np.argsort(self.of, kind="stable").tolist())

    def title(self, k: int) -> str:
        """The name of specialty k; "specialty 3" if the name is only a number."""
        name = self.names[k]
        return f"specialty {name}" if name.isdecimal() else name

    def number(self, name: str) -> int:
        """The number of the specialty with a name or a `title`.

        Raises InvalidInput unless there is exactly one.
        """
        found = [k for k in range(self.K) if name in (self.names[k], self.title(k))]
        if len(found) != 1:
            how_many = "more than one" if found else "no"
            raise InvalidInput(
                f"{how_many} specialty is called {shown(name)}; accepted: {some_of(self.names)}."
            )
        return found[0]

    def sums(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probabilities [N, C] of the classes, summed over each specialty: [N, K]."""
        return probabilities @ np.eye(self.K)[list(self.of)]

    def moved(self, label: int, k: int) -> Specialties:
        """The partition with class `label` in specialty k.

        >>> Specialties(("cat", "dog", "bus"), (0, 0, 1), K=2).moved(1, 1).of
        (0, 1, 1)
        """
        whole_number("label", label, 0, self.C - 1)
        whole_number("specialty", k, 0, self.K - 1)
        return replace(self, of=(*self.of[:label], k, *self.of[label + 1 :]))

    def with_one_more(self, name: str) -> Specialties:
        """The partition with an empty specialty appended."""
        return replace(self, K=self.K + 1, names=(*self.names, name))

    def without(self, k: int) -> Specialties:
        """The partition without the empty specialty k; later ones move up.

        Raises InvalidInput if it has classes.
        """
        whole_number("specialty", k, 0, self.K - 1)
        if n := self.sizes[k]:
            raise InvalidInput(
                f"specialty {self.names[k]!r} has {n} classes; accepted: one without classes."
            )
        names = (*self.names[:k], *self.names[k + 1 :])
        of = tuple(each - (each > k) for each in self.of)
        return replace(self, of=of, K=self.K - 1, names=names)

    def agreement(self, other: Specialties) -> dict[str, float]:
        """How alike two partitions of the same classes are, however their specialties are numbered.

        nmi: normalised mutual information, 0 to 1.  ari: adjusted Rand index, 1 for equal, about 0
        for unrelated partitions.  Both from scikit-learn.
        """
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        self.check_classes(other.class_names)
        return {
            "nmi": float(normalized_mutual_info_score(self.of, other.of)),
            "ari": float(adjusted_rand_score(self.of, other.of)),
        }

    def matched(self, other: Specialties) -> tuple[int, ...]:
        """For each specialty of `other`, the one of these that it shares most classes with.

        One to one, with as many shared classes as possible (scipy's assignment), so that plots can
        give both the same colour.  Specialties of `other` that are left over get numbers from K on.

        >>> learned = Specialties(("cat", "dog", "bus"), (0, 0, 1), K=2)
        >>> learned.matched(Specialties(("cat", "dog", "bus"), (1, 1, 0), K=2))
        (1, 0)
        """
        from scipy.optimize import linear_sum_assignment

        self.check_classes(other.class_names)
        common = np.zeros((other.K, self.K), dtype=np.int64)
        np.add.at(common, (other.of, self.of), 1)
        partner = {int(k): int(own) for k, own in zip(*linear_sum_assignment(-common), strict=True)}
        spare = iter(range(self.K, self.K + other.K))
        return tuple(partner[k] if k in partner else next(spare) for k in range(other.K))

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raise InvalidInput unless the partition has exactly these classes, in this order."""
        names = tuple(map(composed, class_names))
        if names == self.class_names:
            return
        theirs, ours = set(names), set(self.class_names)
        unknown = [name for name in self.class_names if name not in theirs]
        missing = [name for name in names if name not in ours]
        raise InvalidInput(
            f"the specialties' {self.C} classes are not the data set's {len(names)}: "
            f"{_some(unknown)} not in the data set, {_some(missing)} not in the specialties"
            + ("; the order differs." if not unknown and not missing else ".")
        )

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the partition, without the names of its specialties."""
        return hashlib.sha256(repr((self.class_names, self.of, self.K)).encode()).hexdigest()[:16]

    @classmethod
    def random(cls, class_names: Sequence[str], K: int, seed: int) -> Specialties:
        """A balanced partition drawn by `seed`: sizes differ by at most one."""
        whole_number("K", K, 2, len(class_names))
        rng = np.random.default_rng(derive_seed(seed, "specialties"))
        of = rng.permutation(np.arange(len(class_names)) % K)
        return cls(tuple(class_names), tuple(of), K)

    def to_json(self) -> str:
        """A JSON object: the specialties by name, each with its classes by name, in order."""
        content = {
            "class_names": self.class_names,
            "specialties": [
                {"name": self.names[k], "classes": self.class_names_of(k)} for k in range(self.K)
            ],
        }
        return json.dumps(content, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Specialties:
        """The inverse of `to_json`; ``class_names`` may be left out.  Raises InvalidInput."""
        try:
            content = parse_json(text)
            groups = [(_text(g["name"]), _names(g["classes"])) for g in content["specialties"]]
            listed = [name for _, classes in groups for name in classes]
            class_names = tuple(_names(content.get("class_names", listed)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            given = text[:60] if isinstance(text, str) else text
            raise InvalidInput(
                "specialties must be JSON like "
                '{"specialties": [{"name": "pets", "classes": ["cat", "dog"]}, ...]}; '
                f"got {shown(given)} ({type(error).__name__}: {str(error)[:200]})."
            ) from error
        twice = sorted(name for name, count in Counter(listed).items() if count > 1)
        if twice:
            raise InvalidInput(f"each class belongs to one specialty; {_some(twice)} to several.")
        specialty_of = {name: k for k, (_, classes) in enumerate(groups) for name in classes}
        if set(specialty_of) != set(class_names):
            odd = sorted(set(specialty_of) ^ set(class_names))
            raise InvalidInput(f"class_names and the specialties' classes differ: {_some(odd)}.")
        of = tuple(specialty_of[name] for name in class_names)
        return cls(class_names, of, len(groups), tuple(name for name, _ in groups))

    @classmethod
    def load(cls, path: Path | str, class_names: Sequence[str]) -> Specialties:
        """Read a JSON file and put its classes into the data set's order.

        Raises InvalidInput if the file cannot be read or its classes are not `class_names`.
        """
        try:
            text = read_text(user_path(path), links=True)
        except InvalidInput as error:
            raise InvalidInput(
                f"specialties file {str(path)!r} cannot be read ({redact_path(str(error), path)})."
            ) from error
        found = cls.from_json(text)
        if set(found.class_names) != set(map(composed, class_names)):
            found.check_classes(class_names)
        specialty_of = dict(zip(found.class_names, found.of, strict=True))
        of = tuple(specialty_of[composed(name)] for name in class_names)
        return cls(tuple(class_names), of, found.K, found.names)


FEWEST_CLASSES = 3
"""Classes of a specialty below which an expert has little to tell apart."""


def usual_specialties(C: int) -> int:
    """The usual number of specialties for C classes: the square root, at least 3 classes in each.

    >>> [usual_specialties(C) for C in (100, 12, 7, 3)]
    [10, 3, 2, 2]
    """
    return max(min(round(C**0.5), C // FEWEST_CLASSES), 2)


def class_number(name: str, class_names: Sequence[str]) -> int:
    """The index of a class among the class names; raises InvalidInput with the nearest name."""
    if composed(name) in class_names:
        return list(class_names).index(composed(name))
    nearest = difflib.get_close_matches(name, class_names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise InvalidInput(f"class {name!r} is none of the {len(class_names)} classes{hint}.")


def read_moves(text: str, class_names: Sequence[str], K: int) -> list[tuple[int, int]]:
    """Parse moves written as text into pairs of class and specialty (from 0).

    >>> read_moves("dog: 1, bus: 2", ("cat", "dog", "bus"), K=2)
    [(1, 0), (2, 1)]

    text: class names, each with the number of a specialty, from 1 to K.
    Raises InvalidInput for an unknown class or specialty.
    """
    names = tuple(class_names)
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = part.rpartition(":")
        if not colon or not number.strip().isdecimal() or not 1 <= int(number) <= K:
            raise InvalidInput(
                f"moves must be written like 'shark: 3, whale: 1', with specialties from 1 to {K}; "
                f"got {part!r}."
            )
        found.append((class_number(name.strip(), names), int(number) - 1))
    return found


def _names(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of names")
    return [composed(_text(name)) for name in value]


def _text(value: object) -> str:
    """A name; numbers count as names, but null, booleans and lists do not."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"{value!r} is not a name")
    return str(value)


def _some(names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:3])) or "none"
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
