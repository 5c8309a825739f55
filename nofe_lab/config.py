"""Accepted values, and checks that reject others in one sentence, before any work."""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

RULES = ("optimal", "greedy", "elastic", "free", "random")
"""How the generalist's specialty map is updated (see `nofe_lab.specialties.assignment`)."""

TRUNKS = ("generalist", "base", "scratch")
"""Networks from which the trunk of a network of experts is taken; scratch: none."""

CLUSTERED = ("confusion", "balanced", "features")
"""Partitions by clustering a trained base CNN's confusions, freely or into groups of equal size, or
its mean features of classes."""

SPECIALTIES = ("learned", "random", "superclass", *CLUSTERED)
"""Origins of the partition of the classes; the path of a JSON file is accepted as well."""

BUDGETS = ("nofe", "generalist", "total", "arithmetic")
"""How long a flat network trains: as long as one stage of the network of experts, as long as both,
or with as much arithmetic as both."""

PRESETS = ("quick", "paper", "strong")
"""Sets of recipes: minutes on a CPU, as published, or longer with more augmentation."""

BRANCH_STARTS = ("fresh", "tail", "upcycled")
"""Initial weights of a branch: as the backbone makes it, those behind the trunk that it is taken
from, or those with the classifier's rows of its classes as well."""

TEACHERS = ("base", "control")
"""Flat networks whose answers another one may learn: the base CNN, and the flat control."""

INITIALISATIONS = ("published", "kaiming", "fan_in")
"""How new weights begin (see `NetworkConfig`)."""

INPUTS = ("standardised", "mean_image", "pretrained")
"""How pixels become a network's inputs (see `NetworkConfig`)."""

MAX_INT, MAX_FLOAT = 2**63 - 1, sys.float_info.max

MAX_VAL_FRACTION = 0.9
"""Largest share of the training images that can become val."""

MAX_LAMBDA = 1e12
"""Largest weight of the elastic rule's penalty; sums stay finite."""

MAX_EPOCHS = 10**6
"""Longest training."""

MAX_BRANCH_WIDTH = 16.0
"""Largest factor on the hidden channels of a branch."""

MAX_IMAGE_SIZE = 1024
"""Side of the largest images, in pixels."""

MAX_UPDATES = 100_000
"""Most updates of the map in one training."""

MAX_SENTENCE = 3000
"""Longest message, in characters."""


class InvalidInput(ValueError):
    """Invalid input, described in one sentence that notebooks show without a traceback."""

    def __init__(self, sentence: str) -> None:
        sentence = printable(sentence)
        if len(sentence) > MAX_SENTENCE:  # an untrusted name can be a megabyte
            sentence = f"{sentence[: MAX_SENTENCE // 2]} ... {sentence[-MAX_SENTENCE // 3 :]}"
        super().__init__(sentence)

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def printable(text: str) -> str:
    """Escape invisible characters, as ``\\x1b`` or ``\\u202e``.

    Messages contain untrusted names, which must not control a terminal or reorder its text.
    """
    if text.isprintable():
        return text
    return "".join(
        ch.encode("unicode_escape").decode() if _is_invisible(text, i) else ch
        for i, ch in enumerate(text)
    )


def _is_invisible(text: str, i: int) -> bool:
    """Whether character i is a control, a surrogate, or changes how its neighbours are shown.

    Zero-width joiners are allowed inside Persian, Indic scripts and emoji, which need them.
    """
    if text[i] in "\u200c\u200d":
        around = (text[max(i - 1, 0)], text[min(i + 1, len(text) - 1)])
        return not (
            0 < i < len(text) - 1 and all(ord(ch) > 127 and ch.isprintable() for ch in around)
        )
    return unicodedata.category(text[i]) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def check_branch_start(start: str, trunk: str, **width: float) -> None:
    """Raise InvalidInput if branches on this trunk, of this width, cannot have this start.

    width: under the name that the message calls it by.
    """
    ((name, factor),) = width.items()
    accepted = {
        "tail": (trunk != "scratch" and factor == 1, "a trunk that has been trained", "1"),
        "upcycled": (trunk == "base" and factor <= 1, "trunk 'base'", "of at most 1"),
    }
    fits, origin, size = accepted.get(start, (True, "", ""))
    if not fits:
        raise InvalidInput(
            f"branch_start {start!r} needs {origin} and {name} {size}; "
            f"got trunk {trunk!r} and {name} {factor:g}."
        )


def check_names(what: str, names: Iterable[str]) -> None:
    """Raise InvalidInput for names with control or invisible characters."""
    for name in names:
        if printable(name) != name:
            raise InvalidInput(
                f"{what} must be text without control or invisible characters; got {name!r}, which "
                "may be the name of a folder or a file in another encoding: rename it."
            )


def composed(name: str) -> str:
    """Normalise a name to NFC, with composed accents; macOS decomposes them."""
    return unicodedata.normalize("NFC", name)


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Raise InvalidInput for names that are equal or look equal."""
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
    """The first line of an error's message, or its type if there is none."""
    return str(error).partition("\n")[0] or type(error).__name__


def one_of(what: str, value: Any, options: Iterable[str], also: str = "") -> str:
    """Return `value` if it is one of `options`; otherwise raise, suggesting the nearest option."""
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

    NumPy's integers are accepted.  The default of `high` is the largest 64-bit integer.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not low <= value <= (MAX_INT if high is None else high):
        limits = f"from {low} to {high}" if high is not None else f"of at least {low}"
        if high is None and is_whole and value > MAX_INT:
            limits += ", in 64 bits"
        raise InvalidInput(f"{what} must be a whole number {limits}; got {shown(value)}.")
    return int(value)


ABOVE_0 = math.ulp(0.0)
"""Lower limit of numbers that must be positive."""


def real_number(what: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return `value` as a float if low <= value <= high and it is finite; otherwise raise."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        if low == ABOVE_0:
            limits = "above 0" + (f", at most {high:g}" if math.isfinite(high) else "")
        else:
            limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise InvalidInput(f"{what} must be a number {limits}; got {shown(value)}.")
    return number


def shown(value: object) -> str:
    """The repr of any value for a message, shortened if it is long."""
    try:
        written = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return written if len(written) <= 200 else f"{written[:120]}... ({len(written)} characters)"


def some_of(names: Sequence[str], limit: int = 4, separator: str = ", ") -> str:
    """Join names for a message; counts those beyond `limit`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def identity_of(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, for the identity of a run.

    A new field whose default keeps the behaviour changes no id; a default must never change.
    """

    def value_of(each: Field[Any]) -> Any:
        value = getattr(config, each.name)
        return identity_of(value) if is_dataclass(value) else value

    return {
        each.name: value_of(each)
        for each in fields(config)
        if each.default is MISSING or getattr(config, each.name) != each.default
    }


def data_folder() -> Path:
    """Default folder of downloads and runs, whatever the working directory.

    ``data`` in the checkout of an editable install, else ``~/nofe_lab``.
    """
    root = Path(__file__).resolve().parents[1]
    is_checkout = (root / "pyproject.toml").is_file()
    return root / "data" if is_checkout else Path.home() / "nofe_lab"


def derive_seed(*parts: object) -> int:
    """Hash all parts to a 63-bit seed: ``derive_seed(seed, "order", epoch)``.

    The seed is the same on every platform and independent of other draws, so each use of
    randomness has its own stream and a run can be resumed anywhere.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
