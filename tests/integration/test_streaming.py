"""Streaming: what is decoded while a network trains is what would have been in memory.

Trainings run in processes of their own, with real workers, and are killed and stopped for real.
"""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nofe_lab import Arm, Experiment, InvalidInput, predict
from nofe_lab.data import Batches, Dataset, Resident, Streaming, load_dataset, streaming
from nofe_lab.data.pictures import box_within, decode
from nofe_lab.recipes import Recipe
from nofe_lab.runs import RunStore
from nofe_lab.training.events import Event, StepDone

CLASSES = 6
KINDS = ("RGB", "L", "P", "RGBA", "CMYK")
EXIF_ORIENTATION = 0x0112


def write_pictures(folder: Path) -> None:
    """Pictures of all the kinds and sizes that a folder may hold, with some signal."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 14), ("test", 3)):
        for c in range(CLASSES):
            place = folder / split / f"class {c}"
            place.mkdir(parents=True)
            for i in range(n):
                height, width = rng.integers(20, 50, 2)
                pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
                pixels[:, :, c % 3] += 40 * (1 + c // 3)
                picture = Image.fromarray(pixels).convert(KINDS[i % len(KINDS)])
                is_jpeg = picture.mode in ("RGB", "L", "CMYK") and i % 2
                exif = Image.Exif()
                exif[EXIF_ORIENTATION] = 1 + i % 9
                picture.save(
                    place / f"{i}.{'jpg' if is_jpeg else 'png' if i % 5 < 4 else 'tif'}",
                    **({"exif": exif} if is_jpeg else {}),
                )


@pytest.fixture(scope="session")
def pictures(filled_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return filled_once("pictures", write_pictures)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOFE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels_of(data: Dataset) -> dict[str, torch.Tensor]:
    return {
        split: torch.cat(list(getattr(data, split).parts(7))) for split in ("train", "val", "test")
    }


def check_alike(streamed: Dataset, resident: Dataset) -> None:
    """Both hold the same images, labels, keys, notes and files."""
    assert isinstance(streamed.train, Streaming)
    assert isinstance(resident.train, Resident)
    assert streamed.fingerprint == resident.fingerprint
    assert streamed.notes == resident.notes
    if streamed.name == resident.name:
        assert streamed.files == resident.files
    assert streamed.bit_depth == resident.bit_depth
    assert streamed.image_shape == resident.image_shape
    there = pixels_of(streamed)
    for split, images in pixels_of(resident).items():
        assert torch.equal(there[split], images), split
        assert torch.equal(getattr(streamed, split).labels, getattr(resident, split).labels)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_pictures_of_a_folder_are_the_resident_ones(pictures: Path, workers: int) -> None:
    name = f"folder:{pictures}"
    streamed = load_dataset(name, image_size=24, streaming=True, loader_workers=workers)
    check_alike(streamed, load_dataset(name, image_size=24))
    few = load_dataset(
        name, image_size=24, streaming=True, loader_workers=workers, train_per_class=5
    )
    check_alike(few, load_dataset(name, image_size=24, train_per_class=5))


def write_parquet(folder: Path) -> None:
    """Three shards in the Hub's layout, with rows of several groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"class {c}" for c in range(CLASSES)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    source = folder.parent / "pictures of rows"
    write_pictures(source)
    (folder / "data").mkdir(parents=True)
    for split, shards in (("train", 2), ("test", 1)):
        files = sorted(source.glob(f"{split}/*/*.*"))
        for k in range(shards):
            rows = [
                {
                    "image": {"bytes": f.read_bytes(), "path": f.name},
                    "label": names.index(f.parent.name),
                }
                for f in files[k::shards]
            ]
            schema = pa.schema(
                [
                    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                    ("label", pa.int64()),
                ],
                metadata=metadata,
            )
            table = pa.Table.from_pylist(rows, schema=schema)
            pq.write_table(
                table,
                folder / "data" / f"{split}-{k:05d}-of-{shards:05d}.parquet",
                row_group_size=5,
            )


@pytest.fixture(scope="session")
def parquet(filled_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return filled_once("parquet rows", write_parquet)


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_streamed_rows_are_the_resident_ones(
    kind: str, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "hub":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
        datasets.disable_progress_bars()
    resident = load_dataset(f"parquet:{parquet}", image_size=24)
    name = f"{kind}:{parquet}"
    check_alike(load_dataset(name, image_size=24, streaming=True, loader_workers=1), resident)
    check_alike(load_dataset(name, image_size=24, streaming=True, loader_workers=0), resident)
    again = load_dataset(name, image_size=24, streaming=False)
    assert again.fingerprint == resident.fingerprint
    assert all(
        torch.equal(a, b)
        for a, b in zip(pixels_of(again).values(), pixels_of(resident).values(), strict=True)
    )


def test_a_data_set_of_the_hub_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InvalidInput, match=r"dataset 'hub:.*' cannot be loaded by datasets"):
        load_dataset(f"hub:{tmp_path}")


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_16_bit_pictures_are_scaled_alike(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    for c in range(2):
        place = tmp_path / "data" / f"{c}"
        place.mkdir(parents=True)
        for i in range(6):
            deep = rng.integers(0, 4000, (24, 24)).astype(np.uint16)
            picture = (
                Image.fromarray(deep) if i % 2 or mode == "I;16" else Image.new("RGB", (24, 24))
            )
            picture.save(place / f"{i}.png")
    name = f"folder:{tmp_path / 'data'}"
    streamed = load_dataset(name, image_size=16, streaming=True, loader_workers=1)
    check_alike(streamed, load_dataset(name, image_size=16))
    assert streamed.bit_depth == 12


# --- chosen by the memory that there is


def test_images_that_do_not_fit_are_streamed_and_this_is_said(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n = CLASSES * 17
    needed = n * 3 * 24 * 24
    monkeypatch.setattr(streaming, "available_memory", lambda: 3 * needed - 1)
    name = f"folder:{pictures}"
    data = load_dataset(name, image_size=24)
    assert isinstance(data.train, Streaming)
    said = capsys.readouterr().out
    assert f"{n} images of 24 x 24 pixels take" in said
    assert "streaming=False" in said
    assert isinstance(load_dataset(name, image_size=24, streaming=False).train, Resident)
    assert isinstance(load_dataset(name, image_size=24, train_per_class=2).train, Resident)
    monkeypatch.setattr(streaming, "available_memory", lambda: 3 * needed)
    assert isinstance(load_dataset(name, image_size=24).train, Resident)


def test_images_in_memory_cannot_be_streamed() -> None:
    for changes in ({"streaming": True}, {"loader_workers": 2}):
        with pytest.raises(InvalidInput, match=f"{next(iter(changes))} is for 'folder:DIR'"):
            load_dataset("glyphs:4", **changes)


# --- training


CHANGES = {"K": 2, "epochs": 2, "batch_size": 16, "image_size": 36, "flips": True}


def experiment(pictures: Path, runs_dir: Path, **changes: Any) -> Experiment:
    where = {"device": "cpu", "runs_dir": str(runs_dir), "checkpoint_seconds": 0.0}
    return Experiment(f"folder:{pictures}", **{**CHANGES, **where, **changes})


def bits(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """All that runs have learned and written down, by id, without their clocks."""
    found: dict[str, dict[str, Any]] = {}
    for run in RunStore(runs_dir):
        own = {p.name: p.read_bytes() for p in run.path.iterdir() if p.suffix != ".csv"}
        for name in ("run.json", "reports.json"):
            own.pop(name, None)
        history = pd.read_csv(run.path / "history.csv", dtype=str).drop(columns="seconds")
        found[run.id] = {**own, "history": history.to_csv()}
    return found


CODE = """
import json, sys, torch
torch.set_num_threads(1)
from nofe_lab import Experiment
if __name__ == "__main__":
    print("ready", flush=True)
    found = Experiment(**json.loads(sys.argv[1]))
    found.run(found.nofe())
    print("done", flush=True)
"""


def begin(pictures: Path, runs_dir: Path, **changes: Any) -> subprocess.Popen[str]:
    """Train a NofE in a process of its own."""
    knobs = {"dataset": f"folder:{pictures}", "device": "cpu", "runs_dir": str(runs_dir)}
    knobs |= {"checkpoint_seconds": 0.0, **CHANGES, **changes}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(knobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def resident_runs(
    pictures: Path, filled_once: Callable[[str, Callable[[Path], None]], Path]
) -> dict[str, dict[str, Any]]:
    """The runs of a generalist and a NofE whose images were in memory."""

    def fill(runs_dir: Path) -> None:
        process = begin(pictures, runs_dir, streaming=False)
        said, _ = process.communicate()
        assert process.returncode == 0, said

    return bits(filled_once("resident runs", fill))


@pytest.mark.xdist_group("streamed")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resident_and_streamed_images_give_the_same_run_to_the_bit(
    workers: int, pictures: Path, resident_runs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    process = begin(pictures, tmp_path / "runs", streaming=True, loader_workers=workers)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len(resident_runs) == 2
    assert bits(tmp_path / "runs") == resident_runs


@pytest.mark.xdist_group("streamed")
@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (3, 2),
        *(pytest.param(n, 3, marks=pytest.mark.slow) for n in (0, 1)),
        *(pytest.param(n, 12, marks=pytest.mark.long) for n in (0, 1, 3)),
    ],
)
def test_a_streamed_training_that_was_killed_ends_with_the_same_bits(
    workers: int,
    kills: int,
    pictures: Path,
    resident_runs: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    chance, done = random.Random(f"{workers} {kills}"), 0
    while done < kills:
        process = begin(pictures, tmp_path / "runs", streaming=True, loader_workers=workers)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.2, 3))
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        done += 1
        # workers that have lost the training end by themselves
        psutil.wait_procs(children, timeout=20)
        assert not [child for child in children if child.is_running()]
        if len(bits(tmp_path / "runs")) == 2:
            break
    process = begin(pictures, tmp_path / "runs", streaming=True, loader_workers=workers)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert bits(tmp_path / "runs") == resident_runs


@pytest.mark.xdist_group("streamed")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_stops_between_steps_and_leaves_no_worker(
    name: str, pictures: Path, resident_runs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    process = begin(pictures, tmp_path / "runs", streaming=True, loader_workers=2, epochs=500)
    while not list((tmp_path / "runs").glob("*.unfinished/step-*")):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, getattr(signal, name))  # as a terminal or a batch system does
    said, _ = process.communicate(timeout=60)
    assert "DataLoader" not in said
    if name == "SIGINT":
        assert "stopped after step" in said.splitlines()[-1]
    else:
        assert process.returncode == -signal.SIGTERM
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]


def test_a_process_that_has_streamed_ends_at_once(pictures: Path, cache: Path) -> None:
    """Workers wait for requests when their process ends; none of them must hold it up."""
    code = f"""
import time
from nofe_lab.data import load_dataset
if __name__ == "__main__":
    data = load_dataset("folder:{pictures}", image_size=24, streaming=True, loader_workers=2)
    parts = data.train.parts(5)
    next(parts)  # goes on
    list(data.test.parts(5))
    print(time.time(), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    assert time.time() - float(done.stdout) < 15  # not a speed: it would wait for ever


# --- what goes wrong on the way


def streamed(pictures: Path, workers: int = 2, **changes: Any) -> Dataset:
    options = {"image_size": 24, "streaming": True, "loader_workers": workers, **changes}
    return load_dataset(f"folder:{pictures}", **options)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", ["removed", "changed", "damaged"])
def test_a_file_that_can_no_longer_be_read_is_named(own: Path, workers: int, change: str) -> None:
    path = own / "train" / "class 3" / "5.jpg"
    content = path.read_bytes()
    if change == "damaged":  # in between: its header and its end are as they were
        path.write_bytes(content[:-60] + bytes(58) + content[-2:])
    data = streamed(own, workers, val_fraction=0)
    if change == "removed":
        path.unlink()
    elif change == "changed":
        path.write_bytes((own / "train" / "class 3" / "1.jpg").read_bytes())
    if change == "damaged":  # libjpeg makes the best of it
        resident = load_dataset(f"folder:{own}", image_size=24, val_fraction=0)
        assert torch.equal(pixels_of(data)["train"], pixels_of(resident)["train"])
        return
    for _ in range(2):  # and again
        with pytest.raises(InvalidInput, match=r"class 3/5.jpg .*it has changed since"):
            list(data.train.parts(9))
    assert len(list(data.test.parts(9))) == 2


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_truncated_files_are_refused_or_left_out_before_training(own: Path, end: bytes) -> None:
    path = own / "train" / "class 3" / "5.jpg"
    path.write_bytes(path.read_bytes()[:20] + end)
    with pytest.raises(InvalidInput, match=r"class 3/5.jpg cannot be decoded"):
        streamed(own)
    found = streamed(own, skip_unreadable=True)
    check_alike(found, load_dataset(f"folder:{own}", image_size=24, skip_unreadable=True))


def test_damage_that_no_header_shows_is_left_out_or_named_when_it_is_met(own: Path) -> None:
    path = own / "train" / "class 3" / "5.jpg"
    other = (own / "train" / "class 2" / "5.jpg").read_bytes()
    path.write_bytes(path.read_bytes()[:700] + other)
    with pytest.raises(InvalidInput, match=r"class 3/5.jpg .*skip_unreadable=True would find"):
        pixels_of(streamed(own))
    found = streamed(own, skip_unreadable=True)
    check_alike(found, load_dataset(f"folder:{own}", image_size=24, skip_unreadable=True))
    assert len(found.files) == CLASSES * 17


def test_files_stay_where_they_are_when_the_working_folder_changes(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(own.parent)
    data = load_dataset("folder:own", image_size=24, streaming=True, loader_workers=0)
    monkeypatch.chdir(tmp_path.parent)
    assert len(list(data.train.parts(9)))


def test_a_link_or_another_owner_is_no_change_of_a_picture(own: Path, tmp_path: Path) -> None:
    """Backups link files, which changes the time of their status."""
    data = streamed(own, 0)
    for i, file in enumerate(own.rglob("*.*")):
        if file.is_file():
            os.link(file, tmp_path / f"backup {i}")
    assert len(list(data.train.parts(9)))


def test_a_data_set_can_be_copied_and_sent(pictures: Path) -> None:
    data = streamed(pictures, 2)
    expected = pixels_of(data)
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert all(torch.equal(expected[s], p) for s, p in pixels_of(other).items())


@pytest.mark.parametrize("daemon", [True, False])
def test_a_process_that_was_forked_has_workers_of_its_own(pictures: Path, daemon: bool) -> None:
    """Daemons may not start any: they decode themselves."""
    data = streamed(pictures, 2)
    expected = pixels_of(data)["test"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work() -> None:
        torch.set_num_threads(1)
        found = torch.cat(list(data.test.parts(4)))
        queue.put(found.numpy().tobytes())

    processes = [context.Process(target=work, daemon=daemon) for _ in range(2)]
    for process in processes:
        process.start()
    parts = data.test.parts(4)  # at the same time
    assert torch.equal(torch.cat(list(parts)), expected)
    for _ in processes:
        assert queue.get(timeout=60) == expected.numpy().tobytes()
    for process in processes:
        process.join()
        assert process.exitcode == 0


class Readers:
    """The processes that this one starts from now on; those of earlier tests may live or rot."""

    def __init__(self) -> None:
        self.others = set(psutil.Process().children())

    def __iter__(self) -> Iterator[psutil.Process]:
        for child in set(psutil.Process().children()) - self.others:
            # one that has just ended has no command line any more
            with suppress(psutil.NoSuchProcess):
                if "forkserver" not in " ".join(child.cmdline()):
                    yield child

    def kill(self) -> None:
        for reader in self:
            with suppress(psutil.NoSuchProcess):
                reader.kill()


def test_a_worker_that_was_killed_is_a_sentence_and_the_next_stream_works(pictures: Path) -> None:
    data, readers = streamed(pictures, 2), Readers()
    parts = data.train.parts(1)
    next(parts)
    readers.kill()
    with pytest.raises(InvalidInput, match="a process that reads images has died"):
        list(parts)
    assert torch.equal(pixels_of(data)["train"], pixels_of(streamed(pictures, 0))["train"])


@pytest.mark.parametrize("noticed", [EOFError(), ConnectionResetError(104, "reset by peer")])
def test_a_worker_that_dies_while_its_answer_is_fetched_is_a_sentence(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, noticed: Exception
) -> None:
    parts, readers = streamed(pictures, 2).train.parts(1), Readers()
    next(parts)
    assert len(list(readers)) == 2

    def none_comes(_: object) -> None:
        raise noticed

    def shut_down(iterator: _MultiProcessingDataLoaderIter) -> None:  # as far as torch may come
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with monkeypatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "_next_data", none_comes)
        patch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", shut_down)
        with pytest.raises(InvalidInput, match="a process that reads images has died"):
            list(parts)
    psutil.wait_procs(readers, timeout=60)
    assert not list(readers), "this process could not end before them"


def test_a_worker_that_is_killed_while_a_network_trains_is_a_sentence(
    pictures: Path, tmp_path: Path
) -> None:
    experiment = Experiment(
        f"folder:{pictures}",
        backbone="alexnet_quick",
        K=2,
        epochs=3,
        image_size=32,
        streaming=True,
        loader_workers=2,
        runs_dir=tmp_path / "runs",
    )

    readers = Readers()

    def kill(event: Event) -> None:
        if isinstance(event, StepDone):
            readers.kill()

    with pytest.raises(InvalidInput, match="a process that reads images has died"):
        experiment.run(experiment.stage(Arm("base")), watch=kill)
    assert len(experiment.run(experiment.stage(Arm("base")))) == 1


def test_a_worker_that_is_killed_while_a_network_answers_is_a_sentence(pictures: Path) -> None:
    class Kills(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(InvalidInput, match="a process that reads images has died"):
        predict(Kills(1, 1), streamed(pictures, 2).test)


def test_several_streams_at_once_do_not_mix(pictures: Path) -> None:
    data, other = streamed(pictures, 2), streamed(pictures, 0)
    expected = pixels_of(other)
    outer = []
    for part in data.train.parts(9):
        outer.append(part)
        if len(outer) == 2:
            assert torch.equal(torch.cat(list(data.test.parts(4))), expected["test"])
            next(data.train.parts(3))  # abandoned
    assert torch.equal(torch.cat(outer), expected["train"])


def test_little_shared_memory_is_got_on_with(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often have 64 MB of it, and a process that takes more dies of a bus error."""
    expected = pixels_of(streamed(pictures, 0))
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("nofe_lab.data.streaming.shutil.disk_usage", lambda _: usage)
    assert all(torch.equal(expected[s], p) for s, p in pixels_of(streamed(pictures, 1)).items())


def test_the_memory_of_workers_does_not_grow_with_the_batches(pictures: Path) -> None:
    data = streamed(pictures, 2, image_size=224, val_fraction=0)
    indices = [torch.arange(64)] * 40
    megabytes = 64 * 3 * 224 * 224 / 2**20

    def taken() -> float:
        own = psutil.Process()
        each = [process.memory_full_info().uss for process in (own, *own.children(recursive=True))]
        return sum(each) / 2**20

    found = [taken() for _ in data.train.stream(indices)]
    assert len(found) == 40
    assert max(found[20:]) < max(found[5:20]) + 3 * megabytes


# --- listings


def test_a_folder_that_was_listed_is_not_read_again(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nofe_lab.data import listing

    read: list[object] = []
    examine = listing.examine
    monkeypatch.setattr(listing, "examine", lambda *e: (read.append(e), examine(*e))[1])
    first = streamed(own, 0)
    assert len(read) == CLASSES * 17
    read.clear()
    again = streamed(own, 0)
    assert not read
    assert (again.fingerprint, again.notes) == (first.fingerprint, first.notes)
    streamed(own, 0, train_per_class=2)
    assert not read
    (own / "train" / "class 3" / "1.jpg").write_bytes(
        (own / "train" / "class 2" / "5.jpg").read_bytes()
    )
    changed = streamed(own, 0)
    assert len(read) == 1
    assert changed.fingerprint != first.fingerprint
    assert changed.fingerprint == load_dataset(f"folder:{own}", image_size=24).fingerprint


@pytest.mark.parametrize("damage", ["emptied", "replaced", "a byte"])
def test_what_is_damaged_in_the_cache_is_made_again(own: Path, cache: Path, damage: str) -> None:
    def sums() -> dict[str, torch.Tensor]:
        return {"sum": torch.cat(list(data.train.parts(9))).sum()}

    data = streamed(own, 0)
    total = data.train.measured("sums", sums)["sum"]
    files = [*cache.glob("listing-*"), *cache.glob("sums-*")]
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"emptied": b"", "replaced": b"PAR1", "a byte": changed}[damage])
    again = streamed(own, 0)
    assert again.fingerprint == data.fingerprint
    assert again.train.measured("sums", sums)["sum"] == total


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_rows_that_are_damaged_in_the_cache_are_unpacked_again(
    parquet: Path, cache: Path, share: float
) -> None:
    def load() -> Dataset:
        name = f"parquet:{parquet}"
        return load_dataset(name, image_size=24, streaming=True, loader_workers=0)

    expected = pixels_of(load())
    files = list(cache.glob("images-*"))
    assert len(files) == 3
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
    assert all(torch.equal(expected[s], p) for s, p in pixels_of(load()).items())
    assert not list(cache.glob(".*"))


def test_few_rows_of_a_table_are_reached_by_several_threads(parquet: Path) -> None:
    name, few = f"parquet:{parquet}", 3
    for _ in range(20):
        data = load_dataset(
            name, image_size=24, streaming=True, loader_workers=0, train_per_class=few
        )
        copied = pickle.loads(pickle.dumps(data.train))  # which opens the files anew
        assert len(copied.sample(range(len(copied)))) == len(copied)


def test_errors_are_not_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(InvalidInput, match="more than the 100 pixels"):
            streamed(own, 0)
    assert len(streamed(own, 0).train)


def test_what_was_read_before_an_interrupt_is_kept(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nofe_lab.data import listing

    read: list[object] = []
    examine = listing.examine

    def interrupted(*given: Any) -> Any:
        read.append(given[0])
        if len(read) == 50:
            raise KeyboardInterrupt
        return examine(*given)

    monkeypatch.setattr(listing, "MANY", 10)
    monkeypatch.setattr(listing, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        streamed(own, 0)
    before = len(read)
    streamed(own, 0)
    assert len(read) < before + CLASSES * 17 - 30


def test_a_cache_that_cannot_be_written_is_done_without(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOFE_CACHE", str(tmp_path / "file" / "cache"))
    data = streamed(own, 0)
    assert "cannot be kept" in capsys.readouterr().out
    assert len(data.train)


# --- random resized crops


def test_random_crops_are_drawn_by_seed_and_epoch_for_any_number_of_workers(pictures: Path) -> None:
    recipe = Recipe(1, 0.1, batch_size=16, flips=True, random_crops=True)

    def images(workers: int, epoch: int, first: int = 0) -> torch.Tensor:
        batches = Batches(streamed(pictures, workers).train, recipe, 0, torch.device("cpu"))
        return torch.cat([batch.images for batch in batches.epoch(epoch, first)])

    expected = images(0, 0)
    for workers in (1, 3):
        assert torch.equal(images(workers, 0), expected)
        assert torch.equal(images(workers, 0, first=2), expected[32:])
    assert not torch.equal(images(0, 1), expected)


def test_random_crops_of_pictures_as_they_are_stored_keep_their_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    box = (0.2, 0.5, 0.3, 0.7)
    content = io.BytesIO()
    picture.save(content, "PNG")
    found = decode(content.getvalue(), None, box=box).pixels
    part = picture.resize((30, 20), Image.Resampling.BILINEAR, box=box_within((30, 20), box))
    assert np.array_equal(found, np.asarray(part))
    assert not np.array_equal(found, np.asarray(picture))


def test_boxes_lie_within_the_picture_and_have_the_drawn_area() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for drawn in rng.random((500, 4)):
        left, top, right, bottom = box_within((300, 200), drawn.tolist())
        assert 0 <= left < right <= 300 + 1e-9
        assert 0 <= top < bottom <= 200 + 1e-9
        ratio = (right - left) / (bottom - top)
        share = (right - left) * (bottom - top) / 60000
        shares.append(share)
        if bottom - top < 200 - 1e-6 and right - left < 300 - 1e-6:
            assert 3 / 4 - 1e-9 <= ratio <= 4 / 3 + 1e-9
            assert share == pytest.approx(0.08 + 0.92 * drawn[0])
    assert 0.08 <= min(shares) < 0.15
    assert 0.85 < max(shares) <= 1


def test_random_crops_are_refused_where_images_may_be_resident(
    pictures: Path, runs_dir: Path, tiny: Dataset
) -> None:
    for chosen in (None, False):
        with pytest.raises(InvalidInput, match="random_crops=True needs streaming=True"):
            experiment(pictures, runs_dir, random_crops=True, streaming=chosen)
    with pytest.raises(InvalidInput, match="random_crops cuts boxes out of pictures"):
        Batches(tiny.train, Recipe(1, 0.1, 10, random_crops=True), 0, torch.device("cpu"))
    there = experiment(pictures, runs_dir, random_crops=True, streaming=True)
    without = experiment(pictures, runs_dir, streaming=True)
    assert there.base().id != without.base().id
    assert without.base().id == experiment(pictures, runs_dir).base().id


# --- all that is done with a data set


def test_streamed_data_are_predicted_looked_at_and_inspected(
    pictures: Path, runs_dir: Path
) -> None:
    there = experiment(
        pictures, runs_dir, streaming=True, loader_workers=1, epochs=1, val_fraction=0.3
    )
    there.run(there.base(), there.nofe())
    model = there.model(there.base())
    found = model.predict(there.data.test)
    assert len(found) == CLASSES * 3
    alike = predict(model, experiment(pictures, runs_dir, val_fraction=0.3).data.test)
    assert np.array_equal(predict(model, there.data.test).logits, alike.logits)
    assert there.data.thumbnails.shape == (CLASSES, 3, 36, 36)
    joined = there.data.train.joined([there.data.val])
    assert isinstance(joined, Streaming)
    assert len(joined) == len(there.data.train) + len(there.data.val)
    features = there.on_features(there.base())
    assert isinstance(features.data.train, Resident)
