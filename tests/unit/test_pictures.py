"""Image files: how they are decoded and converted, and how a folder of them becomes a data set."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from PIL import Image

from nofe_lab import Dataset, InvalidInput, load_dataset
from nofe_lab.data import source_state
from nofe_lab.data.pictures import ImageReader, UnreadableImage, decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def palette(*, transparent: bool) -> bytes:
    """Two pixels, red and green, of which the first may be transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    return encoded(image, **({"transparency": 0} if transparent else {}))


def pixels(mode: str, *values: Any) -> Image.Image:
    """A row of pixels."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def sixteen_bits(*values: int, dtype: str = "<u2") -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


# --- conversion to RGB

ON_WHITE = " (transparent parts on white)"


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (encoded(pixels("RGB", RED, BLUE)), "", [RED, BLUE]),
        (encoded(pixels("L", 7, 200)), "grey", [(7, 7, 7), (200, 200, 200)]),
        (encoded(pixels("1", 0, 255)), "grey", [(0, 0, 0), WHITE]),
        (
            encoded(pixels("LA", (100, 255), (100, 0), (55, 51))),
            "grey" + ON_WHITE,
            [(100, 100, 100), WHITE, (215, 215, 215)],
        ),
        (
            encoded(pixels("RGBA", (*RED, 255), (*BLUE, 0), (*BLUE, 51))),
            "RGBA" + ON_WHITE,
            [RED, WHITE, (204, 204, 255)],
        ),
        (palette(transparent=False), "palette", [RED, GREEN]),
        (palette(transparent=True), "palette" + ON_WHITE, [WHITE, GREEN]),
        (
            encoded(pixels("RGB", RED, BLUE), transparency=BLUE),
            "RGB" + ON_WHITE,
            [RED, WHITE],
        ),
        (
            encoded(sixteen_bits(0, 257, 32768, 65535)),
            "16-bit",
            [(0, 0, 0), (1, 1, 1), (128, 128, 128), WHITE],
        ),
        (
            encoded(sixteen_bits(0, 2570, 65535, dtype=">u2"), "TIFF"),
            "16-bit",
            [(0, 0, 0), (10, 10, 10), WHITE],
        ),
        (
            encoded(sixteen_bits(0, 2570, 65535, dtype="<i4"), "TIFF"),
            "16-bit",
            [(0, 0, 0), (10, 10, 10), WHITE],
        ),
        (b"P5 2 1 65535 \x0a\x0a\xff\xff", "16-bit", [(10, 10, 10), WHITE]),
        (
            encoded(sixteen_bits(2570, 514), transparency=514),
            "16-bit",
            [(10, 10, 10), WHITE],
        ),
        (
            encoded(pixels("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"),
            "CMYK",
            [RED, WHITE],
        ),
    ],
    ids=["RGB", "L", "1", "LA", "RGBA", "P", "P with transparency", "RGB with a transparent colour",
         "I;16", "I;16B", "I", "PGM", "I;16 with a transparent value", "CMYK"],
)  # fmt: skip
def test_every_kind_of_image_becomes_rgb(
    content: bytes, kind: str, expected: list[tuple[int, int, int]]
) -> None:
    found = decode(content)
    assert found.pixels.dtype == np.uint8
    assert [tuple(pixel) for pixel in found.pixels[0].tolist()] == expected
    assert (found.kind, found.resized) == (kind, False)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (pixels("F", 0.5, 0.7), "floating-point pixels, whose range is unknown"),
        (sixteen_bits(0, 70_000, dtype="<i4"), "values from 0 to 70000, not from 0 to 65535"),
        (sixteen_bits(-1, 5, dtype="<i4"), "values from -1 to 5"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(image: Image.Image, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=f"dataset 'd': photo cannot be decoded .{sentence}"):
        ImageReader("d", None).read([encoded(image, "TIFF")], ["photo"])


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "cat.png").write_bytes(program)
    for eps in (program, tmp_path / "cat.png"):
        with pytest.raises(UnreadableImage, match="no image, or of an unknown format"):
            decode(eps)


def test_the_exif_orientation_is_respected() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    found = decode(encoded(pixels("RGB", RED, BLUE), exif=exif)).pixels
    assert found.tolist() == [[list(RED)], [list(BLUE)]]
    exif[0x0112] = 2  # mirrored
    assert decode(encoded(pixels("RGB", RED, BLUE), exif=exif)).pixels[0, 0].tolist() == list(BLUE)


# --- one size for all


@pytest.mark.parametrize("size", [(8, 8), (24, 8), (8, 24), (48, 16), (16, 40), (6, 2)])
def test_the_shorter_side_is_resized_and_the_centre_square_kept(size: tuple[int, int]) -> None:
    width, height = size
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    scale = 8 / min(size)
    long = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (long.width - 8) // 2, (long.height - 8) // 2
    expected = np.asarray(long.crop((left, top, left + 8, top + 8))).astype(int)
    found = decode(encoded(image), 8)
    assert abs(found.pixels - expected).max() <= 1
    assert found.resized == (size != (8, 8))


def test_a_very_long_image_is_no_burden() -> None:
    found = decode(encoded(Image.new("RGB", (1, 60_000), GREEN)), 1024)
    assert found.pixels.shape == (1024, 1024, 3)
    assert (found.pixels == GREEN).all()


def test_smaller_images_are_averages_and_not_samples() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = decode(encoded(Image.fromarray(checks)), 8).pixels.astype(int)
    assert abs(found - 127.5).max() < 3


def test_the_shorter_side_gives_the_scale() -> None:
    ramp = np.arange(64, dtype=np.uint8)[None].repeat(32, axis=0)  # 64 wide, 32 high
    found = decode(encoded(Image.fromarray(ramp)), 16).pixels
    # columns 16 to 47 remain, two of them in each pixel
    np.testing.assert_allclose(found[8, 1:-1, 0], 16.5 + 2 * np.arange(1, 15), atol=1)


def test_transparent_and_palette_images_are_resized_in_rgb() -> None:
    found = decode(palette(transparent=True), 1).pixels
    assert found.shape == (1, 1, 3)
    image = pixels("RGBA", *[(0, 0, 0, 0)] * 4)
    assert decode(encoded(image.resize((4, 4))), 2).pixels.tolist() == [[[255] * 3] * 2] * 2


# --- a folder of images


def write(path: Path, colour: Any = RED, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def write_classes(folder: Path, count: int = 5, classes: str = "ab", blue: int = 0) -> None:
    """`count` images a class: the first channel is the class's index, the second the image's."""
    for label, name in enumerate(classes):
        for index in range(count):
            write(folder / name / f"{index:02}.png", (label, index, blue))


def load(folder: Path, **options: Any) -> Dataset:
    return load_dataset(f"folder:{folder}", **{"val_fraction": 0, "image_size": 8, **options})


def numbers(dataset: Dataset, split: str) -> list[tuple[int, ...]]:
    """(class, image) as `write_classes` wrote them."""
    found = getattr(dataset, split).images[:, :2, 0, 0].tolist()
    return [tuple(pair) for pair in found]


def test_a_folder_with_train_and_test_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / "test", 2, blue=1)
    data = load(tmp_path)
    assert (data.name, data.class_names) == (f"folder:{tmp_path}", ("a", "b"))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert numbers(data, "train") == [(c, i) for c in (0, 1) for i in range(3)]
    assert numbers(data, "test") == [(c, i) for c in (0, 1) for i in range(2)]
    assert data.image_shape == (3, 8, 8)
    assert data.notes == ()
    assert load_dataset(f"folder:{tmp_path}", val_fraction=0.34).val.labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_val_folder_is_test_where_there_is_none_and_val_where_there_is(
    tmp_path: Path, name: str
) -> None:
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / name, 1, blue=1)
    data = load(tmp_path, val_fraction=0.5)
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 4, 2]
    assert data.notes == (f"No test folder: the folder {name} is the test split.",)
    write_classes(tmp_path / "test", 3, blue=2)
    data = load(tmp_path, val_fraction=0.5)
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 2, 6]
    assert data.notes == (f"The folder {name} is the val split: val_fraction is not applied.",)


@pytest.mark.parametrize("below", ["", "train"])
def test_without_a_test_folder_a_fifth_of_every_class_is_test(tmp_path: Path, below: str) -> None:
    write_classes(tmp_path / below, 10, "ab")
    write(tmp_path / below / "c" / "0.png", (2, 0, 0))
    write(tmp_path / below / "c" / "1.png", (2, 1, 0))
    drawn = [load(tmp_path, seed=seed) for seed in (0, 0, 1)]
    for data in drawn:
        assert data.test.labels.bincount().tolist() == [2, 2, 1]
        assert data.train.labels.bincount().tolist() == [8, 8, 1]
        both = numbers(data, "train") + numbers(data, "test")
        assert len(set(both)) == len(both) == 22
        assert data.notes == (
            "No test folder: a fifth of every class's images was set aside as test, drawn by "
            "data_seed.",
        )
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint


def test_few_images_a_class_leave_test_whole_and_the_rest_undecoded(tmp_path: Path) -> None:
    write_classes(tmp_path, 10)
    whole, few = load(tmp_path), load(tmp_path, train_per_class=3)
    assert numbers(few, "test") == numbers(whole, "test")
    assert few.train.labels.bincount().tolist() == [3, 3]
    assert set(numbers(few, "train")) <= set(numbers(whole, "train"))
    assert "At most 3 training images of every class are used" in few.notes[-1]
    assert (
        whole.with_train_per_class(3, 0).fingerprint == few.fingerprint
    )  # however they were chosen
    assert load(tmp_path, train_per_class=3, val_fraction=0.4).val.labels.tolist() == [0, 1]
    left_out = set(numbers(whole, "train")) - set(numbers(few, "train"))
    for label, index in left_out:
        (tmp_path / "ab"[label] / f"{index:02}.png").write_bytes(b"damaged")
    assert load(tmp_path, train_per_class=3).fingerprint == few.fingerprint


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    shutil.copytree(tmp_path / "a", tmp_path / "train")
    assert load(tmp_path).class_names == ("a", "b", "train")


def test_other_files_and_hidden_ones_are_ignored_and_folders_inside_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    write(tmp_path / "a" / "more" / "deeper" / "x.JPEG")
    for name in ("a/readme.txt", "a/.hidden.png", ".git/x.png", "b/.thumbnails/x.png", "list.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data = load(tmp_path)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.test) == 11


def test_linked_class_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / "circle").symlink_to(tmp_path / "elsewhere" / "a")
    data = load(tmp_path / "data")
    assert len(data.train) + len(data.test) == 10
    assert source_state(f"folder:{tmp_path / 'data'}")


def test_the_home_folder_and_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PETS", "pets")
    data = load_dataset("folder:~/$PETS", val_fraction=0)
    assert data.name == "folder:~/$PETS"
    assert source_state("folder:~/$PETS") == source_state(f"folder:{tmp_path / 'pets'}") != ""


def test_what_was_done_to_the_images_is_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / "test", 1, blue=1)
    write(tmp_path / "train/a/grey.png", 3, "L")
    write(tmp_path / "test/b/grey.png", 4, "L")
    write(tmp_path / "train/b/clear.png", (1, 2, 3, 0), "RGBA", (16, 8))
    data = load(tmp_path)
    assert data.notes == (
        "3 of 13 images were converted to RGB: 2 grey, 1 RGBA (transparent parts on white).",
        "1 of 13 images was resized to 8 x 8 (shorter side, then centre crop).",
    )
    assert repr(data).splitlines()[1:] == [f"  {note}" for note in data.notes]
    assert load_dataset(f"folder:{tmp_path}").notes[1] == (
        "All images were resized to 32 x 32 (shorter side, then centre crop)."
    )


def test_a_folder_s_images_are_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    write_classes(tmp_path)
    assert load(tmp_path, image_size=None).image_shape == (3, 32, 32)
    assert load(tmp_path, image_size=1).image_shape == (3, 1, 1)
    assert load(tmp_path, image_size=24).image_shape == (3, 24, 24)


# --- folders that are refused


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=f"^dataset 'folder:.*': there is no folder {tmp_path}/x"
    ):
        load(tmp_path / "x")
    with pytest.raises(InvalidInput, match=r"'folder:\$NOWHERE': .* not set, 'NOWHERE'"):
        load_dataset("folder:$NOWHERE")


def no_class_folders(folder: Path) -> None:
    write(folder / "x.png")


def no_class_folders_in_train(folder: Path) -> None:
    write(folder / "train" / "x.png")
    write(folder / "test" / "x.png")


def one_class(folder: Path) -> None:
    write(folder / "cats" / "x.png")


def an_empty_class(folder: Path) -> None:
    write_classes(folder)
    (folder / "dogs").mkdir()
    (folder / "dogs" / "readme.txt").write_text("to do")


def no_train(folder: Path) -> None:
    write_classes(folder / "test")
    write_classes(folder / "val")


def a_class_more_in_test(folder: Path) -> None:
    write_classes(folder / "train")
    write_classes(folder / "test", classes="abc")


def a_class_less_in_test(folder: Path) -> None:
    write_classes(folder / "train", classes="abc")
    write_classes(folder / "test", classes="ac")


def two_val_folders(folder: Path) -> None:
    for name in ("train", "val", "valid"):
        write_classes(folder / name)


def a_class_too_small_to_split(folder: Path) -> None:
    write_classes(folder)
    write(folder / "c" / "x.png")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            no_class_folders,
            "{} holds no class folders; accepted: DIR/<class>/<image files>, or DIR",
        ),
        (no_class_folders_in_train, "{}/train holds no class folders; accepted"),
        (one_class, "{} holds the class folder 'cats' alone; at least 2 are needed"),
        (an_empty_class, "the class folder {}/dogs holds no image files; accepted: .* .png"),
        (no_train, "{} holds test and val but no folder train; accepted: DIR/<class>"),
        (a_class_more_in_test, "folders of {}/test must be those of train; 'c' is in test only"),
        (a_class_less_in_test, "folders of {}/test must be those of train; 'b' is in train only"),
        (two_val_folders, "{} holds the folders val, valid; accepted: test and one of val, valid"),
        (a_class_too_small_to_split, "class 'c' has 1 training image, .* a fifth of every class"),
    ],
)
def test_a_folder_that_is_not_laid_out_so_is_refused(
    tmp_path: Path, make: Callable[[Path], None], sentence: str
) -> None:
    make(tmp_path)
    with pytest.raises(InvalidInput, match=sentence.format(tmp_path)) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_an_image_that_is_cut_short_is_refused(format: str) -> None:
    content = encoded(Image.fromarray(NOISE), format)
    assert decode(content).pixels.shape == (8, 8, 3)
    shares = (0, 0.1, 0.5, 0.9)
    for length in (int(share * len(content)) for share in shares):
        with pytest.raises(InvalidInput, match="photo cannot be decoded"):
            ImageReader("d", None).read([content[:length]], ["photo"])


@pytest.mark.parametrize("name", ["a/00.png", "b/04.png"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image, or of an unknown format"),
        (b"GIF but no more", "no image, or of an unknown format"),
        (encoded(Image.fromarray(NOISE))[:150], "image file is truncated"),
        (encoded(Image.fromarray(NOISE), "JPEG")[:-30], "image file is truncated"),
    ],
    ids=["empty", "no image", "cut PNG", "cut JPEG"],
)
def test_a_file_that_cannot_be_decoded_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    write_classes(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InvalidInput, match=rf"^dataset 'folder:.*': {name} cannot be decoded \("
    ) as r:
        load(tmp_path)
    assert reason in str(r.value)
    assert "\n" not in str(r.value)


def test_the_split_of_a_file_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    (tmp_path / "test/b/02.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"': test/b/02\.png cannot be decoded"):
        load(tmp_path)


@pytest.mark.parametrize("limit", [60, 20], ids=["a warning of Pillow's", "an error of Pillow's"])
def test_decompression_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    write_classes(tmp_path, 5)
    for path in tmp_path.rglob("*.png"):
        write(path, size=(3, 3))
    write(tmp_path / "b/03.png")  # 64 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    sentence = f"b/03.png cannot be decoded .more than the {limit} pixels that Pillow considers"
    with pytest.raises(InvalidInput, match=sentence):
        load(tmp_path)


def test_images_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    write_classes(tmp_path)
    monkeypatch.setattr("nofe_lab.data.pictures.np.empty", refuse)
    with pytest.raises(
        InvalidInput,
        match="8 images of 8 x 8 pixels do not fit into memory; streaming=True decodes them",
    ):
        load(tmp_path)


# --- the state of the files


def test_the_state_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    write_classes(tmp_path)
    name, file = f"folder:{tmp_path}", tmp_path / "a" / "00.png"
    states = [source_state(name)]
    assert source_state(name) == states[0]
    os.utime(file, ns=(0, 1))
    states.append(source_state(name))
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(0, 1))
    states.append(source_state(name))
    file.rename(tmp_path / "a" / "other.png")
    states.append(source_state(name))
    (tmp_path / "a" / "other.png").unlink()
    states.append(source_state(name))
    assert len(set(states)) == len(states)
    (tmp_path / "a" / "notes.txt").write_text("not read")
    assert source_state(name) == states[-1]


def test_the_state_of_a_parquet_folder_changes_with_its_files(tmp_path: Path) -> None:
    name = f"parquet:{tmp_path}"
    states = [source_state(name)]
    for file in ("train-0-of-1.parquet", "class_names.tsv"):
        (tmp_path / file).write_text("")
        states.append(source_state(name))
    assert len(set(states)) == 3
    assert all(states)


@pytest.mark.parametrize(
    "name",
    ["glyphs", "glyphs:5", "cifar10", "folder:", "folder:/no/where", "parquet:$NOWHERE/x", "", None,
     "folder:\0"],
)  # fmt: skip
def test_other_data_sets_have_no_state(name: Any) -> None:
    assert source_state(name) == ""


def test_a_link_to_nowhere_does_not_keep_the_state_from_being_told(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert source_state(f"folder:{tmp_path}")
    (note,) = [note for note in load(tmp_path).notes if "gone.png" in note]
    assert note.startswith("Broken or circular links, not read: ")


def test_a_folder_whose_images_changed_is_another_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path)
    before = load(tmp_path)
    write(tmp_path / "a/00.png", (0, 0, 1))
    assert load(tmp_path).fingerprint != before.fingerprint


def test_images_are_decoded_in_their_order_however_many_threads_there_are(tmp_path: Path) -> None:
    contents = [encoded(pixels("RGB", (i // 256, i % 256, 0))) for i in range(300)]
    found, kept = ImageReader("d", None).read(contents, [str(i) for i in range(300)])
    assert bool(kept.all())
    assert found.shape == (300, 3, 1, 1)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert (found[:, 0].long() * 256 + found[:, 1]).flatten().tolist() == list(range(300))


def test_colours_of_16_bits_are_said_as_well() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    row = b"\0" + struct.pack(">3H", 40000, 20000, 0)  # one pixel; Pillow cannot write such a file
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    png = signature + chunk(b"IHDR", header) + chunk(b"IDAT", compress(row)) + chunk(b"IEND", b"")
    found = decode(png)
    assert found.kind == "16-bit RGB"
    assert found.pixels.tolist() == [[[156, 78, 0]]]
