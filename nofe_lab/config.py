"""What can be asked for, and how anything else is refused: in one sentence, before any work."""

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


MAX_IMAGE_SIZE = 1024
"""Side in pixels of the largest images."""

MAX_UPDATES = 100_000
"""The most updates of the map in one training."""


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


def identity_of(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that tell its runs apart: those that are not at their default.

    So a later field, with today's behaviour as its default, changes no id.  A default must never
    change.
    """

    def told(each: Field[Any]) -> Any:
        value = getattr(config, each.name)
        return identity_of(value) if is_dataclass(value) else value

    return {
        each.name: told(each)
        for each in fields(config)
        if each.default is MISSING or getattr(config, each.name) != each.default
    }


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
