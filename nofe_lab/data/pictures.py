"""Image files: decoded in threads, converted to RGB, resized to one size.

Images of any kind are accepted, and every conversion is counted and reported: grey or transparent
images, for example, may surprise a network for colour photographs.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line, some_of
from nofe_lab.data.source import short_digest
from nofe_lab.files import memory, open_regular

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may detect.  EPS is excluded: Pillow would run Ghostscript on the file."""

ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""Extensions of image files, in lower case; if a file holds several images, the first is read."""

MAX_PIXELS_AT_ONCE = 2**26
"""Pixels that all threads together decode at once; a larger image is decoded alone."""

_TURNING = (b"eXIf", b"Raw profile", b"xmp")  # where a PNG file may say how it is turned
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
_ON_WHITE = " (transparent parts on white)"
_CHUNK = 64  # images per task: few, so that an error stops decoding early
_MAX_NAMED = 10  # unreadable images named in a message


class Picture(NamedTuple):
    """A decoded image and how it was converted."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    kind: str
    """Kind of the image before the conversion to RGB; empty if it was RGB."""
    resized: bool
    peak: int = 0
    """Largest value of a 16-bit image; for a colour image with the lowest 8 bits set to 0."""
    has_more: bool = False
    """Whether the file holds more images than this one."""


class Examined(NamedTuple):
    """What is known of an image file whose pixels are not kept (see `examine`)."""

    digest: bytes
    """Of its size and content; empty if it is missing."""
    size: tuple[int, int]
    """(width, height), upright."""
    kind: str
    """As in `Picture`."""
    peak: int
    """As in `Picture`."""
    has_more: bool
    """As in `Picture`."""
    error: str
    """Why it cannot be decoded; "" if it can."""


class UnreadableImage(Exception):
    """An image cannot be decoded; the message gives the reason, not the image's name."""


class ImageReader:
    """Reads the images of a data set and counts how they were converted.

    image_size: side in pixels of the square that images are resized to; None: as stored, and all
    must have one size.  skip_unreadable: skip images that cannot be decoded.
    Read the training images first: 16-bit images are scaled by the smallest bit depth that holds
    their values, since cameras store 10, 12 or 14 bits in 16.
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
        self._budget = PixelBudget()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that were read, in pixels."""
        assert self._first is not None, "an image has been read"
        return 3, *self._first[1][:2]  # type: ignore[return-value]

    def read(
        self, encoded: Sequence[Path | bytes | None], names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Decode N images in threads: uint8 [n, 3, height, width], and a mask of these, bool [N].

        encoded: files or their contents, at least one.  names: of the images, for errors.  n is N
        unless unreadable images are skipped.  Raises InvalidInput, naming the images, if any are
        missing, damaged, truncated or too large, or if sizes differ without an image_size.
        """
        failed: dict[int, str] = {}
        found: dict[int, Picture] = {}

        def decode_at(index: int) -> np.ndarray | None:
            try:
                picture = decode(
                    encoded[index], self.image_size, self.bit_depth or 16, self._budget
                )
            except UnreadableImage as error:
                failed[index] = str(error)
                return None
            self._check_size(picture.pixels.shape, names[index])
            found[index] = picture._replace(pixels=_NO_PIXELS)
            return picture.pixels

        with only_bombs_reported():
            start = (decode_at(index) for index in range(len(encoded)))
            first = next((pixels for pixels in start if pixels is not None), None)
            if first is None:
                raise self._decoding_error(failed, names)
            pixels = self._allocate(len(encoded), *first.shape[:2])

            def fill(indices: Sequence[int]) -> None:
                for index in indices:
                    if (decoded := decode_at(index)) is not None:
                        pixels[index] = decoded.transpose(2, 0, 1)

            def fill_all(indices: Sequence[int]) -> None:
                chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
                with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
                    list(pool.map(fill, chunks))

            fill_all(range(len(encoded)))
            before = self.bit_depth
            deep = self._set_bit_depth(found, names)
            if before is None and (self.bit_depth or 16) < 16:
                fill_all(deep)
        kept = self._counted(found, failed, names)
        images = torch.from_numpy(pixels)
        return images[kept] if failed else images, kept

    def examined(self, images: Sequence[Examined], names: Sequence[str]) -> Tensor:
        """Do as if N images were read: which of them would be, bool [N].  Errors as of `read`."""
        failed = {i: image.error for i, image in enumerate(images) if image.error}
        found = {}
        for i, image in enumerate(images):
            if not image.error:
                shape = self.image_size or image.size[1], self.image_size or image.size[0], 3
                self._check_size(shape, names[i])
                resized = shape[1::-1] != image.size
                found[i] = Picture(_NO_PIXELS, image.kind, resized, image.peak, image.has_more)
        if not found:
            raise self._decoding_error(failed, names)
        self._set_bit_depth(found, names)
        return self._counted(found, failed, names)

    def _counted(
        self, found: Mapping[int, Picture], failed: Mapping[int, str], names: Sequence[str]
    ) -> Tensor:
        """Count how images were converted; which of them could be decoded, bool [N]."""
        if failed and not self.skip_unreadable:
            raise self._decoding_error(failed, names)
        self.unreadable += [names[index] for index in sorted(failed)]
        self.total += len(found)
        self.resized += sum(picture.resized for picture in found.values())
        self.several += sum(picture.has_more for picture in found.values())
        # in their order, not in that in which threads have come to them
        self.converted.update(found[i].kind for i in sorted(found) if found[i].kind)
        self.clipped += sum(p.peak >= 2 ** (self.bit_depth or 16) for p in found.values())
        kept = torch.ones(len(names), dtype=torch.bool)
        kept[list(failed)] = False
        return kept

    def _set_bit_depth(self, found: Mapping[int, Picture], names: Sequence[str]) -> list[int]:
        """Set the bit depth by the first 16-bit images; which of these there are."""
        deep = [index for index in sorted(found) if found[index].peak]
        if self.bit_depth is None and deep:
            self.bit_depth = self._bit_depth(found, names, deep)
        return deep

    def _bit_depth(
        self, found: Mapping[int, Picture], names: Sequence[str], deep: list[int]
    ) -> int:
        """Find the smallest bit depth that holds the values of all deep images."""
        depth = max(8, max(found[index].peak for index in deep).bit_length())
        in_colour = next((i for i in deep if found[i].kind.startswith(DEEP_COLOUR)), None)
        if depth < 16 and in_colour is not None:
            raise InvalidInput(
                f"dataset {self.dataset_name!r}: {names[in_colour]} and others hold colours of "
                f"{depth} bits in 16, of which Pillow keeps only the upper 8; accepted: 16-bit "
                "colours that use all 16 bits, or 8-bit images."
            )
        return depth

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were converted, in plain sentences."""
        notes = []
        if self.converted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.converted.most_common())
            notes.append(f"{self._of_total(self.converted.total())} converted to RGB: {kinds}.")
        if self.bit_depth is not None and self.bit_depth < 16:
            notes.append(
                f"The 16-bit images were scaled as {self.bit_depth}-bit ones: no training image "
                f"has a value above {2**self.bit_depth - 1}."
            )
        if self.clipped:
            notes.append(
                f"{self._of_total(self.clipped)} clipped: their values exceed those of the "
                "training images."
            )
        if self.several:
            notes.append(
                f"{self.several:,} file{'s hold' if self.several > 1 else ' holds'} several "
                "images; only the first is read."
            )
        if self.resized:
            size = f"{self.image_size} x {self.image_size}"
            how = "shorter side, then centre crop"
            notes.append(f"{self._of_total(self.resized)} resized to {size} ({how}).")
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} unreadable image{'s' * (len(self.unreadable) > 1)} left "
                f"out (skip_unreadable): {some_of(self.unreadable, _MAX_NAMED)}."
            )
        return tuple(notes)

    def _of_total(self, count: int) -> str:
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
                "fit into memory; streaming=True decodes them while networks train, and a smaller "
                "image_size or train_per_class needs less."
            ) from error

    def _decoding_error(self, failed: Mapping[int, str], names: Sequence[str]) -> InvalidInput:
        listed = [f"{names[index]} cannot be decoded ({failed[index]})" for index in sorted(failed)]
        several = f" {len(listed)} images are unreadable:" if len(listed) > 1 else ""
        hint = ""
        if not self.skip_unreadable and len(failed) < len(names):
            hint = f"; skip_unreadable=True goes on without {'them' if several else 'it'}"
        reasons = some_of(listed, _MAX_NAMED, "; ")
        return InvalidInput(f"dataset {self.dataset_name!r}:{several} {reasons}{hint}.")

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


_NO_PIXELS = np.empty(0, dtype=np.uint8)


class PixelBudget:
    """Bounds the pixels that all threads together decode at once."""

    def __init__(self) -> None:
        self.free = MAX_PIXELS_AT_ONCE
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, wanted: int) -> Iterator[None]:
        wanted = min(wanted, MAX_PIXELS_AT_ONCE)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        try:
            yield
        finally:
            with self.changed:
                self.free += wanted
                self.changed.notify_all()


@contextmanager
def only_bombs_reported() -> Iterator[None]:
    """Ignore warnings about metadata; an image of too many pixels cannot be decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(error: Exception) -> str:
    """The reason why an image cannot be decoded."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow considers safe"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return first_line(error).rstrip(".")


def decode(
    encoded: Path | bytes | None,
    image_size: int | None = None,
    bit_depth: int = 16,
    budget: PixelBudget | None = None,
    box: Sequence[float] | None = None,
) -> Picture:
    """Decode an image file, or its contents, to RGB, and apply its EXIF orientation.

    encoded: the path of a regular file, or an image's contents.  image_size: the shorter side is
    resized to this many pixels and the centre square cropped; None: as stored.  bit_depth: of the
    values in 16-bit images; larger values are clipped.  budget: bounds the pixels that threads
    decode at once.  box: drawn numbers, for which a part of the picture takes the place of the
    centre square (see `box_within`).
    Raises UnreadableImage if the image is missing, damaged or truncated.
    """
    try:
        with _opened(encoded) as file:
            return _decode(file, image_size, bit_depth, budget or PixelBudget(), box)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise UnreadableImage(_reason(error)) from error


def box_within(size: tuple[int, int], drawn: Sequence[float]) -> tuple[float, float, float, float]:
    """The part of a picture (width, height) that a random resized crop shows, in pixels.

    drawn: four numbers in [0, 1), for its area (a share from .08 to 1), its shape (width by height
    from 3/4 to 4/3, evenly on a log scale), row and column.  A part that is longer than the picture
    is cut to it.  After C. Szegedy et al., "Going Deeper with Convolutions", 2015.
    """
    area, shape, row, column = drawn
    area = (0.08 + 0.92 * area) * size[0] * size[1]
    ratio = (3 / 4) ** (1 - 2 * shape)
    width, height = min((area * ratio) ** 0.5, size[0]), min((area / ratio) ** 0.5, size[1])
    left, top = column * (size[0] - width), row * (size[1] - height)
    return left, top, left + width, top + height


def examine(
    encoded: Path | bytes | None, whole: bool = False, budget: PixelBudget | None = None
) -> Examined:
    """What can be known of an image file by reading it once.  Never raises.

    whole: decode all of it, so that any damage is found.  Otherwise the header is enough of JPEG
    and PNG files in RGB or grey whose end is there.  budget: see `decode`.
    """
    digest = b""
    try:
        with _opened(encoded) as file:
            content = file.read()
        if isinstance(encoded, Path):
            digest = short_digest(str(len(content)), hashlib.sha256(content).digest())
        elif content:
            digest = short_digest(str(len(content)), content)
        header = _header(content)
        if header is not None and not whole:
            return Examined(digest, *header, "")
        picture = decode(content, None, 16, budget)
        height, width = picture.pixels.shape[:2]
        return Examined(digest, (width, height), picture.kind, picture.peak, picture.has_more, "")
    except UnreadableImage as error:
        return Examined(digest, (0, 0), "", 0, False, str(error))
    except Exception as error:  # as in `decode`
        return Examined(digest, (0, 0), "", 0, False, _reason(error))


def _header(content: bytes) -> tuple[tuple[int, int], str, int, bool] | None:
    """Upright (width, height), kind, peak and whether there are more images, from the header.

    None if it tells too little.  Raises what Pillow raises.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # type: ignore[arg-type]
        end = _ENDS.get(str(image.format))
        is_plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        is_deep = any("16" in _raw_mode(tile.args) for tile in image.tile)
        if end is None or not content.endswith(end) or not is_plain or is_deep:
            return None
        turned = False
        if image.format == "JPEG":
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        elif any(word in content for word in _TURNING):  # Pillow would have to decode it
            return None
        size = image.size[::-1] if turned else image.size
        return size, _KINDS.get(image.mode, ""), 0, getattr(image, "n_frames", 1) > 1


def _opened(encoded: Path | bytes | None) -> io.BufferedIOBase:
    if isinstance(encoded, Path):
        return open_regular(encoded, memory(), links=True)
    if not isinstance(encoded, bytes):  # text, above all, would be opened as a path
        raise ValueError("nothing is stored" if encoded is None else "no image is stored")
    return io.BytesIO(encoded)


def image_tensor(
    what: Path | bytes | Image.Image | np.ndarray | Tensor,
    image_shape: tuple[int, int, int],
    bit_depth: int = 16,
    budget: PixelBudget | None = None,
) -> Tensor:
    """Prepare one image of any size as those of a data set: uint8 [channels, height, width].

    what: the path of an image file, its contents, a PIL image, or pixels uint8: an array [height,
    width], or [height, width, 1, 3 or 4], or a tensor [channels, height, width].
    image_shape: (channels, height, width) wanted; the image is scaled until it covers the height
    and the width, then its centre is cropped.  bit_depth, budget: see `decode`.
    Raises UnreadableImage if it is no image, or cannot be decoded.
    """
    channels, height, width = image_shape
    if isinstance(what, Tensor):
        if what.is_meta or what.is_quantized or what.layout != torch.strided:
            raise UnreadableImage("pixels must be a plain tensor with values")
        if what.dtype == torch.uint8 and tuple(what.shape) == image_shape:
            return what.cpu()
        what = what.detach().cpu().movedim(0, -1).numpy() if what.ndim == 3 else what.cpu().numpy()
    if isinstance(what, np.ndarray):
        if what.dtype != np.uint8 or not (
            what.ndim == 2 or (what.ndim == 3 and what.shape[2] in (1, 3, 4))
        ):
            raise UnreadableImage(
                f"pixels must be uint8 [height, width, 1, 3 or 4]; got {what.dtype} "
                f"{list(what.shape)}"
            )
        if not what.size:  # which Pillow refuses in its own words
            raise UnreadableImage("it has no pixels")
        what = Image.fromarray(what[..., 0] if what.shape[2:] == (1,) else what)
    if isinstance(what, Image.Image):
        if not what.width or not what.height:
            raise UnreadableImage("it has no pixels")
        try:
            picture = to_rgb(ImageOps.exif_transpose(what), bit_depth)[0]
        except Exception as error:  # of a file that is read only now
            raise UnreadableImage(_reason(error)) from error
    else:
        picture = Image.fromarray(decode(what, None, bit_depth, budget).pixels)
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if channels == 1:
        image = image.double().mean(0, keepdim=True).round().to(torch.uint8)
    elif channels != len(image):
        raise UnreadableImage(f"the network takes tensors of {channels} channels, not pictures")
    return image


def rgb(image: Tensor) -> np.ndarray:
    """The pixels [height, width, 3] of an image uint8 [channels, height, width].

    An image without three channels is shown as its first one, in grey.
    """
    pixels: np.ndarray = image.permute(1, 2, 0).numpy()
    return pixels if pixels.shape[2] == 3 else pixels[..., :1].repeat(3, axis=2)


def _decode(
    file: io.BufferedIOBase,
    image_size: int | None,
    bit_depth: int,
    budget: PixelBudget,
    box: Sequence[float] | None = None,
) -> Picture:
    with (
        Image.open(file, formats=FORMATS) as image,  # type: ignore[arg-type]
        budget.reserve(image.width * image.height),
    ):
        is_deep = any("16" in _raw_mode(tile.args) for tile in image.tile)
        has_more = getattr(image, "n_frames", 1) > 1
        image.load()  # a truncated file fails here
        ImageOps.exif_transpose(image, in_place=True)
        picture, kind, peak = to_rgb(image, bit_depth)
        if is_deep and "16-bit" not in kind:
            kind = f"16-bit {kind or 'RGB'}"
            peak = 256 * max(high for _, high in picture.getextrema())  # type: ignore[misc]
        resized = image_size is not None and picture.size != (image_size, image_size)
        if box is not None:
            size = picture.size if image_size is None else (image_size, image_size)
            part = box_within(picture.size, box)
            picture = picture.resize(size, Image.Resampling.BILINEAR, box=part)
        elif image_size is not None and resized:
            square = (image_size, image_size)
            picture = ImageOps.fit(picture, square, Image.Resampling.BILINEAR)
        return Picture(np.asarray(picture), kind, resized, peak, has_more)


def _raw_mode(args: Any) -> str:
    """The mode of the stored pixels, from the arguments of Pillow's decoder."""
    mode = args[0] if isinstance(args, (tuple, list)) and args else args
    return mode if isinstance(mode, str) else ""


DEEP_COLOUR = "16-bit "
"""Prefix of the kinds of 16-bit images of which Pillow reads only the upper 8 bits."""


def to_rgb(image: Image.Image, bit_depth: int = 16) -> tuple[Image.Image, str, int]:
    """Convert to 8-bit RGB; also returns the kind ("" for RGB) and the peak of 16-bit values.

    Transparent parts become white; 16-bit values are scaled so that 2^bit_depth - 1 is white.
    Raises ValueError if the range of the pixels' values is unknown.
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
