"""Fonts and text that fits: widths in inches, names that are cut or wrapped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import text_to_path

from nofe_lab.log import log

SMALL = 7.0
"""Font size of class names, in points; no text is smaller."""
LINE = 0.115
"""Height of a line of class names, in inches."""
# DejaVu Sans, which comes with matplotlib, has no East Asian or Indic scripts
_OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei")


def font_families() -> list[str]:
    """The installed fonts to look up a character in, in this order: the user's fonts first."""
    own: list[str] = []
    settings: Any = mpl.rcParams
    for name in settings["font.family"]:
        kind = f"font.{name}"  # of a generic family such as sans-serif, its first font
        own += settings[kind][:1] if kind in settings else [name]
    installed = {font.name for font in fontManager.ttflist}
    wanted = (*own, "DejaVu Sans", *_OTHER_FONTS)
    return [name for name in dict.fromkeys(wanted) if name in installed]


_REPORTED: set[str] = set()
"""Characters without a font that were reported already."""


@contextmanager
def missing_characters_reported() -> Iterator[None]:
    """Report each character that no font has once, in place of matplotlib's many warnings."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    missing = set()
    for warning in heard:
        if found := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if new := sorted(missing - _REPORTED):
        _REPORTED.update(new)
        log.warning(
            f"No installed font has {' '.join(new[:20])}{' ...' if len(new) > 20 else ''}: boxes "
            "are drawn instead. To use a font of yours, set matplotlib.rcParams['font.family'] to "
            "its name before you draw."
        )


def fitted(text: str, inches: float, size: float = SMALL, weight: str = "normal") -> str:
    """The text in one line, its middle replaced by "…" if it is wider than `inches`.

    Both ends stay, because the names of a series often differ at the end only.
    """
    return _cut(" ".join(text.split()), inches, size, weight, tuple(font_families()))


@cache
def _cut(text: str, inches: float, size: float, weight: str, families: tuple[str, ...]) -> str:
    if text_width(text, size, weight) <= inches:
        return text
    for kept in range(len(text) - 1, 0, -1):
        tail = (kept - 1) // 2
        cut = f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
        if text_width(cut, size, weight) <= inches:
            return cut
    return "…"


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of text in inches."""
    font = FontProperties(family=font_families(), size=size, weight=weight)
    with missing_characters_reported():
        width: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return width / 72


def wrapped(names: Sequence[str], inches: float, lines: int, size: float = SMALL) -> str:
    """The names in at most `lines` lines of `inches`, the rest as "and 3 more"."""
    full: list[str] = []
    line = ""
    for n, name in enumerate(names):
        part = fitted(name, inches / 2, size) + (", " if n < len(names) - 1 else "")
        left = f"and {len(names) - n} more"
        last = len(full) >= lines - 1
        room = inches - (text_width(left, size) if last and n < len(names) - 1 else 0)
        if line and text_width(line + part, size) > room:
            if last:
                return "\n".join([*full, line + left])
            full.append(line)
            line = ""
        line += part
    return "\n".join([*full, line])
