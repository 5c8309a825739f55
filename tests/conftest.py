"""Fixtures that all tests share: a data set of six classes, folders, and real data if there is."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from nofe_lab import Dataset, Experiment, Run
from nofe_lab.data import Resident
from nofe_lab.runs import RunStore
from nofe_lab.stages import Stage

settings.register_profile("nofe_lab", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("nofe_lab")
torch.set_num_threads(1)  # networks of this size are slower on more, much slower on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start

PATTERNS = ("rows", "columns")
COLOURS = ("red", "green", "blue")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-tables", action="store_true", help="write the tables in docs that tests compare"
    )
    parser.addoption(
        "--full-size",
        action="store_true",
        help="write the pictures of docs/gallery.md, of networks that are not toys",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of an xdist_group on one worker also with pytest 9.2.

    pytest-xdist 3.8 hands a test's group to the scheduler as the end of its id, which it writes
    where pytest 9.2 no longer looks (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group and not item.nodeid.endswith(end := f"@{group.args[0]}"):
            item._id = type(item.id).parse(item.nodeid + end)  # type: ignore[attr-defined]
            assert item.nodeid.endswith(end)


def _draw(per_class: int, rng: np.random.Generator) -> Resident:
    """Stripes in a colour, with noise: the colour is the superclass, the stripes' direction not."""
    stripes = (np.arange(32) // 4 % 2).astype(float)
    patterns = (np.tile(stripes[:, None], (1, 32)), np.tile(stripes, (32, 1)))
    labels = np.arange(6).repeat(per_class)
    images = rng.normal(60, 25, (len(labels), 3, 32, 32))
    for image, label in zip(images, labels, strict=True):
        image[label // 2] += 120 * patterns[label % 2]
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8))
    return Resident(pixels, torch.from_numpy(labels))


@pytest.fixture(scope="session", autouse=True)
def _hears_interrupts() -> None:
    """Processes that tests start hear SIGINT, also where these tests run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """Six classes in three superclasses; 20 training, no val and 5 test images a class."""
    rng = np.random.default_rng(0)
    train, test = _draw(20, rng), _draw(5, rng)
    names = tuple(f"{colour} {pattern}" for colour in COLOURS for pattern in PATTERNS)
    return Dataset("tiny", names, train, train[:0], test, COLOURS, (0, 0, 1, 1, 2, 2))


@pytest.fixture(scope="session")
def filled_once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder, and fills it once for all processes that run tests."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """An empty folder for runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def tiny_experiment(tiny: Dataset, runs_dir: Path) -> Callable[..., Experiment]:
    """Makes small experiments on `tiny` on the CPU: K = 3, one epoch of three steps."""

    def make(**parameters: object) -> Experiment:
        small = {"K": 3, "epochs": 1, "batch_size": 36, "learning_rate": 0.005}
        where = {"device": "cpu", "runs_dir": str(runs_dir)}
        return Experiment(**{"dataset": tiny, **small, **where, **parameters})  # type: ignore[arg-type]

    return make


_trained = tempfile.TemporaryDirectory(prefix="nofe_lab_tests")


def train_once(experiment: Experiment, make: Callable[[Experiment], Stage]) -> Run:
    """The run of a stage in the experiment's own folder: copied if another test has trained it."""
    kept, stage = RunStore(_trained.name), make(experiment)
    if kept.find(stage.id) is None:
        same = replace(experiment, runs_dir=_trained.name)
        same.run(make(same))
    wanted = [stage]
    for each in wanted:
        wanted += each.parents.values()
        run = kept.find(each.id)
        assert run is not None
        own = Path(str(experiment.runs_dir)) / run.path.name
        shutil.copytree(run.path, own, dirs_exist_ok=True)
    (run,) = experiment.run(stage)
    return run


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Imports a script that is no part of the package, by its path from the root."""

    def imported(path: str) -> ModuleType:
        place = Path(__file__).parents[1] / path
        spec = importlib.util.spec_from_file_location(place.stem, place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return imported


@pytest.fixture(scope="session")
def nofe_data() -> Path:
    """The folder of real image data that the environment variable NOFE_DATA names."""
    folder = os.environ.get("NOFE_DATA")
    if not folder:
        pytest.skip("NOFE_DATA is not set: it names the folder that holds cifar100 in parquet")
    return Path(folder)


class MissingFlock(FileLock):
    """That of a file system without any, such as most of Lustre."""

    def _acquire(self) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")


class DeafFlock(FileLock):
    """Granted to everyone, as between the hosts of some network file systems."""

    def __init__(self, path: Path, **settings: object) -> None:
        super().__init__(path.with_name(f"{path.name}.{os.urandom(8).hex()}"), **settings)


FLOCKS = {"works": FileLock, "missing": MissingFlock, "deaf": DeafFlock}


@pytest.fixture(params=FLOCKS)
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what it does on three kinds of file systems, here and in processes forked from here."""
    monkeypatch.setattr("nofe_lab.runs.locks.FileLock", FLOCKS[request.param])
