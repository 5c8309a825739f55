"""The specialty board in a real browser: edited by mouse and keyboard, judged, and trained for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from tests.browser.conftest import EXECUTE, SHOTS, Page, write_notebook

pytestmark = pytest.mark.xdist_group("browser")  # one JupyterLab, and its runs, for all of them

BOARD = """
import nofe_lab
from nofe_lab.views import SpecialtyBoard
data = nofe_lab.load_dataset("glyphs:1", val_fraction=0.0, seed=0)
board = SpecialtyBoard(data, nofe_lab.Specialties.random(data.class_names, 5, 0))
board
"""

PICTURE = ".jp-OutputArea-output img[src^='data:image/png']"


def test_the_board_in_a_browser(
    open_notebook: Callable[..., Page], lab: tuple[str, Path], tmp_path: Path
) -> None:
    """The short one: what is seen of it and of its picture, with a kernel, a busy one, and none."""
    write_notebook(lab[1], "board.ipynb", BOARD)
    opened = open_notebook("board.ipynb")
    opened.run_all()
    opened.page.wait_for_selector(".nofe-board.nofe-live", timeout=60_000)
    assert opened.page.locator(PICTURE).count() == 1
    assert not opened.page.locator(PICTURE).is_visible()
    use_the_board(opened)
    accents_are_whole(opened)
    ask_a_busy_kernel(opened)
    opened.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    opened.page.wait_for_timeout(1000)
    ask_a_kernel_that_was_started_anew(opened)
    look_at_the_exported_page(opened, tmp_path)


def accents_are_whole(opened: Page) -> None:
    """Nothing is cut off above a name: É and Ê read E where it was."""
    name = opened.widget("board").locator("button.nofe-class[title='Ê'] > span").last
    cut = name.evaluate(
        """(span) => {
          const style = getComputedStyle(span), box = span.getBoundingClientRect();
          const context = document.createElement("canvas").getContext("2d");
          context.font = style.font;
          const { actualBoundingBoxAscent, actualBoundingBoxDescent } = context.measureText("Ê");
          const inked = actualBoundingBoxAscent + actualBoundingBoxDescent;
          return style.overflowY !== "visible" && box.height < inked + 2;
        }"""
    )
    assert not cut


def ask_a_busy_kernel(opened: Page) -> None:
    """A class that is dragged while another cell runs stays, is said to, and is not moved later.

    Kernels that answer widgets from a thread of their own answer also then, unless the cell keeps
    Python from running that thread, as this one does.
    """
    widget = opened.widget("board")
    before = opened.kernel("board.specialties.of")
    opened.page.evaluate(
        EXECUTE.replace("await future.done;", ""),
        [opened.path.name, "import ctypes; ctypes.PyDLL(None).sleep(8)"],
    )
    opened.page.wait_for_timeout(1000)  # until it runs
    cards = widget.locator(".nofe-card")
    cards.nth(0).locator("button.nofe-class").nth(1).drag_to(cards.nth(1).locator("header"))
    notice = widget.locator(".nofe-kernel")
    notice.wait_for(state="visible", timeout=5000)
    assert "busy" in notice.inner_text()
    assert "nothing is done here" in notice.inner_text()
    notice.wait_for(state="hidden", timeout=20_000)  # it is free, and answers
    assert opened.kernel("board.specialties.of") == before


def ask_a_kernel_that_was_started_anew(opened: Page) -> None:
    opened.page.click("text=Kernel >> visible=true")
    opened.page.click("text=Restart Kernel… >> visible=true")
    opened.page.click(".jp-Dialog button.jp-mod-warn")
    opened.page.wait_for_timeout(3000)
    widget = opened.widget("board")
    label = widget.locator("button.nofe-class[aria-pressed=true]").first.get_attribute("data-label")
    widget.locator("button.nofe-class[aria-pressed=false]").nth(3).click()
    notice = widget.locator(".nofe-kernel")
    notice.wait_for(state="visible", timeout=10_000)
    assert "was started anew" in notice.inner_text()
    chosen = widget.locator("button.nofe-class[aria-pressed=true]").first
    assert chosen.get_attribute("data-label") == label  # it does not pretend


def look_at_the_exported_page(opened: Page, folder: Path) -> None:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="lab").from_filename(str(opened.path))
    (folder / "board.html").write_text(page, "utf-8")
    exported = opened.page.context.browser.new_page()
    exported.route("http*://**", lambda route: route.abort())
    exported.goto(f"file://{folder}/board.html")
    picture = exported.locator("img[src^='data:image/png']")
    assert picture.count() == 1
    assert picture.is_visible()
    exported.close()


def test_a_widget_of_saved_state_shows_its_picture_without_a_kernel(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    """Saved state draws the widget without a kernel too; dead handles are no use to anybody."""
    from nbclient import NotebookClient

    write_notebook(lab[1], "saved.ipynb", BOARD)
    notebook = nbformat.read(lab[1] / "saved.ipynb", as_version=4)
    NotebookClient(notebook, store_widget_state=True).execute()
    assert "widgets" in notebook.metadata
    notebook.metadata.kernelspec = {"name": "none-such", "display_name": "none such"}
    # else JupyterLab may take another kernel of this language unasked
    notebook.metadata.language_info = {"name": "none-such"}
    nbformat.write(notebook, lab[1] / "saved.ipynb")
    opened = open_notebook("saved.ipynb", kernel=False)
    opened.page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
    opened.page.wait_for_timeout(4000)
    assert opened.page.locator(PICTURE).first.is_visible()
    shown = opened.page.locator(".nofe-board")
    assert shown.count() == 0 or not shown.first.is_visible()
    SHOTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=SHOTS / "without_kernel.png")


def use_the_board(opened: Page) -> None:
    widget = opened.widget("board")
    start = opened.kernel("board.specialties.of")
    cards = widget.locator(".nofe-card")
    # drag
    dragged = cards.nth(0).locator("button.nofe-class").nth(1)
    label = int(dragged.get_attribute("data-label"))
    dragged.drag_to(cards.nth(1).locator("header"))
    opened.wait_for(f"board.specialties.of[{label}]", 1)
    assert cards.nth(1).locator(f"[data-label='{label}']").count() == 1
    # the keyboard
    first = cards.nth(0).locator("button.nofe-class").first
    second = int(first.get_attribute("data-label"))
    first.focus()
    opened.wait_for("board.label", second)
    opened.page.keyboard.press("Shift+ArrowRight")
    opened.wait_for(f"board.specialties.of[{second}]", 1)
    opened.page.keyboard.press("l")
    opened.wait_for("board.locked", [second])
    opened.page.keyboard.press("Shift+ArrowRight")
    opened.page.wait_for_timeout(500)
    assert opened.kernel(f"board.specialties.of[{second}]") == 1
    assert "is locked" in widget.locator(".nofe-words").inner_text()
    opened.shoot(widget, f"board_{opened.path.stem}")
    opened.page.keyboard.press("l")
    opened.wait_for("board.locked", [])
    # the tools
    n = cards.count()
    widget.get_by_text("Add a specialty").click()
    opened.wait_for("board.specialties.K", n + 1)
    widget.locator("button", has_text="remove").last.click()
    opened.wait_for("board.specialties.K", n)
    widget.get_by_label("Move the chosen class to").select_option("2")
    opened.wait_for(f"board.specialties.of[{second}]", 2)
    first = cards.nth(2).locator(f"[data-label='{second}']")
    first.focus()
    for _ in range(7):  # over the locks, too
        opened.page.keyboard.press("Control+z")
    opened.wait_for("board.specialties.of", start)
    widget.get_by_text("Redo").click()
    opened.wait_for(f"board.specialties.of[{label}]", 1)
    widget.get_by_text("Undo").click()
    opened.wait_for("board.specialties.of", start)


TRAINING = """
from dataclasses import replace
import numpy as np
import nofe_lab
from nofe_lab import Arm
from nofe_lab.views import SpecialtyBoard
experiment = nofe_lab.Experiment(
    "glyphs:16:OQ0CG6S58B3E", K=3, batch_size=40, val_fraction=0.4, runs_dir="board_runs"
)
data, epochs = experiment.data, 1
rivals = [Arm("base"), Arm("nofe", "random", trunk="base")]
short = replace(experiment, epochs=1)
short.scores(rivals, (0, 1, 2))
confusion = nofe_lab.predict(short.model(short.base()), data.val).confusion
affinity = np.random.default_rng(0).random((12, 3))
board = SpecialtyBoard(
    data,
    nofe_lab.Specialties.random(data.class_names, 3, 0),
    affinity=affinity,
    confusion=confusion,
    train=lambda partition, watch: replace(experiment, epochs=epochs).scores(
        [Arm("nofe", partition, trunk="base"), *rivals], range(3 if epochs == 1 else 1), watch
    ),
)
board
"""


def test_experts_are_trained_beside_the_board(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    write_notebook(lab[1], "training.ipynb", TRAINING)
    opened = open_notebook("training.ipynb")
    opened.run_all()
    opened.page.wait_for_selector(".nofe-board.nofe-live", timeout=120_000)
    widget = opened.widget("board")
    opened.shoot(widget, "board_before")
    opened.kernel("globals().update(epochs=300)")
    widget.get_by_text("Train experts for this partition").click()
    opened.page.wait_for_timeout(4000)
    opened.shoot(widget, "board_training")
    opened.page.screenshot(path=SHOTS / "page_training.png")
    widget.get_by_role("button", name="Stop").click()
    opened.wait_for("board.training", "")
    opened.page.wait_for_timeout(1000)
    opened.shoot(widget, "board_stopped")
    opened.kernel("globals().update(epochs=1)")
    widget.get_by_text("Train experts for this partition").click()
    opened.wait_for("board.training", "")
    opened.page.wait_for_timeout(1000)
    opened.shoot(widget, "board_trained")
    opened.page.screenshot(path=SHOTS / "page_trained.png")
