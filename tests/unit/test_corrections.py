"""Corrections of labels: read back for folders and parquet files, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nofe_lab import Dataset, Experiment, InvalidInput, load_dataset
from nofe_lab.data.corrections import COLUMNS, Correction, Corrections

PETS = ("cat", "dog")


def fill_folder(root: Path, count: int = 10) -> str:
    """A folder of two classes, no two images alike."""
    for label, pet in enumerate(PETS):
        (root / pet).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng([label, i]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / pet / f"{i}.png")
    return f"folder:{root}"


def fill_parquet(root: Path, count: int = 10) -> str:
    """The same images in the Hub's layout; the train split is in two files."""
    fill_folder(root / "images", count)
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(PETS)},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}

    def write(name: str, numbers: Sequence[int]) -> None:
        rows = [(label, i) for label in range(2) for i in numbers]
        encoded = [(root / "images" / PETS[c] / f"{i}.png").read_bytes() for c, i in rows]
        columns = {
            "image": pa.array([{"bytes": each, "path": None} for each in encoded]),
            "label": pa.array([c for c, _ in rows], pa.int64()),
        }
        (root / "hub" / "data").mkdir(parents=True, exist_ok=True)
        path = root / "hub" / "data" / f"{name}.parquet"
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    write("train-00000-of-00002", range(0, 4))
    write("train-00001-of-00002", range(4, 8))
    write("test-00000-of-00001", range(8, count))
    return f"parquet:{root / 'hub'}"


MAKERS = {"folder": fill_folder, "parquet": fill_parquet}
FIRST = {"folder": "cat/0.png", "parquet": "data/train-00001-of-00002.parquet:1"}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(name: str, **options: Any) -> Dataset:
    return load_dataset(name, **{"image_size": 8, "val_fraction": 0.25, **options})


def decided(data: Dataset, file: str, decision: str, corrected: str = "") -> Correction:
    found = data.files[file]
    return Correction(file, found.checksum, found.label, decision, corrected)


def write(path: Path, *decisions: Correction) -> str:
    Corrections(path, {each.file: each for each in decisions}).write()
    return str(path)


def labels(data: Dataset) -> dict[str, tuple[str, str]]:
    """Split and class of each image, by file."""
    named = {each.key: file for file, each in data.files.items()}
    return {
        named[key.tobytes()]: (name, data.class_names[label])
        for name in ("train", "val", "test")
        for key, label in zip(
            getattr(data, name).keys.numpy(), getattr(data, name).labels.tolist(), strict=True
        )
    }


def test_an_image_is_relabelled_excluded_or_kept_and_no_other_changes_its_split(
    tmp_path: Path, kind: str
) -> None:
    name = MAKERS[kind](tmp_path / "data")
    plain = load(name)
    before = labels(plain)
    assert len(before) == 20
    of_cat = [file for file, (_, pet) in before.items() if pet == "cat"]
    relabelled, excluded, kept = of_cat[0], of_cat[-1], of_cat[1]
    path = write(
        tmp_path / "c.csv",
        decided(plain, relabelled, "relabel", "dog"),
        decided(plain, excluded, "exclude"),
        decided(plain, kept, "keep"),
    )
    mended = load(name, corrections=path)
    expected = dict(before)
    expected[relabelled] = (before[relabelled][0], "dog")
    del expected[excluded]
    assert labels(mended) == expected
    assert "1 of the images have another label and 1 are left out" in mended.notes[-1]


def test_rows_of_parquet_files_are_those_of_the_file(tmp_path: Path) -> None:
    data = load(fill_parquet(tmp_path))
    file, row = FIRST["parquet"].split(":")
    stored = pq.read_table(tmp_path / "hub" / file)["image"][int(row)]["bytes"].as_py()
    assert stored == (tmp_path / "images" / "cat" / "5.png").read_bytes()
    (tmp_path / "one.png").write_bytes(stored)
    split, pet = labels(data)[FIRST["parquet"]]
    place = list(labels(data)).index(FIRST["parquet"])
    whole = np.concatenate([getattr(data, each).images for each in ("train", "val", "test")])
    assert pet == "cat"
    assert split in ("train", "val")
    expected = np.asarray(Image.open(tmp_path / "one.png")).transpose(2, 0, 1)
    assert np.array_equal(whole[place], expected)


def test_the_fingerprint_depends_on_what_is_corrected_alone(tmp_path: Path, kind: str) -> None:
    name = MAKERS[kind](tmp_path / "data")
    plain = load(name)
    mend = decided(plain, FIRST[kind], "relabel", "dog")
    one = load(name, corrections=write(tmp_path / "a.csv", mend))
    other = load(name, corrections=write(tmp_path / "b.csv", mend))
    without = load(name, corrections=write(tmp_path / "c.csv", replace(mend, decision="exclude",
                                                                       corrected="")))  # fmt: skip
    kept = load(name, corrections=write(tmp_path / "d.csv", decided(plain, FIRST[kind], "keep")))
    assert len({plain.fingerprint, one.fingerprint, without.fingerprint}) == 3
    assert one.fingerprint == other.fingerprint  # where the CSV lies is no matter
    assert kept.fingerprint == plain.fingerprint


def test_an_experiment_reads_corrections_again_when_they_change(tmp_path: Path) -> None:
    name = fill_folder(tmp_path / "data")
    given: dict[str, Any] = {"dataset": name, "epochs": 1, "device": "cpu"}
    plain = Experiment(**given)
    path = write(tmp_path / "c.csv", decided(plain.data, "cat/0.png", "relabel", "dog"))
    mended = Experiment(**given, corrections=path)
    assert mended.base().id != plain.base().id
    write(tmp_path / "c.csv", decided(plain.data, "cat/1.png", "exclude"))
    again = Experiment(**given, corrections=path)
    assert again.data.fingerprint not in (mended.data.fingerprint, plain.data.fingerprint)
    assert "corrections" in again.command("05_your_own_pictures")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    odd = ('a,"b"\n/ü.png', "-x/=1.png", "\ufeffcat.png")
    made = [Correction(file, "12", "cat, old", "relabel", "dög") for file in odd]
    path = write(tmp_path / "c.csv", *made)
    assert list(Corrections.read(path).by_file.values()) == made


def test_a_file_name_that_is_no_text_is_still_a_name(tmp_path: Path) -> None:
    name = fill_folder(tmp_path / "data")
    target = tmp_path / "data" / "cat" / "0.png"
    try:
        target.rename(target.with_name("\udcff.png"))
    except OSError:
        pytest.skip("the file system takes no such name")
    data = load(name)
    path = write(tmp_path / "c.csv", decided(data, "cat/\\udcff.png", "exclude"))
    assert len(labels(load(name, corrections=path))) == 19


def test_images_that_were_not_drawn_may_be_decided_on(tmp_path: Path, kind: str) -> None:
    name = MAKERS[kind](tmp_path / "data")
    plain = load(name)
    path = write(tmp_path / "c.csv", *(decided(plain, file, "keep") for file in labels(plain)))
    few = load(name, corrections=path, train_per_class=2)
    assert len(few.train) + len(few.val) == 4


HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{file},{sum},cat,keep,"] * 2, r"line 3 of corrections .* decides on '{file}' again"),
        (["cat/99.png,{sum},cat,keep,"], r"'cat/99.png', which is no image of {name}"),
        (["{file},12ab,cat,keep,"], r"the image '{file}' has changed .*, not '12ab'"),
        (["{file},{sum},dog,keep,"], r"label of '{file}' was 'dog' when .* is 'cat' now"),
        (["{file},{sum},cat,relabel,cow"], r"the class of '{file}', 'cow' is unknown"),
        (["{file},{sum},cat,relabel,"], r"line 2 .*'corrected' must name a class"),
        (["{file},{sum},cat,keep,dog"], r"line 2 .*'corrected' must be empty .* got 'dog'"),
        (["{file},{sum},cat,drop,"], r"line 2 .*the decision 'drop' is unknown"),
        (["{file}"], r"line 2 .*the decision '' is unknown"),
        (['"{file}'], r"cannot be read \(unexpected end of data\)"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, lines: list[str], sentence: str
) -> None:
    name = MAKERS[kind](tmp_path / "data")
    known = {"file": FIRST[kind], "sum": load(name).files[FIRST[kind]].checksum, "name": name}
    path = tmp_path / "c.csv"
    path.write_text("\n".join([HEAD, *lines]).format(**known))
    with pytest.raises(InvalidInput, match=sentence.format(**known)):
        load(name, corrections=str(path))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"file,label\n", r"must be a CSV with the columns .*; it has no checksum, decision"),
        (b"", r"it has no file, checksum, label, decision"),
        (b"\xff\xfe", r"cannot be read"),
        (None, r"cannot be read .*No such file"),
    ],
)
def test_files_that_are_no_corrections_are_refused_before_any_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, sentence: str
) -> None:
    name = fill_folder(tmp_path / "data")
    if content is not None:
        (tmp_path / "c.csv").write_bytes(content)
    monkeypatch.setattr("nofe_lab.data.folders.ImageReader", None)
    with pytest.raises(InvalidInput, match=sentence):
        load(name, corrections=str(tmp_path / "c.csv"))


def test_an_image_that_changed_is_refused(tmp_path: Path) -> None:
    name = fill_folder(tmp_path / "data")
    path = write(tmp_path / "c.csv", decided(load(name), "cat/0.png", "exclude"))
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "cat" / "0.png")
    with pytest.raises(InvalidInput, match=r"the image 'cat/0.png' has changed since"):
        load(name, corrections=path)


def test_a_class_that_loses_all_its_images_is_named(tmp_path: Path) -> None:
    name = fill_folder(tmp_path / "data", 4)
    plain = load(name)
    cats = [file for file, (_, pet) in labels(plain).items() if pet == "cat"]
    path = write(tmp_path / "c.csv", *(decided(plain, file, "exclude") for file in cats))
    with pytest.raises(InvalidInput, match=r"with corrections .*class 'cat' .* no training image"):
        load(name, corrections=path)


def test_data_that_come_from_no_files_have_no_corrections(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"corrections is for 'folder:DIR', 'parquet:DIR' and"):
        load_dataset("digits", corrections=str(tmp_path / "c.csv"))
    made = Experiment(load_dataset("glyphs:4"), corrections=str(tmp_path / "c.csv"), device="cpu")
    with pytest.raises(InvalidInput, match=r"corrections is for images that are read from files"):
        _ = made.data
