"""Hostile inputs that know the structure of what they attack, checksums made again.

Beside `test_fuzz`, which changes bytes: here a value, a name, a type or a place is another, and all
that vouches for it agrees.  Whatever comes: the library's own sentence, or a result that a check of
its own finds right, and never a hang.  ``make test-long`` tries 3,000 of them.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_fuzz import within
from torch import nn

from nofe_lab import (
    Classifier,
    Dataset,
    Experiment,
    InvalidInput,
    Resident,
    Specialties,
    backbone,
    load,
    load_dataset,
)
from nofe_lab.__main__ import listing
from nofe_lab.config import printable
from nofe_lab.data.folders import split_of
from nofe_lab.files import read_tensors, sha256, write_tensors
from nofe_lab.machine import Machine
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.runs import RunStore, identity_hash
from nofe_lab.runs import checkpoint as checkpoints
from nofe_lab.runs.checkpoint import Checkpoints, State
from nofe_lab.runs.provenance import provenance
from nofe_lab.runs.store import _digest

SECONDS = 30
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 10**400, 2**63, 1.5, float("inf"), float("nan"), -0.0),
    *("", "x", "x" * 5000, "\x1b[31m", "\u202ex", "../x", "/etc/passwd", "1e9", "ß", "\0"),
    *([], [1], {}, {"a": 1}, [[[]]], [None]),
)
Attack = Callable[[random.Random, Path], None]


def obey(work: Callable[[], object]) -> object:
    """What it gives, or None where it is refused in one printable sentence."""
    try:
        with within(SECONDS):
            return work()
    except InvalidInput as error:
        said = str(error)
        assert said == printable(said)
        assert "\n" not in said
        assert len(said) > 10
        return None


def spoiled(rng: random.Random, value: Any) -> Any:
    """A copy of nested lists and dicts with one thing in it changed."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def look(inside: Any) -> None:
        items = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for key, inner in list(items):
            places.append((inside, key))
            if isinstance(inner, (dict, list)):
                look(inner)

    look(value)
    inside, key = rng.choice(places)
    how = rng.choice(("set", "set", "set", "drop", "add"))
    if how == "set":
        inside[key] = rng.choice(VALUES)
    elif how == "drop":
        del inside[key]
    elif isinstance(inside, dict):
        inside[rng.choice(("x", "", "\x1b", "y" * 3000))] = rng.choice(VALUES)
    else:
        inside.insert(key, rng.choice(VALUES))
    return value


# --- runs and checkpoints

IDENTITY: dict[str, Any] = {"stage": "flat", "config": {"seed": 0}}
ABOUT = {"title": "t", "dataset": "d", "backbone": "b", "K": 3, "epochs": 1, "seed": 0}


def a_run(rng: random.Random, folder: Path) -> None:
    store = RunStore(folder)
    tensors = {"w": torch.arange(4.0)}
    made = provenance(Machine(torch.device("cpu")), 1.0)
    files = {"history.csv": "epoch,train_loss\n1,2.5\n"}
    run, sound = (
        store.save("flat-d", {**IDENTITY, "n": n}, ABOUT, tensors, files, {"a": 0.5}, made)
        for n in range(2)
    )
    kind = rng.choice(("record", "record", "record", "identity", "file", "reports"))
    if kind == "reports":
        (run.path / "reports.json").write_text(json.dumps(rng.choice(VALUES)))
    elif kind == "file":
        content = json.dumps(rng.choice(VALUES))
        (run.path / "history.csv").write_text(content)
        record = json.loads((run.path / "run.json").read_text())
        size = (run.path / "history.csv").stat().st_size
        record["files"]["history.csv"] = {"bytes": size, "sha256": sha256(run.path / "history.csv")}
        write_record(run.path, record)
    else:
        record = json.loads((run.path / "run.json").read_text())
        part = rng.choice([key for key in record if key != "digest"])
        if isinstance(record[part], (dict, list)) and record[part]:
            record[part] = spoiled(rng, record[part])
        else:
            record[part] = rng.choice(VALUES)
        if kind == "identity" and isinstance(record.get("identity"), dict):
            record["id"] = identity_hash(record["identity"])
        write_record(run.path, record)
    shown = obey(lambda: listing(store))
    assert isinstance(shown, str)
    assert sound.id in shown
    assert shown == "\n".join(map(printable, shown.split("\n")))
    for found in obey(lambda: list(store)) or ():  # type: ignore[attr-defined]
        assert found.seconds >= 0
        assert all(
            abs(value) < 1e308 for value in (*found.result.values(), *found.reports.values())
        )
        obey(lambda found=found: (found.history, found.weights(), found.lineage))
    obey(lambda: store.find(run.id))
    obey(lambda: store.remove(run.id))
    assert sound.path.is_dir()


def write_record(path: Path, record: dict[str, Any], name: str = "run.json") -> None:
    record.pop("digest", None)
    record["digest"] = _digest(record)
    (path / name).write_text(json.dumps(record))


@cache
def published() -> tuple[tempfile.TemporaryDirectory[str], torch.Tensor, torch.Tensor]:
    """A published network of experts with its reports, two images, and what it answers."""
    folder = tempfile.TemporaryDirectory()
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat(6)
    pixels = rng.integers(256, size=(24, 3, 32, 32), dtype=np.uint8)
    images = Resident(torch.from_numpy(pixels), labels)
    data = Dataset("tiny", tuple("abcd"), images, images, images)
    experiment = Experiment(
        data,
        K=2,
        epochs=1,
        batch_size=8,
        specialties="random",
        trunk="scratch",
        device="cpu",
        runs_dir=f"{folder.name}/runs",
    )
    networks = {"base": experiment.base(), "NofE": experiment.nofe(), "gate": experiment.gate()}
    experiment.final_report(networks)
    model = experiment.model(networks["gate"])
    model.publish(f"{folder.name}/flowers")
    return folder, images.images[:2], model(images.images[:2]).detach()


def a_published_folder(rng: random.Random, folder: Path) -> None:
    origin, images, logits = published()
    path = folder / "flowers"
    shutil.copytree(f"{origin.name}/flowers", path)
    record = json.loads((path / "config.json").read_text())
    tables = ("experts.csv", "val.csv")
    if rng.random() < 0.3:
        file = path / rng.choice(tables)
        rows = [line.split(",") for line in file.read_text().split("\n")]
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = str(rng.choice(VALUES)).replace(",", "")
        file.write_text("\n".join(",".join(row) for row in rows), errors="surrogatepass")
        record["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    else:
        part = rng.choice([key for key in record if key != "digest"])
        if isinstance(record[part], (dict, list)) and record[part]:
            record[part] = spoiled(rng, record[part])
        else:
            record[part] = rng.choice(VALUES)
        if isinstance(record.get("identity"), dict):
            record["id"] = identity_hash(record["identity"])
    write_record(path, record, "config.json")
    model = obey(lambda: load(path))
    if not isinstance(model, Classifier):
        return
    assert torch.equal(model(images), logits)
    obey(lambda: (model.predict(images), model.predict(images, experts=1, coverage=0.5)))
    obey(lambda: (model.expert(0).predict(images), model.expert(1).measure()))
    if obey(lambda: model.publish(folder / "again")) is not None:
        card = (folder / "again" / "README.md").read_text()
        assert card == "\n".join(map(printable, card.split("\n")))
        assert torch.equal(load(folder / "again")(images), logits)


def a_checkpoint(rng: random.Random, folder: Path) -> None:
    kept = Checkpoints(folder / "x.unfinished", "0123456789ab")
    history = [{"epoch": 1.0, "train_loss": 2.5}]
    state = State({"model.w": torch.arange(4.0)}, {"history": history, "step": 3, "seconds": 0.5})
    kept.save(3, state)
    (path,) = kept.folder.iterdir()
    tensors, texts = read_tensors(path)
    content = json.loads(texts["nofe_lab"])
    told = rng.random() < 0.7
    changed = (
        spoiled(rng, content) if told else {**content, "record": spoiled(rng, content["record"])}
    )
    text = json.dumps(changed)
    write_tensors(path, tensors, {"nofe_lab": text, "digest": checkpoints._digest(tensors, text)})
    again, used = Checkpoints(folder / "x.unfinished", "0123456789ab"), list[State]()
    if obey(lambda: again.resume(used.append)):
        assert used[0].record.get("step", 3) == 3
        assert 0 <= again.seconds_before < 1e9
        assert again.interruptions >= 1


# --- specialties, weights


def some_specialties(rng: random.Random, folder: Path) -> None:
    names = ("cat", "dog", "bus", "car")
    right = json.loads(Specialties(names, (0, 0, 1, 1), 2).to_json())
    path = folder / "mine.json"
    path.write_text(json.dumps(spoiled(rng, right)))
    found = obey(lambda: Specialties.load(path, names))
    if found is not None:
        assert isinstance(found, Specialties)
        assert found.class_names == names
        assert sorted(c for k in range(found.K) for c in found.members(k)) == [0, 1, 2, 3]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(),
                         nn.Linear(4 * 4 * 4, 10))  # fmt: skip


def some_weights(rng: random.Random, folder: Path) -> None:
    torch.manual_seed(0)
    state: dict[str, Any] = dict(net().state_dict())
    prefix = rng.choice(("", "module.", "_orig_mod.", "model.", "student.", "module.module."))
    state = {prefix + name: tensor for name, tensor in state.items()}
    name = rng.choice(list(state))
    how = rng.choice(("as it is", "drop", "nan", "shape", "type", "more", "rename"))
    if how == "drop":
        del state[name]
    elif how == "nan":
        state[name] = state[name] * float("nan")
    elif how == "shape":
        state[name] = state[name][..., None]
    elif how == "type":
        state[name] = rng.choice(VALUES)
    elif how == "more":
        state[rng.choice(("optimizer", "n_averaged", "zz.weight", "\x1b[31m"))] = torch.ones(2)
    elif how == "rename":
        state["\u202e" + name] = state.pop(name)
    key = rng.choice(("", "state_dict", "model", "net", "model_ema", "whatever"))
    content: Any = {key: state, "epoch": 3} if key else state
    if rng.random() < 0.2:
        content = {"model": state, "model_ema": state}
    torch.save(content, folder / "w.pth")

    def load() -> object:
        return backbone(net, weights=folder / "w.pth", split="2").for_images((3, 8, 8))

    found = obey(load)
    if found is not None:
        assert isinstance(found, SplitNetwork)
        trunk = found.make_trunk().state_dict()
        torch.manual_seed(0)
        assert torch.equal(trunk["0.weight"], net().state_dict()["0.weight"])


# --- folders: the colour of an image says which class it is of

CLASSES = ("cat", "dog", "fox")
TRAIN = ("train", "Train", "TRAINING", "seg_train", "training_set", "train_images")
TEST = ("test", "Test", "testing", "seg_test", "test_set", "val", "Validation", "dev", "eval")


def picture(label: int | None, number: int) -> Image.Image:
    """Noise in the colour of a class; of None, which may be in any, without one."""
    rng = np.random.default_rng([3 if label is None else label, number])
    pixels = rng.integers(0, 60, (6, 6, 3), dtype=np.uint8)
    if label is not None:
        pixels[..., label] += 180
    return Image.fromarray(pixels)


def put(folder: Path, rng: random.Random, label: int | None, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(rng.randint(2, 4)):
        picture(label, 10 * number + i).save(folder / f"{i}.png")


def a_folder(rng: random.Random, folder: Path) -> None:
    root = folder / "root"
    train, test = rng.choice(TRAIN), rng.choice(TEST)
    layout = rng.choice(("plain", "splits", "splits", "inside", "wrapped", "one split", "folds"))
    for label, name in enumerate(CLASSES):
        places = {
            "plain": [name],
            "splits": [f"{train}/{name}", f"{test}/{name}"],
            "inside": [f"{name}/{train}", f"{name}/{test}"],
            "wrapped": [f"{train}/{train}/{name}", f"{test}/{test}/{name}"],
            "one split": [f"{train}/{name}"],
            "folds": [f"fold{i}/{name}" for i in (1, 2)],
        }[layout]
        for number, place in enumerate(places):
            put(root / place, rng, label, number)
    for _ in range(rng.randint(0, 3)):
        disturb(rng, root)
    groups = rng.choice((None, None, None, "folder"))
    skip = rng.random() < 0.5

    def load() -> object:
        return load_dataset(f"folder:{root}", val_fraction=rng.choice((0, 0.3)), image_size=6,
                            skip_unreadable=skip, groups=groups)  # fmt: skip

    found = obey(load)
    if found is not None:
        assert isinstance(found, Dataset)
        check_colours(found)


def check_colours(found: Dataset) -> None:
    """Every image of the classes that there are is labelled as what it shows."""
    known = {name.strip().casefold() for name in CLASSES}
    for split in (found.train, found.val, found.test):
        for image, label in zip(split.images, split.labels, strict=True):
            name = found.class_names[label].casefold()
            means = image.float().mean((1, 2))
            if name in known and float(means.max()) > 100:
                assert CLASSES[int(means.argmax())] == name
    odd = [n for n in found.class_names if split_of(n) is not None]
    assert not odd or "Taken for classes despite their names" in " ".join(found.notes)


def disturb(rng: random.Random, root: Path) -> None:
    folders = sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())
    place = rng.choice([root, *folders])
    kind = rng.choice(("stray", "ending", "hidden", "link up", "broken", "empty", "damaged", "case",
                       "extra", "same", "odd name", "pipe", "sibling"))  # fmt: skip
    name = rng.choice(("x", "Thumbs.db", "ü", "a b", "\u200b", "-rf", "%s", "$HOME"))
    try:
        if kind == "stray":
            picture(None, 99).save(place / "stray.png")
        elif kind == "ending":
            (place / f"{name}.{rng.choice(('heic', 'txt', 'tar.gz', ''))}").write_bytes(b"x")
        elif kind == "hidden":
            put(place / rng.choice(("@eaDir", "__MACOSX", ".git", "lost+found")), rng, 1, 7)
        elif kind == "link up":
            (place / "up").symlink_to(rng.choice((root, place, place.parent)))
        elif kind == "broken":
            (place / name).symlink_to(root / "nowhere")
        elif kind == "empty":
            (place / name).mkdir()
        elif kind == "damaged":
            (place / "damaged.png").write_bytes(rng.choice((b"", b"GIF89a", b"\x89PNG\r\n\x1a\n")))
        elif kind == "case" and place != root:
            shutil.copytree(place, place.with_name(place.name.swapcase()))
        elif kind == "extra":
            put(place / rng.choice(("unlabelled", "train", "test", "val", "2020")), rng, None, 8)
        elif kind == "same" and place != root:
            shutil.copytree(place, place / place.name)
        elif kind == "odd name" and place != root:
            place.rename(place.with_name(f"{place.name}{rng.choice((' ', chr(0x202E), '/..'))}"))
        elif kind == "pipe":
            import os

            os.mkfifo(place / "pipe.png")
        elif kind == "sibling" and len(folders) > 1:
            (place / "sibling").symlink_to(rng.choice(folders))
    except (OSError, ValueError, shutil.Error):
        pass  # it was there already, or no such name can be


def some_groups(rng: random.Random, folder: Path) -> None:
    root = folder / "root"
    rows = [["file", "group"]]
    for label, name in enumerate(CLASSES):
        for number in range(4):
            put(root / name / f"o{number}", rng, label, number)
    for path in sorted(root.rglob("*.png")):
        rows.append([str(path.relative_to(root)), f"{path.parent.parent.name}{path.parent.name}"])
    for _ in range(rng.randint(0, 2)):
        row = rng.choice(rows)
        row[rng.randrange(2)] = str(rng.choice(VALUES)).replace("\0", "")
    out = io.StringIO()
    csv.writer(out, lineterminator=rng.choice(("\n", "\r\n"))).writerows(rows)
    text = rng.choice(("", "\ufeff")) + out.getvalue()
    (folder / "g.csv").write_text(text, "utf-8", newline="")

    def load() -> object:
        return load_dataset(f"folder:{root}", val_fraction=0.25, image_size=6,
                            groups=str(folder / "g.csv"))  # fmt: skip

    found = obey(load)
    if found is not None:
        assert isinstance(found, Dataset)
        check_colours(found)
        sides = [set(s.groups.tolist()) for s in (found.train, found.val, found.test)]  # type: ignore[union-attr]
        assert sum(map(len, sides)) == len(set().union(*sides))


# --- parquet: the same colours

COLUMN_TYPES = (pa.int64(), pa.int8(), pa.int32(), pa.float64(), pa.string(), pa.list_(pa.int64()))


def a_parquet_folder(rng: random.Random, folder: Path) -> None:
    root = folder / "hub"
    layout = rng.choice(
        ("data/{s}-0000{k}-of-0000{n}", "{s}", "default/{s}/000{k}", "{s}/{s}-{k}-of-{n}")
    )
    names = {s: rng.choice(TRAIN[:2] if s == "train" else TEST[:2]) for s in ("train", "test")}
    shards = 1 if layout == "{s}" else rng.randint(1, 3)
    for split, called in names.items():
        for k in range(shards):
            if rng.random() < 0.05:
                continue
            path = root / f"{layout.format(s=called, k=k, n=shards)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(a_table(rng, 10 * k + (split == "test")), path)
    if rng.random() < 0.1:
        shutil.copytree(root, folder / "hub" / "copy", dirs_exist_ok=False)
    found = obey(lambda: load_dataset(f"parquet:{root}", val_fraction=0, image_size=6))
    if found is not None:
        assert isinstance(found, Dataset)
        check_colours(found)


def a_table(rng: random.Random, number: int) -> pa.Table:
    names = list(CLASSES)
    rng.shuffle(names)
    if rng.random() < 0.1:
        names[rng.randrange(3)] = rng.choice(("other", names[0], "", "\x1b", "cat "))
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for i in range(2 if name in names else 0):
            out = io.BytesIO()
            picture(label, 10 * number + i).save(out, "PNG")
            content: Any = out.getvalue()
            if rng.random() < 0.02:
                content = rng.choice((None, b"", b"x", content[:40]))
            images.append({"bytes": content, "path": rng.choice((None, "/etc/passwd", "\x1b"))})
            labels.append(names.index(name))
    if rng.random() < 0.08:
        labels[0] = rng.choice((None, -1, 3, 10**9))
    kind = pa.int64() if rng.random() < 0.9 else rng.choice(COLUMN_TYPES)
    values: list[Any] = labels
    if pa.types.is_string(kind):
        values = [str(label) for label in labels]
    elif pa.types.is_list(kind):
        values = [[label] for label in labels]
    elif kind == pa.int8():
        values = [0 if label == 10**9 else label for label in labels]
    stored = pa.binary() if rng.random() < 0.95 else pa.string()
    if pa.types.is_string(stored):
        images = [{"bytes": "/etc/hostname", "path": "x"} for _ in images]
    features: Any = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": names},
    }
    if rng.random() < 0.1:
        features = spoiled(rng, features)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    struct = pa.struct([("bytes", stored), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, struct), "label": pa.array(values, kind)})
    return table.replace_schema_metadata(metadata if rng.random() < 0.97 else None)


ATTACKS: dict[Attack, int] = {
    a_run: 600,
    a_published_folder: 400,
    a_checkpoint: 500,
    some_specialties: 400,
    some_weights: 200,
    a_folder: 500,
    some_groups: 100,
    a_parquet_folder: 300,
}
"""Attack -> how many of it the long test tries."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.long), 20])
def test_whatever_comes_is_refused_or_right(attack: Attack, share: int, tmp_path: Path) -> None:
    for case in range(ATTACKS[attack] // share):
        folder = tmp_path / str(case)
        folder.mkdir()
        try:
            attack(random.Random(f"{attack.__name__} {case}"), folder)
        except BaseException:
            print(f"{attack.__name__}, case {case}")
            raise
        shutil.rmtree(folder, ignore_errors=True)
