import asyncio
import base64
import io
import json
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets.widgets.widget import _remove_buffers
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import nofe_lab
from nofe_lab.bench.tables import noise
from nofe_lab.bench.widgets import response
from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset, Resident
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import Predictions, per_specialty
from nofe_lab.inference import load_specialties
from nofe_lab.inspection import Inspector
from nofe_lab.networks import CNN, NofE, backbone
from nofe_lab.specialties import Specialties, best_objective, leaf_order
from nofe_lab.statistics import inside_share
from nofe_lab.training.events import (
    EpochDone,
    MapUpdated,
    StageAwaited,
    StageBegun,
    StageEnded,
    StageLoaded,
    StepDone,
)
from nofe_lab.training.interrupts import Interrupted
from nofe_lab.views import (
    ConfusionExplorer,
    EvolutionPlayer,
    LiveTraining,
    PredictionInspector,
    SpecialtyBoard,
    SpecialtyExplorer,
    plots,
)
from nofe_lab.views.widgets.board import Judgement

NAMES = ("$x^2$", "_under", "<b>bold</b>", "Ж", "two  words", "W" * 60, "tiger", "Ω 100%")
C, K = len(NAMES), 4


def make_split(per_class: int, seed: int) -> Resident:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(C).repeat_interleave(per_class)
    images = torch.randint(0, 256, (len(labels), 1, 6, 9), generator=generator, dtype=torch.uint8)
    return Resident(images, labels)


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """A data set with difficult names, unequal specialties of which one is empty, two networks."""
    data = Dataset("odd", NAMES, make_split(3, 0), make_split(1, 1), make_split(4, 2))
    specialties = Specialties(NAMES, (0, 0, 0, 1, 1, 1, 1, 3), K, ("$a$", "b" * 50, "none", "_d"))
    labels = data.test.labels.numpy()
    rng = np.random.default_rng(0)
    base = rng.normal(size=(len(labels), C)).astype(np.float32)
    nofe = base + 2 * np.eye(C, dtype=np.float32)[labels] * (labels != 6)[:, None]
    nofe[labels == 6, 0] = 9
    base[labels == 6, 6] = 9
    return SimpleNamespace(
        data=data,
        specialties=specialties,
        base=Predictions(base, labels),
        nofe=Predictions(nofe, labels),
        affinity=rng.dirichlet(np.ones(K), C),
    )


def render(figure: Figure) -> list[str]:
    """Draw the figure (a warning fails the test) and return all its visible texts."""
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO())
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())
    assert all(text.get_fontsize() >= 7 for text in texts)
    return [text.get_text() for text in texts]


def inside_canvas(figure: Figure) -> bool:
    """Whether nothing that is drawn reaches beyond the figure."""
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return bool(
        box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02
    )


def history_table(world, maps) -> pd.DataFrame:
    return pd.concat(
        pd.DataFrame({"update": u, "epoch": u, "class": range(C), "specialty": of})
        for u, of in enumerate(maps)
    )


def updates_table(n: int) -> pd.DataFrame:
    columns = {"moved": 3, "objective_before": 0.2, "objective_after": 0.4}
    return pd.DataFrame({"update": range(1, n + 1)}).assign(**columns)


def all_figures(world) -> dict[str, Figure]:
    data, specialties, base, nofe = world.data, world.specialties, world.base, world.nofe
    start = (0, 1, 2, 3, 0, 1, 2, 3)
    history = history_table(world, [start, specialties.of])
    table = pd.DataFrame(
        {"network": ["$n$", "$n$", "m"], "seed": [0, 1, 0], "test_accuracy": [0.4, 0.5, 0.6]}
    )
    epochs = pd.DataFrame({"epoch": [1], "train_loss": [1.0], "train_accuracy": [0.5]})
    return {
        "history": plots.plot_history({"$n$": epochs}),
        "affinity": plots.plot_affinity(world.affinity, specialties),
        "confusion": plots.plot_confusion(base.confusion, specialties, "$t$"),
        "inside share": plots.plot_inside_share(inside_share(base.confusion, specialties)),
        "evolution": plots.plot_evolution(history, specialties, updates_table(1)),
        "specialties": plots.plot_specialties(data, specialties),
        "samples": plots.plot_samples(data, 3, 12),
        "crosstab": plots.plot_crosstab(specialties, Specialties(NAMES, start, 4)),
        "per specialty": plots.plot_per_specialty(
            per_specialty(base.confusion, specialties), per_specialty(nofe.confusion, specialties)
        ),
        "gained, lost": plots.plot_gained_lost(data, base, nofe),
        "comparison": plots.plot_comparison(table),
        "class": plots.plot_class(
            data, specialties, {"$b$": base.confusion, "n" * 60: nofe.confusion}, 0
        ),
        "cards": plots.plot_specialties(
            data, specialties, order=[3, 1, 0], notes={0: "$n$ " * 60, 1: "short"}
        ),
        "difference": plots.plot_confusion(nofe.confusion, specialties, minus=base.confusion),
        "images": plots.plot_images(data.test, [3, 1], ["$c$", "c" * 60], "$t$" * 60),
        "no images": plots.plot_images(data.test, [], [], "t"),
        "followed": plots.plot_evolution(
            history, specialties, updates_table(1), update=0, follow=3
        ),
        "words": plots.plot_words("$w$\nmore"),
    }


def test_every_figure_draws_difficult_names_without_warning_and_leaves_no_trace(world):
    plt.get_backend()  # settles the one parameter that matplotlib itself sets on first use
    before = mpl.rcParams.copy()
    figures = all_figures(world)
    assert plt.get_fignums() == []
    assert mpl.rcParams == before
    for name, figure in figures.items():
        texts = render(figure)
        assert texts, name
        assert inside_canvas(figure), name
        assert not any("\n" in text and "two" in text for text in texts), name
        assert not any("W" * 60 in text for text in texts), name


def test_one_colour_a_specialty():
    assert plots.specialty_colours(20)[:10] == plots.specialty_colours(10)
    for K in (1, 10, 30, 100):
        assert len(set(plots.specialty_colours(K))) == K


def test_history_shows_train_and_val():
    table = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "train_accuracy": [0.1, 0.2]})
    with_val = table.assign(val_loss=[2.1, 1.1], val_accuracy=[0.1, 0.2])
    loss, accuracy = plots.plot_history({"base": table, "NofE": with_val}).axes
    assert [line.get_linestyle() for line in loss.lines] == ["-", "-", "--"]
    assert list(accuracy.lines[0].get_ydata()) == [0.1, 0.2]


def test_affinity_outlines_the_own_specialty(world):
    figure = plots.plot_affinity(world.affinity, world.specialties)
    axes = figure.axes[0]
    np.testing.assert_array_equal(
        axes.images[0].get_array(), world.affinity[list(world.specialties.order)]
    )
    outlines = [p for p in axes.patches if not p.get_fill()]
    assert [(p.get_x() + 0.5, p.get_height()) for p in outlines] == [(0, 3), (1, 4), (3, 1)]
    with pytest.raises(InvalidInput, match=r"\[8, 4\]"):
        plots.plot_affinity(world.affinity.T, world.specialties)


@pytest.mark.parametrize("name", ["{}", "aquarium_fish_{}"])
@pytest.mark.parametrize("plot", ["affinity", "confusion"])
def test_a_hundred_class_names_do_not_overlap(plot, name):
    names = tuple(name.format(chr(ord("А") + c)) for c in range(-16, 84))
    drawn = Specialties.random(names, 10, 0)
    specialties = Specialties(names, drawn.of, 10, tuple(f"a long name {k}" for k in range(10)))
    if plot == "affinity":
        figure = plots.plot_affinity(np.full((100, 10), 0.1), specialties)
    else:
        figure = plots.plot_confusion(np.ones((100, 100), dtype=np.int64), specialties)
    assert set(names) <= set(render(figure))
    assert inside_canvas(figure)
    for axes in figure.axes[:-1]:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(a.y0 > b.y0 + 0.7 * 7 for a, b in pairwise(boxes))
        strips = [patch.get_window_extent() for patch in axes.patches if patch.get_fill()]
        assert not any(box.overlaps(strip) for box in boxes for strip in strips)


@pytest.mark.parametrize("C", [6, 12, 40])
def test_the_title_of_a_small_confusion_matrix_lies_on_nothing(C):
    own = Specialties(tuple(f"class {c}" for c in range(C)), tuple(c * 3 // C for c in range(C)), 3)
    figure = plots.plot_confusion(np.ones((C, C), dtype=np.int64), own)
    figure.canvas.draw()
    axes = figure.axes[0]
    title = axes.title.get_window_extent()
    others = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert "by chance" in axes.get_title()
    assert len(others) == 4  # the word, and the names of three
    assert not [box for box in others if box.overlaps(title)]


def test_confusion_blanks_the_diagonal_and_shows_shares_of_rows(world):
    confusion = np.zeros((C, C), dtype=np.int64)
    confusion[0, 0], confusion[0, 1] = 3, 1
    figure = plots.plot_confusion(confusion, world.specialties)
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.diagonal().all()
    assert shown[0, 1] == 0.25
    title = "accuracy 75.0%\n100% of the mistakes are inside a specialty (32% by chance)"
    assert title in render(figure)
    assert inside_canvas(figure)
    with pytest.raises(InvalidInput, match="confusion"):
        plots.plot_confusion(confusion[:3], world.specialties)


def test_evolution_without_updates_says_so(world):
    figure = plots.plot_evolution(
        history_table(world, [world.specialties.of]), world.specialties, updates_table(0)
    )
    assert any("never updated" in text for text in render(figure))


def test_evolution_draws_some_of_many_maps(world):
    maps = [world.specialties.of] * 41
    figure = plots.plot_evolution(history_table(world, maps), world.specialties, updates_table(40))
    assert any("13 of 41 maps" in text for text in render(figure))
    lines = figure.axes[0].collections[0].get_segments()
    assert len(lines) == C
    with pytest.raises(InvalidInput, match="history"):
        plots.plot_evolution(history_table(world, [(0,) * C]), world.specialties, updates_table(0))


def test_specialties_show_an_image_of_every_class_and_no_empty_card(world):
    figure = plots.plot_specialties(world.data, world.specialties)
    texts = render(figure)
    assert len(figure.axes[0].images) == C
    assert {"$x^2$", "_under", "<b>bold</b>", "two words", "tiger", "Ω 100%"} <= set(texts)
    assert "$a$: 3 classes" in texts
    assert not any("none" in text for text in texts)


def test_labels_stay_inside_their_cards(world):
    of = world.specialties.of
    specialties = Specialties(NAMES, of, K, tuple(letter * 50 for letter in "WXYZ"))
    figure = plots.plot_specialties(world.data, specialties)
    figure.savefig(io.BytesIO())
    cards = [patch.get_window_extent() for patch in figure.axes[0].patches]
    headings = [
        t.get_bbox_patch().get_window_extent()
        for t in figure.axes[0].texts
        if re.search("…W*X*Y*Z*:", t.get_text())
    ]
    assert len(headings) == len(cards) == 3
    for heading, card in zip(headings, cards, strict=True):
        assert card.x0 < heading.x0 < heading.x1 < card.x1


def test_a_card_shows_the_thumbnail_of_a_class_and_not_its_first_image(world):
    last = torch.tensor([world.data.train.of_class(c)[-1] for c in range(C)])
    figure = plots.plot_specialties(replace(world.data, clearest=last), world.specialties)
    drawn = [each.get_array()[..., 0] for each in figure.axes[0].images]
    for c, pixels in zip(world.specialties.order, drawn, strict=True):
        assert np.array_equal(pixels, world.data.train.images[last[c], 0])


def test_samples_have_a_row_a_class(world):
    assert len(plots.plot_samples(world.data, classes=5, per_class=2).axes[0].images) == 5 * 2
    assert len(plots.plot_samples(world.data, classes=50, per_class=12).axes[0].images) == C * 3


def test_gained_and_lost_show_what_changed(world):
    texts = render(plots.plot_gained_lost(world.data, world.base, world.nofe))
    lost = texts[texts.index("lost: test images that the NofE broke") :]
    assert lost[1:3] == ["tiger", "100% → 0% (−100 points)"]
    assert lost[3:6] == ["true: tiger", "base: tiger", "NofE: $x^2$"]
    same = render(plots.plot_gained_lost(world.data, world.base, world.base))
    assert {"No class gained.", "No class lost."} <= set(same)
    wrong = Predictions(world.base.logits[:5], world.base.labels[:5])
    with pytest.raises(InvalidInput, match="nofe must be predictions for the test images"):
        plots.plot_gained_lost(world.data, world.base, wrong)


def test_comparison_has_no_interval_for_one_seed():
    table = pd.DataFrame({"network": ["b", "a"], "seed": [0, 0], "test_accuracy": [0.5, 0.4]})
    texts = render(plots.plot_comparison(table))
    assert "50.0%  (1 seed)" in texts
    assert not any("±" in text or "interval" in text for text in texts)
    assert texts.index("b") < texts.index("a")
    more = pd.concat([table, table.assign(seed=1, test_accuracy=[0.6, 0.4])])
    figure = plots.plot_comparison(more)
    assert any("55.0 ± 63.5%" in text for text in render(figure))
    left, right = figure.axes[0].get_xlim()  # no accuracy lies outside of 0 to 1
    assert -0.02 <= left < right <= 1.02


def test_a_class_that_is_never_mistaken(world):
    figure = plots.plot_class(world.data, world.specialties, {"n": np.eye(C, dtype=np.int64)}, 2)
    assert "n\nright: 1 of 1 images (100%)\nnever mistaken" in render(figure)


def test_a_notebook_shows_a_figure_on_paper_with_round_corners(world, monkeypatch, tmp_path):
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(
        "nofe_lab.views.plots.style.display", lambda data, **options: shown.append(data)
    )
    figure = plots.plot_samples(world.data)
    figure._ipython_display_()
    paper = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    right, bottom = paper.width - 1, paper.height - 1
    corners = {(x, y): paper.getpixel((x, y))[3] for x in (0, right) for y in (0, bottom)}
    assert set(corners.values()) == {0}
    assert paper.getpixel((right // 2, 0)) == (255, 255, 255, 255)
    figure.savefig(tmp_path / "saved.png")
    assert Image.open(tmp_path / "saved.png").getpixel((0, 0)) == (255, 255, 255, 255)


def study_rows() -> pd.DataFrame:
    """Six networks with two seeds each."""
    names = ["base CNN", "flat control, both budgets", *(f"NofE {'x' * n}" for n in (1, 9, 40, 80))]
    rows = [
        {"network": name, "seed": seed, "test_accuracy": 0.4 + 0.01 * n + 0.02 * seed}
        | {"kind": ("base", "control")[n] if n < 2 else "nofe"}
        | {"macs": 1e6 * (n + 1), "total_training_macs": 1e12 * (n + 1)}
        for n, name in enumerate(names)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("cost", ["macs", "total_training_macs"])
def test_the_front_names_every_network_inside_of_the_picture(cost: str) -> None:
    figure = plots.plot_front(study_rows(), cost)
    shown = render(figure)
    assert sum("% " in text for text in shown) == 6
    assert not any("(n = " in text for text in shown)  # all have as many seeds
    assert all(text.get_in_layout() for text in figure.findobj(Text) if "% " in text.get_text())
    assert inside_canvas(figure)


def test_the_front_takes_costs_that_hardly_differ_for_equal_and_says_where_seeds_are_few() -> None:
    table = study_rows().query("network.str.startswith('NofE')").copy()
    table["macs"] = [1e6, 1e6, 1.01e6, 1.01e6, 1.5e6, 1.5e6, 2e6, 2e6]
    figure = plots.plot_front(table.iloc[:-1], "macs")
    (few,) = (text for text in render(figure) if "(n = 1)" in text)
    assert few.startswith("45.0% (n = 1) NofE x")
    (front,) = (line for line in figure.axes[0].lines if len(line.get_xdata()) > 1)
    assert np.allclose(front.get_xdata(), [1.01e6, 1.5e6, 2e6])


def test_few_experts_are_drawn_against_all_of_them() -> None:
    rows = [
        {"arm": arm, "seed": seed, "experts": m, "top1": 0.5 - 0.1 / m, "macs": 1e6 * m}
        | {"gate_top1": 0.3, "macs_gate_alone": 1e5}
        for arm in ("a", "b")
        for seed in (0, 1)
        for m in (1, 2, 3, 4)
    ]
    flat = study_rows().rename(columns={"network": "arm", "test_accuracy": "top1"}).head(4)
    figure = plots.plot_conditional(pd.DataFrame(rows), flat)
    render(figure)
    left, right = figure.axes
    assert np.allclose(left.lines[0].get_ydata(), [-0.075, -0.025, -0.1 / 12, 0])
    assert np.allclose(right.lines[0].get_xdata(), [1e6, 2e6, 3e6, 4e6])
    alone = right.lines[1]
    assert np.allclose(alone.get_xydata(), [[1e5, 0.3], [1e6, 0.4]])
    assert len(right.collections) == 2 + 2 * 2  # bands; a point and a bar for each flat network
    points = [each for each in right.collections if isinstance(each, PathCollection)]
    assert np.allclose(points[0].get_offsets(), [[1e6, 0.41]])
    assert np.allclose(points[1].get_offsets(), [[2e6, 0.42]])


def test_one_seed_is_drawn_without_intervals() -> None:
    rows = [
        {"arm": "a", "seed": 0, "experts": m, "top1": 0.5 - 0.1 / m, "macs": 1e6 * m}
        | {"gate_top1": 0.3, "macs_gate_alone": 1e5}
        for m in (1, 2)
    ]
    table = study_rows().query("seed == 0")
    flat = table.rename(columns={"network": "arm", "test_accuracy": "top1"}).head(2)
    assert render(plots.plot_conditional(pd.DataFrame(rows), flat))
    assert not any("interval" in text for text in render(plots.plot_front(table)))
    assert any("interval" in text for text in render(plots.plot_front(study_rows())))


# --- widgets

WIDGETS = ["explorer", "matrix", "player", "board", "inspector"]
BUNDLE = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def explorer(world) -> SpecialtyExplorer:
    start = Specialties(NAMES, (0, 1, 2, 3, 0, 1, 2, 3), K)
    return SpecialtyExplorer(
        world.data,
        world.specialties,
        {"base": world.base.confusion, "NofE": world.nofe.confusion},
        affinity=world.affinity,
        generalist=np.diag([12, 16, 0, 4]) + np.eye(K, k=1, dtype=np.int64),
        others={"other": start, "finer": Specialties(NAMES, tuple(range(8)), 8)},
    )


@pytest.fixture
def matrix(world) -> ConfusionExplorer:
    pairs = Specialties(NAMES, (0, 0, 1, 1, 2, 2, 3, 3), K)
    networks = {"base": world.base, "NofE": world.nofe}
    return ConfusionExplorer(
        world.data.test, networks, {"specialties": world.specialties, "pairs": pairs}
    )


@pytest.fixture
def player(world) -> EvolutionPlayer:
    start = (0, 1, 2, 3, 0, 1, 2, 3)
    then = (0, 0, 2, 1, 1, 1, 1, 3)
    history = history_table(world, [start, then, world.specialties.of])
    return EvolutionPlayer(history, world.specialties, updates_table(2))


@pytest.fixture
def board(world) -> SpecialtyBoard:
    return SpecialtyBoard(
        world.data, world.specialties, affinity=world.affinity, confusion=world.base.confusion
    )


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_shows_a_picture_without_a_kernel(name, request, monkeypatch):
    widget = request.getfixturevalue(name)
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(
        "nofe_lab.views.widgets.base.display", lambda data, **options: shown.append(data)
    )
    widget._ipython_display_()
    live, still = shown
    assert BUNDLE in live
    assert BUNDLE not in still
    picture = Image.open(io.BytesIO(base64.b64decode(still["image/png"])))
    assert picture.format == "PNG"
    assert picture.width > 800
    assert live["text/plain"] == still["text/plain"] == widget.words
    # one call keeps all of its figures
    kept = []
    run = SimpleNamespace(save_figure=lambda figure, name: kept.append(name))
    widget.save(run, "now")
    assert kept == [f"now_{part}" for part in widget.figures()]


@pytest.mark.parametrize("name", WIDGETS)
def test_what_a_widget_tells_the_browser_can_be_told(name, request):
    state, _, _ = _remove_buffers(request.getfixturevalue(name).get_state())
    assert json.dumps(state)


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_carries_its_javascript_and_reaches_for_nothing_else(name, request):
    widget = request.getfixturevalue(name)
    assert "export default { render }" in widget._esm
    code = widget._esm.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\bimport\b.*\bfrom\b|innerHTML|insertAdjacentHTML", code)
    assert "url(" not in str(widget._css)


def test_explorer_keeps_its_traits_in_step(explorer):
    assert (explorer.specialty, explorer.label, explorer.class_name) == (0, 0, NAMES[0])
    explorer.class_name = "tiger"
    assert (explorer.specialty, explorer.label) == (1, 6)
    assert explorer.detail["name"] == "tiger"
    assert explorer.detail["images"] == 3
    before, after, affinity = explorer.detail["panels"]
    assert before["title"].startswith("base: 4 of 4 right")
    assert before["rows"] == []
    assert after["title"].startswith("NofE: 0 of 4 right")
    (rival,) = after["rows"]
    assert (rival["name"], rival["text"], rival["hollow"]) == (NAMES[0], "4", True)
    assert [row["strong"] for row in affinity["rows"]] == [False, True, False, False]
    explorer.specialty = 3
    assert (explorer.label, explorer.class_name) == (7, NAMES[7])
    assert "NofE: " in explorer.words


def test_explorer_counts_what_stays_inside_and_what_leaks(explorer, world):
    table = explorer.networks.set_index(["network", "specialty"])
    members = [3, 4, 5, 6]
    confusion = world.nofe.confusion
    own = confusion[np.ix_(members, members)]
    row = table.loc[("NofE", 1)]
    assert row["inside"] == own.sum() - np.trace(own)
    assert row["leaking"] == confusion[members].sum() - own.sum()
    assert row["accuracy"] == np.trace(own) / 16
    assert table.loc[("generalist", 1), "accuracy"] == 16 / 17


@pytest.mark.parametrize("by", ["number", "size", "accuracy", "gain", "leaking"])
def test_explorer_sorts_its_cards(explorer, by):
    explorer.sort_by = by
    order = [card["k"] for card in explorer.shown["cards"]]
    assert order[-1] == 2  # the empty one
    of = explorer.networks[explorer.networks["network"] == "NofE"].set_index("specialty")
    base = explorer.networks[explorer.networks["network"] == "base"].set_index("specialty")
    keys = {
        "number": lambda k: k,
        "size": lambda k: -explorer.specialties.sizes[k],
        "accuracy": lambda k: -of["accuracy"][k],
        "gain": lambda k: base["accuracy"][k] - of["accuracy"][k],
        "leaking": lambda k: -of["leaking"][k],
    }
    assert order[:-1] == sorted([0, 1, 3], key=keys[by])


def test_explorer_matches_the_colours_of_another_partition(explorer):
    explorer.compare_with = "finer"
    colours = {card["k"]: card["colour"] for card in explorer.shown["cards"]}
    theirs = {card["members"][0]: card["colour"] for card in explorer.shown["other"]}
    shared = [k for k, colour in colours.items() if colour in theirs.values()]
    assert {0, 1, 3} <= set(shared)
    for k in (0, 1, 3):
        (label,) = [label for label, colour in theirs.items() if colour == colours[k]]
        assert explorer.specialties.of[label] == k
    assert len(set(theirs.values())) == 8
    assert "Agreement: " in explorer.shown["agreement"]
    assert set(explorer.figures()) == {"specialties", "comparison", "class"}
    explorer.compare_with = ""
    assert explorer.shown["other"] == []


@pytest.mark.parametrize(
    ("trait", "value", "message"),
    [
        ("class_name", "tigger", "'tigger' is none of the 8 classes .did you mean 'tiger'"),
        ("label", 8, "label must be from 0 to 7; got 8"),
        ("specialty", 2, "specialty 2 has no class; accepted: 0, 1, 3"),
        ("sort_by", "sise", "sort_by 'sise' is unknown .did you mean 'size'.*'leaking'"),
        ("compare_with", "othr", "did you mean 'other'"),
    ],
)
def test_explorer_refuses_what_is_not_there(explorer, trait, value, message):
    with pytest.raises(InvalidInput, match=message):
        setattr(explorer, trait, value)
    assert explorer.label == 0


def test_explorer_refuses_what_does_not_fit(world):
    with pytest.raises(InvalidInput, match=r"confusion of n must be \[8, 8\]; got \[3, 3\]"):
        SpecialtyExplorer(world.data, world.specialties, {"n": np.eye(3, dtype=np.int64)})
    with pytest.raises(InvalidInput, match="got none"):
        SpecialtyExplorer(world.data, world.specialties, {})
    counts = {"n": world.base.confusion}
    with pytest.raises(InvalidInput, match=r"affinity must be \[8, 4\]"):
        SpecialtyExplorer(world.data, world.specialties, counts, affinity=world.affinity.T)


def test_matrix_shows_the_images_behind_a_cell(matrix, world):
    matrix.network = "NofE"
    matrix.row, matrix.column = 6, 0
    behind = np.flatnonzero((world.nofe.labels == 6) & (world.nofe.predicted == 0))
    assert len(behind) == len(matrix.detail["captions"]) == 4
    assert matrix.detail["title"] == f"tiger → {NAMES[0]}"
    assert matrix.detail["where"] == "NofE: 4 of 4 images"
    sureness = world.nofe.probabilities[behind, 0]
    assert matrix.detail["captions"] == [f"{s:.0%} sure" for s in sorted(sureness, reverse=True)]
    matrix.network = "base"
    assert matrix.detail["captions"] == []


def test_matrix_hands_counts_order_and_blocks_to_the_browser(matrix, world):
    def counts(table: bytes) -> np.ndarray:
        rows, columns, found = np.frombuffer(table, dtype="<i4").reshape(3, -1)
        dense = np.zeros((C, C), dtype=np.int64)
        dense[rows, columns] = found
        return dense

    (base,) = matrix.matrix["tables"]
    assert np.array_equal(counts(base), world.base.confusion)
    assert matrix.matrix["order"] == list(world.specialties.order)
    assert [g["size"] for g in matrix.matrix["groups"]] == [3, 4, 1]
    matrix.network = "NofE minus base"
    nofe, base = matrix.matrix["tables"]
    assert np.array_equal(counts(nofe), world.nofe.confusion)
    assert np.array_equal(counts(base), world.base.confusion)
    assert matrix.matrix["networks"] == ["NofE", "base"]
    matrix.order_by = "pairs"
    assert len(matrix.matrix["groups"]) == 4
    assert "ordered by pairs" in matrix.words
    assert set(matrix.figures()) == {"matrix", "images"}


def test_matrix_orders_classes_by_the_confusions_of_the_network_that_is_shown(matrix, world):
    matrix.order_by = "the confusions themselves"
    assert matrix.matrix["order"] == leaf_order(world.base.confusion).tolist()
    assert matrix.matrix["groups"] == []
    assert "inside a block" not in matrix.words
    matrix.network = "NofE"
    assert matrix.matrix["order"] == leaf_order(world.nofe.confusion).tolist()
    outlines = [patch for patch in matrix.figures()["matrix"].axes[0].patches if patch.get_width()]
    assert outlines == []  # one class alone is no block
    partition = {"the confusions themselves": world.specialties}
    with pytest.raises(InvalidInput, match="'the confusions themselves' is an order of its own"):
        ConfusionExplorer(world.data.test, {"n": world.base}, partition)


@pytest.mark.parametrize(("scale", "whole"), [("row", 1), ("column", 0), ("count", None)])
def test_the_picture_of_the_matrix_has_its_scale(matrix, world, scale, whole):
    matrix.scale = scale
    counts = world.base.confusion
    shares = counts if whole is None else counts / np.maximum(counts.sum(whole, keepdims=True), 1)
    order = list(world.specialties.order)
    axes = matrix.figures()["matrix"].axes[0]
    drawn = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    off = ~np.eye(C, dtype=bool)
    assert np.allclose(drawn[off], shares[np.ix_(order, order)][off])


def test_matrix_refuses_what_is_not_there(matrix, world):
    for trait, value, message in (
        ("row", 8, "row must be from 0 to 7; got 8"),
        ("column", -1, "column must be from 0 to 7; got -1"),
        ("network", "NofEs", "did you mean 'NofE'"),
        ("order_by", "pair", "did you mean 'pairs'"),
        ("scale", "rows", "did you mean 'row'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            setattr(matrix, trait, value)
    with pytest.raises(InvalidInput, match="must be for the split's images"):
        ConfusionExplorer(world.data.train, {"n": world.base}, {"s": world.specialties})


def test_player_says_what_an_update_did(player):
    assert player.update == player.last_update == 2
    player.update = 1
    assert player.step["moved"] == [1, 3, 4, 6]
    assert player.step["title"] == "4 classes moved"
    player.label = 1
    assert "under: specialty b" in player.words.replace("_under", "under")
    player.update = 0
    assert player.words.startswith("The random start.")
    assert player.never_settled["labels"] == [2]
    player.class_name = ""
    assert player.label == -1
    with pytest.raises(InvalidInput, match="update must be from 0 to 2; got 3"):
        player.update = 3


def test_player_without_updates(world):
    history = history_table(world, [world.specialties.of])
    player = EvolutionPlayer(history, world.specialties, updates_table(0))
    assert player.words.startswith("The random start.")
    assert player.never_settled["title"] == "every class settled"


def test_board_moves_and_takes_back(board, world):
    board.move("tiger", 3)
    assert board.specialties.of[6] == 3
    assert board.changed == [6]
    board.move(6, 3)  # it is there already: nothing to take back
    board.add()
    assert board.specialties.names[-1] == "1"  # the first number that none is called
    board.move(0, 4)
    with pytest.raises(InvalidInput, match="has 1 classes; accepted: one without classes"):
        board.remove(4)
    board.remove(2)
    assert board.specialties.names == ("$a$", "b" * 50, "_d", "1")
    for _ in range(4):
        assert board.can_undo
        board.undo()
    assert board.specialties == world.specialties
    assert not board.can_undo
    board.redo()
    assert board.changed == [6]
    board.move(5, 0)
    assert not board.can_redo
    board.reset()
    assert board.specialties == world.specialties
    board.undo()
    assert board.changed == [5, 6]


def test_board_keeps_locked_classes(board):
    board.lock("tiger")
    with pytest.raises(InvalidInput, match="class 'tiger' is locked; unlock it first"):
        board.move("tiger", 0)
    with pytest.raises(InvalidInput, match="class 'tiger' is locked"):
        board.specialties = board.specialties.moved(6, 0)
    assert board.specialties.of[6] == 1
    board.lock("tiger")
    board.move("tiger", 0)
    assert board.specialties.of[6] == 0


def test_board_refuses_what_is_no_class_and_two_of_one_name(board):
    for class_ in (8, -1, 1.7):
        with pytest.raises(InvalidInput, match="label must be"):
            board.move(class_, 0)
    with pytest.raises(InvalidInput, match="different names; got '_d' twice"):
        board.add("_d")
    with pytest.raises(InvalidInput, match="label must be a whole number from 0 to 7; got 99"):
        board.locked = [99]
    board.move(np.int64(0), np.int64(1))
    assert board.specialties.of[0] == 1
    with pytest.raises(InvalidInput, match="specialty must be a whole number"):
        board.move(0, 1.7)


def test_board_undoes_locks_and_what_was_done_before_them(board, world):
    board.move("tiger", 0)
    board.lock("tiger")
    board.move(0, 1)
    states = [(board.specialties, board.locked)]
    for locked, of in (([6], 0), ([], 0), ([], 1)):
        board.undo()
        assert (board.locked, board.specialties.of[6]) == (locked, of)
        states.append((board.specialties, board.locked))
    assert board.specialties == world.specialties
    assert (board.can_undo, board.can_redo) == (False, True)
    board.lock(3)  # a lock too ends what could be redone
    assert not board.can_redo
    board.undo()
    board.move("tiger", 0)
    board.lock("tiger")
    board.reset()
    assert (board.specialties, board.locked) == (world.specialties, [])
    board.undo()  # one step
    assert (board.specialties.of[6], board.locked) == (0, [6])
    with pytest.raises(InvalidInput, match="class 'tiger' is locked"):
        board.move("tiger", 1)
    board.redo()
    assert (board.specialties, board.locked) == (world.specialties, [])


def test_board_keeps_the_colours_of_the_others(board):
    before = {card["name"]: card["colour"] for card in board.cards}
    board.remove(2)
    assert all(before[card["name"]] == card["colour"] for card in board.cards)
    board.add()
    assert board.cards[-1]["colour"] not in before.values()


def test_board_shifts_a_class_and_stops_at_the_ends(board):
    for by, k in ((1, 1), (1, 2), (5, 3), (-1, 2), (-9, 0)):
        board.obey({"do": "shift", "label": 0, "by": by}, [])
        assert board.specialties.of[0] == k


def test_board_says_what_is_better_and_what_is_worse(board, world):
    first = board.judge(world.specialties)
    assert first.objective == best_objective(world.affinity, np.array(world.specialties.of), K)
    objective = 0.725
    before = Judgement(objective, 0.41, 0.10, (4, 4))
    now = replace(before, objective=0.722, inside=0.48, chance=0.11)
    assert now.since(before) == (
        "Better than at first: the confusions inside, beyond chance (+6.0 points). "
        "Worse than at first: the objective (-0.3 points)."
    )
    assert replace(before, objective=0.7254).since(before) == ""
    assert replace(before, objective=None, inside=None).since(before) == ""
    moves = [(c, k) for c in range(C) for k in range(K)]
    after = [board.judge(world.specialties.moved(*move)).objective for move in moves]
    board.move(*moves[int(np.argmin(after))])
    judged = board.judge(board.specialties)
    assert "Worse than at first: the objective (-" in board.judgement["said"]
    row = board.judgement["rows"][0]["values"]
    assert row[1] == f"{judged.objective:.1%}"
    assert row[2] == f"{100 * (judged.objective - first.objective):+.1f} points"
    board.undo()
    assert board.judgement["said"] == ""
    assert [row["values"][2] for row in board.judgement["rows"]] == [""] * 4


def rows_of(**accuracies: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"network": name, "seed": seed, "val_accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    )


def test_board_trains_experts_and_shows_where_they_stand(world):
    asked: list[Specialties] = []

    def train(partition, watch):
        asked.append(partition)
        watch(StageBegun("network of experts", 8, 1))
        watch(StepDone(8, 8))
        watch(StageEnded("network of experts", True))
        return rows_of(mine=[0.5, 0.6, 0.7], learned=[0.4, 0.51, 0.6], base=[0.49, 0.63, 0.69])

    board = SpecialtyBoard(world.data, world.specialties, train=train)
    assert board.can_train
    assert (board.scores, board.standing, asked) == (None, {}, [])
    board.obey({"do": "train"}, [])  # no event loop runs: it waits
    assert asked == [world.specialties] == [board.trained]
    assert (board.training, board.progress, board.stage) == ("", [8, 8], "")
    assert [row["name"] for row in board.standing["rows"]] == ["mine", "learned", "base"]
    assert [row["values"][2] for row in board.standing["rows"]] == ["", "ahead", "tie"]
    assert board.standing["rows"][0]["values"][:2] == ["60.0 ± 24.8 %", ""]
    said = "mine: ahead of learned; not told apart from base; over 3 seeds."
    assert board.standing["said"] == said
    assert not board.outdated
    board.move(0, 1)
    assert board.outdated
    board.undo()
    assert not board.outdated


def test_board_says_for_whom_it_waits_and_stops_waiting(world):
    stages = []

    def train(partition, watch):
        watch(StageBegun("base CNN", 8, 1))
        watch(StepDone(3, 8))
        watch(StageEnded("base CNN", True))
        for _ in range(3):
            watch(StageAwaited("network of experts", "process 7 on host"))
            stages.append((board.stage, board.progress))
            board.stop()
        return rows_of(mine=[0.5])

    board = SpecialtyBoard(world.data, world.specialties, train=train)
    board.train()
    assert stages == [("network of experts: waiting for process 7 on host", [0, 0])]
    assert board.standing["said"].startswith("Stopped; ")
    assert (board.training, board.stage, board.trained) == ("", "", None)


def test_board_can_train_again_after_an_interrupt_of_the_kernel(world):
    def train(partition, watch):
        raise KeyboardInterrupt

    board = SpecialtyBoard(world.data, world.specialties, train=train)
    with pytest.raises(KeyboardInterrupt):
        board.train()
    assert board.training == ""


@pytest.mark.parametrize("is_trained", [False, True])
def test_lesson_10_asks_the_test_images_only_about_one_s_own_partition(world, is_trained, capsys):
    """Run All asked them about the rivals, before the reader had chosen."""
    path = Path(__file__).parents[2] / "notebooks" / "10_beat_the_machine.ipynb"
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    asked = []

    class Asked(Exception):
        pass

    def comparison(seeds, networks):
        asked.append(seeds)
        raise Asked

    names = {
        **{name: getattr(nofe_lab.views, name) for name in ("plots", "tables")},
        "Arm": nofe_lab.Arm,
        "board": SimpleNamespace(trained=world.specialties if is_trained else None),
        "experiment": SimpleNamespace(comparison=comparison),
        "rivals": [],
        "seeds": (0,),
    }
    with pytest.raises(Asked) if is_trained else nullcontext():
        for cell in cells[-3:]:
            exec(cell, names)
    assert asked == [(0,)] * is_trained
    assert ("Nothing was tested yet" in capsys.readouterr().out) is not is_trained


def test_what_goes_wrong_at_the_browser_s_command_is_shown(board, monkeypatch):
    """Only invalid input was; anything else was a traceback in the kernel's log."""
    board._hear(board, {"do": "move", "label": 99, "k": 0}, [])
    assert board.words == "label must be a whole number from 0 to 7; got 99."
    monkeypatch.setattr(board, "lock", lambda label: 1 / 0)
    board._hear(board, {"do": "lock", "label": 0}, [])
    assert board.words == "ZeroDivisionError: division by zero"

    def unreadable(change):
        raise OSError("the picture is gone")

    board.observe(unreadable, "label")
    board.set_state({"label": 3})
    assert board.words == "OSError: the picture is gone"


def test_board_says_what_is_wrong_with_what_was_returned(world):
    board = SpecialtyBoard(
        world.data, world.specialties, train=lambda *_: pd.DataFrame({"accuracy": [0.5]})
    )
    board.train()
    assert board.standing["said"] == "KeyError: 'network'"
    assert (board.training, board.trained, board.scores) == ("", None, None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidInput("no val images."), "no val images."),
        (RuntimeError("of torch"), "RuntimeError: of torch"),
        (Interrupted("stopped"), "Stopped; what was trained is kept: press the button again"),
    ],
)
def test_board_says_why_nothing_was_trained(world, error, said):
    def train(partition, watch):
        raise error

    board = SpecialtyBoard(world.data, world.specialties, train=train)
    board.train()
    assert board.standing["said"].startswith(said)
    assert (board.training, board.trained, board.scores) == ("", None, None)
    with pytest.raises(InvalidInput, match="this board trains nothing"):
        SpecialtyBoard(world.data, world.specialties).train()


def test_board_can_be_used_while_experts_are_trained_and_stops_them(world):
    stopped, went_on = [], threading.Event()

    def train(partition, watch):
        went_on.wait(10)
        watch(StepDone(1, 8))
        raise Interrupted("stopped")

    board = SpecialtyBoard(world.data, world.specialties, train=train)

    async def use() -> None:
        board.train()
        with pytest.raises(InvalidInput, match="experts are being trained"):
            board.train()
        board.move("tiger", 0)
        assert board.specialties.of[6] == 0
        board.stop()
        assert board.training == "stopping"
        went_on.set()
        while board.training:
            await asyncio.sleep(0.01)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nofe_lab.views.widgets.board.ask_to_stop", lambda: stopped.append(True))
        asyncio.run(use())
    assert stopped == [True]
    assert board.standing["said"].startswith("Stopped; what was trained is kept")


def test_board_obeys_the_browser_and_says_what_it_refuses(board):
    board._hear(board, {"do": "move", "label": 6, "k": 0}, [])
    assert board.specialties.of[6] == 0
    board._hear(board, {"do": "lock", "label": 6}, [])
    assert board.locked == [6]
    board._hear(board, {"do": "move", "label": 6, "k": 1}, [])
    assert board.words == "class 'tiger' is locked; unlock it first."
    board._hear(board, {"do": "remove", "k": 0}, [])
    assert "accepted: one without classes" in board.words
    for deed in ("undo", "redo", "add", "reset"):
        board._hear(board, {"do": deed}, [])
    assert board.specialties.of[6] == 1


def test_board_without_anything_to_judge_by(world):
    board = SpecialtyBoard(world.data, world.specialties)
    board.move(0, 1)
    assert board.judgement["said"] == ""
    assert board.judgement["rows"][0]["values"] == ["–", "–", ""]


@pytest.fixture(scope="module")
def inspected() -> SimpleNamespace:
    """Two small networks, untrained, with a gate, and a data set they can be asked about."""
    data = noise(6, 4)
    specialties = Specialties(data.class_names, (0, 1, 1, 3, 3, 3), 4)
    network = backbone("alexnet_quick")
    preprocess = Preprocess.measure(data, "standardised")
    base = ImageNetwork(preprocess, CNN(network, 6, "kaiming", 0))
    nofe = NofE(network, specialties, "kaiming", 0)
    nofe.gate = network.make_branch(6, 1.0)
    return SimpleNamespace(
        data=data, specialties=specialties, base=base, nofe=ImageNetwork(preprocess, nofe)
    )


def test_an_inspection_agrees_with_the_networks(inspected):
    image = inspected.data.test.images[5]
    found = Inspector(inspected.base, inspected.nofe)(image)
    with torch.no_grad():
        logits = inspected.nofe(image[None])[0].double()
        base = inspected.base(image[None])[0].double()
    assert found.nofe == pytest.approx(logits.softmax(0).numpy(), abs=1e-5)
    assert found.base == pytest.approx(base.softmax(0).numpy(), abs=1e-5)
    for n, k in enumerate(inspected.specialties.nonempty):
        members = list(inspected.specialties.members(k))
        assert found.mass[n] == pytest.approx(found.nofe[members].sum())
        assert found.alone[members] == pytest.approx(logits[members].softmax(0).numpy(), abs=1e-5)
        assert found.best[n] == members[found.alone[members].argmax()]
    members = inspected.specialties.members(inspected.specialties.nonempty[found.expert])
    assert found.nofe.argmax() in members
    for where in (found.trunk_view, found.base_map, found.expert_map):
        assert where.shape == (32, 32)
        assert where.min() >= 0
        assert where.max() <= 1
    with pytest.raises(InvalidInput, match="needs a network of experts; got CNN"):
        Inspector(inspected.base, inspected.base)


def test_an_expert_that_shares_its_classes_is_inspected_alone(inspected):
    shared = NofE(backbone("alexnet_quick"), inspected.specialties, "kaiming", 0, overlap=2)
    nofe = ImageNetwork(inspected.nofe.preprocess, shared)
    image = inspected.data.test.images[5]
    found = Inspector(inspected.base, nofe)(image)
    with torch.no_grad():
        features = shared.eval().features(nofe.preprocess(image[None]))
        for k, branch in shared.branches.items():
            members = list(inspected.specialties.members(int(k)))
            own = [shared.members[int(k)].index(c) for c in members]
            expected = branch(features)[0, own].double().softmax(0).numpy()
            assert found.alone[members] == pytest.approx(expected, abs=1e-5)
    labels = inspected.data.test.labels.numpy()
    right = Predictions(np.eye(6, dtype=np.float32)[labels], labels)
    data = inspected.data
    widget = PredictionInspector(data, data.test, inspected.base, nofe, right, right)
    assert "and 1 more" in widget.words


class Brightness(torch.nn.Module):
    """Answers 0 for images that are bright in their first `side` rows and columns."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.map = torch.nn.Conv2d(3, 1, 1, bias=False)
        torch.nn.init.ones_(self.map.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.map(x)[:, 0, : self.side, : self.side].mean((1, 2))
        return torch.stack([seen, -seen], 1)


def test_grad_cam_finds_the_place_that_an_answer_depends_on(inspected):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :8, :8] = 255
    plain = Preprocess(torch.zeros(1), torch.ones(1))
    found = Inspector(ImageNetwork(plain, Brightness(8)), inspected.nofe)(image)
    assert found.base_map[:7, :7].min() > 0.9
    assert found.base_map[10:, 10:].max() < 0.1


@pytest.fixture
def inspector(inspected) -> PredictionInspector:
    labels = inspected.data.test.labels.numpy()
    before = np.eye(6, dtype=np.float32)[np.where(np.arange(24) < 3, (labels + 1) % 6, labels)]
    after = np.eye(6, dtype=np.float32)[np.where(np.arange(24) == 9, (labels + 1) % 6, labels)]
    return PredictionInspector(
        inspected.data,
        inspected.data.test,
        inspected.base,
        inspected.nofe,
        Predictions(before, labels),
        Predictions(after, labels),
    )


def test_inspector_steps_through_what_changed(inspector):
    assert (inspector.which, inspector.index, inspector.size) == ("corrected", 0, 3)
    inspector.place = 2
    assert inspector.index == 2
    assert inspector.detail["title"] == "image 2: class 2"
    inspector.which = "introduced"
    assert (inspector.place, inspector.index, inspector.size) == (0, 9, 1)
    assert [row["right"] for row in inspector.detail["experts"]] == [False, False, True]
    assert sum(row["answers"] for row in inspector.detail["experts"]) == 1
    assert all(row["gate"] is not None for row in inspector.detail["experts"])
    with pytest.raises(InvalidInput, match="no images of the kind 'wrong in both'"):
        inspector.which = "wrong in both"
    with pytest.raises(InvalidInput, match="place must be from 0 to 0; got 1"):
        inspector.place = 1
    assert "The gate would run specialty" in inspector.words
    inspector.which = "corrected"
    for by, place in ((1, 1), (1, 2), (1, 2), (-5, 0)):
        inspector.step(by)
        assert (inspector.place, inspector.index) == (place, place)
    inspector.index = 20
    assert not inspector.in_step
    inspector.step(1)
    assert (inspector.index, inspector.in_step) == (0, True)


def test_inspector_where_nothing_was_wrong(inspected):
    labels = inspected.data.test.labels.numpy()
    right = Predictions(np.eye(6, dtype=np.float32)[labels], labels)
    networks = inspected.base, inspected.nofe
    found = PredictionInspector(inspected.data, inspected.data.test, *networks, right, right)
    assert (found.which, found.size, found.index, found.in_step) == ("all", 24, 0, True)
    none = Predictions(right.logits[:0], labels[:0])
    with pytest.raises(InvalidInput, match="must have images"):
        PredictionInspector(inspected.data, inspected.data.test[:0], *networks, none, none)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("inspector", {"which": "wrong in both"}),
        ("inspector", {"place": 7}),
        ("explorer", {"label": 99}),
        ("matrix", {"row": -1}),
        ("player", {"update": 9}),
        ("board", {"label": 99}),
        ("board", {"locked": [99]}),
    ],
)
def test_the_browser_cannot_set_what_is_not_there(name, wrong, request):
    widget = request.getfixturevalue(name)
    before = {trait: getattr(widget, trait) for trait in wrong}
    widget.set_state(wrong)
    assert {trait: getattr(widget, trait) for trait in wrong} == before
    (value,) = wrong.values()
    assert str(value).strip("[]") in widget.words  # says why


def test_a_map_of_the_middle_is_laid_over_the_middle(inspected):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, 3:11, 3:11] = 255
    plain = Preprocess(torch.zeros(1), torch.ones(1), (26, 26))
    found = Inspector(ImageNetwork(plain, Brightness(26)), inspected.nofe)(image).base_map
    assert found[4:10, 4:10].min() > 0.9
    assert found[:3].max() == found[12:].max() == 0


def test_inspector_takes_an_image_of_ones_own(inspector, inspected):
    file = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(file, format="png")
    inspector.obey({"do": "upload", "name": "red.png"}, [file.getvalue()])
    assert (inspector.index, inspector.detail["title"]) == (-1, "red.png")
    assert not inspector.in_step
    inspector.obey({"do": "upload", "name": "x.png"}, [b"no image"])
    assert inspector.problem == "'x.png' cannot be shown (no image, or of an unknown format)."
    assert inspector.detail["title"] == "red.png"
    inspector.obey({"do": "step", "by": 1}, [])  # back to where it was
    assert (inspector.index, inspector.place, inspector.problem) == (0, 0, "")
    with pytest.raises(InvalidInput, match="index must be from 0 to 23; got -1"):
        inspector.index = -1
    with pytest.raises(InvalidInput, match=r"must be uint8 \[3, 32, 32\]"):
        inspector.ask(inspected.data.test.images[0, :, :8])


def test_live_training_follows_the_events(world, monkeypatch):
    live = LiveTraining(world.data, K)
    assert live.figures() == {}
    assert live.png  # even of nothing
    row = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.25}
    updated = {"moved": 8, "objective_before": 0.2, "objective_after": 0.4}
    live(StageBegun("generalist", 4, 2))
    live(StepDone(1, 4))
    assert live.progress == [1, 4]
    live(StepDone(2, 4))
    assert live.progress == [1, 4]  # steps are told twice a second at most
    live(MapUpdated(1, updated, world.specialties.of))
    assert live.moved == []
    live(EpochDone(1, 2, row))
    live(MapUpdated(2, updated | {"moved": 1}, world.specialties.moved(6, 0).of))
    assert live.moved == [6]
    assert live.cards[0]["members"] == [0, 1, 2, 6]
    live(StepDone(4, 4))
    assert live.progress == [4, 4]
    live(EpochDone(2, 2, row | {"epoch": 2}))
    live(StageEnded("generalist", True))
    assert [row["epoch"] for row in live.histories["generalist"]] == [1, 2]
    assert live.stage == ""
    assert set(live.figures()) == {"history", "specialties"}
    # another of the same title begins its curves anew
    live(StageBegun("generalist", 4, 2))
    live(EpochDone(1, 2, row))
    live(StageEnded("generalist", False))
    assert [row["epoch"] for row in live.histories["generalist"]] == [1]
    assert live.words.startswith("generalist was broken off.")


def test_a_watcher_that_fails_does_no_harm(tiny_experiment, capsys):
    def fail(event: object) -> None:
        raise OSError("no room")

    experiment = tiny_experiment()
    (run,) = experiment.run(experiment.base(), watch=fail)
    assert len(run.history) == 1
    assert capsys.readouterr().out.count("goes on unwatched (OSError: no room)") == 1


def test_live_training_shows_nothing_where_nobody_watches(world, monkeypatch):
    shown: list[object] = []
    monkeypatch.setattr(
        "nofe_lab.views.widgets.base.display", lambda data, **options: shown.append(data)
    )
    for seen in (False, True):
        monkeypatch.setattr("nofe_lab.views.widgets.live.watched", lambda seen=seen: seen)
        LiveTraining(world.data, K)._ipython_display_()
        assert bool(shown) == seen


def test_live_training_hears_of_a_real_one(tiny_experiment):
    experiment = tiny_experiment()
    live = LiveTraining(experiment.data, experiment.K)
    (run,) = experiment.run(experiment.nofe(), watch=live)
    assert set(live.histories) == {experiment.generalist().title, experiment.nofe().title}
    assert live.histories[experiment.nofe().title] == run.history.to_dict("records")
    assert live.specialties == load_specialties(run)
    told = dict(live.histories)
    experiment.run(experiment.nofe(), watch=live)  # loaded: nothing to tell
    assert live.histories == told


def test_the_response_of_every_widget_is_measured():
    found = response(noise(6, 3), 2, repeats=2)
    assert set(found["widget"]) == {type_.__name__ for type_ in EVERY_WIDGET}
    assert (found["median_ms"] >= 0).all()
    assert (found["median_ms"] <= found["largest_ms"]).all()


EVERY_WIDGET = (
    ConfusionExplorer,
    EvolutionPlayer,
    LiveTraining,
    PredictionInspector,
    SpecialtyBoard,
    SpecialtyExplorer,
)


# --- names in other scripts, and long ones


def write_names(*names: str) -> Figure:
    data = renamed(names)
    return plots.plot_specialties(data, Specialties(names, (0, 0, 1, 1, 2, 2), 3))


def renamed(names: tuple[str, ...]) -> Dataset:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 255, (6, 3, 8, 8), dtype=np.uint8))
    split = Resident(pixels, torch.arange(6))
    return Dataset("named", names, split, split[:0], split)


def test_characters_that_no_font_has_are_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib warned of each of them in every text, with the paths of its fonts."""
    monkeypatch.setattr("nofe_lab.views.plots.text._REPORTED", set())
    names = ("ओम", "ओ", "म", "cat", "dog", "fox")
    for _ in range(2):
        figure = write_names(*names)
        figure.savefig(io.BytesIO(), format="png")
        figure.savefig(io.BytesIO(), format="svg")
    said = capsys.readouterr().out
    assert said.count("No installed font has") == 1
    assert "ओ" in said
    assert "/" not in said.replace("matplotlib.rcParams", "")


def test_the_font_of_the_user_comes_first() -> None:
    with mpl.rc_context({"font.family": "DejaVu Serif"}):
        (first, *_) = write_names("a", "b", "c", "d", "e", "f").axes[0].texts
        assert first.get_fontfamily()[0] == "DejaVu Serif"
    with mpl.rc_context({"font.sans-serif": ["DejaVu Sans Mono", "DejaVu Sans"]}):
        (first, *_) = write_names("a", "b", "c", "d", "e", "f").axes[0].texts
        assert first.get_fontfamily()[0] == "DejaVu Sans Mono"
    with mpl.rc_context({"font.family": "No Such Font"}):
        write_names("a", "b", "c", "d", "e", "f").savefig(io.BytesIO())


def test_long_names_are_cut_in_their_middle() -> None:
    cut = [plots.fitted(f"chickadee of the northern forest, series {n}", 1.1) for n in (1, 2)]
    assert cut[0] != cut[1]
    assert all("…" in name and name.startswith("chick") for name in cut)
    assert cut[0].endswith("1")


def test_a_network_that_was_trained_before_is_said_in_the_live_view(tiny: Dataset) -> None:
    live = LiveTraining(tiny, 3)
    live(StageLoaded("base CNN"))
    assert live.loaded == ["base CNN"]
    assert live.words == "base CNN was trained before: its run is loaded."


def test_every_widget_answers_whether_anybody_is_here(tiny: Dataset) -> None:
    live = LiveTraining(tiny, 3)
    sent: list[object] = []
    live.send = lambda content, *_: sent.append(content)
    live._hear(live, {"do": "ping", "token": 7}, [])
    assert sent == [{"pong": 7}]


def test_the_picture_behind_a_widget_asks_for_a_light_background() -> None:
    """Where JupyterLab reads it; below image/png, it was not found."""
    board = SpecialtyBoard(
        renamed(tuple("abcdef")), Specialties(tuple("abcdef"), (0, 0, 1, 1, 2, 2), 3)
    )
    assert board._picture()[1] == {"needs_background": "light"}


# --- calibration


def test_the_diagram_shows_what_a_temperature_mends(world) -> None:
    networks = {"base CNN": world.base, "NofE $a$": world.nofe}
    figure = plots.plot_calibration(networks, networks)
    said = render(figure)
    assert inside_canvas(figure)
    for name, found in networks.items():
        mended = found.at_temperature(found.temperature)
        errors = f"{found.calibration_error:.1%} → {mended.calibration_error:.1%}"
        (title,) = [text for text in said if text.startswith(name)]
        assert f"calibration error {errors}, loss {found.loss:.3f} → {mended.loss:.3f}" in title
        assert f", temperature {found.temperature:.2f}\n" in title


def test_the_diagram_without_val_images_says_what_there_is(world) -> None:
    none = {"base CNN": Predictions(world.base.logits[:0], world.base.labels[:0])}
    said = " ".join(render(plots.plot_calibration({"base CNN": world.base}, none)))
    assert f"calibration error {world.base.calibration_error:.1%}" in said
    assert "temperature" not in said


def test_the_curves_of_coverage_end_with_the_accuracy(world) -> None:
    networks = {"base CNN": world.base, "NofE": world.nofe}
    figure = plots.plot_coverage(networks, world.specialties)
    assert {"base CNN", "NofE", "answered with the class"} <= set(render(figure))
    assert inside_canvas(figure)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for name, found in networks.items():
        assert lines[name].get_xdata()[-1] == 1
        assert lines[name].get_ydata()[-1] == pytest.approx(found.accuracy)
