"""Every notebook runs through papermill at toy size, and refuses what it should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from nofe_lab.runs import RunStore, default_runs_dir

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
TOY = {"dataset": "glyphs:4", "epochs": 1, "batch_size": 60, "device": "cpu"}
FEWER = {"dataset": "glyphs:4:OÖQ0CGΘØI1!ií¡|SŠ58B369П", "batch_size": 24, "K": 4}
"""For notebooks that train many networks."""
TRAIN_MANY = ("04", "06", "08", "11")

# notebooks build on each other's runs, and share a kernel
together = pytest.mark.xdist_group("notebooks")


def run_papermill(
    notebook: Path | str, out: Path, cwd: Path, **parameters: object
) -> subprocess.CompletedProcess[str]:
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(out)]
    return subprocess.run(
        [*command, *given], cwd=cwd, env=ONE_THREAD, capture_output=True, text=True, check=False
    )


# toy networks do not gain from threads, and lose much where other work keeps the cores busy
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., str | None]]:
    """Runs a notebook as papermill does, in a kernel for all; returns what papermill raised.

    The first notebook is run by the papermill command, with a kernel of its own.
    """
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("one_kernel.py"))],
        env=ONE_THREAD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(notebook: Path, out: Path, cwd: Path, **parameters: object) -> str | None:
        request = {"input_path": notebook, "output_path": out, "cwd": cwd, "parameters": parameters}
        print(json.dumps(request, default=str), file=process.stdin, flush=True)
        line = process.stdout.readline()
        assert line, "the process with the kernel has ended"
        error: str | None = json.loads(line)
        return error

    with process:
        yield ask
    assert process.returncode == 0


@pytest.fixture(scope="module")
def toy_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@together
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_toy_size(
    notebook: Path, run: Callable[..., str | None], toy_runs: Path, tmp_path: Path
) -> None:
    number = notebook.stem[:2]
    also: dict[str, object] = {"n_seeds": 1} if number in ("04", "06", "08", "10", "11") else {}
    also |= {"updates": "1, 2"} if number == "08" else {}  # of 3 steps
    also |= {"Ks": "3"} if number == "11" else {}
    toy = TOY | FEWER if number in TRAIN_MANY else TOY
    out = tmp_path / "out.ipynb"
    if notebook == NOTEBOOKS[0]:  # as people do it
        done = run_papermill(notebook, out, tmp_path, **toy, runs_dir=toy_runs, **also)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        error = run(notebook, out, tmp_path, **toy, runs_dir=toy_runs, **also)
        assert error is None, error
    found = outputs(out)
    assert any("image/png" in output.get("data", {}) for output in found)
    warned = [o.text for o in found if o.get("name") == "stderr" and "Warning" in o.text]
    assert not warned
    # where no kernel runs, the picture behind a widget is seen: in a page that is exported too
    data = [output.get("data", {}) for output in found]
    behind = [then["image/png"] for this, then in pairwise(data) if WIDGET in this]
    behind_of = {"00": 2, "02": 3, "03": 2, "05": 1, "07": 1, "10": 1}
    assert len(behind) == behind_of.get(number, 0)
    page, _ = HTMLExporter().from_filename(str(out))
    assert all(f"data:image/png;base64,{picture.strip()}" in page for picture in behind)


@together
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_misspelt_parameter_stops_at_once(
    notebook: Path, run: Callable[..., str | None], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    out = tmp_path / "out.ipynb"
    if notebook == NOTEBOOKS[0]:  # as people do it
        done = run_papermill(notebook, out, tmp_path, epoch=1, runs_dir=runs)
        assert done.returncode != 0
        error: str | None = done.stderr
    else:
        error = run(notebook, out, tmp_path, epoch=1, runs_dir=runs)
    assert error is not None
    assert "parameter 'epoch' is unknown (did you mean 'epochs'?)" in error
    assert "batch_size" in error
    assert not list(runs.glob("*"))


@together
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"K": 101}, "K must be at most the 100 classes of glyphs:4; got 101."),
        ({"rule": "optimum"}, "did you mean 'optimal'?"),
    ],
)
def test_bad_input_stops_03_with_one_sentence(
    parameters: dict[str, object],
    sentence: str,
    run: Callable[..., str | None],
    tmp_path: Path,
) -> None:
    given = {**TOY, **parameters, "runs_dir": tmp_path / "runs"}
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith("03"))
    assert run(notebook, tmp_path / "out.ipynb", tmp_path, **given) is not None
    last = [o for o in outputs(tmp_path / "out.ipynb") if o.output_type == "error"][-1]
    assert last.ename == "InvalidInput"
    assert sentence in last.evalue
    assert last.traceback == [f"InvalidInput: {last.evalue}"]  # no traceback to read through


@together
@pytest.mark.parametrize("given", [{"Ks": "five"}, {"updates": "0"}, {"rules": "optimum"}])
def test_bad_choices_stop_08_with_one_sentence(
    given: dict[str, str], run: Callable[..., str | None], tmp_path: Path
) -> None:
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith("08"))
    runs = tmp_path / "runs"
    out = tmp_path / "out.ipynb"
    assert run(notebook, out, tmp_path, **TOY, runs_dir=runs, **given) is not None
    (last,) = [o for o in outputs(out) if o.output_type == "error"]
    assert last.ename == "InvalidInput"
    assert next(iter(given.values())) in last.evalue
    assert not list(runs.glob("*-*"))


def test_sources_carry_no_outputs() -> None:
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name


@pytest.fixture(scope="module")
def render(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("notebooks/render.py")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rendered_copies_are_made_from_the_current_code(path: Path, render: ModuleType) -> None:
    copy = nbformat.read(path.parent / "rendered" / path.name, as_version=4)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    injected = [c for c in code if "injected-parameters" in c.metadata.get("tags", [])]
    source = nbformat.read(path, as_version=4)
    now = [cell.source for cell in source.cells if cell.cell_type == "code"]
    assert [c.source for c in code if c not in injected] == now, (
        f"run `make render ONLY={path.stem[:2]}`"
    )
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    found = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in found)
    assert str(ROOT.parent) not in json.dumps(found)
    if small := render.SMALL.get(path.stem[:2]):
        assert copy.cells[1].source == render.said(small)
        lines = [f"{name} = {json.dumps(value)}" for name, value in small.items()]
        assert [c.source.splitlines()[1:] for c in injected] == [lines]
    else:
        assert not injected


EVIL = ("<script>alert(1)<", "<img src=x onerror=alert(2)>", "a & b", "'\"", "$x$", "<!--")


@pytest.fixture(scope="module")
def evil_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    pictures = tmp_path_factory.mktemp("evil") / "<b>pictures"
    for name in EVIL:
        folder = pictures / name
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"<i>{i}.png")
    return pictures


@together
@pytest.mark.slow
@pytest.mark.parametrize("number", ["00", "01", "02", "03", "04", "07", "10"])
def test_names_that_are_html_are_shown_and_not_run(
    number: str,
    run: Callable[..., str | None],
    evil_pictures: Path,
    toy_runs: Path,
    tmp_path: Path,
) -> None:
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    given = {**TOY, "K": 2, "batch_size": 20, "runs_dir": toy_runs}
    given |= {"dataset": f"folder:{evil_pictures}"}
    given |= {"n_seeds": 1} if number in ("04", "10") else {}
    given |= {"val_fraction": 0.2} if number == "10" else {}
    error = run(notebook, tmp_path / "out.ipynb", tmp_path, **given)
    assert error is None, error
    page, _ = HTMLExporter().from_filename(str(tmp_path / "out.ipynb"))
    # the state of widgets is JSON in an element of its own, which browsers do not look into
    page = re.sub(r'<script type="application/vnd\.jupyter.*?</script>', "", page, flags=re.DOTALL)
    shown = [
        *(o["data"].get("text/html", "") for o in outputs(tmp_path / "out.ipynb") if "data" in o)
    ]
    for text in ("".join("".join(part) for part in shown), page):
        for tag in ("<script>alert", "<img src=x", "<b>pictures", "<i>0"):
            assert tag not in text
    if number in ("02", "03"):  # the others show no names in tables
        assert "&lt;img src=x onerror" in page


@pytest.mark.slow
@pytest.mark.xdist_group("data/runs")  # the only test that trains there, and clears up behind it
@pytest.mark.parametrize("where", ["notebooks", "root", "elsewhere"])
def test_03_works_from_anywhere_and_keeps_runs_in_one_place(
    where: str, run: Callable[..., str | None], tmp_path: Path
) -> None:
    cwd = {"notebooks": ROOT / "notebooks", "root": ROOT, "elsewhere": tmp_path}[where]
    path = ROOT / "notebooks" / "03_finetune_nofe.ipynb"
    out = tmp_path / "out.ipynb"
    store = RunStore(default_runs_dir())
    before = {run.id for run in store}
    try:
        error = run(path, out, cwd, dataset="glyphs:4", K=3, epochs=1, batch_size=60)
        assert error is None, error
        text = "".join(output.get("text", "") for output in outputs(out))
        line = next(line for line in text.splitlines() if "weights and tables:" in line)
        assert (cwd / line.split()[-1]).resolve().parent == ROOT / "data" / "runs"
    finally:
        for run in list(store):
            if run.id not in before and run.about["dataset"] == "glyphs:4":
                store.remove(run.id)
