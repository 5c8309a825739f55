"""Tables for readers: how a notebook or an exported page shows a DataFrame.

Names of classes, files and runs are untrusted text: they are escaped, which pandas' `Styler` does
only on request.
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
    """A table for the end of a cell, with all of its text escaped.

    formats: column -> format string, or one for all columns.  index: whether to show the index.
    options: those of ``Styler.format``, for example precision, thousands and na_rep.

    >>> shown(pd.DataFrame({"class": ["<b>cat</b>"], "accuracy": [0.5]}), {"accuracy": "{:.1%}"})
    """
    plain = table.rename_axis(index=None, columns=None)
    styled = plain.style.format(formats, escape="html", **options)  # type: ignore[arg-type]
    styled = styled.format_index(escape="html", axis="columns")
    return styled.format_index(escape="html", axis="index") if index else styled.hide()
