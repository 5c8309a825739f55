"""The confusion explorer, the search of the cards, and the evolution: what is seen, and where."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nofe_lab import Dataset, Specialties
from nofe_lab.data import Resident
from nofe_lab.evaluation import Predictions
from nofe_lab.views import ConfusionExplorer, EvolutionPlayer, SpecialtyExplorer
from nofe_lab.views.widgets.confusion import LEAVES
from tests.browser.conftest import (
    PLACES,
    SHOTS,
    Host,
    Page,
    in_window,
    overlap,
    overlaps,
    write_notebook,
)

pytestmark = pytest.mark.xdist_group("browser")

LONG = "clusters of the base CNN's confusions"
Show = Callable[..., Host]
CUT = "e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1"
"""Whether some of an element's text is not seen."""


def class_names(C: int) -> tuple[str, ...]:
    return tuple(f"the long name of class {c}" if c % 3 else f"Ébène {c}" for c in range(C))


def blocks_of(C: int, K: int) -> Specialties:
    names = tuple(f"look-alikes {k}" for k in range(K))
    return Specialties(class_names(C), tuple(c * K // C for c in range(C)), K, names)


def answers(C: int, skill: float, per_class: int = 30) -> Predictions:
    """Of a network that mistakes classes mostly for their neighbours."""
    rng = np.random.default_rng(int(skill * 10))
    labels = np.arange(C).repeat(per_class)
    logits = rng.normal(size=(len(labels), C)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += skill
    logits[np.arange(len(labels)), (labels + rng.integers(1, 3, len(labels))) % C] += 2
    return Predictions(logits, labels)


def source(C: int, per_class: int = 30, side: int = 16) -> Resident:
    labels = torch.arange(C).repeat_interleave(per_class)
    images = torch.randint(256, (len(labels), 3, side, side), dtype=torch.uint8)
    return Resident(images, labels)


def explorer(C: int = 20, K: int = 4) -> ConfusionExplorer:
    orders = {"specialties": blocks_of(C, K), LONG: Specialties.random(class_names(C), 2 * K, 0)}
    networks = {"base CNN": answers(C, 3), "NofE": answers(C, 3.5)}
    return ConfusionExplorer(source(C), networks, orders)


def names_beside(host: Host, which: str = "row") -> list[str]:
    """The names beside an axis, whole, as their titles hold them."""
    titles = "spans => spans.map((span) => span.title)"
    found: list[str] = host.page.locator(f"#cell .nofe-{which}-names > span").evaluate_all(titles)
    return found


def point(host: Host, i: int, j: int, n: int) -> dict[str, float]:
    """The middle of a cell, of n in a row."""
    side = host.box("canvas")["width"]
    return {"x": (j + 0.5) * side / n, "y": (i + 0.5) * side / n}


def tip(host: Host) -> str:
    found: str = host.page.locator("#cell .nofe-tip").inner_text()
    return found


def luminance(host: Host, selector: str) -> np.ndarray:
    """Of what is seen of an element, from 0 to 255, pixel by pixel."""
    shot = host.page.locator(selector).first.screenshot()
    return np.array(Image.open(io.BytesIO(shot)).convert("L"), dtype=float)


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_the_matrix_fits_its_place(placed: Show, width: int, zoom: float, theme: str) -> None:
    shown = placed(explorer(), "confusion", width, zoom)
    window = shown.page.viewport_size
    parts = [".nofe-toolbar", ".nofe-upright", ".nofe-row-names", "canvas", ".nofe-blocks"]
    parts += [".nofe-column-names", ".nofe-axis:not(.nofe-upright)", ".nofe-matrix > .nofe-note"]
    for part in [*parts, ".nofe-detail", ".nofe-detail figure"]:
        assert shown.inside(part), part
    assert overlaps(shown.box(part) for part in [*parts, ".nofe-detail", "#cell .nofe-words"]) == []
    for name in shown.page.locator(".nofe-row-names > span, .nofe-column-names > span").all():
        assert in_window(shown.page, name.bounding_box())
        assert not name.evaluate(CUT)
    assert len(names_beside(shown)) == len(names_beside(shown, "column")) == 20
    matrix, detail = shown.box(".nofe-matrix"), shown.box(".nofe-detail")
    if window["width"] >= 900:
        assert detail["x"] >= matrix["x"] + matrix["width"]
        assert detail["y"] < matrix["y"] + 10
    else:
        assert detail["y"] >= matrix["y"] + matrix["height"]
    canvas = shown.box("canvas")
    assert canvas["width"] >= 0.4 * min(window["width"], window["height"])
    pixels = shown.page.locator("canvas").evaluate("canvas => canvas.width")
    assert pixels == round(canvas["width"] * zoom)
    # ink on paper, in both themes
    grey = luminance(shown, "canvas")
    paper = np.median(grey)
    assert paper > 200 if theme == "light" else paper < 60
    assert np.abs(grey - paper).max() > 150


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_names_stand_where_they_can_be_read(host: Show, width: int, zoom: float) -> None:
    shown = host(explorer(100, 10), width, 900, zoom)
    shown.page.wait_for_timeout(200)
    assert names_beside(shown) == names_beside(shown, "column") == []  # they could not be read
    assert shown.inside("canvas")
    blocks = shown.page.locator(".nofe-blocks > button")
    assert [text.strip("− ") for text in blocks.all_inner_texts()] == [
        f"look-alikes {k}" for k in range(10)
    ]
    shown.page.locator("canvas").dblclick(position=point(shown, 23, 27, 100))
    shown.wait_for("column", 27)
    names = list(class_names(100)[20:30])
    assert names_beside(shown) == names_beside(shown, "column") == names
    assert shown.is_narrow()
    canvas = shown.box("canvas")
    rows = shown.page.locator(".nofe-row-names > span").all()
    columns = shown.page.locator(".nofe-column-names > span").all()
    for n, (row, column) in enumerate(zip(rows, columns, strict=True)):
        for name in (row, column):
            assert float(name.evaluate("e => getComputedStyle(e).fontSize").removesuffix("px")) >= 8
            assert not name.evaluate(CUT)
        at, along = row.bounding_box(), column.bounding_box()
        middle = (n + 0.5) * canvas["width"] / 10
        assert abs(at["y"] + at["height"] / 2 - canvas["y"] - middle) < 1
        assert abs(along["x"] + along["width"] / 2 - canvas["x"] - middle) < 1
        assert at["x"] >= 0
        assert at["x"] + at["width"] <= canvas["x"]
        assert along["y"] >= canvas["y"] + canvas["height"]
    shown.shoot(f"confusion_zoomed_{width}_{zoom}")
    shown.page.get_by_role("button", name="Zoom out").click()
    assert names_beside(shown) == []
    assert blocks.count() == 10


def test_it_is_drawn_again_when_its_place_or_the_theme_changes(host: Show) -> None:
    shown = host(explorer(), 1400, 900)
    shown.page.wait_for_timeout(200)
    before = shown.box("canvas")["width"]
    shown.page.set_viewport_size({"width": 600, "height": 900})
    shown.page.wait_for_timeout(300)
    assert shown.box("canvas")["width"] < before
    assert shown.is_narrow()
    light = luminance(shown, "canvas").mean()
    shown.theme("dark")
    shown.page.wait_for_timeout(200)
    assert luminance(shown, "canvas").mean() < light - 100


def test_blocks_close_to_specialties_and_open_again(host: Show) -> None:
    shown = host(explorer(), 1200, 900)
    counts, own = shown.widget.confusions["base CNN"], blocks_of(20, 4)
    whole = [*class_names(20)]
    shown.page.locator(".nofe-blocks > button").nth(1).click()
    assert names_beside(shown) == [*whole[:5], "look-alikes 1", *whole[10:]]
    shown.page.get_by_role("button", name="Open all blocks").click()
    assert names_beside(shown) == whole
    shown.page.get_by_role("button", name="Close all blocks").click()
    assert names_beside(shown) == names_beside(shown, "column") == list(own.names)
    between = counts[0:5, 5:10].sum()
    shown.page.locator("canvas").hover(position=point(shown, 0, 1, 4))
    assert tip(shown).startswith(f"look-alikes 0 → look-alikes 1: {between} of 150 images")
    errors = counts[5:10, 5:10].sum() - np.trace(counts[5:10, 5:10])
    shown.page.locator("canvas").hover(position=point(shown, 1, 1, 4))
    assert f"look-alikes 1 → look-alikes 1: {errors} errors inside, of 150 images" in tip(shown)
    assert "its errors inside are counted" in shown.page.locator(".nofe-note").inner_text()
    # the worst confusion of the block is what a click shows
    shown.page.locator("canvas").click(position=point(shown, 0, 1, 4))
    row, column = np.unravel_index(counts[0:5, 5:10].argmax(), (5, 5))
    shown.wait_for("row", row)
    assert counts[shown.widget.row, shown.widget.column] == counts[row, column + 5]
    # zooming in opens it
    shown.page.get_by_role("button", name="Zoom in").click()
    assert names_beside(shown) == whole[0:5]
    assert names_beside(shown, "column") == whole[5:10]


def test_the_tooltip_follows_a_change_of_order(host: Show) -> None:
    shown = host(explorer(), 1200, 900)
    names = class_names(20)
    shown.page.locator("canvas").hover(position=point(shown, 3, 11, 20))
    before = shown.box("canvas")
    at = [before[side] + before["width"] * (n + 0.5) / 20 for side, n in (("y", 3), ("x", 11))]
    for order in (LONG, LEAVES, "specialties"):
        shown.set(order_by=order)
        found = shown.widget.matrix["order"]
        assert names_beside(shown) == [names[c] for c in found]
        canvas = shown.box("canvas")  # an order without blocks has room for a larger one
        i, j = (
            int(20 * (where - canvas[side]) / canvas["width"])
            for side, where in zip("yx", at, strict=True)
        )
        assert tip(shown).startswith(f"{names[found[i]]} → {names[found[j]]}: ")
    shown.set(network="NofE minus base CNN")
    count = [shown.widget.confusions[name][3, 11] for name in ("NofE", "base CNN")]
    assert f"NofE {count[0]} of 30 images" in tip(shown)
    assert f"base CNN {count[1]} of 30 images" in tip(shown)


def test_the_tooltip_stays_in_the_widget(host: Show) -> None:
    shown = host(explorer(), 600, 900)
    for i, j in ((0, 0), (0, 19), (19, 0), (19, 19), (10, 10)):
        shown.page.locator("canvas").hover(position=point(shown, i, j, 20))
        assert shown.inside(".nofe-tip")


def test_the_scale_is_by_row_column_or_count(host: Show) -> None:
    shown = host(explorer(), 1200, 900)
    counts = shown.widget.confusions["base CNN"]
    n, all_answers, painted = counts[1, 2], counts[:, 2].sum(), {}
    for scale, text, unit in (
        ("row", f"{n} of 30 images ({n / 30:.1%})", "of a class's images"),
        ("column", f"{n} of {all_answers} answers ({n / all_answers:.1%})", "of the answers"),
        ("count", f"{n} of 30 images", "images or more"),
    ):
        shown.page.get_by_label("Scale").select_option(scale)
        shown.wait_for("scale", scale)
        shown.page.locator("canvas").hover(position=point(shown, 1, 2, 20))
        assert text in tip(shown)
        assert unit in shown.page.locator(".nofe-matrix > .nofe-note").inner_text()
        painted[scale] = shown.page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    assert painted["row"] != painted["column"]
    assert painted["row"] == painted["count"]  # all classes have as many images


def test_the_note_says_what_a_strong_cell_means(host: Show) -> None:
    """Half of a small class's images, a tenth of a large one's, and whose answers they are."""
    wrong = {(0, 1): 5, (2, 3): 10, (4, 5): 4}
    right = {0: 5, 1: 95, 2: 90, 3: 30, 4: 46}
    outlier = {(5, 0): 100}  # the scale ends below it
    counts = wrong | outlier | {(c, c): n for c, n in right.items()}
    labels, said = (np.repeat([cell[d] for cell in counts], [*counts.values()]) for d in (0, 1))
    other = np.where((labels == 2) & (said == 3), 2, said)
    shares = np.eye(6, dtype=np.float32)
    rows = Predictions(shares[said], labels), Predictions(shares[other], labels)
    split = Resident(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels))
    order = {"specialties": blocks_of(6, 2)}
    shown = host(ConfusionExplorer(split, {"base CNN": rows[0], "NofE": rows[1]}, order))
    note = shown.page.locator(".nofe-matrix > .nofe-note")
    for scale, strongest, sentence in (
        ("row", (0, 1), "the larger the share of a class's images; full strength at 50% or more"),
        ("column", (4, 5), "the share of the answers with a class; full strength at 95% or more"),
        ("count", (2, 3), "the larger the number of images; full strength at 10 images or more"),
    ):
        shown.set(scale=scale)
        assert sentence in note.inner_text()
        grey = luminance(shown, "canvas")
        cell = len(grey) / 6
        ink = {(i, j): grey[int((i + 0.25) * cell), int((j + 0.75) * cell)] for i, j in wrong}
        assert min(ink, key=ink.__getitem__) == strongest
    shown.set(network="NofE minus base CNN", scale="row")
    assert note.inner_text().startswith(
        "Purple: a larger share of a class's images with NofE than with base CNN, orange: a smaller"
    )
    assert "full strength at 10 points or more" in note.inner_text()


def test_the_note_about_the_diagonal_is_true(host: Show) -> None:
    """Right answers are no ink but a thin line, however many they are."""
    shown = host(explorer(), 1200, 900)
    note = shown.page.locator(".nofe-matrix > .nofe-note").inner_text()
    assert "a thin line marks right answers" in note
    counts = shown.widget.confusions["base CNN"]
    grey = luminance(shown, "canvas")
    cell = len(grey) / 20
    empty = next((i, j) for i in range(5) for j in range(5) if counts[i, j] == 0)

    def corner(i: int, j: int) -> float:
        return float(grey[int((i + 0.25) * cell), int((j + 0.75) * cell)])

    def middle(i: int, j: int) -> float:
        at = int((i + 0.5) * cell)
        return float(grey[at - 2 : at + 3, int((j + 0.5) * cell)].min())

    assert counts[2, 2] > counts[2, 3] > 0
    assert abs(corner(2, 2) - corner(*empty)) < 3
    assert middle(2, 2) < corner(2, 2) - 30
    assert abs(middle(*empty) - corner(*empty)) < 3


def test_it_is_used_by_keyboard_alone(host: Show) -> None:
    shown = host(explorer(), 1200, 900)
    keys = shown.page.keyboard
    canvas = shown.page.locator("canvas")
    for _ in range(12):
        keys.press("Tab")
        if canvas.evaluate("canvas => canvas === document.activeElement"):
            break
    else:
        pytest.fail("Tab does not reach the matrix")
    shown.set(row=3, column=4)
    for key in ("ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        keys.press(key)
    names = class_names(20)
    assert tip(shown).startswith(f"{names[4]} → {names[15]}: ")
    cross = shown.box(".nofe-cross")
    pitch = shown.box("canvas")["width"] / 20
    middle = cross["x"] + cross["width"] / 2 - shown.box("canvas")["x"]
    assert abs(middle - 15.5 * pitch) < 1.5
    keys.press("Enter")
    shown.wait_for("column", 15)
    assert shown.widget.row == 4
    title = shown.page.locator(".nofe-detail h4").inner_text()
    assert title == f"{names[4]} → {names[15]}"
    keys.press("+")
    assert names_beside(shown) == list(names[0:5])
    assert names_beside(shown, "column") == list(names[15:20])
    keys.press("ArrowDown")  # the view goes with the cursor
    assert names_beside(shown) == list(names[1:6])
    keys.press("-")
    keys.press("c")
    assert names_beside(shown) == [*names[0:5], "look-alikes 1", *names[10:]]
    keys.press("c")
    assert names_beside(shown) == list(names)


def test_two_views_of_one_widget(host: Show) -> None:
    shown = host(explorer(), 1000, 1600)
    shown.page.evaluate("window.show('second')")
    shown.page.wait_for_timeout(200)
    first = shown.page.locator("#cell canvas")
    first.dblclick(position=point(shown, 6, 7, 20))
    shown.wait_for("row", 6)
    assert len(names_beside(shown)) == 5
    others = shown.page.locator("#second .nofe-row-names > span")
    assert others.count() == 20  # a zoom is a view's own
    for place, n in (("#cell", 5), ("#second", 20)):
        canvas, cross = shown.box(f"{place} canvas"), shown.box(f"{place} .nofe-cross")
        at = 2.5 if n == 5 else 7.5
        assert abs(cross["x"] + cross["width"] / 2 - canvas["x"] - at * canvas["width"] / n) < 1.5
    second = shown.page.locator("#second")
    second.get_by_label("Order by").select_option(LEAVES)
    shown.wait_for("order_by", LEAVES)
    order = shown.widget.matrix["order"]
    assert names_beside(shown) == [class_names(20)[c] for c in order]
    assert others.count() == 20


def test_a_thousand_classes_come_in_five_megabytes(host: Show) -> None:
    C = 1000
    matrix = ConfusionExplorer(source(C, 10), {"n": answers(C, 3, 10)}, {"s": blocks_of(C, 30)})
    told: list[int] = [len(matrix.png)]

    def weigh(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for each in value:
                weigh(each)
        else:
            told.append(len(value if isinstance(value, bytes) else str(value)))

    weigh(matrix.get_state())
    assert sum(told) < 5_000_000
    shown = host(matrix, 1400, 900)
    assert shown.inside("canvas")
    # of several cells in one pixel, the strongest is told
    row, column = matrix.row, matrix.column
    count = int(matrix.confusions["n"][row, column])
    shown.page.locator("canvas").hover(position=point(shown, row, column, C))
    assert f": {count} of 10 images" in tip(shown)


def text_of_menus(host: Host) -> list[tuple[float, float]]:
    """Of every menu: the width of its longest text, and the room for it."""
    found: list[tuple[float, float]] = host.page.locator("select").evaluate_all(
        """menus => menus.map((menu) => {
          const style = getComputedStyle(menu);
          const pen = document.createElement("canvas").getContext("2d");
          pen.font = style.font;
          const texts = [...menu.options].map(({ text }) => pen.measureText(text).width);
          const edges = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
          return [Math.max(...texts), menu.clientWidth - edges];
        })"""
    )
    return found


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_menus_are_not_cut(host: Show, width: int, zoom: float) -> None:
    for widget in (explorer(), cards(20), player()):
        shown = host(widget, width, 900, zoom)
        assert shown.is_narrow()
        menus = text_of_menus(shown)
        assert menus
        assert all(room >= text for text, room in menus)


# --- the search


def cards(C: int) -> SpecialtyExplorer:
    split = source(C, 2)
    data = Dataset("noise", class_names(C), split, split, split)
    own = blocks_of(C, max(C // 10, 2))
    counts = np.eye(C, dtype=np.int64)
    return SpecialtyExplorer(data, own, {"n": counts}, others={LONG: own})


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [600, 900, 1400])
def test_the_search_scrolls_folds_accents_and_says_when_nothing_is_found(
    host: Show, width: int, theme: str
) -> None:
    shown = host(cards(300), width, 900)
    shown.theme(theme)
    search = shown.page.get_by_label("Search a class")
    status = shown.page.locator(".nofe-toolbar [role=status]")

    def is_in_view(label: int) -> bool:
        button, frame = shown.box(f"[data-label='{label}']"), shown.box(".nofe-cards-box")
        return (
            frame["y"] <= button["y"]
            and button["y"] + button["height"] <= frame["y"] + frame["height"] + 1
        )

    assert not is_in_view(288)
    search.fill("ebene 288")
    assert is_in_view(288)
    assert status.inner_text() == "1 class"
    undimmed = shown.page.locator("button.nofe-class:not(.nofe-dim)")
    assert undimmed.count() == 1
    search.press("Enter")
    shown.wait_for("label", 288)
    assert is_in_view(288)
    search.fill("ÉBÈNE")
    assert status.inner_text() == "100 classes"
    assert undimmed.count() == 100
    search.fill("ebony")
    assert status.inner_text() == "no class is called so"
    assert shown.inside(".nofe-toolbar [role=status]")
    assert not overlap(shown.box(".nofe-toolbar [role=status]"), shown.box("input[type=search]"))
    shown.shoot(f"search_{width}_{theme}")
    search.press("Enter")
    search.fill("")
    assert status.inner_text() == ""
    assert shown.widget.label == 288


def test_the_search_of_one_view_does_not_scroll_the_other(host: Show) -> None:
    shown = host(cards(300), 1400, 2000)
    shown.page.evaluate("window.show('second')")
    shown.page.locator("#cell").get_by_label("Search a class").fill("ebene 288")
    shown.wait_for("search", "ebene 288")
    second = shown.page.locator("#second")
    assert second.get_by_label("Search a class").input_value() == "ebene 288"
    assert second.locator(".nofe-toolbar [role=status]").inner_text() == "1 class"
    assert second.locator(".nofe-cards-box").evaluate("e => e.scrollTop") == 0


# --- the evolution


def player(C: int = 20, K: int = 4, updates: int = 8) -> EvolutionPlayer:
    maps = [Specialties.random(class_names(C), K, seed).of for seed in range(updates)]
    maps.append(blocks_of(C, K).of)
    history = pd.concat(
        pd.DataFrame({"update": n, "class": range(C), "specialty": of}) for n, of in enumerate(maps)
    )
    rows = {"update": range(1, updates + 1), "moved": C}
    objective = np.linspace(0.5, 0.501, updates)  # before and after lie close to each other
    table = pd.DataFrame({**rows, "objective_before": objective, "objective_after": objective})
    return EvolutionPlayer(history, blocks_of(C, K), table)


MARKS = """() => [...document.querySelectorAll("#cell .nofe-marks > g")].map((group) => {
  const [x0, y0, x, y] = [...group.children].flatMap((circle) =>
    ["cx", "cy"].map((at) => Number(circle.getAttribute(at))));
  return { label: Number(group.dataset.label), x0, y0, x, y };
})"""


def marks(host: Host) -> list[dict[str, float]]:
    """The classes that moved, as soon as they rest: where they were (x0, y0) and are (x, y)."""
    found: list[dict[str, float]] = host.page.evaluate(MARKS)
    for _ in range(50):
        host.page.wait_for_timeout(200)
        before, found = found, host.page.evaluate(MARKS)
        if found == before:
            return found
    pytest.fail("the classes do not come to rest")


def test_classes_move_from_specialty_to_specialty(host: Show) -> None:
    shown = host(player(), 1400, 900)
    shown.set(update=3)
    marks(shown)
    shown.page.evaluate(
        f"""() => {{
          window.seen = [];
          const see = () => {{ window.seen.push(({MARKS})()); requestAnimationFrame(see); }};
          see();
        }}"""
    )
    shown.set(update=4)
    there = marks(shown)
    maps = shown.widget.maps
    moved = np.flatnonzero(maps[4] != maps[3]).tolist()
    assert [each["label"] for each in there] == moved
    seen = shown.page.evaluate("window.seen")
    labels = [[each["label"] for each in frame] for frame in seen]
    on_the_way = [
        frame
        for frame, own in zip(seen, labels, strict=True)
        if own == moved and there[0]["x0"] < frame[0]["x"] < there[0]["x"]
    ]
    assert len(on_the_way) > 2
    for now, after in zip(on_the_way[len(on_the_way) // 2], there, strict=True):
        assert (now["x0"], now["y0"]) == (after["x0"], after["y0"])
        assert min(now["y0"], after["y"]) < now["y"] < max(now["y0"], after["y"])
    shown.shoot("evolution_moved")


def test_nothing_moves_where_the_reader_wants_no_motion(host: Show) -> None:
    shown = host(player(), 1400, 900)
    shown.page.emulate_media(reduced_motion="reduce")
    shown.set(update=3)
    places = shown.page.evaluate(MARKS)
    assert marks(shown) == places != []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_before_and_after_are_both_seen(host: Show, width: int, zoom: float, theme: str) -> None:
    shown = host(player(), width, 900, zoom)
    shown.theme(theme)
    marks(shown)
    shown.shoot(f"evolution_{width}_{zoom}_{theme}")
    assert shown.is_narrow()
    assert shown.inside(".nofe-alluvial")
    rows = shown.page.locator(".nofe-objective g").all()
    assert len(rows) == 8
    circles = [circle.bounding_box() for row in rows for circle in row.locator("circle").all()]
    assert overlaps(circles) == []
    assert all(shown.inside(f".nofe-objective g:nth-of-type({n}) circle") for n in (1, 8))
    # the letters stay large enough, and nothing of them is cut off
    picture = shown.box(".nofe-alluvial")
    for label in shown.page.locator(".nofe-alluvial text").all():
        found = label.bounding_box()
        assert found["height"] >= 9
        assert found["x"] >= picture["x"]


def test_arrow_keys_work_on_the_picture(host: Show) -> None:
    shown = host(player(), 1400, 900)
    shown.page.locator(".nofe-alluvial").click(position={"x": 5, "y": 5})
    focused = "document.activeElement.classList.contains('nofe-alluvial')"
    assert shown.page.evaluate(focused)
    suppressed = "document.activeElement.hasAttribute('data-lm-suppress-shortcuts')"
    assert shown.page.evaluate(suppressed)  # else JupyterLab would go to another cell
    keys = shown.page.keyboard
    keys.press("ArrowLeft")
    shown.wait_for("update", 7)
    keys.press("Home")
    shown.wait_for("update", 0)
    keys.press("ArrowRight")
    shown.wait_for("update", 1)
    order = np.argsort(shown.widget.drawing["places"][1]["row"]).tolist()
    keys.press("ArrowDown")
    shown.wait_for("label", order[0])
    keys.press("ArrowDown")
    shown.wait_for("label", order[1])
    followed = shown.page.locator(".nofe-way.nofe-followed")
    assert followed.get_attribute("data-label") == str(order[1])
    keys.press("Escape")
    shown.wait_for("label", -1)
    keys.press("End")
    shown.wait_for("update", 8)


def test_two_views_of_an_evolution_move_together(host: Show) -> None:
    shown = host(player(), 1000, 1800)
    shown.page.evaluate("window.show('second')")
    shown.page.locator("#cell .nofe-alluvial").press("ArrowLeft")
    shown.wait_for("update", 7)
    moved = marks(shown)
    at = ".nofe-alluvial .nofe-cursor"
    first, second = (
        shown.page.locator(f"{place} {at}").get_attribute("x1") for place in ("#cell", "#second")
    )
    assert first == second
    assert shown.page.locator("#second .nofe-marks > g").count() == len(moved)


# --- in JupyterLab

NOTEBOOK = """
import sys
sys.path.insert(0, ROOT)
from tests.browser.test_confusion_explorer import explorer
matrix = explorer()
matrix
"""


def test_the_matrix_in_jupyterlab(
    open_notebook: Callable[..., Page], lab: tuple[str, Path]
) -> None:
    root = str(Path(__file__).parents[2])
    write_notebook(lab[1], "confusion.ipynb", NOTEBOOK.replace("ROOT", repr(root)))
    opened = open_notebook("confusion.ipynb")
    opened.run_all()
    opened.page.wait_for_selector(".nofe-confusion.nofe-live", timeout=60_000)
    for theme in ("dark", "light"):
        opened.theme(theme)
        for width in (600, 900, 1400, 2000):
            opened.resize(width, 1000)
            widget = opened.widget("confusion")
            output = opened.page.locator(".jp-OutputArea-output:has(.nofe-confusion)").first
            outer = output.bounding_box()
            for part in ("canvas", ".nofe-blocks", ".nofe-detail", ".nofe-toolbar"):
                found = widget.locator(part).first.bounding_box()
                assert found["x"] >= outer["x"], (part, width)
                assert found["x"] + found["width"] <= outer["x"] + outer["width"], (part, width)
            opened.page.screenshot(path=SHOTS / f"lab_confusion_{width}_{theme}.png")
    canvas = opened.page.locator(".nofe-confusion canvas")
    active = opened.page.locator(".jp-Notebook .jp-Cell.jp-mod-active").first
    cell = active.get_attribute("data-windowed-list-index")
    opened.kernel("setattr(matrix, 'row', 3)")
    opened.page.wait_for_timeout(500)
    canvas.focus()
    for key in ("ArrowDown", "Enter"):
        opened.page.keyboard.press(key)
    opened.wait_for("matrix.row", 4)
    assert active.get_attribute("data-windowed-list-index") == cell
    assert opened.page.locator(".jp-Notebook.jp-mod-editMode").count() == 0
