"""Whatever a file or a parameter holds: the library's own clear error, or a right result.

Files that are right are changed at random, from a byte to everything, and opened as the library
opens them.  A crash ends the process; a hang is found by the limit of a case.
"""

from __future__ import annotations

import faulthandler
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from nofe_lab import Experiment, InvalidInput, Specialties, load_dataset
from nofe_lab.config import printable
from nofe_lab.machine import Machine
from nofe_lab.networks.catalogue import _read
from nofe_lab.runs import RunStore
from nofe_lab.runs.checkpoint import Checkpoints, State
from nofe_lab.runs.provenance import provenance

SECONDS = 30
"""The longest that a case may take."""

NAMES = ("cat", "dog", "bus")
IDENTITY: dict[str, Any] = {"stage": "flat", "config": {"seed": 0}}
ABOUT = {"title": "t", "dataset": "d", "backbone": "b", "K": 3, "epochs": 1, "seed": 0}


@dataclass(frozen=True)
class Target:
    """A file that is right, and how the library opens it."""

    path: Path
    open: Callable[[], object]
    """Raises InvalidInput, or returns something that `expected` tells right from wrong."""
    right: object = None
    """What it returns for the file that is right, if it must return nothing else (but None)."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def of_runs(folder: Path) -> Iterator[Target]:
    tensors = {"w": torch.arange(40.0), "b": torch.ones(3, 2)}
    run = RunStore(folder / "runs").save(
        "flat-d",
        IDENTITY,
        ABOUT,
        tensors,
        {"history.csv": "epoch,train_loss\n1,2.5\n", "specialties.json": _three().to_json()},
        {"train_accuracy": 0.5},
        {**provenance(Machine(torch.device("cpu")), 1.0), "lineage": {}},
    )
    run.report(test_accuracy=0.25)

    def read() -> object:
        found = list(RunStore(folder / "runs"))
        if not found:
            return None
        weights = {name: tensor.tolist() for name, tensor in found[0].weights().items()}
        history = found[0].history.to_dict("list")
        return repr((dict(found[0].record), weights, history, found[0].text("specialties.json")))

    right = read()
    for name in ("run.json", "weights.safetensors", "history.csv", "specialties.json"):
        yield Target(run.path / name, read, right)

    def reports() -> object:
        (found,) = RunStore(folder / "runs")
        assert all(type(value) in (int, float) for value in found.reports.values())
        return None

    yield Target(run.path / "reports.json", reports)


def of_checkpoints(folder: Path) -> Iterator[Target]:
    kept = Checkpoints(folder / "x.unfinished", "0123456789ab")
    kept.save(3, State({"model.w": torch.arange(40.0)}, {"history": [{"epoch": 1}], "step": 3}))

    def read() -> object:
        seen: list[object] = []

        def take(state: State) -> None:
            seen.append(({name: t.tolist() for name, t in state.tensors.items()}, state.record))

        with redirect_stdout(io.StringIO()):
            Checkpoints(folder / "x.unfinished", "0123456789ab").resume(take)
        return repr(seen[0]) if seen else None

    yield Target(folder / "x.unfinished" / "step-00000003.safetensors", read, read())


def _three() -> Specialties:
    return Specialties(NAMES, (0, 1, 1), 2, ("pets", "others"))


def of_specialties(folder: Path) -> Iterator[Target]:
    path = folder / "mine.json"
    path.write_text(_three().to_json())

    def read() -> object:
        found = Specialties.load(path, NAMES)
        assert found.class_names == NAMES
        assert sorted(c for k in range(found.K) for c in found.members(k)) == [0, 1, 2]
        return None

    yield Target(path, read)


def of_weights(folder: Path) -> Iterator[Target]:
    state = {"w": torch.arange(40.0), "b": torch.ones(3, 2)}
    for ending in (".safetensors", ".pt"):
        path = folder / f"weights{ending}"
        torch.save(state, path) if ending == ".pt" else save_file(state, path)

        def read(path: Path = path) -> object:
            assert all(isinstance(tensor, torch.Tensor) for tensor in _read(path).values())
            return None

        yield Target(path, read)


def of_pictures(folder: Path) -> Iterator[Target]:
    rng = np.random.default_rng(0)
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"):
        root = folder / ending
        for name in NAMES:
            (root / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(256, size=(9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i}.{ending}")

        def read(root: Path = root) -> object:
            found = load_dataset(f"folder:{root}", val_fraction=0, image_size=8)
            assert found.train.images.shape[1:] == (3, 8, 8)
            return None

        yield Target(root / "cat" / f"0.{ending}", read)


def of_parquet(folder: Path) -> Iterator[Target]:
    root = folder / "hub"
    (root / "data").mkdir(parents=True)
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    features = {
        "label": {"names": list(NAMES), "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    for split in ("train", "test"):
        table = pa.table(
            {
                "label": pa.array([0, 1, 2, 0, 1, 2], pa.int64()),
                "image": pa.array([{"bytes": png.getvalue(), "path": "a.png"}] * 6),
            }
        )
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(
            table.replace_schema_metadata(about), root / "data" / f"{split}-00000-of-00001.parquet"
        )
    (root / "class_names.tsv").write_text("cat\ta cat\ndog\ta dog\n")

    def read() -> object:
        found = load_dataset(f"parquet:{root}", val_fraction=0)
        assert found.C >= 2
        return None

    yield Target(root / "data" / "train-00000-of-00001.parquet", read)
    yield Target(root / "class_names.tsv", read)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    makers = (of_runs, of_checkpoints, of_specialties, of_weights, of_pictures, of_parquet)
    found = []
    for maker in makers:
        found += list(maker(tmp_path_factory.mktemp(maker.__name__)))
    return found


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "drop", "insert", "repeat", "all")),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, what in changes:
        at = min(int(where * len(content)), max(len(content) - 1, 0))
        if kind == "flip" and content:
            flipped = content[at] ^ (1 << (what[0] % 8))
            content = content[:at] + bytes([flipped]) + content[at + 1 :]
        elif kind == "set":
            content = content[:at] + what + content[at + len(what) :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + what[0] :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "repeat":
            content = content[:at] + what * 500 + content[at:]
        elif kind == "all":
            content = what
    return content


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the process, with the place where it hangs, if it takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def check(target: Target, changes: list[tuple[str, float, bytes]]) -> None:
    right = target.path.read_bytes()
    target.path.write_bytes(changed(right, changes))
    folder = target.path.parent
    before = contents(folder)
    try:
        with within(SECONDS):
            found = target.open()
        assert found is None or found == target.right
    except InvalidInput as error:
        if str(error) != printable(str(error)):
            pytest.fail(f"a terminal would obey this: {error!r}")
    finally:
        assert contents(folder) == before
        target.path.write_bytes(right)


def profile(cases: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=cases,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=True,
    )


@given(st.integers(0, 10**6), CHANGES)
@profile(400)
def test_a_file_that_was_changed_is_refused_or_read_right(
    targets: list[Target], which: int, changes: list[tuple[str, float, bytes]]
) -> None:
    check(targets[which % len(targets)], changes)


@pytest.mark.long
@given(st.integers(0, 10**6), CHANGES)
@profile(9000)
def test_many_files_that_were_changed_are_refused_or_read_right(
    targets: list[Target], which: int, changes: list[tuple[str, float, bytes]]
) -> None:
    check(targets[which % len(targets)], changes)


PARAMETERS = [name for name in Experiment.__dataclass_fields__ if not name.startswith("_")]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 5),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.sampled_from(
        ("auto", "random", "paper", "glyphs:4", "folder:/nowhere", "a.json", "resnet18")
    ),
)


def check_parameters(given_values: dict[str, Any], runs_dir: Path) -> None:
    given_values.pop("runs_dir", None)  # it would make folders all over this machine
    try:
        with within(SECONDS):
            Experiment(**{"runs_dir": str(runs_dir), **given_values})
    except InvalidInput as error:
        if str(error) != printable(str(error)):
            pytest.fail(f"a terminal would obey this: {error!r}")
    assert not list(runs_dir.iterdir())


@given(st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=3))
@profile(100)
def test_any_parameters_are_refused_or_taken(runs_dir: Path, given: dict[str, Any]) -> None:
    check_parameters(given, runs_dir)


@pytest.mark.long
@given(st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=3))
@profile(1000)
def test_many_parameters_are_refused_or_taken(runs_dir: Path, given: dict[str, Any]) -> None:
    check_parameters(given, runs_dir)
