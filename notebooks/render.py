"""Execute the notebooks into ``rendered/``, for people who only read: ``make render [ONLY=03]``.

A rendered copy carries no metadata of its execution, and of a widget only the picture that comes
with it: the places where people read have no kernel.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
import papermill
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image

from nofe_lab.views.palette import Palette

HERE = Path(__file__).resolve().parent
DIGITS: dict[str, str | int] = {"dataset": "digits", "K": 4, "n_seeds": 2}
SMALL: dict[str, dict[str, str | int]] = {
    "04": {**DIGITS, "epochs": 4},
    "06": {"n_seeds": 2},
    "08": {**DIGITS, "epochs": 6, "Ks": "2,5"},
}
"""Parameters of the notebooks that would take hours; the copy says so."""
WIDGET = "application/vnd.jupyter.widget-view+json"
LINES = 8
"""Of a long text, at its beginning and at its end."""
FLAT = 96
"""Colours of a picture that are kept exactly, of 256."""


def render(source: Path) -> Path:
    """Execute one notebook, and tidy the copy."""
    target = HERE / "rendered" / source.name
    target.parent.mkdir(exist_ok=True)
    small = SMALL.get(source.name[:2], {})
    papermill.execute_notebook(source, target, small, cwd=HERE, progress_bar=False, log_output=True)
    notebook = nbformat.read(target, as_version=4)
    if small:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(said(small)))
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True)(notebook, {})
    for holder in (notebook, *notebook.cells):
        for trace in ("papermill", "widgets", "execution"):
            holder.metadata.pop(trace, None)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
            if output.output_type == "stream":
                output.text = shorter(output.text)
    nbformat.write(notebook, target)
    return target


def shorter(text: str) -> str:
    """What a training said: of many lines, the first and the last."""
    lines = text.splitlines(keepends=True)
    if len(lines) <= 3 * LINES:
        return text
    return "".join([*lines[:LINES], f"... {len(lines) - 2 * LINES} lines more\n", *lines[-LINES:]])


def said(small: dict[str, str | int]) -> str:
    """What a reader is told of the parameters of a copy."""
    asked = " ".join(f"-p {name} {value}" for name, value in small.items())
    return (
        f"*This copy was made with smaller parameters than the notebook's own, `{asked}`: it shows "
        "what you will see, and no result to rely on.*"
    )


def smaller(png: str) -> str:
    """The same picture in 256 colours: a third of the size, for the repository's sake."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture = Palette.of(picture, 256, FLAT).apply(picture)
    packed = io.BytesIO()
    picture.save(packed, format="png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


if __name__ == "__main__":
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for notebook_path in sorted(HERE.glob(f"{only}*.ipynb")):
        print(f"rendered {render(notebook_path).relative_to(HERE.parent)}", flush=True)
