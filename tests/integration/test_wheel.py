"""The wheel holds the library, without what only a checkout of the repository can use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_THE_CHECKOUT = ("06_speed.ipynb", "09_paper_tables.ipynb")
"""Notebooks that compare with tables of the repository."""
LEFT_OUT = ("nofe_lab/bench/", "nofe_lab/study/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, built from a copy: building writes into its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source, built, unpacked = (folder / name for name in ("source", "built", "unpacked"))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nofe_lab", source / "nofe_lab", ignore=ignored)
    (source / "notebooks").mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, source / "notebooks")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(built), str(source)], check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    return unpacked


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / "nofe_lab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_all_of_the_library_but_study_and_bench(wheel: Path) -> None:
    everything = files(ROOT)
    expected = {name for name in everything if not name.startswith(LEFT_OUT)}
    assert expected < everything
    assert files(wheel) == expected


def test_the_wheel_has_the_notebooks_and_says_that_it_is_typed(wheel: Path) -> None:
    (data,) = wheel.glob("nofe_lab-*.data")
    found = sorted((data / "data" / "share" / "nofe_lab" / "notebooks").iterdir())
    wanted = [path for path in NOTEBOOKS if path.name not in OF_THE_CHECKOUT]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in wanted]
    assert (wheel / "nofe_lab" / "py.typed").is_file()
    (info,) = wheel.glob("nofe_lab-*.dist-info")
    assert "nofe-lab = nofe_lab.__main__:main" in (info / "entry_points.txt").read_text()


def test_commands_that_need_a_checkout_say_so(wheel: Path, tmp_path: Path) -> None:
    commands = ["bench", "latency", "onnx", "widgets", "study", "upcycling", "first_run", "results"]
    code = (
        # an editable install would find the checkout's
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]; "
        f"from nofe_lab.__main__ import main; print([main(['dev', each]) for each in {commands}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{[2] * len(commands)}\n"
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(commands)
    assert all("this command needs a checkout of the repository" in each for each in sentences)


@pytest.mark.slow
def test_the_wheel_alone_goes_from_a_folder_to_an_answer(wheel: Path, tmp_path: Path) -> None:
    """As a newcomer: init, notebooks 00 and 05 on a folder, then predict without the pictures."""
    rng = np.random.default_rng(0)
    for c in range(12):
        (tmp_path / "pictures" / f"class {c}").mkdir(parents=True)
        for n in range(16):  # stripes of a width, in noise, of many sizes
            height, width = rng.integers(30, 60, 2)
            stripes = 120 * (np.arange(width) // (2 + c % 4) % 2) + 40 * (c // 4)
            noise = rng.integers(0, 60, (height, width, 3))
            pixels = (stripes[None, :, None] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / f"class {c}" / f"{n}.png")
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(photo)
    home = {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **home, "PYTHONPATH": str(wheel)}

    def do(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    do("nofe_lab", "init", "mine")
    small = ["-p", "dataset", f"folder:{tmp_path}/pictures", "-p", "epochs", "2"]
    small += ["-p", "batch_size", "20", "-p", "device", "cpu"]
    for name in ("00_look", "05_your_own_pictures"):
        also = ["-p", "n_seeds", "2"] if name.startswith("05") else []
        out = f"{name[:2]}.ipynb"
        do("papermill", "--no-progress-bar", f"mine/{name}.ipynb", out, *small, *also)
    assert "Not told apart" in (tmp_path / "05.ipynb").read_text("utf-8") or (
        re.search("Use experts: |Keep your CNN: ", (tmp_path / "05.ipynb").read_text("utf-8"))
    )
    (run, *_) = (tmp_path / "home" / "nofe_lab" / "runs").glob("nofe-*")
    shutil.move(run, tmp_path / "trained")
    shutil.rmtree(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "home")
    assert "photo.jpg" in do("nofe_lab", "predict", "trained", "photo.jpg")
    do("nofe_lab", "show", "trained", "--output", "report.html")
    assert "specialties</h2>" in (tmp_path / "report.html").read_text("utf-8")
