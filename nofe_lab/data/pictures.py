"""From image files to pixels: decoded in threads, converted to RGB, brought to one size.

Images of any kind are taken, and what was done to them is counted and said: a grey or half
transparent image is not what a network for colour photographs expects to be told about silently.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file's contents for, whatever it is called: for EPS it would start another
program and let it execute the file."""

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How the names of image files end, in lower case; of files with several images the first is read.
"""

MAX_IMAGE_SIZE = 1024
"""The largest side, in pixels, that images can be resized to."""

_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
_ON_WHITE = " (transparent parts on white)"
_CHUNK = 64  # images a task: few enough that an error is met soon


class Picture(NamedTuple):
    """One decoded image and what was done to it."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    kind: str
    """What it was before it was converted to RGB; empty if it was RGB."""
    resized: bool


class Pictures:
    """Reads the images of one data set and counts what was done to them.

    image_size: the side of the square, in pixels, that every image becomes; None: as stored, and
    then all must have one size.
    """

    def __init__(self, dataset_name: str, image_size: int | None) -> None:
        self.dataset_name = dataset_name
        self.image_size = image_size
        self.total = self.resized = 0
        self.converted: Counter[str] = Counter()
        self._first: tuple[str, tuple[int, ...]] | None = None

    def read(self, encoded: Sequence[Path | bytes | None], names: Sequence[str]) -> Tensor:
        """Decode images in threads: uint8 [N, 3, height, width].

        encoded: files or their contents; at least one.  names: what to call each in an error.
        Raises InvalidInput, which names the image, if one is missing, damaged, cut short or too
        large to be decoded, or if sizes differ and no image_size was given.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            height, width = self._decode(encoded[0], names[0]).pixels.shape[:2]
            pixels = self._allocate(len(encoded), height, width)

            def place(index: int) -> tuple[str, bool]:
                picture = self._decode(encoded[index], names[index])
                pixels[index] = picture.pixels.transpose(2, 0, 1)
                return picture.kind, picture.resized

            def place_chunk(start: int) -> list[tuple[str, bool]]:
                return [place(index) for index in range(start, min(start + _CHUNK, len(encoded)))]

            with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
                for done in pool.map(place_chunk, range(0, len(encoded), _CHUNK)):
                    self.total += len(done)
                    self.resized += sum(resized for _, resized in done)
                    self.converted.update(kind for kind, _ in done if kind)
        return torch.from_numpy(pixels)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the images, in plain sentences; empty if they were left as they are."""
        notes = []
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.converted.most_common())
            notes.append(f"{self._of_all(self.converted.total())} converted to RGB: {kinds}.")
        if self.resized:
            size = f"{self.image_size} x {self.image_size}"
            how = "shorter side, then centre crop"
            notes.append(f"{self._of_all(self.resized)} resized to {size} ({how}).")
        return tuple(notes)

    def _of_all(self, count: int) -> str:
        if count == self.total:
            return "All images were"
        return f"{count:,} of {self.total:,} images {'was' if count == 1 else 'were'}"

    def _allocate(self, n: int, height: int, width: int) -> np.ndarray:
        try:
            return np.empty((n, 3, height, width), dtype=np.uint8)
        except MemoryError as error:
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: {n:,} images of {width} x {height} pixels do not "
                "fit into memory; a smaller image_size or train_per_class needs less."
            ) from error

    def _decode(self, encoded: Path | bytes | None, name: str) -> Picture:
        try:
            picture = decode(encoded, self.image_size)
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: {name} cannot be decoded ({reason_of(error)})."
            ) from error
        self._check_size(picture.pixels.shape, name)
        return picture

    def _check_size(self, shape: tuple[int, ...], name: str) -> None:
        self._first = self._first or (name, shape)
        first_name, first_shape = self._first
        if shape != first_shape:
            (height, width), (rows, columns) = first_shape[:2], shape[:2]
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: all images must have one size; {first_name} has "
                f"{width} x {height} pixels, {name} has {columns} x {rows}; image_size=N would "
                "resize all of them to N x N."
            )


def reason_of(error: Exception) -> str:
    """Why an image could not be decoded, in words."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow takes to be safe"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return first_line(error)


def decode(encoded: Path | bytes | None, image_size: int | None = None) -> Picture:
    """Decode one image file, or its contents, to RGB; turned as its EXIF orientation says.

    image_size: the shorter side is resized to so many pixels and the centre square kept; None: as
    stored.  Raises whatever Pillow raises if there is no image or only a part of one.
    """
    if encoded is None:
        raise ValueError("nothing is stored")
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(file, formats=FORMATS) as image:
        is_deep = any("16" in str(tile.args) for tile in image.tile)  # Pillow keeps 8 of the bits
        image.load()  # all of it: a file that is cut short fails here
        ImageOps.exif_transpose(image, in_place=True)
        picture, kind = to_rgb(image)
        if is_deep and "16-bit" not in kind:
            kind = f"16-bit {kind or 'RGB'}"
        resized = image_size is not None and picture.size != (image_size, image_size)
        if image_size is not None and resized:
            # cuts the centre square out first and resizes that: the same picture for less work
            square = (image_size, image_size)
            picture = ImageOps.fit(picture, square, Image.Resampling.BILINEAR)
        return Picture(np.asarray(picture), kind, resized)


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The image in RGB, 8 bits a channel, and what kind it was before ("" if it was that already).

    Transparent parts are laid on white; 16-bit values are scaled to 8 bits.  Raises ValueError if
    the range of the pixels' values is unknown.
    """
    if image.mode.startswith("I"):
        return _from_16_bit(image), "16-bit"
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    kind = _KINDS.get(image.mode, image.mode)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        composed = Image.alpha_composite(white, image.convert("RGBA"))
        return composed.convert("RGB"), kind + _ON_WHITE
    if image.mode == "RGB":
        return image, ""
    return image.convert("RGB"), kind


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)  # mode I can hold 32 bits
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()}, not from 0 to 65535")
    grey = ((values + 128) // 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")
