"""The relabelling list in a browser: fits, is legible, works by keys alone, and loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nofe_lab.data.corrections import Corrections
from tests.browser.conftest import Page, overlaps, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

LONG = "Ênormously-long-name-of-a-class-that-is-blue"
COLOURS = {"red": (200, 40, 40), "<b>green": (40, 200, 40), LONG: (40, 40, 200)}
NEXT = {"red": "<b>green", "<b>green": LONG, LONG: "red"}
EVERY = 5
"""Of so many images of a class, one is labelled wrongly."""

SOURCE = """
import nofe_lab
experiment = nofe_lab.Experiment(
    "folder:relabelled", K=2, epochs=12, batch_size=10, learning_rate=0.003, val_fraction=0.5,
    device="cpu", runs_dir="relabelled_runs",
)
data = experiment.data
networks = [experiment.model(experiment.base()), experiment.model(experiment.nofe())]
found = nofe_lab.relabel(data, networks, "corrections.csv", ("val", "test"))
found
"""

PLACES = """
(root) => {
  const parts = ".nofe-menu, .nofe-doubt > .nofe-image, .nofe-doubt h4, .nofe-doubt p," +
    ".nofe-doubt li, .nofe-decide button, .nofe-queue, .nofe-words, .nofe-problem";
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/^rgba.*, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
      const share = Number(part) / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...root.querySelectorAll(parts)].filter((each) => each.offsetParent).map((each) => {
    const { x, y, width, height } = each.getBoundingClientRect();
    const [one, other] = [light(getComputedStyle(each).color), light(ground(each))].sort();
    const inner = [each, ...each.querySelectorAll("*")]
      .filter((part) => !part.matches("select, option"));
    return {
      text: each.className + " " + each.textContent.slice(0, 40), x, y, width, height,
      contrast: (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05),
      cut: inner.some((part) => part.scrollWidth > part.clientWidth + 1 && part.clientWidth > 0),
    };
  });
}
"""


@pytest.fixture
def opened(lab: tuple[str, Path], open_notebook: Callable[..., Page]) -> Page:
    """A notebook that shows the list; the CSV is not there yet."""
    _, folder = lab
    if not (folder / "relabelled").exists():
        paint(folder / "relabelled")
    (folder / "corrections.csv").unlink(missing_ok=True)
    write_notebook(folder, "relabel.ipynb", SOURCE, "found")
    page = open_notebook("relabel.ipynb")
    page.run_all()
    page.page.wait_for_selector(".nofe-relabel.nofe-live .nofe-item", timeout=90_000)
    return page


def paint(root: Path) -> None:
    rng = np.random.default_rng(0)
    for label in COLOURS:
        (root / label).mkdir(parents=True)
        for i in range(40):
            shown = COLOURS[NEXT[label] if i % EVERY == 0 else label]
            pixels = rng.normal(shown, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")


def decided(opened: Page) -> dict[str, tuple[str, str]]:
    path = opened.path.parent / "corrections.csv"
    found = Corrections.read(path).by_file if path.exists() else {}
    return {file: (each.decision, each.corrected) for file, each in found.items()}


def stands_well(opened: Page) -> None:
    """All parts are inside the window, none overlaps another, no text is cut, all is legible."""
    widget = opened.widget("relabel")
    widget.evaluate("(root) => root.scrollIntoView({ block: 'start' })")
    opened.page.wait_for_timeout(300)
    size = opened.page.viewport_size
    assert size is not None
    pane = opened.page.locator(".jp-Notebook:visible").first.bounding_box()
    places = widget.evaluate(PLACES)
    assert len(places) > 10
    for each in places:
        assert each["x"] >= pane["x"], each
        assert each["x"] + each["width"] <= pane["x"] + pane["width"], each
        assert each["x"] + each["width"] <= size["width"], each
        assert not each["cut"], each
        assert each["contrast"] >= 4.5, each
    assert overlaps(places) == []
    buttons = [each for each in places if "nofe-tool" in each["text"]]
    bottom = max(each["y"] + each["height"] for each in buttons)
    top = min(each["y"] for each in places)
    assert bottom - top <= pane["height"], "image and buttons are not seen together"


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_list_fits_its_place(opened: Page, theme: str) -> None:
    opened.theme(theme)
    opened.without_sidebar()
    for width, zoom in ((1400, 1), (900, 1), (600, 1), (1400, 1.5), (900, 1.5)):
        opened.resize(width, zoom=zoom)
        opened.shoot(opened.widget("relabel"), f"relabel_{theme}_{width}_{round(100 * zoom)}")
        stands_well(opened)


def focused(opened: Page) -> str:
    """The class and the text of what has the focus."""
    found: str = opened.page.evaluate(
        "() => `${document.activeElement.className} ${document.activeElement.textContent}`"
    )
    return found


def current(opened: Page) -> int:
    """The place of the item that is marked as the current one, in the page."""
    items = opened.widget("relabel").locator(".nofe-item")
    marked = [items.nth(n).get_attribute("aria-current") for n in range(items.count())]
    assert marked.count("true") == 1
    return marked.index("true")


def press(opened: Page, *keys: str) -> None:
    for key in keys:
        opened.page.keyboard.press(key)
        opened.page.wait_for_timeout(400)


def test_the_list_is_gone_through_by_keys_alone(opened: Page) -> None:
    """Each key is in the file before the next; the current image stays in sight."""
    opened.resize(900)
    files = opened.kernel("[each['file'] for each in found.items]")
    suggested = opened.kernel("[each['suggested'] for each in found.items]")
    opened.widget("relabel").locator("select").first.focus()
    for _ in range(8):
        press(opened, "Tab")
        if "nofe-item" in focused(opened):
            break
    press(opened, "k")
    assert decided(opened) == {files[0]: ("keep", "")}
    assert current(opened) == 1
    assert "nofe-item" in focused(opened)
    press(opened, "r", "e")
    expected = {
        files[0]: ("keep", ""),
        files[1]: ("relabel", suggested[1]),
        files[2]: ("exclude", ""),
    }
    assert decided(opened) == expected
    press(opened, "u")
    del expected[files[2]]
    assert decided(opened) == expected
    assert current(opened) == 2  # what is undone is decided on next
    shown = opened.widget("relabel").locator(".nofe-item")
    assert "<b>green" in " ".join(shown.all_inner_texts())  # as text
    for n, wanted in enumerate(("✓ kept", f"→ {suggested[1]}")):
        assert shown.nth(n).locator("strong").inner_text() == wanted
    # another class than the one that is suggested: from the menu, with Enter
    place = current(opened)
    press(opened, "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab")
    menu = opened.widget("relabel").locator("select[aria-label='the right class']")
    assert menu.evaluate("(menu) => menu === document.activeElement")
    label = opened.kernel("[each['label'] for each in found.items]")[place]
    (other,) = set(COLOURS) - {suggested[place], label}
    press(opened, other[0].upper() if other[0] == "Ê" else other[0], "Enter")
    assert decided(opened)[files[place]] == ("relabel", other)
    # to the end: the list scrolls, and the page stays
    press(opened, "Tab", "Tab", "Tab", "Tab", "Tab")
    for _ in range(len(files)):
        opened.page.keyboard.press("ArrowDown")
    opened.page.wait_for_timeout(400)
    assert current(opened) == len(files) - 1
    box = shown.nth(len(files) - 1).bounding_box()
    queue = opened.widget("relabel").locator(".nofe-queue").bounding_box()
    assert queue["y"] <= box["y"]
    assert box["y"] + box["height"] <= queue["y"] + queue["height"]


def strike(opened: Page, *keys: str) -> None:
    """Press keys before anything of the first can be answered."""
    opened.widget("relabel").locator(".nofe-item[aria-current='true']").focus()
    opened.page.evaluate(
        """(keys) => keys.forEach((key) => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })))""",
        list(keys),
    )


def test_keys_that_are_struck_quickly_decide_on_the_images_that_were_shown(opened: Page) -> None:
    files = opened.kernel("[each['file'] for each in found.items]")
    suggested = opened.kernel("[each['suggested'] for each in found.items]")
    widget = opened.widget("relabel")
    strike(opened, "k", "r", "e", "ArrowDown", "k")
    assert current(opened) == 5  # before the kernel has answered
    assert files[5] in widget.locator(".nofe-doubt").inner_text()
    # what is chosen meanwhile is not put back by the answers
    menu = widget.locator("select[aria-label='the right class']")
    label = opened.kernel("[each['label'] for each in found.items]")[5]
    (other,) = set(COLOURS) - {suggested[5], label}
    strike(opened, "k", "ArrowUp")
    menu.select_option(other)
    expected = {
        files[0]: ("keep", ""),
        files[1]: ("relabel", suggested[1]),
        files[2]: ("exclude", ""),
        files[4]: ("keep", ""),
        files[5]: ("keep", ""),
    }
    opened.wait_for("len(found._known)", len(expected))
    opened.page.wait_for_timeout(500)
    assert decided(opened) == expected
    shown = widget.locator(".nofe-item").evaluate_all("(all) => all.map((i) => i.dataset.decision)")
    assert shown[:7] == ["keep", "relabel", "exclude", "", "keep", "keep", ""]
    # undo takes back the last one, and the image that is shown then is decided on
    strike(opened, "u", "u")
    opened.wait_for("len(found._known)", 3)
    opened.page.wait_for_timeout(500)
    assert current(opened) == 4
    # a list that is changed in between: the image that was shown, not its place in the next list
    there = opened.kernel("[each['file'] for each in found.lists['worst confusions']]")
    assert there[4:5] != [files[4]]
    widget.locator("select").first.evaluate(
        """(select) => {
          select.value = "worst confusions";
          select.dispatchEvent(new Event("change"));
          document.activeElement.closest(".nofe-relabel").dispatchEvent(
            new KeyboardEvent("keydown", { key: "e", bubbles: true, cancelable: true }));
        }"""
    )
    opened.wait_for("found.which", "worst confusions")
    opened.wait_for("len(found._known)", 4)
    assert decided(opened)[files[4]] == ("exclude", "")
    # of two that are struck, the first is refused: its sentence stays, and its image comes back
    opened.kernel("setattr(found, 'which', 'labelled wrongly?')")
    opened.kernel("setattr(found, 'place', 5)")
    opened.page.wait_for_timeout(500)
    menu.evaluate("(select, label) => { select.value = label; }", label)
    strike(opened, "r", "k")
    opened.wait_for("len(found._known)", 5)
    opened.page.wait_for_timeout(500)
    assert decided(opened)[files[6]] == ("keep", "")
    assert files[5] not in decided(opened)
    assert current(opened) == 5
    assert "keep it" in widget.locator(".nofe-problem").inner_text()


def test_nothing_is_lost_on_a_change_of_the_list_or_with_a_killed_kernel(opened: Page) -> None:
    """By mouse; the list opened again shows what was decided, and goes on."""
    opened.theme("Light")
    widget = opened.widget("relabel")
    items = widget.locator(".nofe-item")
    files = opened.kernel("[each['file'] for each in found.items]")
    items.nth(3).click()
    widget.locator("button[data-decision='exclude']").click()
    opened.page.wait_for_timeout(500)
    items.nth(0).click()
    widget.locator("button[data-decision='relabel']").click()
    opened.page.wait_for_timeout(500)
    before = decided(opened)
    assert {file: each[0] for file, each in before.items()} == {
        files[3]: "exclude",
        files[0]: "relabel",
    }
    widget.locator(".nofe-doubt > .nofe-image").click()  # now the keys are the widget's
    press(opened, "ArrowDown", "e", "u")
    assert decided(opened) == before
    assert [cell.cell_type for cell in opened.cells()] == ["code", "code"]
    twin = opened.page.locator(".nofe-relabel").nth(1)
    both = [
        each.locator(".nofe-item").evaluate_all(
            "(items) => items.map((each) => [each.dataset.decision, each.ariaCurrent])"
        )
        for each in (widget, twin)
    ]
    assert both[0] == both[1]
    menu = widget.locator("select").first
    menu.select_option("worst confusions")
    opened.wait_for("found.which", "worst confusions")
    opened.page.wait_for_timeout(500)
    there = opened.kernel("[each['file'] for each in found.items]")
    for file, each in before.items():
        item = items.nth(there.index(file))
        assert item.get_attribute("data-decision") == each[0]
    menu.select_option("labelled wrongly?")
    opened.wait_for("found.which", "labelled wrongly?")
    assert items.nth(3).get_attribute("data-decision") == "exclude"
    stands_well(opened)
    os.kill(opened.kernel("__import__('os').getpid()"), signal.SIGKILL)
    opened.page.wait_for_timeout(6000)
    assert decided(opened) == before
    for button in opened.page.locator(".jp-Dialog button.jp-mod-accept").all():
        button.click()
    items.nth(1).click()
    press(opened, "k")
    notice = widget.locator(".nofe-kernel")
    opened.page.wait_for_timeout(2000)
    assert notice.is_visible()
    assert "Nothing is done here" in notice.inner_text()
    assert items.nth(1).get_attribute("data-decision") == ""
    assert decided(opened) == before
    opened.run_all()
    opened.page.wait_for_selector(".nofe-relabel.nofe-live .nofe-item", timeout=90_000)
    opened.page.wait_for_timeout(1000)
    items = opened.widget("relabel").locator(".nofe-item")
    assert [items.nth(n).get_attribute("data-decision") for n in (0, 1, 3)] == [
        "relabel",
        "",
        "exclude",
    ]
    assert current(opened) == 1
    opened.shoot(opened.widget("relabel"), "relabel_opened_again")
    press(opened, "Escape")
    items.nth(1).click()
    press(opened, "k")
    assert len(decided(opened)) == 3
