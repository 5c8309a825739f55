"""Tables for readers: what a notebook or an exported page shows of a DataFrame.

Names of classes, files and runs are other people's text.  They are shown as they are written, never
read as HTML: a `Styler` of pandas would, unless it is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler


def shown(
    table: pd.DataFrame,
    formats: Mapping[Any, str] | str | None = None,
    *,
    index: bool = False,
    **options: Any,
) -> Styler:
    """A table for the end of a cell, all of its texts escaped.

    formats: format strings of columns, or of all.  index: whether the index is shown.  options: of
    ``Styler.format``: precision, thousands, na_rep.

    >>> shown(pd.DataFrame({"class": ["<b>cat</b>"], "accuracy": [0.5]}), {"accuracy": "{:.1%}"})
    """
    plain = table.rename_axis(index=None, columns=None)
    styled = plain.style.format(formats, escape="html", **options)  # type: ignore[arg-type]
    styled = styled.format_index(escape="html", axis="columns")
    return styled.format_index(escape="html", axis="index") if index else styled.hide()
