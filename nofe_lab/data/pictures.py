"""From image files to pixels: decoded in threads, converted to RGB, brought to one size.

Images of any kind are taken, and what was done to them is counted and said: a grey or half
transparent image is not what a network for colour photographs expects to be told about silently.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line
from nofe_lab.files import memory, open_regular

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file's contents for, whatever it is called: for EPS it would start another
program and let it execute the file."""

ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""How the names of image files end, in lower case; of files with several images the first is read.
"""

AT_ONCE = 2**26
"""Pixels that threads decode at once, all together; one larger image is decoded alone."""

_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
_ON_WHITE = " (transparent parts on white)"
_CHUNK = 64  # images a task: few enough that an error is met soon
_NAMED = 10  # unreadable images that a message names


class Picture(NamedTuple):
    """One decoded image and what was done to it."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    kind: str
    """What it was before it was converted to RGB; empty if it was RGB."""
    resized: bool
    peak: int = 0
    """The largest value of a 16-bit image; of one in colour, as if its lowest 8 bits were 0."""
    has_more: bool = False
    """Whether its file holds several images, of which this is the first."""


class Unreadable(Exception):
    """An image cannot be decoded; the message says why, without its name."""


class Pictures:
    """Reads the images of one data set and counts what was done to them.

    image_size: the side of the square, in pixels, that every image becomes; None: as stored, and
    then all must have one size.  skip_unreadable: images that cannot be decoded are left out.
    The training images are read first: 16-bit images are scaled by the smallest bit depth that
    holds theirs, since cameras put 10, 12 or 14 bits into 16.
    """

    def __init__(
        self, dataset_name: str, image_size: int | None, skip_unreadable: bool = False
    ) -> None:
        self.dataset_name = dataset_name
        self.image_size = image_size
        self.skip_unreadable = skip_unreadable
        self.bit_depth: int | None = None
        self.total = self.resized = self.clipped = self.several = 0
        self.converted: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self._first: tuple[str, tuple[int, ...]] | None = None
        self._room = _Room(AT_ONCE)

    def read(
        self, encoded: Sequence[Path | bytes | None], names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Decode images in threads: uint8 [n, 3, height, width], and bool [N], which they are.

        encoded: files or their contents [N]; at least one.  names: what to call each in an error.
        n is N unless unreadable images are skipped.  Raises InvalidInput, which names the images,
        if some are missing, damaged, cut short or too large to be decoded, or if sizes differ and
        no image_size was given.
        """
        failed: dict[int, str] = {}
        found: dict[int, Picture] = {}

        def decode_at(index: int) -> np.ndarray | None:
            try:
                picture = decode(encoded[index], self.image_size, self.bit_depth or 16, self._room)
            except Unreadable as error:
                failed[index] = str(error)
                return None
            self._check_size(picture.pixels.shape, names[index])
            found[index] = picture._replace(pixels=_NOTHING)
            return picture.pixels

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            start = (decode_at(index) for index in range(len(encoded)))
            first = next((pixels for pixels in start if pixels is not None), None)
            if first is None:
                raise self._cannot_decode(failed, names)
            pixels = self._allocate(len(encoded), *first.shape[:2])

            def place(indices: Sequence[int]) -> None:
                for index in indices:
                    if (decoded := decode_at(index)) is not None:
                        pixels[index] = decoded.transpose(2, 0, 1)

            def place_all(indices: Sequence[int]) -> None:
                chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
                with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
                    list(pool.map(place, chunks))

            place_all(range(len(encoded)))
            if self.bit_depth is None and (deep := [i for i in sorted(found) if found[i].peak]):
                self.bit_depth = self._depth(found, names, deep)
                if self.bit_depth < 16:
                    place_all(deep)
        if failed and not self.skip_unreadable:
            raise self._cannot_decode(failed, names)
        self.unreadable += [names[index] for index in sorted(failed)]
        self.total += len(found)
        self.resized += sum(picture.resized for picture in found.values())
        self.several += sum(picture.has_more for picture in found.values())
        self.converted.update(picture.kind for picture in found.values() if picture.kind)
        self.clipped += sum(p.peak >= 2 ** (self.bit_depth or 16) for p in found.values())
        kept = torch.ones(len(encoded), dtype=torch.bool)
        kept[list(failed)] = False
        images = torch.from_numpy(pixels)
        return images[kept] if failed else images, kept

    def _depth(self, found: dict[int, Picture], names: Sequence[str], deep: list[int]) -> int:
        """The bit depth that holds the values of all deep images."""
        depth = max(8, max(found[index].peak for index in deep).bit_length())
        in_colour = next((i for i in deep if found[i].kind.startswith(DEEP_COLOUR)), None)
        if depth < 16 and in_colour is not None:
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: {names[in_colour]} and others hold colours of "
                f"{depth} bits in 16, of which Pillow keeps the upper 8 alone; accepted: 16-bit "
                "colours that use all 16 bits, or 8-bit images."
            )
        return depth

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the images, in plain sentences; empty if they were left as they are."""
        notes = []
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.converted.most_common())
            notes.append(f"{self._of_all(self.converted.total())} converted to RGB: {kinds}.")
        if self.bit_depth is not None and self.bit_depth < 16:
            notes.append(
                f"The 16-bit images were scaled as {self.bit_depth}-bit ones: no training image "
                f"has a value above {2**self.bit_depth - 1}."
            )
        if self.clipped:
            notes.append(
                f"{self._of_all(self.clipped)} clipped: other images than the training images "
                "have larger values."
            )
        if self.several:
            notes.append(
                f"{self.several:,} file{'s hold' if self.several > 1 else ' holds'} several "
                "images, of which the first is read."
            )
        if self.resized:
            size = f"{self.image_size} x {self.image_size}"
            how = "shorter side, then centre crop"
            notes.append(f"{self._of_all(self.resized)} resized to {size} ({how}).")
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} unreadable image{'s' * (len(self.unreadable) > 1)} left "
                f"out (skip_unreadable): {_some(self.unreadable)}."
            )
        return tuple(notes)

    def _of_all(self, count: int) -> str:
        if count == self.total:
            return "All images were"
        return f"{count:,} of {self.total:,} images {'was' if count == 1 else 'were'}"

    def _allocate(self, n: int, height: int, width: int) -> np.ndarray:
        try:
            if n * 3 * height * width > memory():
                raise MemoryError
            return np.empty((n, 3, height, width), dtype=np.uint8)
        except MemoryError as error:
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: {n:,} images of {width} x {height} pixels do not "
                "fit into memory; a smaller image_size or train_per_class needs less."
            ) from error

    def _cannot_decode(self, failed: dict[int, str], names: Sequence[str]) -> InvalidInput:
        listed = [f"{names[index]} cannot be decoded ({failed[index]})" for index in sorted(failed)]
        several = ""
        if len(listed) > 1:
            several = f" {len(listed)} images are unreadable:"
        hint = ""
        if not self.skip_unreadable and len(failed) < len(names):
            hint = "; skip_unreadable=True goes on without them" if several else ""
            hint = hint or "; skip_unreadable=True goes on without it"
        return InvalidInput(f"dataset {self.dataset_name!r}:{several} {_some(listed, '; ')}{hint}.")

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


_NOTHING = np.empty(0, dtype=np.uint8)


def _some(listed: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return between.join(listed[:_NAMED]) + more


class _Room:
    """Lets threads have so many pixels between them; whoever wants more than all gets all."""

    def __init__(self, pixels: int) -> None:
        self.all = self.free = pixels
        self.changed = threading.Condition()

    @contextmanager
    def for_pixels(self, wanted: int) -> Iterator[None]:
        wanted = min(wanted, self.all)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        try:
            yield
        finally:
            with self.changed:
                self.free += wanted
                self.changed.notify_all()


def _reason_of(error: Exception) -> str:
    """Why an image could not be decoded, in words."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow takes to be safe"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return first_line(error).rstrip(".")


def decode(
    encoded: Path | bytes | None,
    image_size: int | None = None,
    bit_depth: int = 16,
    room: _Room | None = None,
) -> Picture:
    """Decode one image file, or its contents, to RGB; turned as its EXIF orientation says.

    encoded: a path is opened, and only if it is a regular file; bytes are an image's contents.
    image_size: the shorter side is resized to so many pixels and the centre square kept; None: as
    stored.  bit_depth: of the values in 16-bit images; larger ones are clipped.  room: bounds the
    pixels that threads decode at once.  Raises Unreadable if there is no image or only a part of
    one.
    """
    try:
        if isinstance(encoded, Path):
            with open_regular(encoded, memory(), links=True) as file:
                return _decoded(file, image_size, bit_depth, room or _Room(AT_ONCE))
        if not isinstance(encoded, bytes):  # above all no text: it would be opened as a path
            raise ValueError("nothing is stored" if encoded is None else "no image is stored")
        return _decoded(io.BytesIO(encoded), image_size, bit_depth, room or _Room(AT_ONCE))
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise Unreadable(_reason_of(error)) from error


def _decoded(
    file: io.BufferedIOBase, image_size: int | None, bit_depth: int, room: _Room
) -> Picture:
    with (
        Image.open(file, formats=FORMATS) as image,  # type: ignore[arg-type]
        room.for_pixels(image.width * image.height),
    ):
        is_deep = any("16" in _raw_mode(tile.args) for tile in image.tile)  # 8 of the bits are kept
        has_more = getattr(image, "n_frames", 1) > 1
        image.load()  # all of it: a file that is cut short fails here
        ImageOps.exif_transpose(image, in_place=True)
        picture, kind, peak = to_rgb(image, bit_depth)
        if is_deep and "16-bit" not in kind:
            kind = f"16-bit {kind or 'RGB'}"
            peak = 256 * max(high for _, high in picture.getextrema())  # type: ignore[misc]
        resized = image_size is not None and picture.size != (image_size, image_size)
        if image_size is not None and resized:
            # cuts the centre square out first and resizes that: the same picture for less work
            square = (image_size, image_size)
            picture = ImageOps.fit(picture, square, Image.Resampling.BILINEAR)
        return Picture(np.asarray(picture), kind, resized, peak, has_more)


def _raw_mode(args: Any) -> str:
    """How pixels are stored, in what a decoder of Pillow's is given."""
    mode = args[0] if isinstance(args, (tuple, list)) and args else args
    return mode if isinstance(mode, str) else ""


DEEP_COLOUR = "16-bit "
"""How the kinds of 16-bit images begin whose upper 8 bits alone are read."""


def to_rgb(image: Image.Image, bit_depth: int = 16) -> tuple[Image.Image, str, int]:
    """The image in RGB, 8 bits a channel; what kind it was ("" for RGB); the peak of 16-bit values.

    Transparent parts are laid on white; 16-bit values are scaled to 8 bits, as if 2^bit_depth - 1
    were white.  Raises ValueError if the range of the pixels' values is unknown.
    """
    if image.mode.startswith("I"):
        picture, peak = _from_16_bit(image, bit_depth)
        return picture, "16-bit", peak
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    kind = _KINDS.get(image.mode, image.mode)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        composed = Image.alpha_composite(white, image.convert("RGBA"))
        return composed.convert("RGB"), kind + _ON_WHITE, 0
    if image.mode == "RGB":
        return image, "", 0
    return image.convert("RGB"), kind, 0


def _from_16_bit(image: Image.Image, bit_depth: int) -> tuple[Image.Image, int]:
    values = np.asarray(image).astype(np.int64)  # mode I can hold 32 bits
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()}, not from 0 to 65535")
    white = 2**bit_depth - 1
    is_clear = values == image.info.get("transparency", -1)
    grey = ((values.clip(max=white) * 255 + white // 2) // white).astype(np.uint8)
    grey[is_clear] = 255
    peak = int(np.where(is_clear, 0, values).max(initial=0))
    return Image.fromarray(grey).convert("RGB"), max(peak, 1)
