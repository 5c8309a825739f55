"""A JupyterLab in a headless Chromium, for all tests of this folder (skipped where there is none).

Screenshots of what the tests saw are left in tests/browser/screenshots.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import pytest

from tests.notebooks.test_notebooks import FEWER, TRAIN_MANY

ROOT = Path(__file__).parents[2]
SHOTS = Path(__file__).parent / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "browser-test"
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))

PLACES = [(600, 1), (1400, 1.5)]
"""Widths of a window, in pixels, and zooms at which widgets must fit."""
PLACES += [pytest.param(width, 1, marks=pytest.mark.slow) for width in (900, 1400, 2000)]

Box = dict[str, float]


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than a rounded edge."""
    return all(
        min(a[at] + a[size], b[at] + b[size]) - max(a[at], b[at]) > 0.6
        for at, size in (("x", "width"), ("y", "height"))
    )


def overlaps(boxes: Iterable[Box]) -> list[tuple[Box, Box]]:
    """The pairs of these boxes that overlap."""
    return [(a, b) for a, b in combinations(boxes, 2) if overlap(a, b)]


def within(box: Box, outer: Box) -> bool:
    """Whether all of a box is inside another one, but for a rounded edge."""
    return all(
        outer[at] - 1 <= box[at] and box[at] + box[size] <= outer[at] + outer[size] + 1
        for at, size in (("x", "width"), ("y", "height"))
    )


def in_window(page: Any, box: Box) -> bool:
    """Whether all of a box is inside the page's window."""
    return within(box, {"x": 0, "y": 0, **page.viewport_size})


EXECUTE = """
async ([path, code]) => {
  const { sessions } = window.jupyterapp.serviceManager;
  await sessions.refreshRunning();
  const model = [...sessions.running()].find((each) => each.path === path);
  const { kernel } = sessions.connectTo({ model });
  const future = kernel.requestExecute({ code, store_history: false });
  let said = "";
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === "stream") said += content.text;
    if (header.msg_type === "error") said += content.evalue;
  };
  await future.done;
  return said;
}
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a JupyterLab, and the folder of its notebooks: copies at toy size."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        runs = folder / "runs"
        toy = {"dataset": "glyphs:8", "K": 4, "epochs": 1, "batch_size": 60, "runs_dir": str(runs)}
        toy |= FEWER if name[:2] in TRAIN_MANY else {}
        own = {"n_seeds": 1, "updates": "1, 2"}
        toy |= {k: v for k, v in own.items() if f"{k}:" in cell.source}
        cell.source += "\n" + "\n".join(f"{k} = {v!r}" for k, v in toy.items())
        nbformat.write(notebook, folder / name)
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with serving(command, folder, f"api?token={TOKEN}") as address:
        yield address, folder


@contextmanager
def serving(command: list[str], folder: Path, ready: str) -> Iterator[str]:
    """The address of a server of a folder's notebooks, as soon as the path `ready` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    # not the settings of whoever runs the tests
    environment |= {
        f"JUPYTERLAB_{what}_DIR": str(folder / what) for what in ("SETTINGS", "WORKSPACES")
    }
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--port={port}", str(folder)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/{ready}").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "lab.log").read_text())
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


class Page:
    """A notebook that is open in JupyterLab."""

    def __init__(self, browser: Any, address: str, path: Path, kernel: bool = True) -> None:
        self.path = path
        self.page = browser.new_page(viewport={"width": 1400, "height": 1200})
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(f"{address}/lab/tree/{path.name}?token={TOKEN}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        if not kernel:
            return
        # JupyterLab asks for a kernel, with a dialog, if cells are run before it has one
        for _ in range(60):
            with urllib.request.urlopen(f"{address}/api/sessions?token={TOKEN}") as answer:
                sessions = json.load(answer)
            states = [s["kernel"]["execution_state"] for s in sessions if s["path"] == path.name]
            self.page.wait_for_timeout(1000)
            if states == ["idle"]:
                return
        pytest.fail(f"no kernel for {path.name}")

    def _listen(self, message: Any) -> None:
        ours = ("anywidget", "nofe", "blob:", "model")
        if message.type == "error" and any(word in message.text.lower() for word in ours):
            self.complaints.append(message.text)

    def run_all(self) -> None:
        self.page.click("text=Run >> visible=true")
        self.page.click("text=Run All Cells >> visible=true")

    def wait_until_executed(self) -> None:
        """Save again and again until the last code cell has a number, for at most ten minutes."""
        for _ in range(300):
            self.page.keyboard.press("Control+s")
            self.page.wait_for_timeout(2000)
            code = [c for c in self.cells() if c.cell_type == "code"]
            if all(cell.execution_count for cell in code):
                return
            failed = [o for c in code for o in c.outputs if o.output_type == "error"]
            assert not failed, failed[0].evalue
        pytest.fail(f"{self.path.name} did not finish")

    def wait_for_output(self, wanted: Callable[[Any], bool]) -> Any:
        """Save until the notebook holds such an output, for at most a minute."""
        for _ in range(60):
            self.page.keyboard.press("Control+s")
            self.page.wait_for_timeout(1000)
            for output in (output for cell in self.cells() for output in cell.get("outputs", [])):
                if wanted(output):
                    return output
        pytest.fail(f"{self.path.name} has no such output")

    def cells(self) -> list[Any]:
        cells: list[Any] = nbformat.read(self.path, as_version=4).cells
        return cells

    def kernel(self, expression: str) -> Any:
        """The value of an expression in the notebook's kernel, by way of JSON."""
        code = f"import json; print(json.dumps({expression}, default=int))"
        said = self.page.evaluate(EXECUTE, [self.path.name, code])
        try:
            return json.loads(said)
        except ValueError:
            pytest.fail(f"{expression}: {said}")

    def wait_for(self, expression: str, value: Any) -> None:
        """Wait until an expression has a value in the kernel, for at most ten seconds."""
        for _ in range(50):
            if (found := self.kernel(expression)) == value:
                return
            self.page.wait_for_timeout(200)
        pytest.fail(f"{expression} is {found!r} in the kernel, not {value!r}")

    def widget(self, kind: str) -> Any:
        """The widget of a kind, scrolled into view."""
        found = self.page.locator(f".nofe-{kind}").first
        for _ in range(40):  # JupyterLab attaches the outputs that are near the view
            if found.count():
                break
            self.page.locator(".jp-Notebook").hover()
            self.page.mouse.wheel(0, 800)
            self.page.wait_for_timeout(250)
        found.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        return found

    def resize(self, width: int, height: int = 900, zoom: float = 1) -> None:
        """A window of so many pixels in which the browser magnifies."""
        self.page.set_viewport_size({"width": round(width / zoom), "height": round(height / zoom)})
        self.page.wait_for_timeout(700)

    def theme(self, name: str) -> None:
        """JupyterLab's light or dark theme."""
        change = (
            "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
        )
        self.page.evaluate(change, f"JupyterLab {name.capitalize()}")
        self.page.wait_for_timeout(700)

    def without_sidebar(self) -> None:
        self.page.evaluate(
            "() => { if (window.jupyterapp.shell.leftCollapsed === false) "
            "window.jupyterapp.commands.execute('application:toggle-left-area'); }"
        )
        self.page.wait_for_timeout(500)

    def shoot(self, widget: Any, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        widget.scroll_into_view_if_needed()
        widget.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking", "--disable-sync"],
        )
        yield launched
        launched.close()


@pytest.fixture
def open_notebook(browser: Any, lab: tuple[str, Path]) -> Iterator[Callable[..., Page]]:
    """Opens notebooks by name; none may have complained in the browser's console at the end."""
    address, folder = lab
    pages: list[Page] = []

    def open_one(name: str, kernel: bool = True) -> Page:
        pages.append(Page(browser, address, folder / name, kernel))
        return pages[-1]

    yield open_one
    for each in pages:
        each.page.close()
    assert not [complaint for page in pages for complaint in page.complaints]


def write_notebook(folder: Path, name: str, *sources: str) -> None:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    nbformat.write(notebook, folder / name)


SHOWN = """<!DOCTYPE html><html><head><meta charset="utf-8"><style>{css}</style>
<style>body {{ margin: 0; background: var(--jp-layout-color1); }}</style></head>
<body data-jp-theme-light="true"><div id="cell"></div><div id="second"></div></body></html>"""

HOST = (Path(__file__).parent / "host.js").read_text(encoding="utf-8")


class Host:
    """A widget of this process in a page of its own: what JupyterLab and a kernel would do for it.

    theme: the colours that JupyterLab hands to widgets, "light" or "dark".
    """

    THEMES: ClassVar = {
        "light": ("#212121", "#616161", "#ffffff", "#e0e0e0"),
        "dark": ("#ffffff", "#e0e0e0", "#111111", "#616161"),
    }

    def __init__(self, browser: Any, widget: Any, size: tuple[int, int], zoom: float) -> None:
        self.widget = widget
        self.changed: dict[str, Any] = {}
        self.messages: list[Any] = []
        self.complaints: list[str] = []
        widget.observe(lambda change: self.changed.update({change["name"]: change["new"]}))
        widget.send = lambda message, buffers=None: self.messages.append(message)
        width, height = (round(length / zoom) for length in size)
        self.page = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=zoom
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.expose_function("toKernel", self._take)
        self.page.set_content(SHOWN.format(css=widget._css))
        self.page.evaluate(HOST, [str(widget._esm), _json(self._synced(widget.get_state()))])

    def theme(self, name: str) -> None:
        ink, quiet, paper, edge = self.THEMES[name]
        variables = {
            "ui-font-color1": ink,
            "ui-font-color2": quiet,
            "layout-color1": paper,
            "border-color2": edge,
        }
        for variable, colour in variables.items():
            self.page.evaluate(
                "([name, to]) => document.documentElement.style.setProperty(`--jp-${name}`, to)",
                [variable, colour],
            )
        self.page.evaluate(f"document.body.dataset.jpThemeLight = {json.dumps(name == 'light')}")

    def _synced(self, state: dict[str, Any]) -> dict[str, Any]:
        inner = ("_esm", "_css", "_anywidget_id", "layout", "tabbable", "tooltip", "comm")
        return {
            name: value
            for name, value in state.items()
            if name in self.widget.keys and name not in inner
        }

    def _take(self, told: dict[str, Any]) -> dict[str, Any]:
        if "content" in told:
            self.widget._hear(self.widget, told["content"], [])
        else:
            self.widget.set_state(told["state"])
            for name, value in told["state"].items():  # ipywidgets drops the echo of a value
                if name in self.changed and self.changed[name] == value:
                    del self.changed[name]
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer = {"state": _json(self._synced(self.changed)), "messages": self.messages}
        self.changed, self.messages = {}, []
        return answer

    def set(self, **traits: Any) -> None:
        """What a program does in the kernel."""
        for name, value in traits.items():
            setattr(self.widget, name, value)
        self.page.evaluate("(told) => window.take(told)", self._answer())

    def wait_for(self, trait: str, value: Any) -> None:
        """Wait until a trait has a value, for at most five seconds."""
        for _ in range(50):
            if getattr(self.widget, trait) == value:
                self.page.wait_for_timeout(50)  # until it is drawn
                return
            self.page.wait_for_timeout(100)
        pytest.fail(f"{trait} is {getattr(self.widget, trait)!r}, not {value!r}")

    def box(self, selector: str) -> Box:
        found: Box = self.page.locator(selector).first.bounding_box()
        return found

    def inside(self, selector: str) -> bool:
        """Whether all of the first such element is inside the window."""
        return in_window(self.page, self.box(selector))

    def is_narrow(self) -> bool:
        """Whether nothing of the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


def _json(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {name: _json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    return value


@pytest.fixture
def host(browser: Any) -> Iterator[Callable[..., Host]]:
    """Shows widgets in pages of their own; none may have complained at the end."""
    hosts: list[Host] = []

    def show(widget: Any, width: int = 1400, height: int = 900, zoom: float = 1) -> Host:
        hosts.append(Host(browser, widget, (width, height), zoom))
        return hosts[-1]

    yield show
    for each in hosts:
        each.page.close()
    assert not [complaint for each in hosts for complaint in each.complaints]


@pytest.fixture(params=["light", "dark"])
def theme(request: Any) -> str:
    """Each of JupyterLab's themes."""
    return str(request.param)


@pytest.fixture
def placed(theme: str, host: Callable[..., Host]) -> Callable[..., Host]:
    """Shows a widget in a place of `PLACES`, in both themes, and leaves a screenshot."""

    def show(widget: Any, name: str, width: int, zoom: float) -> Host:
        shown = host(widget, width, 900, zoom)
        shown.theme(theme)
        shown.page.wait_for_timeout(200)
        shown.shoot(f"{name}_{width}_{zoom}_{theme}")
        assert shown.is_narrow()
        return shown

    return show
