"""The notebooks in a real JupyterLab, in a headless Chromium (skipped where there is none)."""

from __future__ import annotations

import io
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

import nofe_lab
from tests.browser.conftest import (
    CHROMIUM,
    NOTEBOOKS,
    ROOT,
    SHOTS,
    TOKEN,
    Page,
    in_window,
    serving,
    within,
    write_notebook,
)
from tests.browser.test_board import press_the_button, use_the_board

pytestmark = pytest.mark.xdist_group("browser")  # one JupyterLab, and its runs, for all of them


def use_the_page(page: Any) -> None:
    """Move the slider of a look: the matrix, the groups and the sentence follow."""
    painted = "canvas => canvas.toDataURL()"
    canvas, slider = page.locator("canvas"), page.locator("input[type=range]")
    sentence = page.locator(".nofe-ceiling")
    before = canvas.evaluate(painted), sentence.inner_text()
    slider.focus()
    slider.press("Home")
    assert page.locator(".nofe-update").inner_text() == "K = 2"
    assert page.locator(".nofe-groups > li").count() == 2
    assert "Were every error inside these groups mended" in sentence.inner_text()
    assert "K=2).nofe(page.specialties(2))" in page.locator("pre").inner_text()
    after = canvas.evaluate(painted), sentence.inner_text()
    assert all(this != that for this, that in zip(before, after, strict=True))
    page.locator("select").select_option("leaves")
    assert canvas.evaluate(painted) != after[0]
    canvas.hover(position={"x": 5, "y": 5})
    assert "images" in page.locator(".nofe-tip").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [900, 1400])
def test_a_saved_look_works_without_a_kernel_and_a_network(
    browser: Any, scheme: str, width: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=400)
    probabilities = rng.dirichlet(np.ones(12), 400)
    probabilities[np.arange(400), labels // 3 * 3] += 1
    probabilities /= probabilities.sum(1, keepdims=True)
    images = rng.integers(256, size=(400, 3, 16, 16), dtype=np.uint8)
    names = [f"class <b>{c}</b> with a long name" for c in range(12)]
    found = nofe_lab.look((labels, probabilities), images, class_names=names)
    path = found.save(tmp_path / "look.html")
    complaints: list[str] = []
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url[:80]))
    page.goto(path.as_uri())
    use_the_page(page.locator("main"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".nofe-pair-card .nofe-image").count()
    assert page.locator("main b").count() == 0
    with page.expect_download() as downloaded:
        page.click("a[download]")
    groups = nofe_lab.Specialties.load(str(downloaded.value.path()), names)
    assert groups.of == found.specialties(2).of
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"look_{scheme}_{width}.png", full_page=True)
    page.close()
    own = ("file:", "blob:", "data:")
    assert not [each for each in complaints if not each.startswith(own)]


WIDE = """
import pandas as pd
from nofe_lab.views import tables
tables.shown(pd.DataFrame({f"a column with a long name, {n}": [1234567.0] for n in range(20)}))
"""

FIGURE = """
import torch
import nofe_lab
from nofe_lab.views import plots
plots.plot_samples(nofe_lab.load_dataset("glyphs:4"))
"""

CORNERS = """
(image) => {
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const at = (x, y) => [...context.getImageData(x, y, 1, 1).data];
  return [at(0, 0), at(width - 1, height - 1), at(width >> 1, 0)];
}
"""


def test_tables_scroll_and_figures_lie_on_paper(
    open_notebook: Callable[..., Page], lab: tuple[str, Path], browser: Any, tmp_path: Path
) -> None:
    """In JupyterLab, narrow and wide, light and dark, and in a page that was exported."""
    write_notebook(lab[1], "shown.ipynb", WIDE, FIGURE)
    opened = open_notebook("shown.ipynb")
    opened.run_all()
    opened.wait_until_executed()
    for theme in ("Light", "Dark"):
        opened.theme(theme)
        for width in (600, 900, 1400):
            opened.resize(width)
            scrolls_in_its_place(opened.page, ".jp-OutputArea-output")
            picture = opened.page.locator(".jp-RenderedImage img").first
            box, place = (each.bounding_box() for each in (picture, picture.locator("..")))
            assert box["x"] + box["width"] <= place["x"] + place["width"] + 1
            assert picture.evaluate("image => getComputedStyle(image).backgroundColor") == CLEAR
            corner, other, edge = picture.evaluate(CORNERS)
            assert corner[3] == other[3] == 0
            assert edge == [255, 255, 255, 255]
            SHOTS.mkdir(exist_ok=True)
            opened.page.screenshot(path=SHOTS / f"paper_{theme.lower()}_{width}.png")
    page, _ = HTMLExporter().from_filename(str(opened.path))
    (tmp_path / "shown.html").write_text(page, encoding="utf-8")
    exported = browser.new_page(viewport={"width": 600, "height": 900})
    exported.goto(f"file://{tmp_path}/shown.html", wait_until="domcontentloaded")
    scrolls_in_its_place(exported, "body")
    exported.close()


CLEAR = "rgba(0, 0, 0, 0)"


def scrolls_in_its_place(page: Any, around: str) -> None:
    """The table is wider than its place, which is as wide as what is around it, and scrolls."""
    place = page.locator("div:has(> table)").first
    box, outer = place.bounding_box(), page.locator(around).first.bounding_box()
    assert outer["x"] <= box["x"]
    assert box["x"] + box["width"] <= outer["x"] + outer["width"] + 1
    assert place.evaluate("each => each.scrollWidth > each.clientWidth + 100")
    assert place.evaluate("each => { each.scrollLeft = 80; return each.scrollLeft; }") == 80
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_jupyterlab(open_notebook: Callable[..., Page], name: str) -> None:
    opened = open_notebook(name)
    opened.run_all()
    opened.wait_until_executed()
    errors = opened.page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
    )
    assert errors.count() == 0
    if name.startswith("00"):
        use_the_page(opened.widget("look"))
        opened.shoot(opened.widget("look"), "look")
    if name.startswith("01"):
        watch_the_training(opened)
    if name.startswith("02"):
        use_the_explorer(opened)
        use_the_matrix(opened)
        use_the_player(opened)
    if name.startswith("03"):
        use_the_inspector(opened)
    if name.startswith("07"):
        use_the_board(opened)
    if name.startswith("10"):
        press_the_button(opened.widget("board"))
        opened.shoot(opened.widget("board"), "lesson")
    if name.startswith("11"):
        read_the_table(opened)


@pytest.mark.slow
def test_a_training_that_is_interrupted_in_jupyterlab_is_kept_and_goes_on(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    _, folder = lab
    opened, error = interrupted(open_notebook, folder, "01_train_generalist", "epochs = 60")
    assert error.ename == "Interrupted"
    assert re.fullmatch(
        r"stopped after step \d+ of \d+; all of it is kept\. Run this cell, or the same "
        r"command, again to go on\.",
        error.evalue,
    )
    opened.run_all()
    opened.wait_for_output(lambda found: "resumes from" in found.get("text", ""))
    opened.wait_until_executed()
    assert not list((folder / "runs").glob("*.unfinished"))


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_in_jupyterlab_is_kept_and_goes_on(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    _, folder = lab
    opened, error = interrupted(open_notebook, folder, "11_sweep", "epochs, Ks = 30, [3]")
    assert re.match(r"stopped; \d of 4 trainings are left\.", error.evalue)
    opened.run_all()
    opened.wait_until_executed()
    read_the_table(opened)
    assert not list((folder / "runs").glob("*-s5-*.unfinished"))


def interrupted(
    open_notebook: Callable[..., Page], folder: Path, name: str, parameters: str
) -> tuple[Page, nbformat.NotebookNode]:
    """A copy of a notebook, run with other parameters and interrupted while it trains; the error.

    Its seed, 5, tells its runs from those of others in the folder.
    """
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source += f"\nseed = 5\n{parameters}"
    nbformat.write(notebook, folder / f"{name}_interrupted.ipynb")
    opened = open_notebook(f"{name}_interrupted.ipynb")
    opened.run_all()
    for _ in range(600):
        if list((folder / "runs").glob("*-s5-*.unfinished/step-*")):
            break
        opened.page.wait_for_timeout(100)
    opened.page.click("text=Kernel >> visible=true")
    opened.page.click("text=Interrupt Kernel >> visible=true")
    error = opened.wait_for_output(lambda output: bool(output.get("evalue")))
    assert error.traceback == [f"Interrupted: {error.evalue}"]
    return opened, error


def read_the_table(opened: Page) -> None:
    """The table of a sweep has filled, and all of it is seen where it stands."""
    table = opened.page.locator(".jp-OutputArea-output table", has_text="val_accuracy").first
    table.scroll_into_view_if_needed()
    rows = table.locator("tbody tr").all_inner_texts()
    assert rows
    assert all("done" in row for row in rows)
    for width in (900, 1400):
        opened.resize(width)
        box, place = (each.bounding_box() for each in (table, table.locator("..")))
        assert within(box, place) or place["width"] < box["width"]  # then it scrolls
        assert in_window(opened.page, table.locator("th").first.bounding_box())
    opened.shoot(table, "sweep")


@pytest.mark.slow
@pytest.mark.parametrize("number", ["07", "10"])
def test_the_app_shows_the_board_and_no_code(
    number: str, browser: Any, lab: tuple[str, Path]
) -> None:
    _, folder = lab
    name = next(name for name in NOTEBOOKS if name.startswith(number))
    with serving_apps(folder) as address:
        assert ask(f"{address}/voila/render/{name}") in (302, 403)  # to the login
        assert ask(f"{address}/voila/render/{name}?token={TOKEN}", Host="evil.example") == 403
        assert kernels(address) == []
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(f"{address}/voila/render/{name}?token={TOKEN}", timeout=240_000)
        page.wait_for_selector(".nofe-board.nofe-live", timeout=240_000)
        assert page.locator(".jp-InputArea-editor").count() == 0
        assert not any(image.is_visible() for image in page.locator(
            ".jp-OutputArea-child:has(.nofe) + .jp-OutputArea-child img").all())  # fmt: skip
        cards = page.locator(".nofe-card")
        dragged = cards.nth(0).locator("button.nofe-class").nth(1)
        label = dragged.get_attribute("data-label")
        dragged.drag_to(cards.nth(1).locator("header"))
        page.wait_for_selector(f".nofe-card[data-k='1'] [data-label='{label}']")
        press_the_button(page.locator(".nofe-board"))
        SHOTS.mkdir(exist_ok=True)
        page.locator(".nofe-board").screenshot(path=SHOTS / f"app_{number}.png")
        page.close()


def test_apps_want_the_token_and_start_few_kernels(tmp_path: Path) -> None:
    if CHROMIUM is None:  # the other half of the app's requirements
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("voila")
    write_notebook(tmp_path, "app.ipynb", "1 + 1")
    with serving_apps(tmp_path) as address:
        page = f"{address}/voila/render/app.ipynb"
        assert ask(page) in (302, 403)
        assert ask(f"{page}?token={TOKEN}", Host="evil.example") == 403
        assert kernels(address) == []
        found = [ask(f"{page}?token={TOKEN}") for _ in range(5)]
        assert found == [200] * 4 + [503]
        assert len(kernels(address)) == 4


def serving_apps(folder: Path) -> Any:
    command = [sys.executable, "-m", "jupyter", "server", "--ip=127.0.0.1", "--allow-root"]
    command += [f"--config={ROOT / 'notebooks' / 'app_config.py'}"]
    command += [f"--IdentityProvider.token={TOKEN}"]
    return serving(command, folder, f"api?token={TOKEN}")


def ask(address: str, **headers: str) -> int:
    """The status of an answer; where it is a redirection, its own."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def kernels(address: str) -> list[Any]:
    with urllib.request.urlopen(f"{address}/api/kernels?token={TOKEN}") as answer:
        found: list[Any] = json.load(answer)
    return found


# --- what a reader does with each widget


def watch_the_training(opened: Page) -> None:
    widget = opened.widget("live")
    assert opened.kernel("live.stage") == ""
    step, steps = opened.kernel("live.progress")
    assert step == steps > 0
    assert f"step {step} of {steps}" in widget.inner_text()
    assert widget.locator("polyline").count() >= 2
    assert widget.locator(".nofe-card").count() == 4
    opened.shoot(widget, "live")


def use_the_explorer(opened: Page) -> None:
    widget = opened.widget("explorer")
    names = opened.kernel("explorer.class_names")
    buttons = widget.locator("button.nofe-class")
    # a click
    buttons.nth(7).click()
    label = int(buttons.nth(7).get_attribute("data-label"))
    opened.wait_for("explorer.label", label)
    assert widget.locator(".nofe-detail h4").inner_text() == names[label]
    assert buttons.nth(7).get_attribute("aria-pressed") == "true"
    # the keyboard, without moving JupyterLab's own cursor
    active = opened.page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
    cell = active.first.get_attribute("data-windowed-list-index")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_timeout(500)
    moved = opened.kernel("explorer.label")
    assert moved != label
    assert active.first.get_attribute("data-windowed-list-index") == cell
    # a search
    box = widget.get_by_label("Search a class")
    box.fill(names[3])
    box.press("Enter")
    opened.wait_for("explorer.class_name", names[3])
    box.fill("")
    # the menus
    widget.get_by_label("Sort by").select_option("leaking")
    opened.wait_for("explorer.sort_by", "leaking")
    order = opened.kernel("[card['k'] for card in explorer.shown['cards']]")
    cards = widget.locator(".nofe-card")
    shown = [int(cards.nth(n).get_attribute("data-k")) for n in range(cards.count())]
    assert shown == order
    widget.get_by_label("Compare with").select_option("superclasses")
    opened.wait_for("explorer.compare_with", "superclasses")
    opened.page.wait_for_timeout(300)
    assert cards.count() > len(order)
    assert "normalised mutual information" in widget.inner_text()
    # a program
    opened.kernel("setattr(explorer, 'label', 5)")
    opened.page.wait_for_timeout(500)
    assert widget.locator(".nofe-detail h4").inner_text() == names[5]
    opened.shoot(widget, "explorer")


def use_the_matrix(opened: Page) -> None:
    widget = opened.widget("confusion")
    canvas = widget.locator("canvas")
    size = canvas.bounding_box()["width"]
    C = len(opened.kernel("matrix.class_names"))

    def centre(i: int, j: int) -> dict[str, float]:
        return {"x": (j + 0.5) * size / C, "y": (i + 0.5) * size / C}

    order = opened.kernel("matrix.matrix['order']")
    names = opened.kernel("matrix.class_names")
    canvas.hover(position=centre(2, 40))
    said = widget.locator(".nofe-tip").inner_text()
    row, column = order[2], order[40]
    count = opened.kernel(f"matrix.confusions['base CNN'][{row}, {column}]")
    images = opened.kernel(f"matrix.confusions['base CNN'][{row}].sum()")
    assert said.startswith(f"{names[row]} → {names[column]}: {count} of {images} images")
    canvas.click(position=centre(2, 40))
    opened.wait_for("[matrix.row, matrix.column]", [row, column])
    canvas.press("ArrowDown")
    canvas.press("ArrowLeft")
    canvas.press("Enter")
    opened.wait_for("[matrix.row, matrix.column]", [order[3], order[39]])
    opened.page.wait_for_timeout(300)
    title = widget.locator(".nofe-detail h4").inner_text()
    assert title == f"{names[order[3]]} → {names[order[39]]}"
    # the images behind a cell that has some
    row, column = opened.kernel(
        "[int(x) for x in __import__('numpy').unravel_index("
        "matrix.confusions['base CNN'].argmax(), (len(matrix.class_names),) * 2)]"
    )
    widget.get_by_label("Class", exact=True).select_option(str(row))
    widget.get_by_label("answered").select_option(str(column))
    opened.wait_for("[matrix.row, matrix.column]", [row, column])
    opened.page.wait_for_timeout(300)
    behind = opened.kernel("len(matrix.detail['captions'])")
    assert behind > 0
    assert widget.locator("figure").count() == behind
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    widget.get_by_label("Network").select_option("NofE minus base CNN")
    opened.wait_for("matrix.network", "NofE minus base CNN")
    opened.page.wait_for_timeout(500)
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before
    assert "Purple" in widget.inner_text()
    widget.get_by_label("Order by").select_option("superclasses")
    opened.wait_for("matrix.order_by", "superclasses")
    opened.shoot(widget, "matrix")


def use_the_player(opened: Page) -> None:
    widget = opened.widget("evolution")
    last = opened.kernel("player.last_update")
    slider = widget.locator("input[type=range]")
    assert slider.input_value() == str(last)
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    opened.wait_for("player.update", last - 2)
    opened.page.wait_for_timeout(300)
    assert f"update {last - 2} of {last}" in widget.locator("output").inner_text()
    moved = opened.kernel("player.step['title']")
    assert moved in widget.inner_text()
    path = widget.locator(".nofe-way").nth(4)
    label = int(path.get_attribute("data-label"))
    path.dispatch_event("click")
    opened.wait_for("player.label", label)
    assert widget.locator(".nofe-way.nofe-followed").count() == 1
    widget.get_by_label("Follow a class").select_option("-1")
    opened.wait_for("player.label", -1)
    slider.press("Home")
    opened.wait_for("player.update", 0)
    widget.get_by_text("▶ play").click()
    opened.page.wait_for_timeout(2000)
    assert 0 < opened.kernel("player.update") <= last
    opened.shoot(widget, "evolution")


def use_the_inspector(opened: Page) -> None:
    widget = opened.widget("inspector")
    widget.get_by_label("Step through").select_option("all")
    opened.wait_for("inspector.which", "all")
    opened.wait_for("inspector.index", 0)
    widget.get_by_label("the next image").click()
    opened.wait_for("inspector.index", 1)
    opened.page.keyboard.press("ArrowRight")
    opened.wait_for("inspector.place", 2)
    opened.page.keyboard.press("ArrowLeft")
    opened.wait_for("inspector.index", 1)
    opened.page.wait_for_timeout(300)
    title = opened.kernel("inspector.detail['title']")
    assert widget.locator("h4").inner_text() == title
    assert widget.locator("figure").count() == 4
    assert widget.locator("tbody tr").count() == 4
    # an image of one's own
    file = io.BytesIO()
    Image.new("RGB", (40, 60), "green").save(file, format="png")
    upload = {"name": "green.png", "mimeType": "image/png", "buffer": file.getvalue()}
    widget.get_by_label("an image of yours").last.set_input_files(upload)
    opened.wait_for("inspector.index", -1)
    opened.page.wait_for_timeout(300)
    assert widget.locator("h4").inner_text() == "green.png"
    draw_for_the_inspector(opened, widget)
    opened.kernel("setattr(inspector, 'place', 0)")
    opened.page.wait_for_timeout(500)
    opened.shoot(widget, "inspector")


def draw_for_the_inspector(opened: Page, widget: Any) -> None:
    """A drawing is asked about once a stroke has ended, and again when it is taken back."""
    mouse = opened.page.mouse
    opened.kernel("setattr(inspector, 'place', 0)")
    widget.get_by_text("Draw one").click()
    canvas = widget.locator(".nofe-sketch canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["width"] == box["height"] > 200
    for n, (x, y) in enumerate([(0.2, 0.25), (0.8, 0.25), (0.5, 0.25), (0.5, 0.8)]):
        mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if n % 2 == 0:
            mouse.down()
            continue
        opened.page.wait_for_timeout(600)
        before = opened.kernel("inspector.index")
        assert (before == -1) == (n > 1)  # not while a stroke is going on
        mouse.up()
        opened.wait_for("inspector.index", -1)
    opened.page.wait_for_timeout(1500)
    assert widget.locator("h4").inner_text() == "a drawing of yours"
    grey = "[int(inspector._current[0].float().mean(0)[y, 16]) for y in (8, 20, 30)]"
    bar, stem, paper = opened.kernel(grey)
    assert max(bar, stem) < paper - 30
    opened.shoot(widget, "inspector_drawing")
    canvas.press("Control+z")
    opened.page.wait_for_timeout(1500)
    bar, stem, paper = opened.kernel(grey)
    assert bar < paper - 30 < stem
