import base64
import io
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset, Split
from nofe_lab.evaluation import Predictions, inside_share, per_specialty
from nofe_lab.specialties import Specialties
from nofe_lab.views import SpecialtyBrowser, plots

NAMES = ("$x^2$", "_under", "<b>bold</b>", "Ж", "two  words", "W" * 60, "tiger", "Ω 100%")
C, K = len(NAMES), 4


def make_split(per_class: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(C).repeat_interleave(per_class)
    images = torch.randint(0, 256, (len(labels), 1, 6, 9), generator=generator, dtype=torch.uint8)
    return Split(images, labels)


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
        "inside share": plots.plot_inside_share(inside_share(base.confusion, specialties, 20)),
        "evolution": plots.plot_evolution(history, specialties, updates_table(1)),
        "specialties": plots.plot_specialties(data, specialties),
        "gallery": plots.plot_gallery(data, specialties, 1),
        "samples": plots.plot_samples(data, 3, 12),
        "crosstab": plots.plot_crosstab(specialties, Specialties(NAMES, start, 4)),
        "per specialty": plots.plot_per_specialty(
            per_specialty(base.confusion, specialties), per_specialty(nofe.confusion, specialties)
        ),
        "gained, lost": plots.plot_gained_lost(data, base, nofe),
        "comparison": plots.plot_comparison(table),
        "class": plots.plot_class(data, specialties, base.confusion, 0),
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


def test_confusion_blanks_the_diagonal_and_shows_shares_of_rows(world):
    confusion = np.zeros((C, C), dtype=np.int64)
    confusion[0, 0], confusion[0, 1] = 3, 1
    figure = plots.plot_confusion(confusion, world.specialties)
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.diagonal().all()
    assert shown[0, 1] == 0.25
    assert "accuracy 75.0%; 100% of the mistakes are inside a specialty" in render(figure)
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
    figure = plots.plot_specialties(world.data, world.specialties, per_class=2)
    texts = render(figure)
    assert len(figure.axes[0].images) == 2 * C
    assert {"$x^2$", "_under", "<b>bold</b>", "two words", "tiger", "Ω 100%"} <= set(texts)
    assert "$a$: 3 classes" in texts
    assert not any("none" in text for text in texts)


def test_labels_stay_inside_their_cards(world):
    of = world.specialties.of
    specialties = Specialties(NAMES, of, K, tuple(letter * 50 for letter in "WXYZ"))
    figure = plots.plot_specialties(world.data, specialties, per_class=2)
    figure.savefig(io.BytesIO())
    cards = [patch.get_window_extent() for patch in figure.axes[0].patches]
    headings = [
        t.get_bbox_patch().get_window_extent() for t in figure.axes[0].texts if "…:" in t.get_text()
    ]
    assert len(headings) == len(cards) == 3
    for heading, card in zip(headings, cards, strict=True):
        assert card.x0 < heading.x0 < heading.x1 < card.x1


def test_gallery_shows_the_images_there_are(world):
    figure = plots.plot_gallery(world.data, world.specialties, 1, per_class=8)
    assert len(figure.axes[0].images) == 4 * 3
    with pytest.raises(InvalidInput, match="k must be"):
        plots.plot_gallery(world.data, world.specialties, K)


def test_samples_have_a_row_a_class(world):
    assert len(plots.plot_samples(world.data, classes=5, per_class=2).axes[0].images) == 5 * 2
    assert len(plots.plot_samples(world.data, classes=50, per_class=12).axes[0].images) == C * 3


def test_gained_and_lost_show_what_changed(world):
    texts = render(plots.plot_gained_lost(world.data, world.base, world.nofe, images=2))
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
    assert any("55.0 ± 63.5%" in text for text in render(plots.plot_comparison(more)))


def test_a_class_that_is_never_mistaken(world):
    figure = plots.plot_class(world.data, world.specialties, np.eye(C, dtype=np.int64), 2)
    assert "right: 1 of 1 images (100%)\nnever mistaken" in render(figure)


@pytest.fixture
def browser(world):
    return SpecialtyBrowser(world.data, world.specialties, world.base.confusion)


def test_browser_keeps_traits_and_menus_in_step(browser):
    assert (browser.specialty, browser.label, browser.class_name) == (0, 0, NAMES[0])
    first = browser.png
    browser.class_name = "tiger"
    assert (browser.specialty, browser.label) == (1, 6)
    assert browser.png != first
    browser.specialty = 3
    assert (browser.label, browser.class_name) == (7, NAMES[7])
    specialty_menu, class_menu = browser.children[0].children
    assert (specialty_menu.value, class_menu.value) == (3, 7)
    class_menu.value = 0
    assert browser.png == first
    specialty_menu.value = 1
    assert browser.class_name == NAMES[3]


def test_browser_shows_a_picture_without_a_kernel(browser):
    bundle = browser._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    png = base64.b64decode(bundle["image/png"])
    assert png == browser.png
    assert Image.open(io.BytesIO(png)).format == "PNG"


def test_browser_escapes_names(browser):
    browser.class_name = "<b>bold</b>"
    assert "&lt;b&gt;bold&lt;/b&gt;" in browser.children[2].value
    assert "<b>" not in browser.children[2].value


@pytest.mark.parametrize(
    ("trait", "value", "message"),
    [
        ("class_name", "tigger", "'tigger' is none of the 8 classes of odd .did you mean 'tiger'"),
        ("label", 8, "label must be from 0 to 7; got 8"),
        ("specialty", 2, "specialty 2 has no class; accepted: 0, 1, 3"),
    ],
)
def test_browser_refuses_what_is_not_there(browser, trait, value, message):
    with pytest.raises(InvalidInput, match=message):
        setattr(browser, trait, value)
    assert browser.label == 0


def study_rows() -> pd.DataFrame:
    """Six networks with two seeds each."""
    names = ["base CNN", "flat control, both budgets", *(f"NofE {'x' * n}" for n in (1, 9, 40, 80))]
    rows = [
        {"network": name, "seed": seed, "test_accuracy": 0.4 + 0.01 * n + 0.02 * seed}
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
    canvas = figure.get_tightbbox()  # what notebooks cut the picture to
    for text in figure.findobj(Text):
        if "% " in text.get_text():
            box = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
            assert text.get_in_layout()
            assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1 + 1e-6


def test_few_experts_are_drawn_against_all_of_them() -> None:
    rows = [
        {"arm": arm, "seed": seed, "experts": m, "top1": 0.5 - 0.1 / m, "macs": 1e6 * m}
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
    assert len(right.collections) >= 2  # the flat networks' points
