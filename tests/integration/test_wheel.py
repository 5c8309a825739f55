"""The wheel holds the library, without what only a checkout of the repository can use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
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
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in NOTEBOOKS]
    assert (wheel / "nofe_lab" / "py.typed").is_file()
    (info,) = wheel.glob("nofe_lab-*.dist-info")
    assert "nofe-lab = nofe_lab.__main__:main" in (info / "entry_points.txt").read_text()


def test_commands_that_need_a_checkout_say_so(wheel: Path, tmp_path: Path) -> None:
    commands = ["bench", "latency", "widgets", "study", "results"]
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
    assert done.stdout == "[2, 2, 2, 2, 2]\n"
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(commands)
    assert all("this command needs a checkout of the repository" in each for each in sentences)
