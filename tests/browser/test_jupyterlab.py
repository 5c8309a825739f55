"""The notebooks in a real JupyterLab, in a headless Chromium (skipped where there is none)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "browser-test"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a JupyterLab, and the folder of its notebooks: copies at toy size."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("playwright")
    folder = tmp_path_factory.mktemp("lab")
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(source, as_version=4)
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        runs = folder / "runs"
        toy = {"dataset": "glyphs:8", "K": 4, "epochs": 1, "batch_size": 60, "n_seeds": 1}
        lines = [f"{k} = {v!r}" for k, v in toy.items() if f"{k}:" in cell.source]
        cell.source += "\n" + "\n".join([*lines, f"runs_dir = {str(runs)!r}"])
        nbformat.write(notebook, folder / source.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [*command, str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "lab.log").read_text())
        yield address, folder
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_in_jupyterlab(lab: tuple[str, Path], name: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking", "--disable-sync"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        wait_for_the_kernel(address, name, page)
        run_all(page)
        wait_until_executed(page, folder / name)
        errors = page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        )
        assert errors.count() == 0
        if name.startswith("02"):
            check_the_browser_widget(page)
        browser.close()


def test_a_training_that_is_interrupted_in_jupyterlab_is_kept_and_goes_on(
    lab: tuple[str, Path],
) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = lab
    notebook = nbformat.read(folder / "01_train_generalist.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source += "\nepochs, seed = 60, 5"
    name = "interrupted.ipynb"
    nbformat.write(notebook, folder / name)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        wait_for_the_kernel(address, name, page)
        run_all(page)
        for _ in range(600):
            if list((folder / "runs").glob("generalist-*-s5-*.unfinished/step-*")):
                break
            page.wait_for_timeout(100)
        page.click("text=Kernel >> visible=true")
        page.click("text=Interrupt Kernel >> visible=true")
        error = wait_for_output(page, folder / name, lambda output: output.get("evalue"))
        assert error.ename == "Interrupted"
        assert re.fullmatch(
            r"stopped after step \d+ of \d+; all of it is kept\. Run this cell, or the same "
            r"command, again to go on\.",
            error.evalue,
        )
        assert error.traceback == [f"Interrupted: {error.evalue}"]
        run_all(page)
        wait_for_output(page, folder / name, lambda found: "goes on from" in found.get("text", ""))
        wait_until_executed(page, folder / name)
        assert not list((folder / "runs").glob("*.unfinished"))
        browser.close()


def wait_for_output(page, path: Path, wanted):  # type: ignore[no-untyped-def]
    """Save until the notebook holds such an output, for at most a minute."""
    for _ in range(60):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = nbformat.read(path, as_version=4).cells
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            if wanted(output):
                return output
    pytest.fail(f"{path.name} has no such output")


def run_all(page) -> None:  # type: ignore[no-untyped-def]
    page.click("text=Run >> visible=true")
    page.click("text=Run All Cells >> visible=true")


def wait_for_the_kernel(address: str, name: str, page) -> None:  # type: ignore[no-untyped-def]
    """JupyterLab asks for a kernel, with a dialog, if cells are run before it has one."""
    for _ in range(60):
        with urllib.request.urlopen(f"{address}/api/sessions?token={TOKEN}") as answer:
            sessions = json.load(answer)
        states = [s["kernel"]["execution_state"] for s in sessions if s["path"] == name]
        page.wait_for_timeout(1000)
        if states == ["idle"]:
            return
    pytest.fail(f"no kernel for {name}")


def wait_until_executed(page, path: Path) -> None:  # type: ignore[no-untyped-def]
    """Save again and again until the last code cell has a number, for at most five minutes."""
    for _ in range(150):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        if all(cell.execution_count for cell in code):
            return
        failed = [o for c in code for o in c.outputs if o.output_type == "error"]
        assert not failed, failed[0].evalue
    pytest.fail(f"{path.name} did not finish")


def check_the_browser_widget(page) -> None:  # type: ignore[no-untyped-def]
    widget = page.locator(".jp-OutputArea-output .widget-vbox").last
    widget.scroll_into_view_if_needed()
    picture = widget.locator("img")
    before = picture.get_attribute("src")
    widget.locator("select").first.select_option(index=2)
    page.wait_for_function(
        "([image, old]) => image.src !== old", arg=[picture.element_handle(), before]
    )
