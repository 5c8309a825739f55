"""Tables for readers: how a notebook or an exported page shows a DataFrame.

Names of classes, files and runs are untrusted text: they are escaped, which pandas' `Styler` does
only on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler


class _Scrolled(Styler):
    """A table that scrolls where it is wider than its place."""

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x: auto">{self.to_html()}</div>'


def shown(
    table: pd.DataFrame,
    formats: Mapping[Any, str] | str | None = None,
    *,
    index: bool = False,
    **options: Any,
) -> Styler:
    """A table for the end of a cell, with all of its text escaped; it scrolls if it is too wide.

    formats: column -> format string, or one for all columns.  index: whether to show the index.
    options: those of ``Styler.format``, for example precision, thousands and na_rep.

    >>> shown(pd.DataFrame({"class": ["<b>cat</b>"], "accuracy": [0.5]}), {"accuracy": "{:.1%}"})
    """
    plain = table.rename_axis(index=None, columns=None)
    styled = _Scrolled(plain).format(formats, escape="html", **options)  # type: ignore[arg-type]
    styled = styled.format_index(escape="html", axis="columns")
    return styled.format_index(escape="html", axis="index") if index else styled.hide()
