"""Data sets: what is refused, how val is carved, what is read from files, how batches are drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nofe_lab import Dataset, InvalidInput, load_dataset
from nofe_lab.compat import import_torchvision
from nofe_lab.data import Resident
from nofe_lab.data.batches import Augmentation, Batches
from nofe_lab.data.dataset import stratified_fraction
from nofe_lab.data.preprocess import Preprocess
from nofe_lab.data.sources import without_folders
from nofe_lab.recipes import Recipe

CPU = torch.device("cpu")


def split_of(labels: Sequence[int], shape: tuple[int, int, int] = (1, 2, 2)) -> Resident:
    """Images that carry their index in every pixel."""
    index = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return Resident(index.expand(-1, *shape).contiguous(), torch.tensor(labels, dtype=torch.int64))


def dataset_of(
    labels: Sequence[int], names: Sequence[str] = ("a", "b", "c"), **changes: Any
) -> Dataset:
    train = split_of(labels)
    return replace(Dataset("some", tuple(names), train, train[:0], train), **changes)


# --- what a data set is


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)]
)
def test_images_that_are_not_uint8_with_four_dimensions_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match=r"images must be uint8 \[N, channels, height, width\]"):
        Resident(images, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.int64), torch.zeros(2)])
def test_labels_that_are_not_int64_one_an_image_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match=r"labels must be int64 \[2\]; got"):
        Resident(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels)


def test_a_split_is_indexed_by_tensors_slices_and_masks() -> None:
    split = split_of([0, 1, 2, 0])
    assert split[torch.tensor([3, 1])].labels.tolist() == [0, 1]
    assert split[1:3].labels.tolist() == [1, 2]
    assert split[split.labels == 0].images[:, 0, 0, 0].tolist() == [0, 3]
    assert split.of_class(0).tolist() == [0, 3]


def with_noise(tiny: Dataset, noisy: Tensor) -> Dataset:
    """`tiny` with these training images (a mask) turned into noise of the same mean."""
    images = tiny.train.images.clone()
    noise = torch.Generator().manual_seed(0)
    images[noisy] = torch.randint(0, 200, images[noisy].shape, generator=noise, dtype=torch.uint8)
    return replace(tiny, train=Resident(images, tiny.train.labels))


def test_the_thumbnail_of_a_class_is_no_noise_even_before_a_network_is_trained(
    tiny: Dataset,
) -> None:
    clear = torch.arange(120) % 20 >= 10  # the first half of every class's images is noise
    data = with_noise(tiny, ~clear)
    assert data.thumbnails.shape == (6, 3, 32, 32)
    for c, image in enumerate(data.thumbnails):
        own = data.train.images[clear & (data.train.labels == c)]
        assert (own == image).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("per_class", [1, 2])
def test_thumbnails_of_tiny_classes_are_their_own_images(tiny: Dataset, per_class: int) -> None:
    data = tiny.with_train_per_class(per_class, 0)
    for c, image in enumerate(data.thumbnails):
        assert any(torch.equal(image, each) for each in data.train.images[data.train.labels == c])


def test_two_classes_have_a_thumbnail_each(tiny: Dataset) -> None:
    two = tiny.train[tiny.train.labels < 2]
    data = Dataset("two", ("a", "b"), two, two[:0], two)
    assert len(data.thumbnails) == 2


def test_clearest_images_must_be_one_of_each_class_and_are_forgotten_with_their_split(
    tiny: Dataset,
) -> None:
    chosen = torch.arange(6) * 20 + 3
    data = replace(tiny, clearest=chosen)
    assert torch.equal(data.thumbnails, tiny.train.images[chosen])
    assert data.with_val(0.1, 0).clearest is None
    assert data.with_train_per_class(5, 0).clearest is None
    assert data.fingerprint == tiny.fingerprint
    with pytest.raises(InvalidInput, match=r"clearest must hold .* got .*\[1, 0, "):
        replace(tiny, clearest=chosen[[1, 0, 2, 3, 4, 5]])


def test_a_subset_is_drawn_by_its_seed_without_repeats() -> None:
    split = split_of([0] * 50)
    drawn = [split.subset(20, seed).images[:, 0, 0, 0].tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 20
    assert split.subset(None, 1) is split
    assert split.subset(51, 1) is split


def places(split: Resident) -> list[int]:
    """Which images of `split_of` these are, in order."""
    return split.images[:, 0, 0, 0].tolist()


@given(st.integers(10, 59), st.integers(0, 99))
def test_a_subset_that_leaves_no_class_out_is_a_plain_draw(size: int, seed: int) -> None:
    labels = torch.tensor([0] * 35 + [3] * 25)
    plain = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:size]
    assert len(labels[plain].unique()) == 2
    assert places(split_of(labels.tolist()).subset(size, seed)) == plain.tolist()


@given(st.integers(1, 59), st.integers(0, 99))
def test_a_subset_has_an_image_of_every_class_and_changes_the_plain_draw_as_little_as_it_can(
    size: int, seed: int
) -> None:
    labels = torch.tensor([0] * 50 + [2] * 9 + [5])
    plain = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    found = split_of(labels.tolist()).subset(size, seed)
    assert found.labels.unique().tolist() == [0, 2, 5]
    assert len(found) == max(size, 3)
    drawn = places(found)
    assert len(set(drawn)) == len(drawn)
    assert drawn == sorted(drawn, key=plain.tolist().index)
    missing = 3 - len(labels[plain[:size]].unique())
    assert len(set(drawn) - set(plain[:size].tolist())) == missing
    for label in (0, 2, 5):  # the class's first image in the draw is among them
        assert plain[labels[plain] == label][0].item() in drawn


@pytest.mark.parametrize(
    ("labels", "changes", "sentence"),
    [
        ([0, 1, 2], {"class_names": ("a",)}, "some has 1 class; at least 2 are needed"),
        (
            [0, 1, 2],
            {"class_names": ("a", "b", "a")},
            "class names of some must differ; 'a' repeats",
        ),
        ([0, 1, 3], {}, "labels of the train split of some must be 0 to 2; got 0 to 3"),
        ([0, 1, 2], {"test": split_of([-1])}, "labels of the test split .* got -1 to -1"),
        ([0, 2, 2], {}, "class 'b' of some has no training image"),
        (
            [0, 1, 2],
            {"superclass_names": ("x",), "superclass_of": (0, 0)},
            r"must hold 3 indices into the 1 superclass names; got \(0, 0\)",
        ),
        (
            [0, 1, 2],
            {"superclass_names": ("x",), "superclass_of": (0, 0, 1)},
            r"3 indices into the 1 superclass names; got \(0, 0, 1\)",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(
    labels: list[int], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        dataset_of(labels, **changes)


@pytest.mark.parametrize(("fraction", "counts"), [(0.3, [3, 1, 1]), (0.9, [9, 3, 1])])
def test_val_takes_its_share_of_every_class(fraction: float, counts: list[int]) -> None:
    labels = [0] * 10 + [1] * 4 + [2] * 2
    found = dataset_of(labels).with_val(fraction, seed=0)
    assert found.val.labels.bincount().tolist() == counts
    assert found.train.labels.bincount().tolist() == [10 - counts[0], 4 - counts[1], 2 - counts[2]]


@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.01, 0.9), st.integers(0, 99))
def test_train_and_val_share_the_training_images_among_them(
    first: int, second: int, fraction: float, seed: int
) -> None:
    data = dataset_of([0] * first + [1] * second, ("a", "b"))
    found = data.with_val(fraction, seed)
    parts = [part.images[:, 0, 0, 0].tolist() for part in (found.train, found.val)]
    assert sorted(parts[0] + parts[1]) == list(range(first + second))
    assert found.train.labels.bincount(minlength=2).min() >= 1
    assert found.val.labels.bincount(minlength=2).min() >= 1


def test_the_choice_of_val_is_drawn_by_the_seed() -> None:
    data = dataset_of([0] * 40 + [1] * 40, ("a", "b"))
    drawn = [data.with_val(0.2, seed).val.images[:, 0, 0, 0].tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_a_fraction_val_stays_empty() -> None:
    data = dataset_of([0, 1, 2])
    assert data.with_val(0, seed=0) is data


def test_a_class_with_one_image_cannot_be_split() -> None:
    with pytest.raises(InvalidInput, match=r"class 'b' has 1 training image, too few to split"):
        dataset_of([0, 0, 1, 2, 2]).with_val(0.1, seed=0)


def test_a_data_set_that_has_val_images_is_not_split_again() -> None:
    data = dataset_of([0, 0, 1, 1, 2, 2]).with_val(0.5, seed=0)
    with pytest.raises(InvalidInput, match="some has 3 val images already"):
        data.with_val(0.5, seed=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan"), "half"])
def test_a_fraction_that_is_no_share_is_refused(fraction: Any) -> None:
    with pytest.raises(InvalidInput, match=r"val_fraction must be a number from 0 to 0\.9; got"):
        dataset_of([0, 0, 1, 1, 2, 2]).with_val(fraction, seed=0)


@given(st.lists(st.integers(2, 12), min_size=2, max_size=5), st.floats(0.01, 0.9))
def test_a_stratified_share_is_one_of_every_class(counts: list[int], fraction: float) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    chosen = stratified_fraction(labels, "abcde"[: len(counts)], fraction, 3, "")
    for count, size in zip(counts, labels[chosen].bincount().tolist(), strict=True):
        assert 1 <= size <= count - 1
        assert abs(size - fraction * count) <= 1


def test_few_training_images_of_every_class_are_drawn_by_the_seed() -> None:
    data = dataset_of([0] * 30 + [1] * 2 + [2] * 9)
    few = [data.with_train_per_class(4, seed) for seed in (1, 1, 2)]
    assert few[0].train.labels.bincount().tolist() == [4, 2, 4]
    assert places(few[0].train) == places(few[1].train) != places(few[2].train)
    assert few[0].test is data.test
    assert few[0].with_train_per_class(4, 1).train.labels.equal(few[0].train.labels)
    assert few[0].notes == (
        "At most 4 training images of every class are used (train_per_class=4), drawn by "
        "data_seed; test is whole.",
    )


def test_notes_are_shown_under_the_data_set_and_are_not_part_of_its_fingerprint() -> None:
    data = dataset_of([0, 1, 2])
    noted = replace(data, notes=("Something was done.", "Another thing too."))
    assert noted.fingerprint == data.fingerprint
    assert repr(noted) == f"{data!r}\n  Something was done.\n  Another thing too."
    assert "\n" not in repr(data)
    assert noted.with_train_per_class(1, 0).notes[:2] == noted.notes


def one_pixel_more(split: Resident) -> Resident:
    images = split.images.clone()
    images[-1, -1, -1, -1] += 1
    return Resident(images, split.labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"train": one_pixel_more(data.train)},
        lambda data: {"test": one_pixel_more(data.test)},
        lambda data: {"train": Resident(data.train.images, data.train.labels.flip(0))},
        lambda data: {"val": data.test[:1]},
        lambda data: {"class_names": ("a", "b", "d")},
        lambda data: {"superclass_names": ("x",), "superclass_of": (0, 0, 0)},
    ],
    ids=["train pixel", "test pixel", "labels", "val", "class name", "superclasses"],
)
def test_the_fingerprint_changes_with_the_content(
    change: Callable[[Dataset], dict[str, Any]],
) -> None:
    data = dataset_of([0, 1, 2])
    assert replace(data, **change(data)).fingerprint != data.fingerprint


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_name() -> None:
    data = dataset_of([0, 1, 2])
    assert dataset_of([0, 1, 2], name="another").fingerprint == data.fingerprint


def test_a_fingerprint_can_be_taken_of_every_second_image() -> None:
    every_second = split_of([0, 0, 1, 1, 2, 2])[::2]
    copied = Resident(every_second.images.clone(), every_second.labels.clone())
    found = dataset_of([0, 1, 2], train=every_second).fingerprint
    assert found == dataset_of([0, 1, 2], train=copied).fingerprint


# --- where data sets come from


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("glyps", r"dataset 'glyps' is unknown \(did you mean 'glyphs'\?\); accepted: .*parquet"),
        ("cifar-10", r"dataset 'cifar-10' is unknown \(did you mean 'cifar10'\?\)"),
        ("digit", r"dataset 'digit' is unknown \(did you mean 'digits'\?\)"),
        (
            "imagenet",
            "dataset 'imagenet' is unknown; accepted: 'glyphs', 'lookalikes', 'cifar100', "
            "'cifar10', 'digits' or 'glyphs:N', 'folder:DIR', 'parquet:DIR' or 'hub:NAME'",
        ),
        ("parquet:", "dataset 'parquet:' is unknown"),
        ("folder:", "dataset 'folder:' is unknown"),
        ("cifar10:5", "dataset 'cifar10:5' is unknown"),
        ("glyphs:", "dataset 'glyphs:' is unknown"),
        ("glyphs:many", "'glyphs:many' names no number of images from 1 to 10000; accepted"),
        ("glyphs:0", "dataset 'glyphs:0' names no number of images"),
        ("glyphs::OQ", "dataset 'glyphs::OQ' names no number of images"),
        ("glyphs:9:OQж", "class 'ж' is none of the 100 classes"),
        ("glyphs:9:O", "must name two or more different characters; got 'O'"),
        ("glyphs:9:OQO", "must name two or more different characters; got 'OQO'"),
        ("glyphs:9:", "must name two or more different characters; got ''"),
        (None, "dataset None is unknown"),
    ],
)
def test_an_unknown_data_set_is_refused(name: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        load_dataset(name)


def test_some_characters_of_glyphs_are_a_data_set() -> None:
    whole, some = (load_dataset(name, val_fraction=0) for name in ("glyphs:4", "glyphs:4:Q[ä"))
    assert some.class_names == ("Q", "[", "ä")
    assert (len(some.train), len(some.test)) == (12, 3)
    label = whole.class_names.index("[")
    theirs = whole.train.images[whole.train.labels == label]
    assert torch.equal(some.train.images[some.train.labels == 1], theirs)


def test_a_bad_fraction_or_seed_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidInput, match=r"val_fraction must be a number from 0 to 0\.9; got 2"):
        load_dataset("parquet:/nowhere", val_fraction=2)
    with pytest.raises(InvalidInput, match="data_seed must be a whole number of at least 0; got"):
        load_dataset("parquet:/nowhere", seed=-1)


@pytest.mark.parametrize("value", [0, -1, 1025, 32.0, True, "32"])
def test_an_image_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"image_size must be a whole number from 1 to 1024; "):
        load_dataset("folder:/nowhere", image_size=value)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
def test_a_number_of_images_a_class_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"train_per_class must be a whole number of at least 1; got"
    ):
        load_dataset("folder:/nowhere", train_per_class=value)


@pytest.mark.parametrize("name", ["glyphs", "glyphs:4", "cifar100", "cifar10", "digits"])
def test_an_image_size_is_refused_where_images_have_one(name: str) -> None:
    sentence = f"image_size is for 'folder:DIR', .*; got image_size=64 for dataset '{name}'"
    with pytest.raises(InvalidInput, match=sentence):
        load_dataset(name, image_size=64)


def test_few_images_a_class_are_chosen_before_val_is_carved_from_them() -> None:
    data = load_dataset("glyphs:20", train_per_class=10, val_fraction=0.3)
    counts = [split.labels.bincount().unique().tolist() for split in (data.train, data.val)]
    assert counts == [[7], [3]]
    assert data.test.labels.bincount().unique().tolist() == [5]
    assert [note for note in data.notes if "train_per_class=10" in note]
    with pytest.raises(InvalidInput, match="has 1 training image, too few to split"):
        load_dataset("glyphs:2", train_per_class=1)


def test_digits_are_enlarged_and_a_fifth_of_them_is_test() -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    data = load_dataset("digits", val_fraction=0)
    assert data.class_names == tuple("0123456789")
    assert data.image_shape == (3, 32, 32)
    assert len(data.train) + len(data.test) == len(found.target) == 1797
    expected = (np.bincount(found.target) * 0.2).round().astype(int)
    assert data.test.labels.bincount().tolist() == expected.tolist()
    images = data.train.images
    assert images[:, :1].expand(-1, 3, -1, -1).equal(images)  # grey
    assert (int(images.min()), int(images.max())) == (0, 255)
    mean = torch.cat([images, data.test.images]).double().mean()
    assert float(mean) == pytest.approx(found.images.mean() * 255 / 16, rel=0.02)
    assert data.notes[0].startswith("No official split: a fifth of every class's images was set")
    other = load_dataset("digits", val_fraction=0, seed=1)
    assert other.test.labels.bincount().equal(data.test.labels.bincount())
    assert other.fingerprint != data.fingerprint
    assert load_dataset("digits", val_fraction=0).fingerprint == data.fingerprint


def test_a_parquet_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"there is no folder {tmp_path / 'none'}"):
        load_dataset(f"parquet:{tmp_path / 'none'}")


def test_an_environment_variable_that_is_not_set_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(InvalidInput, match=r"'parquet:\$NOWHERE/x': .* not set, 'NOWHERE'"):
        load_dataset("parquet:$NOWHERE/x")


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar100", "cifar-100-python"), ("cifar10", "cifar-10-batches-py")]
)
def test_a_failed_download_says_what_else_can_be_had(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    import_torchvision()
    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", refuse)
    with pytest.raises(InvalidInput, match=f"^{name} could not be downloaded") as refused:
        load_dataset(name, download_dir=tmp_path)
    parts = (str(tmp_path), folder, "no route to host", "local copy", "parquet:DIR", "'glyphs'")
    for part in parts:
        assert part in str(refused.value)


def fake_cifar(folder: Path, train: bool, download: bool) -> Any:
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pixels[1, 0, 5] = (1, 2, 3) if train else (4, 5, 6)
    return SimpleNamespace(data=pixels, targets=[1, 0], classes=["apple", "bus"])


def test_cifar10_is_read_without_superclasses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_torchvision()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake_cifar)
    data = load_dataset("cifar10", download_dir=tmp_path, val_fraction=0)
    assert (data.name, data.class_names) == ("cifar10", ("apple", "bus"))
    assert (data.superclass_names, data.superclass_of, data.notes) == ((), (), ())
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.images[1, :, 0, 5].tolist() == [1, 2, 3]
    assert data.test.images[1, :, 0, 5].tolist() == [4, 5, 6]


def test_cifar100_brings_its_superclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as Python 2 wrote them, strings are bytes; the one called data stands for the pixels
    files = tmp_path / "cifar-100-python"
    files.mkdir()
    (files / "meta").write_bytes(b"\x80\x02}U\x12coarse_label_names](U\x05fruitU\x08vehicleses.")
    (files / "train").write_bytes(
        b"\x80\x02}(U\x0dcoarse_labels](K\x01K\x00eU\x04dataU\x02\xff\x8bu."
    )
    import_torchvision()
    monkeypatch.setattr("torchvision.datasets.CIFAR100", fake_cifar)
    data = load_dataset("cifar100", download_dir=tmp_path, val_fraction=0)
    assert data.class_names == ("apple", "bus")
    assert data.superclass_names == ("fruit", "vehicles")
    assert data.superclass_of == (0, 1)
    assert data.train.images.shape == (2, 3, 32, 32)
    assert data.train.images[1, :, 0, 5].tolist() == [1, 2, 3]


# --- parquet files in the Hub's layout

FINE = ("apple", "bus", "pear")
COARSE = ("fruit", "vehicles")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(number: int, width: int = 3) -> np.ndarray:
    pixels = np.zeros((2, width, 3), dtype=np.uint8)
    pixels[0, 1] = (number, 10, 20)
    return pixels


def write_shard(
    folder: Path,
    shard: str,
    contents: Sequence[bytes | None],
    fine: Sequence[int | None],
    coarse: Sequence[int | None] | None = None,
    paths: Sequence[str] | None = None,
    names: Sequence[str] = FINE,
) -> None:
    features: dict[str, Any] = {
        "img": {"_type": "Image"},
        "fine_label": {"names": names, "_type": "ClassLabel"},
    }
    columns: dict[str, Any] = {
        "img": [
            {"bytes": content, "path": paths[index] if paths else None}
            for index, content in enumerate(contents)
        ],
        "fine_label": fine,
    }
    if coarse is not None:
        features["coarse_label"] = {"names": COARSE, "_type": "ClassLabel"}
        columns["coarse_label"] = coarse
    types = [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    types += [(name, pa.int64()) for name in columns if name != "img"]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / "data").mkdir(exist_ok=True)
    table = pa.table(columns, schema=pa.schema(types, metadata=metadata))
    pq.write_table(table, folder / "data" / f"{shard}.parquet")


def write_fruit(folder: Path) -> None:
    pictures = [png(picture(number)) for number in range(4)]
    write_shard(folder, "train-00000-of-00002", pictures[:3], [2, 0, 1], [0, 0, 1])
    write_shard(folder, "train-00001-of-00002", pictures[3:], [1], [1])
    write_shard(folder, "test-00000-of-00001", [png(picture(4))], [2], [0])


def test_a_parquet_folder_is_read_with_its_names_and_superclasses(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    data = load_dataset(f"parquet:{tmp_path}", val_fraction=0)
    assert data.class_names == FINE
    assert data.superclass_names == COARSE
    assert data.superclass_of == (0, 1, 0)
    assert data.train.labels.tolist() == [2, 0, 1, 1]
    assert data.test.labels.tolist() == [2]
    assert data.image_shape == (3, 2, 3)
    assert data.train.images[3, :, 0, 1].tolist() == [3, 10, 20]
    assert int(data.train.images.sum()) == 4 * 30 + 0 + 1 + 2 + 3


def test_an_environment_variable_in_the_folder_s_name_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fruit(tmp_path)
    monkeypatch.setenv("FRUIT", str(tmp_path.parent))
    data = load_dataset(f"parquet:$FRUIT/{tmp_path.name}", val_fraction=0)
    assert len(data.train) == 4
    assert data.name == f"parquet:$FRUIT/{tmp_path.name}"


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_a_validation_split_stands_in_for_a_missing_test_split(tmp_path: Path, name: str) -> None:
    write_fruit(tmp_path)
    (tmp_path / "data/test-00000-of-00001.parquet").rename(
        tmp_path / f"data/{name}-00000-of-00001.parquet"
    )
    data = load_dataset(f"parquet:{tmp_path}", val_fraction=0)
    assert (len(data.val), len(data.test)) == (0, 1)
    assert data.notes == (f"No test split: {name} is the test split.",)


def test_superclasses_that_a_class_s_images_disagree_about_are_left_out(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    write_shard(tmp_path, "train-00001-of-00002", [png(picture(3))], [1], [0])
    data = load_dataset(f"parquet:{tmp_path}", val_fraction=0)
    assert data.superclass_of == ()
    assert data.superclass_names == ()


def test_labels_without_superclasses_are_enough(tmp_path: Path) -> None:
    pictures = [png(picture(number)) for number in range(3)]
    for shard in ("train-00000-of-00001", "test-00000-of-00001"):
        write_shard(tmp_path, shard, pictures, [0, 1, 2])
    assert load_dataset(f"parquet:{tmp_path}", val_fraction=0).superclass_of == ()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "content",
    [b"no image", png(picture(1))[:40], None],
    ids=["no image", "truncated", "missing"],
)
def test_a_damaged_image_is_named(tmp_path: Path, index: int, content: bytes | None) -> None:
    contents: list[bytes | None] = [png(picture(number)) for number in range(3)]
    contents[index] = content
    write_fruit(tmp_path)
    write_shard(tmp_path, "test-00000-of-00001", contents, [0, 1, 2], [0, 1, 0])
    with pytest.raises(InvalidInput, match=f"parquet:.*image {index} of test cannot be decoded"):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)
    paths = [f"{name}.png" for name in "xyz"]
    write_shard(tmp_path, "test-00000-of-00001", contents, [0, 1, 2], [0, 1, 0], paths)
    with pytest.raises(InvalidInput, match=rf"image {index} of test \({paths[index]}\) cannot be"):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)


def test_images_of_unequal_size_are_refused(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    contents = [png(picture(7)), png(picture(1, width=5))]
    write_shard(tmp_path, "test-00000-of-00001", contents, [0, 1], [0, 1])
    sentence = "image 0 of train has 3 x 2 pixels, image 1 of test has 5 x 2; image_size=N would"
    with pytest.raises(InvalidInput, match=sentence):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)
    data = load_dataset(f"parquet:{tmp_path}", val_fraction=0, image_size=2)
    assert data.image_shape == (3, 2, 2)
    assert data.notes == ("All images were resized to 2 x 2 (shorter side, then centre crop).",)


def test_splits_of_unequal_image_size_are_refused(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    write_shard(tmp_path, "test-00000-of-00001", [png(picture(0, width=5))], [0], [0])
    with pytest.raises(InvalidInput, match=r"image 0 of test has 5 x 2; image_size=N would resize"):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)


@pytest.mark.parametrize(
    ("labels", "listed"), [([0, 1, 7], "7"), ([-1, 1, 3], "-1, 3"), ([2, None, 9], "null, 9")]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_name_no_class_are_named(
    tmp_path: Path, split: str, labels: list[int | None], listed: str
) -> None:
    pictures = [png(picture(number)) for number in range(3)]
    for shard in ("train", "test"):
        write_shard(tmp_path, f"{shard}-0-of-1", pictures, labels if shard == split else [0, 1, 2])
    sentence = f"column 'fine_label' of the split '{split}' must be .* from 0 to 2; got {listed}[.]"
    with pytest.raises(InvalidInput, match=sentence):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)


def test_superclass_labels_that_name_none_are_named(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    write_shard(tmp_path, "train-00001-of-00002", [png(picture(3))], [1], [2])
    with pytest.raises(InvalidInput, match=r"column 'coarse_label' .* from 0 to 1; got 2"):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0)


def test_many_odd_labels_are_not_all_listed(tmp_path: Path) -> None:
    pictures = [png(picture(number)) for number in range(7)]
    for shard in ("train", "test"):
        write_shard(tmp_path, f"{shard}-0-of-1", pictures, range(10, 17))
    with pytest.raises(InvalidInput, match="got 10, 11, 12, 13, 14 and 2 others"):
        load_dataset(f"parquet:{tmp_path}")


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    write_shard(tmp_path, "test-00000-of-00001", [], [], [])
    with pytest.raises(InvalidInput, match="the split 'test' holds no images"):
        load_dataset(f"parquet:{tmp_path}")


def test_images_that_are_not_stored_as_the_hub_stores_them_are_refused(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "label": {"names": FINE, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("img", pa.binary()), ("label", pa.int64())], metadata=metadata)
    table = pa.table({"img": [png(picture(0))], "label": [0]}, schema=schema)
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-0-of-1.parquet")
    with pytest.raises(
        InvalidInput, match="must be stored as struct<bytes: binary, path>; got binary"
    ):
        load_dataset(f"parquet:{tmp_path}")


def test_only_the_chosen_training_images_are_decoded(tmp_path: Path) -> None:
    contents: list[bytes | None] = [png(picture(number)) for number in range(6)]
    labels = [0, 1, 0, 1, 2, 2]
    write_shard(tmp_path, "test-0-of-1", contents, labels)
    write_shard(tmp_path, "train-0-of-1", contents, labels)
    whole = load_dataset(f"parquet:{tmp_path}", val_fraction=0, train_per_class=1)
    assert whole.train.labels.tolist() == [0, 1, 2]
    assert len(whole.test) == 6
    used = set(whole.train.images[:, 0, 0, 1].tolist())
    damaged = [content if i in used else b"damaged" for i, content in enumerate(contents)]
    write_shard(tmp_path, "train-0-of-1", damaged, labels)
    again = load_dataset(f"parquet:{tmp_path}", val_fraction=0, train_per_class=1)
    assert again.fingerprint == whole.fingerprint
    with pytest.raises(InvalidInput, match="of train cannot be decoded"):
        load_dataset(f"parquet:{tmp_path}", val_fraction=0, train_per_class=2)


def with_names(folder: Path, ids: Sequence[str], content: bytes) -> tuple[str, ...]:
    pictures = [png(picture(number)) for number in range(len(ids))]
    for shard in ("train-0-of-1", "test-0-of-1"):
        write_shard(folder, shard, pictures, range(len(ids)), names=ids)
    (folder / "class_names.tsv").write_bytes(content)
    return load_dataset(f"parquet:{folder}", val_fraction=0).class_names


def test_ids_become_readable_names(tmp_path: Path) -> None:
    ids = ("n1", "n2", "n3", "n4", "n5", "tench, Tinca tinca")
    lines = "n2\tcrane, bird\nn1\tgoldfish, Carassius\n\nn3\tcrane\r\nn9\tgoldfish\nn4\tmüsli\n"
    expected = ("goldfish", "crane, bird", "crane", "müsli", "n5", "tench, Tinca tinca")
    assert with_names(tmp_path, ids, lines.encode()) == expected


def test_ids_stay_where_all_of_their_names_are_another_class_s_too(tmp_path: Path) -> None:
    lines = b"n1\tmaillot, tank suit\nn2\tmaillot, tank suit\nn3\tmaillot"
    found = with_names(tmp_path, ("n1", "n2", "n3"), lines)
    assert found == ("n1", "n2", "maillot")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"n1\ta\nn2 b\n",
            r"line 2 of .*class_names\.tsv must be an id, a tab and its names, once; got 'n2 b'",
        ),
        (b"n1\t\n", r"line 1 of .*class_names\.tsv must be an id"),
        (b"n1\t\xff\n", r"class_names\.tsv cannot be read"),
    ],
)
def test_a_damaged_file_of_names_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        with_names(tmp_path, ("n1", "n2"), content)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    (tmp_path / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InvalidInput, match="holds a parquet file that cannot be read"):
        load_dataset(f"parquet:{tmp_path}")


def test_a_folder_without_a_test_split_is_refused(tmp_path: Path) -> None:
    write_fruit(tmp_path)
    (tmp_path / "data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(InvalidInput, match=r"must hold train-.*; found the splits \['train'\]"):
        load_dataset(f"parquet:{tmp_path}")


def test_a_table_without_names_of_its_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table({"label": [0, 1]}), file)
    with pytest.raises(InvalidInput, match="must name an Image column and a ClassLabel column"):
        load_dataset(f"parquet:{tmp_path}")


# --- how images reach the network


def two_images() -> Dataset:
    pixels = torch.tensor([[[[0, 10]]], [[[20, 30]]]], dtype=torch.uint8)
    train = Resident(pixels, torch.tensor([0, 1]))
    other = Resident(pixels + 100, torch.tensor([0, 1]))
    return Dataset("two", ("a", "b"), train, other, other)


def test_standardised_images_have_mean_0_and_deviation_1() -> None:
    data = two_images()
    found = Preprocess.measure(data, "standardised")(data.train.images)
    # mean 15, variance (15^2 + 5^2 + 5^2 + 15^2) / 4 = 125
    expected = torch.tensor([-15, -5, 5, 15]) / 125**0.5
    torch.testing.assert_close(found.flatten(), expected)


def test_each_channel_is_standardised_on_its_own(tiny: Dataset) -> None:
    found = Preprocess.measure(tiny, "standardised")(tiny.train.images)
    deviation, mean = torch.std_mean(found, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)


def test_the_mean_image_is_subtracted_pixel_by_pixel_without_scaling() -> None:
    data = two_images()
    found = Preprocess.measure(data, "mean_image")(data.train.images)
    assert found.flatten().tolist() == [-10, -10, 10, 10]


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    train = Resident(torch.full((2, 1, 1, 2), 7, dtype=torch.uint8), torch.tensor([0, 1]))
    found = Preprocess.measure(Dataset("grey", ("a", "b"), train, train, train), "standardised")
    assert found(train.images).tolist() == torch.zeros(2, 1, 1, 2).tolist()


def test_images_are_flipped_after_the_subtraction() -> None:
    images = torch.tensor([[[[0, 30]]], [[[0, 30]]]], dtype=torch.uint8)
    found = Preprocess.measure(two_images(), "mean_image")(
        images, Augmentation(torch.tensor([True, False]))
    )
    assert found[:, 0, 0].tolist() == [[10, -10], [-10, 10]]  # mean image: 10 20


def test_statistics_travel_with_the_weights() -> None:
    assert set(Preprocess.measure(two_images(), "mean_image").state_dict()) == {"mean", "scale"}


def _all(flips: Tensor | None) -> Tensor:
    assert flips is not None
    return flips


def drawn(batches: Batches, epoch: int) -> list[tuple[int, int, bool]]:
    """(image, label, flipped) in the order of the epoch; images carry their index."""
    return [
        (int(image[0, 0, 0]), int(label), bool(flip))
        for batch in batches.epoch(epoch)
        for image, label, flip in zip(
            batch.images, batch.labels, _all(batch.drawn.flips), strict=True
        )
    ]


def batches_of(n: int, batch_size: int, seed: int = 0, flips: bool = True) -> Batches:
    recipe = Recipe(1, 0.1, batch_size=batch_size, flips=flips)
    return Batches(split_of([index % 7 for index in range(n)]), recipe, seed, CPU)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.integers(0, 99))
def test_an_epoch_visits_no_image_twice_and_leaves_a_last_partial_batch_out(
    n: int, batch_size: int, seed: int, epoch: int
) -> None:
    batch_size = min(batch_size, n)
    batches = batches_of(n, batch_size, seed)
    visited = drawn(batches, epoch)
    images = [image for image, _, _ in visited]
    assert len(images) == len(set(images)) == len(batches) * batch_size
    assert n - batch_size < len(images) <= n
    assert all(label == image % 7 for image, label, _ in visited)


def test_an_epoch_does_not_depend_on_what_was_drawn_before() -> None:
    used = batches_of(40, 8)
    for epoch in range(3):
        drawn(used, epoch)
    torch.manual_seed(1)
    assert drawn(used, 3) == drawn(batches_of(40, 8), 3)


def test_order_and_flips_do_not_depend_on_the_batch_size() -> None:
    assert drawn(batches_of(40, 8), 2) == drawn(batches_of(40, 5), 2)


def test_epochs_and_seeds_differ_in_order_and_flips() -> None:
    draws = [drawn(batches_of(40, 8, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    orders = {tuple(image for image, _, _ in draw) for draw in draws}
    flips = {tuple(flip for _, _, flip in sorted(draw)) for draw in draws}
    assert (len(orders), len(flips)) == (3, 3)


def test_about_half_of_the_images_are_flipped() -> None:
    flipped = sum(flip for epoch in range(10) for _, _, flip in drawn(batches_of(200, 8), epoch))
    assert flipped == pytest.approx(1000, abs=100)  # 4.5 standard deviations


def test_being_flipped_does_not_depend_on_the_place_in_the_order() -> None:
    first_quarter = drawn(batches_of(200, 10), 0)[:50]
    assert sum(flip for _, _, flip in first_quarter) == pytest.approx(25, abs=14)


def test_nothing_is_flipped_unless_the_recipe_says_so() -> None:
    assert all(batch.drawn.flips is None for batch in batches_of(8, 4, flips=False).epoch(0))


def test_drawing_batches_leaves_torch_s_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    drawn(batches_of(8, 4), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(InvalidInput, match="batch_size must be at most the 8 training images; "):
        batches_of(8, 9)


# --- real data


@pytest.mark.slow
def test_cifar100_is_read_whole(nofe_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOFE_DATA", str(nofe_data))
    data = load_dataset("parquet:$NOFE_DATA/cifar100", val_fraction=0)
    assert (len(data.train), len(data.val), len(data.test)) == (50_000, 0, 10_000)
    assert data.train.labels.bincount().tolist() == [500] * 100
    assert data.test.labels.bincount().tolist() == [100] * 100
    assert (data.class_names[0], data.class_names[-1]) == ("apple", "worm")
    assert np.bincount(data.superclass_of).tolist() == [5] * 20
    of_apple = data.superclass_names[data.superclass_of[0]]
    fruit = [n for n, k in zip(data.class_names, data.superclass_of, strict=True)
             if data.superclass_names[k] == of_apple]  # fmt: skip
    assert fruit == ["apple", "mushroom", "orange", "pear", "sweet_pepper"]
    mean = Preprocess.measure(data, "standardised").mean.flatten() / 255
    assert mean.tolist() == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-6)


@pytest.mark.slow
def test_tiny_imagenet_is_read_whole(nofe_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOFE_DATA", str(nofe_data))
    data = load_dataset("parquet:$NOFE_DATA/tiny-imagenet-200-32px")
    assert (len(data.train), len(data.val), len(data.test)) == (90_000, 10_000, 10_000)
    assert data.val.labels.bincount().tolist() == [50] * 200
    assert data.test.labels.bincount().tolist() == [50] * 200
    assert data.class_names[:2] == ("goldfish", "European fire salamander")
    assert len(set(data.class_names)) == 200
    assert not [name for name in data.class_names if name.startswith("n0")]
    assert data.image_shape == (3, 32, 32)
    assert data.superclass_of == ()


def test_statistics_of_large_images_take_little_memory() -> None:
    """It took 16 times the images: chunks of 4096 of them, whatever their size, as float64."""
    images = torch.randint(0, 255, (80, 3, 224, 224), dtype=torch.uint8)
    split = Resident(images, torch.arange(80) % 2)
    data = Dataset("large", ("a", "b"), split, split[:0], split)
    sizes: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = f(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
                sizes.append(8 * found.numel())
            return found

    with Watch():
        found = Preprocess.measure(data, "standardised")
    assert max(sizes) <= images.numel()
    exact = images.double().mean((0, 2, 3))
    torch.testing.assert_close(found.mean.flatten().double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [99_999_999, 10_001, 10**40, "²"])
def test_too_many_glyphs_are_refused(number: object) -> None:
    with pytest.raises(InvalidInput, match="names no number of images from 1 to 10000"):
        load_dataset(f"glyphs:{number}")


def test_a_path_may_name_a_data_set() -> None:
    """Path("digits") gave the glyphs."""
    assert load_dataset(Path("digits"), val_fraction=0).C == 10


def test_arrays_of_numpy_make_a_source(tiny: Dataset) -> None:
    images, labels = tiny.train.sample(range(8)).numpy(), tiny.train.labels[:8].numpy()
    images.setflags(write=False)
    found = Resident(images, labels)
    assert torch.equal(found.sample([3, 5]), tiny.train.sample([3, 5]))
    assert found.fingerprint == tiny.train[:8].fingerprint
    with pytest.raises(InvalidInput, match=r"images must be uint8 .*; got torch\.float64"):
        Resident(images / 255, labels)


def test_what_is_no_source_is_no_split(tiny: Dataset) -> None:
    with pytest.raises(InvalidInput, match=r"val split of tiny must be a Source.*; got NoneType"):
        replace(tiny, val=None)  # type: ignore[arg-type]


def test_a_clearest_image_that_is_gone_is_refused(tiny: Dataset) -> None:
    last = torch.tensor([int(tiny.train.of_class(c)[-1]) for c in range(tiny.C)])
    with pytest.raises(InvalidInput, match="clearest must hold a training image of each of the 6"):
        replace(tiny, clearest=last, train=tiny.train[:-1])


@pytest.mark.parametrize(
    ("path", "public"),
    [
        ("folder:~/jane/flowers", "folder:flowers"),
        (" Parquet:/data/jane/", "Parquet:jane"),
        ("glyphs:160:+/-", "glyphs:160:+/-"),
        ("/home/jane/specialties.json", "specialties.json"),
        ("cifar100", "cifar100"),
    ],
)
def test_folders_of_the_maker_are_left_out_and_nothing_else(path: str, public: str) -> None:
    assert without_folders(path) == public
