"""Parquet folders as the Hub and its users have them: labels keep their meaning, or are refused.

Every test here failed while names were read from the first file alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nofe_lab import Dataset, InvalidInput, load_dataset

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0)}
RB, BR = ("red", "blue"), ("blue", "red")
ONE = "00000-of-00001"


def png(colour: str, level: int = 0) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (4, 4), COLOURS[colour])
    image.putpixel((0, 0), (level, level, level))
    image.save(out, "PNG")
    return out.getvalue()


def table(
    names: Sequence[str],
    colours: Sequence[str] = RB,
    labels: Sequence[int | None] | None = None,
    level: int = 0,
    **more: tuple[Sequence[str], Sequence[int]],
) -> pa.Table:
    """Two images of each colour; further label columns by name: (names of labels, labels)."""
    shown = [colour for colour in colours for _ in range(2)]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(names)},
    }
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": png(c, level + i), "path": "x"} for i, c in enumerate(shown)]),
        "label": pa.array(
            [names.index(c) for c in shown] if labels is None else labels, pa.int64()
        ),
    }
    for column, (own, values) in more.items():
        features[column] = {"_type": "ClassLabel", "names": list(own)}
        columns[column] = pa.array(values, pa.int64())
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def write(root: Path, **files: pa.Table) -> Path:
    for name, content in files.items():
        path = (
            root / f"{name.replace('__', '/').replace('_of_', '-of-').replace('_0', '-0')}.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, path)
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset(f"parquet:{root}", **{"val_fraction": 0, **options})


def colours(dataset: Dataset) -> bool:
    """Whether every image of every split has the colour that its class is called after."""
    return all(
        tuple(image[:, 3, 3].tolist()) == COLOURS[dataset.class_names[label]]
        for split in (dataset.train, dataset.val, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )


@pytest.mark.parametrize(
    "files",
    [
        {"data__train_00000_of_00001": table(RB), "data__test_00000_of_00001": table(BR, level=9)},
        {
            "data__train_00000_of_00002": table(RB),
            "data__train_00001_of_00002": table(BR, level=9),
            "data__test_00000_of_00001": table(RB, level=20),
        },
        {"train": table(RB), "test": table(BR, level=9)},
        {"default__train__0000": table(RB), "default__test__0000": table(BR, level=9)},
        {"train__train_00000_of_00001": table(RB), "test__test_00000_of_00001": table(BR, level=9)},
        {"Train": table(RB), "validation": table(("blue",), ("blue",), level=9)},
    ],
    ids=["test in another order", "a shard in another order", "bare names", "converted", "a folder "
         "each", "fewer names"],
)  # fmt: skip
def test_labels_are_mapped_by_their_names(tmp_path: Path, files: dict[str, pa.Table]) -> None:
    data = load(write(tmp_path, **files))
    assert data.class_names == RB
    assert colours(data)
    assert not [note for note in data.notes if "in train and in" in note]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"train": table(RB), "test": table(("red", "lime"), ("red", "lime"))},
            "in test.parquet label 1 of the column 'label' is 'lime', which is not among the 2",
        ),
        (
            {f"{c}__{s}_00000_of_00001": table(RB) for c in "xy" for s in ("train", "test")},
            "holds several data sets, in x, y; accepted: the folder of one of them",
        ),
        (
            {
                "train_00000_of_00003": table(RB),
                "train_00002_of_00003": table(RB),
                "test_00000_of_00001": table(RB),
            },
            "of the shards 0 to 2 of a split, 1 is missing; found train-00000-of-00003.parquet, ",
        ),
        (
            {
                "train_00000_of_00001": table(RB),
                "train_00001_of_00001": table(RB),
                "test_00000_of_00001": table(RB),
            },
            "shard number 1 is beyond the 1 shards .from 0. that its name gives",
        ),
        (
            {"train_00000_of_00001": table(RB), "train": table(RB), "test": table(RB)},
            "are not the shards of one split",
        ),
        (
            {"train": table(RB), "val": table(RB), "validation": table(RB), "test": table(RB)},
            "holds the splits val, validation; accepted: one of them",
        ),
        (
            {"train": table(RB), "test": table(RB).replace_schema_metadata(None)},
            "test.parquet does not say what the labels in its column 'label' mean",
        ),
        ({"train": table(RB), "test": table(("red", "red"), ("red",))}, "must differ; got"),
        (
            {"train": table(RB), "test": table(RB, labels=[-1] * 4)},
            "labels in the column 'label' of the split 'test' must be whole numbers .* got -1",
        ),
    ],
)
def test_files_that_disagree_are_refused(
    tmp_path: Path, files: dict[str, pa.Table], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        load(write(tmp_path, **files))


@pytest.mark.parametrize("secret", [[-1] * 4, [None] * 4])
def test_a_test_split_without_labels_gives_way_to_validation(
    tmp_path: Path, secret: Sequence[int | None]
) -> None:
    files = {"train": table(RB), "validation": table(RB, level=9), "test": table(RB, labels=secret)}
    data = load(write(tmp_path, **files))
    assert len(data.test) == 4
    assert data.notes == (
        "The split 'test' is not read: its labels are missing (-1 or null).",
        "No test split: validation is the test split.",
    )


def test_validation_beside_test_is_val(tmp_path: Path) -> None:
    files = {"train": table(RB), "validation": table(BR, level=9), "test": table(RB, level=20)}
    data = load(write(tmp_path, **files), val_fraction=0.5)
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 4, 4]
    assert colours(data)
    assert data.notes == ("The split validation is the val split: val_fraction is not applied.",)


def test_a_choice_among_label_columns_is_said(tmp_path: Path) -> None:
    more = {"shape": (("round",), [0] * 4)}
    files = {"train": table(RB, **more), "test": table(RB, level=9, **more)}
    notes = load(write(tmp_path, **files)).notes
    assert notes == ("The labels are those of the column 'label', not shape.",)


def test_files_of_no_known_split_are_said(tmp_path: Path) -> None:
    files = {"train": table(RB), "test": table(RB, level=9), "unsupervised": table(RB)}
    notes = load(write(tmp_path, **files)).notes
    assert notes == ("Parquet files of no known split, not read: unsupervised.parquet.",)


def stored(images: pa.Array, labels: pa.Array | None = None) -> pa.Table:
    metadata = table(RB).schema.metadata
    labels = pa.array([0, 0, 1, 1]) if labels is None else labels
    return pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)


TEXT = pa.struct([("bytes", pa.string()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            stored(pa.array([{"bytes": "/etc/hostname", "path": "x"}] * 4, TEXT)),
            "must be stored as struct<bytes: binary, path>; got struct<bytes: string",
        ),
        (
            stored(pa.array([{"bytes": None, "path": "/etc/hostname"}] * 4)),
            "are stored by path alone",
        ),
        (stored(pa.array([{"bytes": b"x"}] * 4), pa.array([[0], [1], [0], [1]])), "got list<"),
        (stored(pa.array([{"bytes": b"x"}] * 4), pa.array(["a", "b", "a", "b"])), "got string"),
        (stored(pa.array(["/etc/hostname"] * 4)), "must be stored as struct"),
    ],
)
def test_nothing_in_a_file_is_opened_as_a_path(
    tmp_path: Path, content: pa.Table, sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        load(write(tmp_path, train=content, test=content))


def test_images_that_are_text_are_no_paths(tmp_path: Path) -> None:
    from nofe_lab.data.pictures import UnreadableImage, decode

    photo = tmp_path / "private.png"
    photo.write_bytes(png("red"))
    with pytest.raises(UnreadableImage, match="no image is stored"):
        decode(str(photo))  # type: ignore[arg-type]
