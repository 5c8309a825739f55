"""The prediction inspector and the page of a look as widgets: two views, and keys alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import nofe_lab
from nofe_lab import Dataset
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.networks import CNN, NofE, backbone
from nofe_lab.views import PredictionInspector, SpecialtyBoard
from nofe_lab.views.widgets.look import LookPage
from tests.browser.conftest import PLACES, Host, in_window, overlaps
from tests.browser.test_confusion_explorer import (
    answers,
    blocks_of,
    class_names,
    source,
    text_of_menus,
)

pytestmark = pytest.mark.xdist_group("browser")

Show = Callable[..., Host]
C = 12


def inspector() -> PredictionInspector:
    """Of two untrained networks, whose answers are said to be others."""
    split = source(C, side=32)
    data = Dataset("noise", class_names(C), split, split, split)
    network, preprocess = backbone("alexnet_quick"), Preprocess.measure(data, "standardised")
    base = ImageNetwork(preprocess, CNN(network, C, "kaiming", 0))
    nofe = ImageNetwork(preprocess, NofE(network, blocks_of(C, 3), "kaiming", 0))
    found = PredictionInspector(data, split, base, nofe, answers(C, 3), answers(C, 3.5))
    found.which = "all"
    return found


def look() -> LookPage:
    said = answers(C, 3)
    images = np.stack([image.numpy() for image in source(C).sample(range(len(said.labels)))])
    given = (said.labels, said.probabilities)
    return LookPage(nofe_lab.look(given, images, class_names=class_names(C), K=3)._page())


def board() -> SpecialtyBoard:
    split = source(C)
    return SpecialtyBoard(Dataset("noise", class_names(C), split, split, split), blocks_of(C, 3))


def tab_to(shown: Host, selector: str) -> None:
    """Press Tab until an element has the focus, and see where it is."""
    wanted = shown.page.locator(selector).first
    for _ in range(25):
        shown.page.keyboard.press("Tab")
        if wanted.evaluate("(e) => e === document.activeElement"):
            break
    else:
        pytest.fail(f"Tab does not reach {selector}")
    assert wanted.evaluate("(e) => getComputedStyle(e).outlineStyle") != "none"


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_the_inspector_fits_its_place(placed: Show, width: int, zoom: float) -> None:
    shown = placed(inspector(), "inspector", width, zoom)
    parts = [
        ".nofe-toolbar",
        ".nofe-maps",
        ".nofe-said table",
        ".nofe-drawing",
        "#cell .nofe-words",
    ]
    boxes = [shown.box(part) for part in parts]
    assert overlaps(boxes) == []
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width / zoom for box in boxes)
    assert overlaps(each.bounding_box() for each in shown.page.locator("figure").all()) == []
    longest = shown.page.locator(".nofe-bars").first.locator(".nofe-bar").first.bounding_box()
    assert longest["width"] >= 20
    assert all(room >= text for text, room in text_of_menus(shown))
    if width / zoom >= 900:
        assert in_window(shown.page, boxes[2])
        assert boxes[2]["x"] >= boxes[1]["x"] + boxes[1]["width"]


def test_the_inspector_is_used_by_keyboard_alone(host: Show) -> None:
    shown = host(inspector(), 1200, 900)
    keys, title = shown.page.keyboard, shown.page.locator("h4")
    tab_to(shown, "select")
    keys.press("Home")  # the menu's own keys
    shown.wait_for("which", "corrected")
    keys.press("End")
    shown.wait_for("which", "all")
    tab_to(shown, "[aria-label='the next image']")
    keys.press("Enter")
    shown.wait_for("index", 1)
    tab_to(shown, ".nofe-maps")
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        keys.press(key)
        shown.wait_for("place", place)
    assert title.inner_text() == f"image 2: {class_names(C)[0]}"
    assert shown.page.locator(".nofe-toolbar output").inner_text() == "3 of 360"
    keys.press("Control+ArrowRight")
    for _ in range(4):  # before any is answered
        keys.press("ArrowRight")
    shown.wait_for("place", 6)


def test_arrow_keys_work_where_one_has_clicked_into_the_inspector(host: Show) -> None:
    shown = host(inspector(), 1200, 900)
    shown.page.locator("figure").nth(1).click()
    focused = shown.page.locator(":focus")
    assert focused.get_attribute("data-lm-suppress-shortcuts") == "true"  # JupyterLab's
    shown.page.keyboard.press("ArrowRight")
    shown.wait_for("place", 1)


def test_two_views_of_an_inspector(host: Show) -> None:
    shown = host(inspector(), 1200, 1800)
    shown.page.evaluate("window.show('second')")
    shown.page.locator("#second").get_by_label("the next image").click()
    shown.wait_for("place", 1)
    shown.page.locator("#cell").get_by_label("Step through").select_option("wrong in both")
    shown.wait_for("which", "wrong in both")
    for part in ("h4", ".nofe-toolbar output", ".nofe-words", ".nofe-said table"):
        first, second = (
            shown.page.locator(f"{place} {part}").first.inner_text()
            for place in ("#cell", "#second")
        )
        assert first == second != ""
    assert shown.page.locator("#second select").input_value() == "wrong in both"
    # a drawing is the view's own until it is shown
    shown.page.locator("#second summary").click()
    assert shown.page.locator("#second .nofe-sketch").is_visible()
    assert not shown.page.locator("#cell .nofe-sketch").is_visible()


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_the_page_fits_its_place(placed: Show, width: int, zoom: float) -> None:
    shown = placed(look(), "look_widget", width, zoom)
    assert overlaps(each.bounding_box() for each in shown.page.locator("section").all()) == []
    parts = [".nofe-toolbar", ".nofe-matrix", ".nofe-beside"]
    assert overlaps(shown.box(part) for part in parts) == []
    assert shown.inside(".nofe-toolbar")
    assert all(room >= text for text, room in text_of_menus(shown))


def test_the_page_is_used_by_keyboard_alone(host: Show) -> None:
    shown = host(look(), 1200, 900)
    keys = shown.page.keyboard
    tab_to(shown, "input[type=range]")
    keys.press("Home")
    shown.wait_for("K", 2)
    assert shown.page.locator(".nofe-groups > li").count() == 2
    assert shown.page.locator(".nofe-update").inner_text() == "K = 2"
    assert (
        shown.widget._page["sentences"][2].split()[0]
        in shown.page.locator(".nofe-ceiling").inner_text()
    )
    tab_to(shown, "select")
    keys.press("End")
    assert shown.page.locator("select").input_value() == "leaves"
    keys.press("Home")
    tab_to(shown, "canvas")
    keys.press("ArrowDown")
    tip = shown.page.locator(".nofe-tip")
    assert " images" in tip.inner_text()
    assert shown.inside(".nofe-tip")
    assert "Enter" not in shown.page.locator("canvas").get_attribute("aria-label")
    before = shown.page.locator(".nofe-blocks > button").count()
    keys.press("+")
    assert shown.page.locator(".nofe-blocks > button").count() < before
    keys.press("-")
    assert shown.page.locator(".nofe-blocks > button").count() == before == 2
    tab_to(shown, "a[download]")


def test_two_views_of_a_page(host: Show) -> None:
    shown = host(look(), 1200, 900)
    shown.page.evaluate("window.show('second')")
    shown.page.locator("#second input[type=range]").press("Home")
    shown.wait_for("K", 2)
    for place in ("#cell", "#second"):
        view = shown.page.locator(place)
        assert view.locator(".nofe-update").inner_text() == "K = 2"
        assert view.locator("input[type=range]").input_value() == "0"
        assert view.locator(".nofe-groups > li").count() == 2
        assert view.locator(".nofe-blocks > button").count() == 2
        assert "K=2" in view.locator("pre").inner_text()
    # the order is a view's own
    shown.page.locator("#second select").select_option("leaves")
    assert shown.page.locator("#second .nofe-blocks > button").count() == 0
    assert shown.page.locator("#cell .nofe-blocks > button").count() == 2
    shown.set(K=3)
    for place in ("#cell", "#second"):
        assert shown.page.locator(f"{place} .nofe-groups > li").count() == 3


@pytest.mark.parametrize(("width", "zoom"), PLACES)
def test_the_board_s_menus_are_not_cut(host: Show, width: int, zoom: float) -> None:
    shown = host(board(), width, 900, zoom)
    assert shown.is_narrow()
    menus = text_of_menus(shown)
    assert menus
    assert all(room >= text for text, room in menus)
