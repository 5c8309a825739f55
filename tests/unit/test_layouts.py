"""Folders as people have them: recognised, or refused in a sentence, and nothing left out silently.

Every test here failed while the splits had to be called exactly train, test and val.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nofe_lab import Dataset, InvalidInput, Specialties, backbone, load_dataset
from nofe_lab.data.dataset import stratified_fraction
from nofe_lab.data.folders import split_of
from nofe_lab.data.pictures import decode
from nofe_lab.files import _container_limits, _container_rooms, available_memory, memory
from nofe_lab.runs import RunStore

PETS = ("cat", "dog")


def fill(folder: Path, count: int = 6, seed: int = 0, ending: str = ".png") -> None:
    """Images of noise, no two alike unless the folders' names and seeds are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *map(ord, str(folder))])
    for i in range(count):
        noise = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}{ending}", "PNG")


def make(root: Path, *places: str) -> Path:
    for place in places:
        fill(root / place)
    return root


def load(root: Path, **options: object) -> Dataset:
    return load_dataset(f"folder:{root}", **{"val_fraction": 0, "image_size": 8, **options})  # type: ignore[arg-type]


def in_both(one: str, other: str) -> list[str]:
    return [f"{split}/{pet}" for split in (one, other) for pet in PETS]


# --- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("TRAINING_SET", "train"), ("seg_train", "train"), ("trainset", "train"),
     ("train_images", "train"), ("test1", "test"), ("testing-data", "test"), ("Validation", "val"),
     ("dev", "val"), ("eval", "val"), ("val2017", "val"), ("test tube", None), ("data", None),
     ("trains", None), ("train_val", None), ("invalid", None), ("chien", None), ("2019", None)],
)  # fmt: skip
def test_a_split_is_known_by_its_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing"), ("seg_train", "seg_test"),
     ("training_set", "test_set"), ("train", "Test"), ("train", "dev"), ("train", "Validation"),
     ("training_set/training_set", "test_set/test_set"), ("archive/train", "archive/test")],
)  # fmt: skip
def test_split_folders_are_recognised(tmp_path: Path, train: str, test: str) -> None:
    data = load(make(tmp_path, *in_both(train, test)))
    assert (data.class_names, len(data.train), len(data.test)) == (PETS, 12, 12)


def test_all_three_splits_are_recognised_at_once(tmp_path: Path) -> None:
    data = load(make(tmp_path, *in_both("Train", "Test"), "Eval/cat", "Eval/dog"), val_fraction=0.5)
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 12, 12]
    assert data.notes[0] == "The folder Eval is the val split: val_fraction is not applied."


def test_splits_inside_the_classes_are_recognised(tmp_path: Path) -> None:
    data = load(make(tmp_path, *[f"{pet}/{split}" for pet in PETS for split in ("train", "val")]))
    assert (data.class_names, len(data.train), len(data.test)) == (PETS, 12, 12)
    assert data.notes[0] == "No test folder: val of every class is the test split."


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (["bus", "car", "train/steam", "train/electric"], "beside bus, car: a split or a class"),
        (["train/cat", "train/dog", "unsorted"], "beside unsorted: a split or a class"),
        ([f"fold{i}/{pet}" for i in (1, 2) for pet in PETS], "fold1 holds no images, but folders"),
        ([f"{pet}/{year}" for pet in PETS for year in ("2019", "2020")], "which are the classes"),
        ([f"{pet}/{split}" for pet in PETS for split in ("train", "odd")], "which are the classes"),
        (["Train", "Test"], "Train holds no class folders"),
        (["train", "test", "bus"], "train holds no class folders"),
        ([*in_both("train", "Training"), "test/cat"], "holds the folders Training, train; accepte"),
        (["cat", "dog", "test/cat", "test/dog"], "test holds the folders of the classes beside it"),
        (["animals/cat", "animals/dog"], "'animals' alone; .* that folder, which holds cat, dog"),
        ([*in_both("train", "test"), "test/Cat "], "'Cat ' is in test only"),
        (
            [f"fold{i}/{s}/{p}" for i in (1, 2) for s in ("train", "test") for p in PETS],
            "which are",
        ),
        (
            [f"{s}/f{i}/{p}" for i in (1, 2) for s in ("train", "test") for p in PETS],
            "which are th",
        ),
        (
            [f"{s}/{p}/{k}" for s in ("train", "test") for p in PETS for k in ("images", "masks")],
            "which are the classes",
        ),
        (["cat/train", "cat/test", "dog"], "cat holds test, train, whose names denote splits"),
        (["cat/train", "cat/test", "cat", "dog/train", "dog/test"], "whose names denote splits"),
        (
            ["cats/cats_train", "cats/cats_test", "dogs/dogs_train", "dogs/dogs_test"],
            "whose names denote splits",
        ),
        (["trainA", "trainB", "testA", "testB"], "trainA, trainB, whose names denote splits"),
        (["train_cats", "train_dogs", "test_cats", "test_dogs"], "whose names denote splits"),
        (["mnist_train", "mnist_test"], "mnist_test, mnist_train, whose names denote splits"),
        (["cat", "dog", "test/Cat", "test/Dog"], "test holds the folders of the classes beside it"),
    ],
)
def test_doubtful_folders_are_refused(tmp_path: Path, places: list[str], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        load(make(tmp_path, *places))


def test_the_refusal_of_a_class_says_which_it_may_be(tmp_path: Path) -> None:
    make(tmp_path, "train/cat", "train/dog", "test/Cat", "test/dog")
    with pytest.raises(InvalidInput, match="differs from 'cat' only in blanks or case"):
        load(tmp_path)


def test_images_in_a_folder_of_their_own_in_each_class_are_said(tmp_path: Path) -> None:
    data = load(make(tmp_path, "cat/images", "dog/images"))
    assert data.class_names == PETS
    assert "lie in folders 'images' of their own" in " ".join(data.notes)


def test_folders_beside_the_splits_are_said(tmp_path: Path) -> None:
    data = load(make(tmp_path, *in_both("train", "test"), "unsorted"))
    assert "Folders beside the splits, not read: unsorted." in data.notes


def test_a_class_that_is_called_like_a_split_is_said(tmp_path: Path) -> None:
    data = load(make(tmp_path, "valid", "invalid"))
    assert data.class_names == ("invalid", "valid")
    assert data.notes[0] == "Taken for classes despite their names: valid."


# --- what is not read


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".avif", ".jp2"])
def test_further_kinds_of_images_are_read(tmp_path: Path, ending: str) -> None:
    make(tmp_path, *PETS)
    kind = {".avif": "AVIF", ".jp2": "JPEG2000"}.get(ending, "JPEG")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "cat" / f"new{ending}", kind)
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 13


def test_other_files_are_counted(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    for i in range(3):
        (tmp_path / "cat" / f"{i}.heic").write_bytes(b"x")
        (tmp_path / f"stray{i}.png").write_bytes(b"x")
    (tmp_path / "dog" / "none").write_bytes(b"x")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "fox").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(".")
    notes = load(tmp_path).notes
    assert "5 files were not read: 3 .heic, 1 without an ending, 1 pipe or device." in notes
    assert "3 images lie in no class folder, not read: stray0.png, stray1.png, stray2.png." in notes
    (links,) = [note for note in notes if note.startswith("Broken or circular links")]
    assert all(name in links for name in ("fox", "up", "self"))


def test_what_is_not_read_is_said_where_a_class_is_too_small(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    for path in sorted((tmp_path / "cat").iterdir())[1:]:
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InvalidInput, match=r"'cat' has 1 training image.* 5 \.heic"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"])
def test_folders_that_systems_make_are_hidden(tmp_path: Path, name: str) -> None:
    make(tmp_path, *PETS, f"{name}/cat", f"cat/{name}")
    data = load(tmp_path)
    assert (data.class_names, len(data.train) + len(data.test)) == (PETS, 12)


def test_links_that_make_a_folder_part_of_two_classes_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    (tmp_path / "cat" / "others").symlink_to(tmp_path / "dog")
    with pytest.raises(InvalidInput, match=r"part of the classes '(cat|dog)' and '(cat|dog)'"):
        load(tmp_path)


def test_unreadable_files_are_listed_at_once_or_skipped(tmp_path: Path) -> None:
    make(tmp_path, *in_both("train", "test"))
    for name in ("train/cat/0.png", "train/dog/3.png", "test/cat/5.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(InvalidInput, match=r"2 images are unreadable: train/cat/0\.png .*dog"):
        load(tmp_path)
    data = load(tmp_path, skip_unreadable=True)
    assert (data.train.labels.bincount().tolist(), len(data.test)) == ([5, 5], 11)
    (note,) = [note for note in data.notes if "unreadable" in note]
    assert note.startswith("3 unreadable images left out (skip_unreadable): train/cat/0.png, ")


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "cat/old", "dog")
    real = os.scandir

    def scandir(place: str | Path) -> object:
        if str(place).endswith("old"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(InvalidInput, match=r"the folder .*cat/old cannot be read \(Perm"):
        load(tmp_path)


def test_the_same_file_in_train_and_test_is_counted(tmp_path: Path) -> None:
    make(tmp_path, *in_both("train", "test"))
    for i in range(2):
        shutil.copy(tmp_path / f"train/cat/{i}.png", tmp_path / f"test/cat/copy{i}.png")
    notes = load(tmp_path).notes
    shared = "2 image files are in train and in test"
    assert f"{shared}: what is measured on test looks better than it is." in notes


@pytest.mark.parametrize("place", ["cat/photo.png", "cat"])
def test_a_pipe_or_a_link_to_one_does_not_hang(tmp_path: Path, place: str) -> None:
    make(tmp_path, *PETS)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cat" / "photo.png").symlink_to(tmp_path / "pipe")
    assert "1 pipe or device" in " ".join(load(tmp_path).notes)
    with pytest.raises(Exception, match="is not a regular file"):
        decode(tmp_path / "cat" / "photo.png")


# --- groups


def objects(root: Path, pet: str, count: int) -> None:
    for i in range(count):
        fill(root / pet / f"{pet}{i}", 3)


def group_numbers(split: object) -> set[int]:
    return set(split.groups.tolist())  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", ["folder", "csv"])
@pytest.mark.parametrize("seed", [0, 1])
def test_pictures_of_one_object_stay_on_one_side(tmp_path: Path, by: str, seed: int) -> None:
    for pet in PETS:
        objects(tmp_path / "data", pet, 10)
    groups = "folder"
    if by == "csv":
        files = sorted((tmp_path / "data").rglob("*.png"))
        lines = [f"{f.relative_to(tmp_path / 'data')},{f.parent.name}" for f in files]
        (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]))
        groups = str(tmp_path / "groups.csv")
    data = load(tmp_path / "data", groups=groups, seed=seed, val_fraction=0.2)
    parts = [group_numbers(each) for each in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20
    assert data.test.labels.bincount().tolist() == [6, 6]
    assert all(len(each.labels.unique()) == 2 for each in (data.train, data.val, data.test))


def test_groups_that_lie_in_both_splits_are_said(tmp_path: Path) -> None:
    make(tmp_path, *in_both("train", "test"))
    lines = [f"{split}/{pet}/{i}.png,{pet}{i // 2}" for split in ("train", "test")
             for pet in PETS for i in range(6)]  # fmt: skip
    (tmp_path / "g.csv").write_text("\n".join(["file,group", *lines]))
    (note,) = [n for n in load(tmp_path, groups=f"{tmp_path}/g.csv").notes if "Groups in both" in n]
    assert note.startswith("Groups in both train and test: cat0, cat1, cat2,")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n", "whose first line names the columns file and group; got 'a,b'"),
        ("file,group\ncat/0.png,x\n", "names no group for 'cat/1.png'"),
        ("file,group\ncat/0.png\n", "line 2 of groups .* has no group"),
        ("file,group\nx,1\nx,2\n", "line 3 of groups .* puts 'x' into another group"),
    ],
)
def test_groups_that_do_not_fit_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    make(tmp_path, *PETS)
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(InvalidInput, match=sentence):
        load(tmp_path, groups=f"{tmp_path}/g.csv")


def test_a_class_of_one_group_cannot_be_split() -> None:
    labels, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    with pytest.raises(InvalidInput, match="all images of class 'cat' are in one group"):
        stratified_fraction(labels, PETS, 0.2, 0, "so it is", groups)


# --- 16 bits that are fewer


def deep(values: Sequence[int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values, values], dtype="<u2")).save(path)


@pytest.mark.parametrize(
    ("depth", "top", "middle"),
    [(8, 255, 100), (10, 1023, 401), (12, 4095, 1606), (14, 16383, 6425), (16, 65535, 25700)],
)
def test_fewer_bits_in_16_keep_their_levels(
    tmp_path: Path, depth: int, top: int, middle: int
) -> None:
    for pet in PETS:
        deep([0, middle], tmp_path / "train" / pet / "0.png")
        deep([middle, top], tmp_path / "train" / pet / "1.png")
        deep([middle, 0], tmp_path / "test" / pet / "0.png")
    data = load(tmp_path, image_size=2)
    assert data.bit_depth == depth
    assert sorted(data.train.images.unique().tolist())[-1] == 255
    (row,) = data.test.images[:1, 0, 0].tolist()
    content = (tmp_path / "test/cat/0.png").read_bytes()
    assert decode(content, bit_depth=data.bit_depth).pixels[0, :, 0].tolist() == [100, 0]
    assert max(row) == pytest.approx(100, abs=1)
    said = f"scaled as {depth}-bit ones: no training image has a value above {top}"
    assert (said in " ".join(data.notes)) == (depth < 16)


def test_values_above_those_of_the_training_images_are_clipped_and_said(tmp_path: Path) -> None:
    for pet in PETS:
        deep([0, 4095], tmp_path / "train" / pet / "0.png")
        deep([0, 60000], tmp_path / "test" / pet / "0.png")
    data = load(tmp_path, image_size=1)
    assert "2 of 4 images were clipped" in " ".join(data.notes)


# --- names and paths


def test_accents_that_are_stored_apart_are_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    data = load(make(tmp_path / "a", f"train/{composed}", "train/dog", f"test/{apart}", "test/dog"))
    assert (data.class_names, len(data.test)) == ((composed, "dog"), 12)
    data = load(make(tmp_path / "b", composed, apart, "dog"))
    assert (data.class_names, len(data.train) + len(data.test)) == ((composed, "dog"), 18)
    assert f"one class: {composed}" in " ".join(data.notes)


def test_names_that_differ_in_blanks_are_refused_and_in_case_are_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="differ in more than blanks; got 'cat' and 'cat '"):
        load(make(tmp_path / "a", "cat", "cat ", "dog"))
    data = load(make(tmp_path / "b", "cat", "Cat", "dog"))
    assert "Classes whose names differ only in case: 'Cat' and 'cat'." in data.notes


@pytest.mark.parametrize("name", ["cat\u202egnp", "c\u200bat", "\u2066cat"])
def test_names_that_hide_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="without control or invisible characters"):
        load(make(tmp_path, name, "dog"))


@pytest.mark.parametrize("name", ["क्‍ष", "👩‍🔬", "می‌خواهم"])
def test_joiners_of_scripts_and_emoji_are_no_hidden_characters(tmp_path: Path, name: str) -> None:
    assert name in load(make(tmp_path, name, "dog")).class_names


def test_a_missing_folder_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=f"there is no folder {tmp_path}/rel/pics"):
        load_dataset("folder:rel/pics")
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(InvalidInput, match=r"no folder '\$SECRET/x' .seen from ") as refused:
        load_dataset("folder:$SECRET/x")
    assert "hunter2" not in str(refused.value)
    (tmp_path / "hunter2").mkdir()
    with pytest.raises(InvalidInput, match=r"\$SECRET holds no class folders") as refused:
        load_dataset("folder:$SECRET")
    assert "hunter2" not in str(refused.value)


def test_paths_are_taken_as_people_write_them(tmp_path: Path) -> None:
    root = make(tmp_path / "pri$ce list", *PETS)
    for name in (f"folder:{root}", f"Folder: {root} ", f'folder:"{root}"'):
        assert load_dataset(name, val_fraction=0).C == 2
    with pytest.raises(InvalidInput, match=f"is a path; .* 'folder:{tmp_path}'"):
        load_dataset(str(tmp_path))


# --- limits


def test_memory_is_what_the_container_grants(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/one\n4:memory:/old\n3:cpu:/x\n")
    for place, text in (("pod/one/memory.max", "max\n"), ("pod/memory.max", "1000\n"),
                        ("memory/old/memory.limit_in_bytes", "2000\n")):  # fmt: skip
        file = tmp_path / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert sorted(_container_limits(tmp_path)) == [1000, 2000]
    assert _container_limits(tmp_path / "nowhere") == []
    assert 0 < memory() < 2**62


def test_the_memory_that_is_left_counts_what_others_in_the_container_take(tmp_path: Path) -> None:
    """Files that are cached can give way, so they are left out of what is taken."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod\n4:memory:/old\n")
    texts = {
        "pod/memory.max": "1000\n",
        "pod/memory.current": "700\n",
        "pod/memory.stat": "anon 400\ninactive_file 200\n",
        "memory/old/memory.limit_in_bytes": "2000\n",
        "memory/old/memory.usage_in_bytes": "300\n",
        "memory/old/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    for place, text in texts.items():
        file = tmp_path / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert sorted(_container_rooms(tmp_path)) == [1000 - 700 + 200, 2000 - 300 + 50]
    assert _container_rooms(tmp_path / "nowhere") == []
    assert 0 < available_memory() <= memory()


# --- ImageNet as it is distributed

IDS = ("n01440764", "n01443537", "n02084071")


def imagenet(root: Path, names: Sequence[str] = IDS) -> list[str]:
    """Training images in folders, validation images in one; the classes of the latter, in order."""
    make(root, *(f"train/{name}" for name in names))
    fill(root / "val", 6)
    for i in range(6):
        (root / "val" / f"{i}.png").rename(root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    return [names[i % len(names)] for i in (2, 0, 1, 1, 0, 2)]


def write_devkit(folder: Path, classes: Sequence[str], with_meta: bool = True) -> None:
    from scipy.io import savemat

    folder.mkdir(parents=True)
    number = {name: 10 * i + 7 for i, name in enumerate((*IDS, "n00000001"))}
    text = "\n".join(str(number[name]) for name in classes)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text + "\n")
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")]
    rows = [(i, name, f"words of {name}") for name, i in number.items()]
    if with_meta:
        savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})


def labels_of_test(data: Dataset) -> list[str]:
    return [data.class_names[c] for c in data.test.labels.tolist()]


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", "data", ""])
def test_a_flat_val_takes_its_classes_from_the_development_kit(tmp_path: Path, place: str) -> None:
    classes = imagenet(tmp_path / "imagenet")
    if place:
        write_devkit(tmp_path / "imagenet" / place, classes)
    else:  # beside the folder itself
        write_devkit(tmp_path / "kit", classes)
        for file in (tmp_path / "kit").iterdir():
            file.rename(tmp_path / file.name)
    data = load(tmp_path / "imagenet")
    assert data.class_names == IDS
    assert labels_of_test(data) == classes
    assert any("the folder val is the test split" in note for note in data.notes)


def test_a_flat_val_takes_its_classes_from_the_solution_of_the_competition(tmp_path: Path) -> None:
    classes = imagenet(tmp_path)
    lines = [f"ILSVRC2012_val_{i:08d},{name} 1 2 3 4" for i, name in enumerate(classes)]
    text = "ImageId,PredictionString\n" + "\n".join(reversed(lines))
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn02084071 dog\n"
    )
    fill(tmp_path / "test")  # without labels, as it is distributed
    data = load(tmp_path)
    assert data.class_names == ("tench", "goldfish", "dog")
    name_of = dict(zip(IDS, data.class_names, strict=True))
    assert labels_of_test(data) == [name_of[each] for each in classes]
    assert "The folder test is not read: its images have no classes." in data.notes
    streamed = load(tmp_path, streaming=True, loader_workers=0)
    assert streamed.fingerprint == data.fingerprint
    for name in ("val", "test"):
        assert torch.equal(getattr(streamed, name).labels, getattr(data, name).labels)


def test_images_of_classes_that_train_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    classes = imagenet(tmp_path, IDS[:2])
    write_devkit(tmp_path / "data", [*classes[:4], "n00000001", "n00000001"])
    data = load(tmp_path)
    assert labels_of_test(data) == classes[:4]
    assert "2 images of val are of classes that train lacks." in data.notes


def test_a_flat_val_without_its_mapping_is_one_sentence(tmp_path: Path) -> None:
    classes = imagenet(tmp_path)
    with pytest.raises(InvalidInput, match=r"holds images but no class folders; accepted: .*meta"):
        load(tmp_path)
    write_devkit(tmp_path / "data", classes, with_meta=False)
    with pytest.raises(InvalidInput, match=r"numbers, which only meta.mat .* maps to classes"):
        load(tmp_path)
    (tmp_path / "data" / "meta.mat").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match=r"meta.mat cannot be read"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "data")
    write_devkit(tmp_path / "data", classes[:5])
    with pytest.raises(InvalidInput, match=r"a line for each of the 6 images .*; it has 5\."):
        load(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx, \no,n01440764 1\n")
    with pytest.raises(InvalidInput, match=r"names no class for 'ILSVRC2012_val_00000000.JPEG'"):
        load(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        + "\n".join(f"ILSVRC2012_val_{i:08d},n00000009 1" for i in range(6))
    )
    with pytest.raises(InvalidInput, match=r"of other classes than those of train: 'n00000009'"):
        load(tmp_path)


def test_readable_names_stand_for_the_names_of_folders(tmp_path: Path) -> None:
    make(tmp_path, *in_both("train", "test"))
    (tmp_path / "class_names.tsv").write_text("cat\tFelis catus, house cat\n")
    assert load(tmp_path).class_names == ("Felis catus", "dog")


# --- what a hostile tester found


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "JPEG2000"])
def test_images_of_8_bits_are_no_deep_ones(tmp_path: Path, kind: str) -> None:
    """A stride, an offset or a length that holds "16" was taken for a depth."""
    rng = np.random.default_rng(0)
    for width in range(64, 80):
        for pet in PETS:
            path = tmp_path / pet / f"{width}.{'jp2' if kind == 'JPEG2000' else kind.lower()}"
            path.parent.mkdir(exist_ok=True)
            noise = rng.integers(0, 100, (8, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path, kind)
    assert "16-bit" not in " ".join(load(tmp_path).notes)


def test_links_in_circles_are_said(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    os.symlink("self", tmp_path / "cat" / "self")
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    (note,) = [note for note in load(tmp_path).notes if note.startswith("Broken or circular links")]
    assert "cat/self" in note


def test_a_link_to_an_image_of_another_class_is_refused(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "dog" / "0.png")
    with pytest.raises(InvalidInput, match=r"the link cat/x\.png makes an image of the class"):
        load(tmp_path)


def test_files_of_several_images_are_said(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "cat" / "film.gif", save_all=True, append_images=frames[1:])
    assert "1 file holds several images; only the first is read." in load(tmp_path).notes


def test_notes_cannot_command_the_terminal(tmp_path: Path) -> None:
    make(tmp_path, *PETS)
    (tmp_path / "cat" / "\x1b[31mz.png").write_bytes(b"no image")
    (tmp_path / "cat" / "a\nb.txt").write_bytes(b"x")
    shown = repr(load(tmp_path, skip_unreadable=True))
    assert "\\x1b[31mz.png" in shown
    assert "\x1b" not in shown
    shown.encode("utf-8")


@pytest.mark.parametrize("name", ["data/", "./data/", "./data"])
def test_messages_keep_their_words(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"^dataset 'folder:.*data.*': data holds no class"):
        load_dataset(f"folder:{name}")


def test_no_message_tells_the_value_of_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", str(tmp_path / "hunter2"))
    make(tmp_path / "data", *PETS)
    tries = (
        lambda: Specialties.load("$SECRET/n.json", PETS),
        lambda: Specialties.load("$SECRET", PETS),
        lambda: backbone("resnet18", weights="$SECRET/n.pth"),
        lambda: load(tmp_path / "data", groups="$SECRET/g.csv"),
        lambda: RunStore("/proc/$SECRET"),
    )
    for work in tries:
        with pytest.raises(InvalidInput) as refused:
            work()
        assert "hunter2" not in str(refused.value)


def test_groups_may_come_from_excel(tmp_path: Path) -> None:
    make(tmp_path / "data", *PETS)
    rows = [f"{pet}/{i}.png,{pet}{i}" for pet in PETS for i in range(6)]
    (tmp_path / "g.csv").write_text("\r\n".join(["\ufefffile,group", *rows]), newline="")
    assert load(tmp_path / "data", groups=f"{tmp_path}/g.csv").train.groups is not None


def test_a_folder_that_no_one_may_read_is_refused() -> None:
    with pytest.raises(InvalidInput):
        load_dataset("folder:/proc/self/task", val_fraction=0)


def test_a_sentence_is_never_a_book() -> None:
    with pytest.raises(InvalidInput) as refused:
        Specialties.from_json(json.dumps({"specialties": [{"name": "x", "classes": "y" * 10**6}]}))
    assert len(str(refused.value)) < 4000
