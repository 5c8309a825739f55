"""The specialty board in a real browser: edited by mouse and keyboard, judged, and trained for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.conftest import (
    EXECUTE,
    SHOTS,
    Page,
    in_window,
    overlap,
    overlaps,
    write_notebook,
)

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


def press_the_button(widget: Any) -> None:
    """Train experts for the partition on the board, until their accuracy stands beside it."""
    widget.get_by_text("Train experts for this partition").click()
    rows = widget.locator("table").nth(1).locator("tbody tr")
    rows.first.wait_for(timeout=120_000)
    assert rows.count() >= 3
    assert rows.first.inner_text().startswith("NofE by hand")


TRAINING = """
from dataclasses import replace
import numpy as np
import nofe_lab
from nofe_lab import Arm
from nofe_lab.views import SpecialtyBoard
experiment = nofe_lab.Experiment(
    "glyphs:16:OQ0CG6S58B3E", K=3, epochs=1, batch_size=40, val_fraction=0.4, runs_dir="board_runs"
)
data, longer = experiment.data, 1
rivals = [Arm("base"), Arm("nofe", "random", trunk="base")]
experiment.scores(rivals, (0, 1, 2))
pairs = np.kron(np.eye(6, dtype=int), np.ones((2, 2), dtype=int))  # O and Q, 0 and C ...
board = SpecialtyBoard(
    data,
    nofe_lab.Specialties(data.class_names, [0, 1, 2] * 4, 3),
    affinity=np.eye(3)[[0, 1, 2] * 4],
    confusion=pairs,
    train=lambda partition, watch: replace(experiment, epochs=longer).scores(
        [Arm("nofe", partition, trunk="base"), *rivals], range(3 if longer == 1 else 1), watch
    ),
)
board
"""

SCREENS = {"600": (600, 800), "900": (900, 900), "1400": (1400, 900), "150": (933, 600)}
"""Windows in CSS pixels; the last is 1,400 x 900 at a zoom of 150 %."""

CUT = """
(widget) => {
  const box = widget.getBoundingClientRect(), wrong = [];
  const read = widget.querySelectorAll("h5, p, th, td, button, output, strong, progress");
  for (const element of [...read].filter((each) => each.getClientRects().length)) {
    const own = element.getBoundingClientRect(), text = element.textContent;
    if (own.left < box.left - 1 || own.right > box.right + 1) wrong.push(`outside: ${text}`);
    if (element.clientWidth && element.scrollWidth > element.clientWidth + 1) {
      wrong.push(`cut: ${text}`);
    }
  }
  return wrong;
}
"""
"""What of a widget lies outside of it, or has more text than is seen."""


COLOURS = """
(widget) => ["--ink", "--paper"].map((name) => getComputedStyle(widget).getPropertyValue(name))
"""


@pytest.fixture
def trainer(open_notebook: Callable[..., Page], lab: tuple[str, Path]) -> Page:
    """A notebook with a board that trains, after Run All."""
    write_notebook(lab[1], "training.ipynb", TRAINING, "board")
    opened = open_notebook("training.ipynb")
    opened.without_sidebar()
    opened.run_all()
    opened.page.wait_for_selector(".nofe-board.nofe-live", timeout=120_000)
    opened.wait_for("board.standing", {})
    return opened


def in_view(opened: Page, element: Any) -> dict[str, float]:
    """The box of an element, all of which is inside the window."""
    element.scroll_into_view_if_needed()
    box: dict[str, float] = element.bounding_box()
    assert in_window(opened.page, box), box
    return box


def test_what_got_better_and_what_got_worse_is_said_without_a_verdict(trainer: Page) -> None:
    widget = trainer.widget("board")
    widget.locator("button.nofe-class[title='Q']").click()
    trainer.wait_for("board.class_name", "Q")
    widget.get_by_label("Move the chosen class to").select_option("0")
    trainer.wait_for("board.specialties.of[1]", 0)
    said = widget.get_by_text("Better than at first: the confusions inside, beyond chance (+")
    text = said.inner_text()
    assert "Worse than at first: the objective (-" in text
    assert said.get_attribute("role") == "status"  # no alarm
    assert "0px" in said.evaluate("(p) => getComputedStyle(p).borderLeftWidth")
    in_view(trainer, said)
    table = widget.locator("table").first
    assert table.locator("thead").inner_text().split() == ["at", "first", "now", "change"]
    rows = [row.inner_text().split("\t") for row in table.locator("tbody tr").all()]
    assert [row[2] for row in rows][1] == "16.7%"
    assert [row[3][0] for row in rows] == ["-", "+", "+", "+"]
    in_view(trainer, table)
    widget.get_by_text("Undo").click()
    said.wait_for(state="hidden")


def test_locks_are_undone_and_undo_goes_over_them(trainer: Page) -> None:
    widget, page = trainer.widget("board"), trainer.page
    name = widget.locator("button.nofe-class[title='G']")
    name.focus()
    trainer.wait_for("board.class_name", "G")
    page.keyboard.press("Shift+ArrowRight")
    trainer.wait_for("board.specialties.of[4]", 2)
    page.keyboard.press("l")
    trainer.wait_for("board.locked", [4])
    assert "dashed" in name.evaluate("(button) => getComputedStyle(button).borderStyle")
    page.keyboard.press("Control+z")
    trainer.wait_for("board.locked", [])
    assert "dashed" not in name.evaluate("(button) => getComputedStyle(button).borderStyle")
    page.keyboard.press("Control+y")
    trainer.wait_for("board.locked", [4])
    for _ in range(2):
        page.keyboard.press("Control+z")
    trainer.wait_for("board.specialties.of[4]", 1)
    assert trainer.kernel("board.can_undo") is False


def test_what_add_makes_is_scrolled_to(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    write_notebook(lab[1], "adding.ipynb", BOARD, "board")
    opened = open_notebook("adding.ipynb")
    opened.run_all()
    opened.page.wait_for_selector(".nofe-board.nofe-live", timeout=60_000)
    opened.resize(*SCREENS["900"])
    widget = opened.widget("board")
    add = widget.get_by_text("Add a specialty")
    add.focus()
    for n in (6, 7):
        opened.page.keyboard.press("Enter")
        widget.locator(f".nofe-card:nth-child({n})").wait_for()
        opened.page.wait_for_timeout(300)
        card = widget.locator(".nofe-card").last.bounding_box()
        box = widget.locator(".nofe-cards-box").bounding_box()
        assert box["y"] - 1 <= card["y"]
        assert card["y"] + card["height"] <= box["y"] + box["height"] + 1
        height = opened.page.evaluate("innerHeight")
        assert 0 <= card["y"] < card["y"] + card["height"] <= height + 1
    assert add.evaluate("(button) => button === document.activeElement")
    other = opened.page.locator(".nofe-board").nth(1).locator(".nofe-cards-box")
    assert other.evaluate("(box) => box.scrollTop") == 0  # another view stays where it was


def test_experts_are_trained_by_keyboard_while_the_board_is_used(trainer: Page) -> None:
    page, widget = trainer.page, trainer.widget("board")
    # nothing was trained for the partition by Run All
    assert trainer.kernel("[board.training, board.trained, board.scores]") == ["", None, None]
    trainer.kernel("globals().update(longer=2000)")
    widget.get_by_text("Start again").focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "Train experts for this partition"
    page.keyboard.press("Enter")
    bar, step = widget.locator("progress"), widget.locator("output")
    bar.wait_for(state="visible")
    page.wait_for_function("(bar) => bar.value > 0", arg=bar.element_handle())
    assert page.evaluate(focused) == "Stop"
    first = step.inner_text()
    assert first.startswith("step ")
    boxes = [in_view(trainer, each) for each in (bar, step, widget.locator(".nofe-beside button"))]
    assert overlaps(boxes) == []
    cards = widget.locator(".nofe-cards-box").bounding_box()
    assert not overlap(widget.locator(".nofe-beside").bounding_box(), cards)
    # the board goes on
    widget.locator("button.nofe-class[title='B']").focus()
    trainer.wait_for("board.class_name", "B")
    page.keyboard.press("Shift+ArrowRight")
    trainer.wait_for("board.specialties.of[9]", 1)
    assert trainer.kernel("board.training") == "training"
    # and so does the training, until it is stopped
    page.wait_for_function(
        "([output, first]) => output.textContent !== first", arg=[step.element_handle(), first]
    )
    widget.locator(".nofe-beside button").focus()
    page.keyboard.press("Enter")
    stopped = widget.get_by_text("Stopped; what was trained is kept")
    stopped.wait_for(timeout=30_000)
    in_view(trainer, stopped)
    assert not bar.is_visible()
    assert trainer.kernel("board.training") == ""
    assert page.evaluate(focused) == "Train experts for this partition"


def test_the_scoreboard_stands_beside_the_board_on_every_screen(trainer: Page) -> None:
    page, widget = trainer.page, trainer.widget("board")
    widget.get_by_text("Train experts for this partition").click()
    table = widget.locator("table").nth(1)
    table.wait_for(timeout=60_000)
    names = [row.inner_text() for row in table.locator("tbody th").all()]
    assert names == ["NofE by hand, base trunk", "base CNN", "NofE random, base trunk"]
    shown = [row.inner_text().split("\t") for row in table.locator("tbody tr").all()]
    assert all(" ± " in row[1] for row in shown)
    assert shown[0][2:] == ["", ""]
    assert all(row[3] in ("ahead", "behind", "tie") for row in shown[1:])
    said = widget.get_by_text("over 3 seeds.")
    # a second view of the same board says the same
    other = page.locator(".nofe-board").nth(1)
    other.scroll_into_view_if_needed()
    assert other.locator("table").nth(1).inner_text() == table.inner_text()
    for theme in ("Light", "Dark"):
        trainer.theme(theme)
        for name in SCREENS:
            trainer.resize(*SCREENS[name])
            widget.scroll_into_view_if_needed()
            assert widget.evaluate(CUT) == [], (theme, name)
            in_view(trainer, said)
            in_view(trainer, table)
            beside = widget.locator(".nofe-beside").bounding_box()
            cards = widget.locator(".nofe-cards-box").bounding_box()
            assert not overlap(beside, cards)
            if name == "1400":
                assert cards["x"] > beside["x"] + beside["width"] - 1  # beside, not below
            ink, paper = widget.evaluate(COLOURS)
            assert ink != paper
            trainer.shoot(widget, f"board_trained_{theme}_{name}")
    widget.locator("button.nofe-class[title='B']").click()
    widget.get_by_label("Move the chosen class to").select_option("2")
    widget.get_by_text("The partition has changed since.").wait_for()
