"""The film of a generalist's training: who travels, where all arrive, what a file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from nofe_lab import Dataset, InvalidInput, Specialties
from nofe_lab.__main__ import main
from nofe_lab.views.film import DARK, LIGHT, Film, film, moments, seats

FIGURES = Path(__file__).parents[2] / "data" / "figures"
START, END = (0, 1, 2, 0, 1, 2), (0, 0, 1, 1, 2, 2)


def drawn(tiny: Dataset, maps: list[tuple[int, ...]], theme=LIGHT) -> Film:
    history = pd.concat(
        pd.DataFrame({"update": u, "class": range(6), "specialty": of}) for u, of in enumerate(maps)
    )
    updates = pd.DataFrame({"update": range(1, len(maps))})
    updates = updates.assign(objective_before=0.2, objective_after=0.4, moved=4)
    specialties = Specialties(tiny.class_names, maps[-1], 3)
    return film(tiny, specialties, history, updates, theme=theme)


def pixels(frame: Image.Image) -> NDArray[np.int64]:
    return np.asarray(frame.convert("RGB"), dtype=np.int64)


def test_who_stays_keeps_the_place_and_nobody_shares_one() -> None:
    rng = np.random.default_rng(0)
    maps = np.stack([rng.permutation(np.arange(40) % 5) for _ in range(6)])
    places = seats(maps, 5)
    for now, at in zip(maps, places, strict=True):
        assert len(set(zip(now, at, strict=True))) == 40
        assert at.max() < 8
    for m in range(1, 6):
        stay = maps[m] == maps[m - 1]
        assert (places[m, stay] == places[m - 1, stay]).all()


def test_the_film_begins_at_the_random_start_and_ends_in_the_specialties(tiny: Dataset) -> None:
    moving = drawn(tiny, [START, END])
    assert np.array_equal(
        pixels(moving.frames[-1])[:250], pixels(drawn(tiny, [START, END]).frames[-1])[:250]
    )
    still = drawn(tiny, [END])
    assert len(still.frames) == 1
    assert len(moving.frames) == len(moving.durations) == 13
    changes = [
        np.abs(pixels(a) - pixels(b)).sum()
        for a, b in zip(moving.frames, moving.frames[1:], strict=False)
    ]
    assert min(changes) > 0
    assert moving.durations[-1] == max(moving.durations)


@pytest.mark.parametrize("updates", [1, 7, 100])
def test_a_film_has_about_forty_frames_however_many_updates_there_were(updates: int) -> None:
    maps = np.array([(START, END)[u % 2] for u in range(updates + 1)])
    assert 12 <= len(list(moments(maps))) <= 40


def test_a_map_that_rests_takes_one_frame() -> None:
    assert list(moments(np.array([END, END, END]))) == [(0, 0, 1), (0, 1, 1), (1, 2, 1)]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_saved_film_moves_in_few_colours_on_the_colour_of_its_page(
    tiny: Dataset, tmp_path: Path, theme
) -> None:
    drawn(tiny, [START, END], theme).save(tmp_path / "film.gif")
    check_file(tmp_path / "film.gif", theme.page)


def check_file(path: Path, page: str) -> int:
    """Look at every frame of a file; returns how many there are."""
    colours: set[object] = set()
    with Image.open(path) as kept:
        assert kept.format == "GIF"
        assert kept.info["loop"] == 0
        first = pixels(kept)
        for index in range(kept.n_frames):
            kept.seek(index)
            colours |= {colour for _, colour in kept.convert("RGB").getcolors(64)}
        assert (first != pixels(kept)).any()
        assert len(colours) <= 32
        assert "#{:02x}{:02x}{:02x}".format(*first[0, 0]) == page
        return kept.n_frames


def test_a_history_of_other_specialties_is_refused(tiny: Dataset) -> None:
    history = pd.DataFrame({"update": 0, "class": range(6), "specialty": START})
    with pytest.raises(InvalidInput, match="must end in the specialties"):
        film(tiny, Specialties(tiny.class_names, END, 3), history, pd.DataFrame())


@pytest.mark.parametrize(("name", "theme"), [("film.gif", LIGHT), ("film_dark.gif", DARK)])
def test_the_films_of_the_readme_are_small_and_shown(name: str, theme) -> None:
    path = FIGURES / name
    assert path.stat().st_size <= 1_500_000
    assert 30 <= check_file(path, theme.page) <= 45
    assert f"data/figures/{name}" in (FIGURES.parents[1] / "README.md").read_text()


def test_the_command_says_what_it_cannot_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dev", "film", "--output", "/proc/missing"]) == 2
    assert "missing" in capsys.readouterr().err
    assert (
        main(["dev", "film", "--output", str(tmp_path), "--K", "101", "--runs-dir", str(tmp_path)])
        == 2
    )
    assert "K must be at most the 100 classes" in capsys.readouterr().err
