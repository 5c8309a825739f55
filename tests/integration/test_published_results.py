"""The README's figures are those of data/results, and those say where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "data" / "results").glob("*.csv"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    assert path.read_text().startswith("# papermill notebooks/")
    table = pd.read_csv(path, comment="#")
    assert table[["network", "seed", "run", "device", "torch", "revision"]].notna().all().all()
    assert not table.revision.str.endswith("dirty").any()
    assert table.test_accuracy.between(0.01, 1).all()


def test_every_accuracy_in_the_readme_was_measured() -> None:
    tables = [pd.read_csv(path, comment="#") for path in RESULTS]
    single = pd.concat(tables).test_accuracy
    means = pd.concat([table.groupby("network").test_accuracy.mean() for table in tables])
    measured = {f"{100 * value:.2f}" for value in [*single, *means]}
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"\*\*(\d\d\.\d\d) %\*\*", text)
    assert shown
    assert set(shown) <= measured
