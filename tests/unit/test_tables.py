"""Tables show names as they are written, never as HTML."""

from __future__ import annotations

import re

import pandas as pd

from nofe_lab.views import tables

EVIL = "<img src=x onerror=alert(1)>"
SHOWN = "&lt;img src=x onerror=alert(1)&gt;"


def test_names_in_cells_columns_and_index_are_escaped() -> None:
    table = pd.DataFrame({"class": [EVIL], EVIL: ["a & b"], "n": [0.5]}, index=[EVIL])
    page = tables.shown(table, {"n": "{:.1%}"}, index=True).to_html()
    assert EVIL not in page
    assert page.count(SHOWN) == 3
    assert "a &amp; b" in page
    assert "50.0%" in page


def test_the_index_is_hidden_unless_it_is_asked_for() -> None:
    page = tables.shown(pd.DataFrame({"n": [1234]}, index=["row"]), thousands=",").to_html()
    assert "row" not in page.replace("row0", "").replace("row_heading", "")
    assert "1,234" in page


def test_a_table_scrolls_in_its_place() -> None:
    page = tables.shown(pd.DataFrame({"n": [1]}), thousands=",")._repr_html_()
    assert re.fullmatch(r'<div style="overflow-x: auto">.*</table>\s*</div>', page, re.DOTALL)


def test_formats_of_all_columns_leave_texts_escaped() -> None:
    page = tables.shown(pd.DataFrame({"a": [0.25]}, index=[EVIL]), "{:.0%}", index=True).to_html()
    assert "25%" in page
    assert EVIL not in page
