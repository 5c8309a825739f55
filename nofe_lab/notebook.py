"""The parameters of a notebook: what its first cell, papermill or a reader has set."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from nofe_lab.config import InvalidInput
from nofe_lab.knobs import understood
from nofe_lab.stages import Experiment


def experiment(namespace: dict[str, Any], *own: str) -> Experiment:
    """The experiment of a notebook's parameters.  Pass ``globals()`` right after their cell.

    own: names of knobs of this notebook beyond those of `Experiment`.
    All knobs may be set, also those that the notebook's cell does not show.  Values that papermill
    or YAML hand over as text are understood by the knob's type, and put back into the namespace.
    Raises InvalidInput, before any work, for a misspelt name (of which papermill only warns), for
    values that are not accepted, and for files and folders that cannot be written.
    """
    for stale in ("experiment", "data"):  # cells behind a refusal must not go on with these
        namespace.pop(stale, None)
    known = [each for each in Experiment.__dataclass_fields__ if not each.startswith("_")]
    given = understood(
        {
            name: namespace[name]
            for name in _assigned(namespace["In"])
            if not name.startswith("PAPERMILL_") and name in namespace
        },
        {*known, *own},
    )
    namespace.update(given)
    made = Experiment(**{name: value for name, value in given.items() if name in known})
    made.runner.store.check_writable()
    return made


def _assigned(history: Sequence[str]) -> list[str]:
    """Names assigned by a notebook's parameters cells: its own first, then papermill's.

    history: IPython's list of executed cells.  The cells begin with the comment "# Parameters"; of
    several in a row the last ones count, since those before may be mistakes that were mended.
    """
    names: dict[str, None] = {}
    for source in reversed(history):
        if source.lstrip().lower().startswith("# parameters"):
            found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
            stored = [name.id for name in found if isinstance(name.ctx, ast.Store)]
            names = {**dict.fromkeys(stored), **names}
        elif names:
            break
    if not names:
        raise InvalidInput('no cell of this notebook begins with the comment "# Parameters".')
    return list(names)
