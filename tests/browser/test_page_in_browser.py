"""The page to hand on, in a headless Chromium: Python serves it, other hosts are refused."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nofe_lab
from nofe_lab.data.pictures import image_tensor
from nofe_lab.inference import Classifier
from nofe_lab.views.web_page import runtime_files, write_web_page
from nofe_lab.views.widgets.base import cards, hex_colours, script
from tests.browser.conftest import CHROMIUM, SHOTS

pytestmark = pytest.mark.xdist_group("web page")  # its networks are trained once

OTHERS = ("generalist", "flat", "gate", "sparse")
KINDS = ("nofe", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS))

LISTEN = """() => {
  window.answers = [];
  document.querySelector("main").addEventListener("answer", ({ detail }) => {
    window.answers.push({ ...detail, pixels: [...detail.pixels] });
  });
}"""

LAYOUT = """() => {
  const main = document.querySelector("main"), texts = [], found = [];
  const seen = (what) => [...main.querySelectorAll(what)].filter((each) => each.checkVisibility());
  const across = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const along = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  const pairs = (of, each) => of.forEach((a, i) => of.slice(i + 1).forEach((b) => each(a, b)));
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent, element = walker.currentNode.parentElement;
    if (!text.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    for (let { left, right, top, bottom } of range.getClientRects()) {
      for (let up = element; up; up = up.parentElement) {
        const { overflowX, overflowY, textOverflow } = getComputedStyle(up);
        const box = up.getBoundingClientRect();
        const isOver = right > box.right + 1 || left < box.left - 1;
        const isHigh = top < box.top - 1 || bottom > box.bottom + 1;
        if (isOver && overflowX !== "visible" && textOverflow !== "ellipsis") {
          found.push(`${text} is cut at its side`);
        }
        if (isHigh && overflowY !== "visible") found.push(`${text} is cut above or below`);
        if (overflowX !== "visible") {
          left = Math.max(left, box.left);
          right = Math.min(right, box.right);
        }
      }
      if (right > left) texts.push({ text, element, left, right, top, bottom });
    }
  }
  const boxes = seen("button, input:not([type=file]), canvas, img, .nofe-bar, .nofe-zone")
    .map((each) => ({ text: each.outerHTML, ...each.getBoundingClientRect().toJSON() }));
  for (const { text, left, right } of [...texts, ...boxes]) {
    if (left < 0 || right > innerWidth) found.push(`${text} is outside: ${left} to ${right}`);
  }
  pairs(texts, (a, b) => {
    const apart = a.element !== b.element; // a name with an ellipsis has two boxes
    if (apart && across(a, b) > 1 && along(a, b) > 3) found.push(`${a.text} lies on ${b.text}`);
  });
  pairs(seen(".nofe-card, .nofe-zone, .nofe-sketch, .nofe-answer, .nofe-nothing"), (a, b) => {
    const [p, q] = [a, b].map((each) => each.getBoundingClientRect());
    if (across(p, q) > 1 && along(p, q) > 1) found.push(`${a.className} lies on ${b.className}`);
  });
  return found;
}"""

GREYS = """() => {
  const grey = (element, what) =>
    getComputedStyle(element)[what].match(/\\d+/g).reduce((sum, part) => sum + Number(part) / 3, 0);
  return [grey(document.querySelector("h2"), "color"), grey(document.body, "backgroundColor")];
}"""


Handed = Callable[[str], tuple[str, Classifier]]


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handed]:
    """Makes the page of a kind of network, of twelve look-alikes: its address, and the network."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("playwright")
    pytest.importorskip("onnxscript")
    try:
        runtime_files()
    except nofe_lab.InvalidInput as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("handed on")
    data = nofe_lab.load_dataset("lookalikes")
    names = [f"{name} <b>bold</b>" if name in "O8" else name for name in data.class_names]
    experiment = nofe_lab.Experiment(
        replace(data, class_names=tuple(names)),
        K=3,
        epochs=5,
        batch_size=30,
        device="cpu",
        precision="fp32",
        runs_dir=str(root / "runs"),
    )
    stages = {
        "nofe": experiment.nofe,
        "generalist": experiment.generalist,
        "flat": experiment.base,
        "gate": experiment.gate,
        "sparse": replace(experiment, trunk="base", specialties="balanced", sparse=2).nofe,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=root, **quiet)  # type: ignore[call-overload]
    address = f"http://127.0.0.1:{port}"

    @cache
    def made(kind: str) -> tuple[str, Classifier]:
        model = experiment.model(stages[kind]())
        write_web_page(model, root / kind)
        return f"{address}/{kind}/", model

    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                time.sleep(0.1)
        yield made
    finally:
        server.terminate()
        server.wait(timeout=30)


class WebPage:
    """A page that is open; what it asks of other hosts is refused and remembered."""

    def __init__(self, browser: Any, address: str, about: dict[str, Any], **options: Any) -> None:
        size = {"viewport": {"width": 1400, "height": 900}}
        self.page = browser.new_page(**{**size, **options})
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: said.type == "error" and self.complaints.append(said.text)
        )
        host = address.rsplit("/", 2)[0]

        def answer(route: Any) -> None:
            url = route.request.url
            if about and url.endswith("page.json"):
                with urllib.request.urlopen(url) as original:
                    route.fulfill(json={**json.load(original), **about})
            elif url.startswith(host):
                route.continue_()
            else:
                self.complaints.append(url)
                route.abort()

        self.page.route(re.compile("^http"), answer)
        self.page.goto(address)
        self.page.wait_for_selector(".nofe-card")
        self.page.evaluate(LISTEN)

    def asked(self, do: Callable[[], Any]) -> dict[str, Any]:
        """The answer to what is done: title, pixels, logits, probabilities."""
        before = self.page.evaluate("answers.length")
        do()
        self.page.wait_for_function("(n) => answers.length > n", arg=before)
        found: dict[str, Any] = self.page.evaluate("answers.at(-1)")
        return found

    def choose(self, name: str, content: bytes) -> None:
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        self.page.locator("input[type=file]").set_input_files(file)

    def send(self, kind: str, name: str, content: bytes) -> None:
        """Drop or paste a file."""
        self.page.evaluate(
            """([kind, name, packed]) => {
              const data = new DataTransfer();
              const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
              data.items.add(new File([bytes], name, { type: "image/png" }));
              const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
              document.querySelector(kind === "drop" ? ".nofe-zone" : "body").dispatchEvent(event);
            }""",
            [kind, name, base64.b64encode(content).decode()],
        )

    def stroke(self, *points: tuple[float, float], up: bool = True) -> None:
        """Draw a line with the mouse; points as shares of the canvas."""
        box = self.page.locator(".nofe-sketch canvas").bounding_box()
        for n, (x, y) in enumerate(points):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            if n == 0:
                self.page.mouse.down()
        if up:
            self.page.mouse.up()


@pytest.fixture
def open_page(handed_on: Handed) -> Iterator[Callable[..., WebPage]]:
    """Opens the page of a kind of network; none may have complained, or asked another host."""
    from playwright.sync_api import sync_playwright

    pages: list[WebPage] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )

        def open_one(
            kind: str = "nofe", about: dict[str, Any] | None = None, **options: Any
        ) -> WebPage:
            pages.append(WebPage(browser, handed_on(kind)[0], about or {}, **options))
            return pages[-1]

        yield open_one
        complaints = [complaint for page in pages for complaint in page.complaints]
        browser.close()
    assert not complaints


def packed(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def pictures(model: Classifier, n: int) -> list[Image.Image]:
    """Test images of the look-alikes, as pictures."""
    images = nofe_lab.load_dataset("lookalikes").test.sample(torch.arange(n))
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def expected(model: Classifier, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and the probabilities that Python finds for a picture."""
    pixels = model.prepare(content)
    return pixels.flatten().numpy(), model.predict(pixels).probabilities[0]


def test_any_picture_becomes_the_pixels_of_python() -> None:
    """Of every shape, grey and in colour, larger and smaller than the network's images."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    rng = np.random.default_rng(0)
    fit = """async ([packed, shape]) => {
      const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
      return [...await toSize(await decoded(new Blob([bytes]), "a picture", 16), shape)];
    }"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(f"<script>{script('pixels')}</script>")
        for n in range(40):
            height, width = rng.integers(1, (60, 400)[n % 2], 2)
            shape = (1 if n % 4 == 0 else 3, *rng.integers(1, 70, 2).tolist())
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            content = packed(image)
            found = page.evaluate(fit, [base64.b64encode(content).decode(), shape])
            expected = image_tensor(content, shape).flatten().numpy()
            np.testing.assert_allclose(found, expected, atol=1, err_msg=f"{image.size} to {shape}")
        browser.close()


@pytest.mark.slow
def test_pictures_of_its_size_are_answered_as_in_python(
    handed_on: Handed, open_page: Callable[..., WebPage]
) -> None:
    page, model = open_page(), handed_on("nofe")[1]
    for n, picture in enumerate(pictures(model, 100)):
        content = packed(picture)
        found = page.asked(partial(page.choose, f"{n}.png", content))
        pixels, probabilities = expected(model, content)
        assert found["title"] == f"{n}.png"
        np.testing.assert_array_equal(found["pixels"], pixels)
        np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-3)
        assert np.argmax(found["probabilities"]) == probabilities.argmax()


def photograph(picture: Image.Image, n: int, rng: np.random.Generator) -> tuple[str, bytes]:
    """A small picture made large, of any shape and with noise, as a file of one of many kinds."""
    size = tuple(int(side) for side in rng.integers(40, 1200, 2))
    large = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(float)
    noisy = (large + rng.normal(0, 12, large.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    turned = Image.Exif()
    turned[0x0112] = int(rng.integers(2, 9))
    clear = Image.fromarray(rng.integers(0, 256, noisy.shape[:2], dtype=np.uint8))
    made: list[tuple[str, dict[str, Any], Image.Image]] = [
        ("jpeg", {"quality": 90}, image),
        ("jpeg", {"quality": 60, "progressive": True}, image),
        ("jpeg", {"quality": 80, "exif": turned}, image),
        ("jpeg", {"quality": 85}, image.convert("L")),
        ("png", {}, image),
        ("png", {"exif": turned}, image),
        ("png", {}, image.convert("L")),
        ("png", {}, Image.merge("RGBA", (*image.split(), clear))),
        ("png", {}, image.quantize(64)),
        ("png", {"transparency": 3}, image.quantize(16)),
        ("webp", {"quality": 80}, image),
        ("gif", {}, image),
        ("bmp", {}, image),
    ]
    kind, options, image = made[n % len(made)]
    return f"{n}.{kind}", packed(image, kind, **options)


@pytest.mark.slow
def test_photographs_of_other_sizes_are_answered_as_in_python(
    handed_on: Handed, open_page: Callable[..., WebPage]
) -> None:
    page, model = open_page(), handed_on("nofe")[1]
    rng = np.random.default_rng(0)
    same, apart = 0, {}
    for n, picture in enumerate(pictures(model, 100)):
        name, content = photograph(picture, n, rng)
        found = page.asked(partial(page.choose, name, content))
        pixels, probabilities = expected(model, content)
        same += int(np.argmax(found["probabilities"]) == probabilities.argmax())
        apart[name] = int(np.abs(np.array(found["pixels"]) - pixels).max())
    print(f"{same} of 100 answers are the same; largest differences of pixels: {apart}")
    assert same >= 95
    lossless = [apart[name] for name in apart if name.endswith(("gif", "bmp"))]
    assert max(lossless) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_every_kind_of_network_answers(
    kind: str, handed_on: Handed, open_page: Callable[..., WebPage]
) -> None:
    page, model = open_page(kind), handed_on(kind)[1]
    content = packed(pictures(model, 3)[2].resize((300, 200)))
    found = page.asked(lambda: page.choose("photo.png", content))
    _, probabilities = expected(model, content)
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-3)
    answer = page.page.locator(".nofe-answer")
    best = model.output_names[int(probabilities.argmax())]
    assert answer.locator("h2").inner_text() == best
    assert f"{probabilities.max():.0%} sure" in answer.inner_text()
    assert page.page.locator("main b").count() == 0  # names are text
    experts, shown = answer.locator("tbody tr"), page.page.locator(".nofe-card")
    if kind in ("nofe", "gate", "sparse"):
        together = "A gate and its 2 best experts answer together." in answer.inner_text()
        assert together == (kind == "sparse") != ("sked alone" in answer.inner_text())
        sums = model.specialties.sums(probabilities[None])[0]
        assert experts.count() == shown.count() == 3
        assert answer.locator(".nofe-answers").count() == 1
        for k in range(3):
            head = shown.nth(k).locator("header").inner_text()
            assert model.specialties.title(k) in head
            assert f"{100 * sums[k]:.0f}%" in head
            alone = [c for c in range(12) if model.specialties.of[c] == k]
            says = model.output_names[max(alone, key=lambda c: probabilities[c])]
            assert experts.nth(k).locator("td").first.inner_text() == says
            own = probabilities[alone].max() / probabilities[alone].sum()
            assert experts.nth(k).locator("td").nth(1).inner_text() == f"{100 * own:.0f}%"
        assert page.page.locator(".nofe-card.nofe-over").count() == 1
    else:
        assert experts.count() == 0
        assert shown.count() == (3 if kind == "generalist" else 1)
    assert shown.locator("button").count() == 12
    page.page.screenshot(path=shot(f"web_{kind}"), full_page=True)


@pytest.mark.slow
def test_a_specialty_without_classes_may_be_the_answer(
    handed_on: Handed, open_page: Callable[..., WebPage]
) -> None:
    model = handed_on("generalist")[1]
    shown = cards(model.specialties, hex_colours(3))
    for each in shown[1:]:
        shown[0]["members"] += each["members"]
        each["members"] = []
    page = open_page("generalist", about={"cards": shown})
    page.asked(lambda: page.choose("photo.png", packed(pictures(model, 1)[0])))
    assert page.page.locator(".nofe-answer").is_visible()
    assert page.page.locator(".nofe-answer .nofe-bar").count() == 3


def shot(name: str) -> Path:
    SHOTS.mkdir(exist_ok=True)
    return SHOTS / f"{name}.png"


def test_pictures_are_dropped_pasted_and_chosen(
    handed_on: Handed, open_page: Callable[..., WebPage]
) -> None:
    page, model = open_page(), handed_on("nofe")[1]
    some = [packed(picture.resize((90, 60))) for picture in pictures(model, 3)]
    own = page.page.locator("img.nofe-own")
    for kind, content in zip(("drop", "paste"), some, strict=False):
        found = page.asked(partial(page.send, kind, "a <i>b</i>.png", content))
        np.testing.assert_array_equal(found["pixels"], expected(model, content)[0])
        asked = "a <i>b</i>.png" if kind == "drop" else "the picture that was pasted"
        assert asked in page.page.locator(".nofe-answer").inner_text()
        assert own.is_visible()
    # a thumbnail, by mouse and by keyboard
    label = 5
    thumbnail = page.page.locator(f"button[data-label='{label}']")
    found = page.asked(thumbnail.click)
    assert found["title"] == f"the thumbnail of {model.class_names[label]}"
    pixels = model.thumbnails[label, 0].flatten().numpy().astype(int)
    assert np.abs(pixels - found["pixels"]).mean() < 8  # a JPEG
    assert not own.is_visible()
    page.page.keyboard.press("ArrowRight")
    found = page.asked(lambda: page.page.keyboard.press("Enter"))
    assert found["title"] != f"the thumbnail of {model.class_names[label]}"
    # what is no picture, and one that Python reads otherwise
    problem = page.page.locator(".nofe-problem")
    page.choose("<i>notes</i>.txt", b"no picture")
    problem.wait_for(state="visible")
    assert problem.inner_text().startswith("<i>notes</i>.txt is no picture that this browser")
    assert page.page.locator(".nofe-nothing").is_visible()
    page.asked(lambda: page.choose("good.png", some[2]))
    assert not problem.is_visible()
    deep = packed(Image.fromarray(np.full((40, 40), 4000, dtype=np.uint16)))
    other = open_page(about={"bit_depth": 12})
    other.choose("deep.png", deep)
    problem = other.page.locator(".nofe-problem")
    problem.wait_for(state="visible")
    assert "the network was trained on 12 of them" in problem.inner_text()
    page.asked(lambda: page.choose("deep.png", deep))  # the upper 8 bits are those of training


def test_a_large_picture_leaves_the_page_usable(open_page: Callable[..., WebPage]) -> None:
    page = open_page()
    content = packed(Image.new("RGB", (6000, 5000), (200, 100, 50)))
    page.page.evaluate(
        """() => {
          window.ticks = 0;
          setInterval(() => { ticks++; });
          const file = document.querySelector("input[type=file]");
          file.addEventListener("change", () => { window.asked = ticks; });
          const main = document.querySelector("main");
          main.addEventListener("answer", () => { window.answered = ticks; });
        }"""
    )
    found = page.asked(lambda: page.choose("large.png", content))
    assert page.page.evaluate("answered - asked") > 0
    assert set(found["pixels"][:1024]) == {200}


def test_a_drawing_is_answered_while_one_draws(open_page: Callable[..., WebPage]) -> None:
    page = open_page()
    canvas, answer = page.page.locator(".nofe-sketch canvas"), page.page.locator(".nofe-answer")
    assert page.page.get_by_role("button", name="Undo").is_disabled()
    assert not answer.is_visible()
    page.asked(lambda: page.stroke((0.25, 0.25), (0.75, 0.25), up=False))  # before it ends
    bar = page.asked(page.page.mouse.up)
    T = page.asked(lambda: page.stroke((0.5, 0.25), (0.5, 0.8)))
    assert T["title"] == "your drawing"
    assert np.abs(np.array(T["probabilities"]) - bar["probabilities"]).max() > 0.01
    drawn = canvas.evaluate("(canvas) => canvas.toDataURL()").split(",")[1]
    prepared = image_tensor(base64.b64decode(drawn), (3, 32, 32))
    page.page.wait_for_function(
        "(wanted) => answers.at(-1).pixels.every((pixel, i) => pixel === wanted[i])",
        arg=prepared.flatten().tolist(),
    )
    dark = prepared.float().mean(0)
    assert dark[8, 16] < dark[30, 2] - 30  # ink on paper
    page.page.screenshot(path=shot("web_drawing"), full_page=True)
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function(
        "(wanted) => answers.at(-1).probabilities.every((p, i) => p === wanted[i])",
        arg=bar["probabilities"],
    )
    page.page.get_by_role("button", name="Clear").click()
    answer.wait_for(state="hidden")
    assert page.page.locator(".nofe-nothing").is_visible()
    # wider strokes, of another colour
    page.page.get_by_role("slider", name="stroke").fill("16")
    page.page.get_by_label("ink").fill("#ff0000")
    wide = page.asked(lambda: page.stroke((0.5, 0.5)))
    red, green, _ = np.array(wide["pixels"]).reshape(3, 32, 32)
    assert (red[15:17, 15:17] == 255).all()
    assert (green[15:17, 15:17] == 0).all()


def test_large_networks_have_no_canvas(open_page: Callable[..., WebPage]) -> None:
    assert open_page(about={"canvas": None}).page.locator(".nofe-sketch").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "zoom"), [(600, 1), (900, 1), (1400, 1), (1400, 1.5)])
def test_everything_is_seen_and_nothing_lies_on_anything(
    width: int, zoom: float, scheme: str, open_page: Callable[..., WebPage]
) -> None:
    for kind in ("nofe", *OTHERS):
        opened = open_page(
            kind,
            viewport={"width": round(width / zoom), "height": round(900 / zoom)},
            device_scale_factor=zoom,
            color_scheme=scheme,
        )
        page = opened.page
        for name in ("empty", "answer"):
            assert page.evaluate(LAYOUT) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(path=shot(f"web_{kind}_{scheme}_{width}_{zoom}_{name}"), full_page=True)
            opened.asked(partial(opened.stroke, (0.25, 0.25), (0.75, 0.25)))
        ink, paper = page.evaluate(GREYS)
        assert abs(ink - paper) > 150
        page.close()
