"""The pictures of docs/gallery.md, of the widgets themselves.

``pytest tests/browser/test_gallery.py --full-size`` trains for some minutes and writes them into
data/figures; without the option, networks of toy size are shown, and the pictures thrown away.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import nofe_lab
from nofe_lab.evaluation import predict, with_clearest
from nofe_lab.stages import Experiment
from nofe_lab.views import (
    ConfusionExplorer,
    EvolutionPlayer,
    LiveTraining,
    PredictionInspector,
    SpecialtyBoard,
    SpecialtyExplorer,
)
from nofe_lab.views.palette import Palette
from nofe_lab.views.widgets.base import View
from nofe_lab.views.widgets.look import LookPage
from tests.browser.conftest import ROOT, Host

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]

WIDTH, HEIGHT, MOST_HEIGHT = 1200, 900, 1030
MOST_BYTES = 150_000
TOY = {"dataset": "glyphs:8", "K": 4, "epochs": 1, "batch_size": 60}


def test_every_widget_has_its_picture(
    host: Callable[..., Host],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # whose path is in no picture
    full_size = request.config.getoption("--full-size")
    folder = ROOT / "data" / "figures" if full_size else tmp_path
    given = {"device": "cpu", "runs_dir": str(tmp_path / "runs")}
    experiment = Experiment(**(given if full_size else TOY | given))
    for name, widget in {**trained(experiment), "relabel": relabelled(tmp_path, given)}.items():
        shown = host(widget, WIDTH, HEIGHT)
        shown.page.add_style_tag(content="#cell { padding: 16px; }")
        shown.page.wait_for_timeout(700)
        taken = Image.open(io.BytesIO(shown.page.locator("#cell").screenshot())).convert("RGB")
        taken = taken.crop((0, 0, taken.width, min(taken.height, MOST_HEIGHT)))
        assert len(taken.getcolors(taken.width * taken.height) or []) > 50, f"{name} is blank"
        picture = packed(taken)
        assert len(picture) <= MOST_BYTES, name
        (folder / f"widget_{name}.png").write_bytes(picture)


def trained(experiment: Experiment) -> dict[str, View]:
    """The widgets of notebooks 01 to 03, 07 and 00, as a reader would leave them."""
    data, generalist, base = experiment.data, experiment.generalist(), experiment.base()
    live = LiveTraining(data, experiment.usual_K)
    (run,) = experiment.run(generalist, watch=live)
    specialties = nofe_lab.load_specialties(run)
    affinity = run.table("affinity").drop(columns="class").to_numpy()
    models = {"base CNN": experiment.model(base), "NofE": experiment.model(experiment.nofe())}
    answers = {name: predict(model, data.val) for name, model in models.items()}
    confusions = {name: found.confusion for name, found in answers.items()}
    data = with_clearest(data, models["base CNN"])
    others = {"superclasses": nofe_lab.superclass_specialties(data)}
    explorer = SpecialtyExplorer(data, specialties, confusions, affinity=affinity, others=others)
    explorer.compare_with, explorer.class_name = "superclasses", "Q"
    matrix = ConfusionExplorer(data.val, answers, {"specialties": specialties, **others})
    matrix.row, matrix.column = map(data.class_names.index, "ÉÊ")
    player = EvolutionPlayer(run.table("map_history"), specialties, run.table("map_updates"))
    player.update, player.class_name = min(2, player.last_update), "Q"
    board = SpecialtyBoard(
        data, specialties, affinity=affinity, confusion=confusions["base CNN"], train=print
    )
    round_one = specialties.of[data.class_names.index("Q")]
    for name in "OØ":
        board.move(data.class_names.index(name), round_one)
    on_test = [predict(model, data.test) for model in models.values()]
    inspector = PredictionInspector(data, data.test, *models.values(), *on_test)
    page = LookPage(nofe_lab.look(models["base CNN"], data, K=experiment.usual_K)._page())
    return {
        "live": live,
        "explorer": explorer,
        "confusion": matrix,
        "evolution": player,
        "board": board,
        "inspector": inspector,
        "look": page,
    }


def relabelled(folder: Path, given: dict[str, str]) -> View:
    """Of look-alikes as files, of which every tenth is in a wrong folder."""
    data = nofe_lab.load_dataset("lookalikes")
    names = data.class_names
    for n, label in enumerate(data.train.labels.tolist()):
        place = folder / "letters" / names[(label + (n % 10 == 0)) % data.C]
        place.mkdir(parents=True, exist_ok=True)
        pixels = data.train.sample([n])[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{n}.png")
    mine = Experiment(f"folder:{folder}/letters", val_fraction=0.4, K=3, **given)
    networks = [mine.model(mine.base()), mine.model(mine.nofe())]
    widget = nofe_lab.relabel(mine.data, networks, "corrections.csv")
    widget.place = min(2, max(len(widget.items) - 1, 0))
    return widget


def packed(picture: Image.Image) -> bytes:
    """As a PNG, in as many colours as its size allows."""
    for colours in (256, 128, 64, 32):
        file = io.BytesIO()
        few = Palette.of(picture, colours, 3 * colours // 8).apply(picture)
        few.save(file, format="png", optimize=True)
        if len(file.getvalue()) <= MOST_BYTES:
            break
    return file.getvalue()
