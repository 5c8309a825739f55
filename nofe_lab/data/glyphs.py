"""`glyphs`: a data set of printed characters in 100 classes that needs no download.

A network of experts pays off if classes form groups that are hard to tell apart inside and easy to
tell apart from each other.  Printed characters do: a network that has recognised something round
still has to tell an O from a Q, a 0 or a Θ.  The classes are 100 letters, digits and signs in
look-alike *families*; a class's family is its superclass, a ground truth for learned specialties.

Pillow renders the characters from the DejaVu fonts that ship with matplotlib.  Every character is
drawn once in every face, cropped, and scaled to the same longest side (its *mask*), so classes
differ in shape, never only in size (o O) or position (, ').  Characters that a face draws alike
(Latin A, Greek Α, Cyrillic А; in the sans faces nearly also I and l) appear once.  An image is a
mask with random size, rotation, slant and shift, printed in a random colour on graded paper of
another colour, with random blur and grain.

All draws come from one `numpy.random.Generator`, and pixels from Pillow and elementwise numpy: the
same seed and library versions give the same images on any number of threads.
"""

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FAMILIES: dict[str, str] = {
    "round": "OÖQ0CGΘØ",
    "vertical strokes": "I1!ií¡|",
    "curved digits": "SŠ58B369",
    "gates": "ПЛДЦЩШЏ",
    "stems with a bowl": "RЯЬЪБ",
    "mirrored bowls": "bdđpqþ",
    "arms": "EÉÊFГҒҐr",
    "ladders": "ийѝн",
    "spokes": "XҲЖҖKҚ",
    "peaks": "AÁÄÅΔ",
    "forks": "YÝŸУЎ",
    "arches": "hħђηŋ",
    "brackets": "()[]{}",
    "zigzags": "ZŽ2",
    "letter e": "eéêєэ",
    "letter a": "aáäåα",
    "Greek curls": "ζξς",
    "signs": "+±÷≠",
}
"""Look-alike family -> its characters, one class each."""

CLASS_NAMES: tuple[str, ...] = tuple("".join(FAMILIES.values()))
"""The 100 characters; a label is an index into this."""

SUPERCLASS_NAMES: tuple[str, ...] = tuple(FAMILIES)
"""The family names."""

SUPERCLASS_OF: tuple[int, ...] = tuple(
    family for family, members in enumerate(FAMILIES.values()) for _ in members
)
"""[100] For each class, the index of its family in `SUPERCLASS_NAMES`."""

FACES: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
)
"""Font faces that distinguish all the characters; each image uses one at random."""

Split = Literal["train", "test"]

IMAGE_SIDE = 32  # pixels
MASK_SIDE = 2 * IMAGE_SIDE  # drawn at double size and averaged down, which smooths the edges
MASK_GLYPH_SIDE = 48  # longest side of the character within its mask

# Ranges of what varies between images, all uniform except the grain.  Blur and grain set the
# difficulty: they hide the marks that distinguish a family's members, and little else.  Wider
# shifts, sizes or colours mostly delay the start of learning.
GLYPH_SIDES = (17.0, 24.0)  # longest side of the character, pixels
MAX_ROTATION = 12.0  # degrees, either way
MAX_SLANT = 0.15  # horizontal shift per unit of height, either way
MAX_SHIFT = 2.0  # pixels, each axis
BLUR_PASSES = 6  # 3 x 3 box averages that make the fully blurred ink
PAPER_LEVELS = (150.0, 235.0)  # luminance of the background, grey levels of 255
CONTRASTS = (55.0, 130.0)  # how much darker the character is, grey levels
MAX_PAPER_CHROMA = 30.0  # strength of the background's colour, grey levels
MAX_INK_CHROMA = 90.0  # strength of the character's colour, grey levels
MAX_GRADIENT = 20.0  # background change from the centre to an edge, grey levels
GRAINS = (8.0, 90.0)  # half-width of the uniform grey noise on each pixel, grey levels

LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)
CHUNK = 1000  # images composed at once, in about 50 MB


def font_path(face: str) -> Path:
    """The TrueType file of one of `FACES`, in the matplotlib installation."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@cache
def glyph_masks() -> np.ndarray:
    """Draw the clean shape of every class in every face.

    Returns uint8 [len(FACES), 100, 64, 64]: ink coverage 0..255, the character centred and its
    longer side 48 pixels.  Computed once per process; read-only.
    """
    masks = np.zeros((len(FACES), len(CLASS_NAMES), MASK_SIDE, MASK_SIDE), np.uint8)
    for face_masks, face in zip(masks, FACES, strict=True):
        # every Pillow build has the basic layout engine
        font = ImageFont.truetype(font_path(face), 96, layout_engine=ImageFont.Layout.BASIC)
        for mask, character in zip(face_masks, CLASS_NAMES, strict=True):
            page = Image.new("L", (256, 256))
            ImageDraw.Draw(page).text((128, 128), character, fill=255, font=font, anchor="mm")
            glyph = page.crop(page.getbbox())
            scale = MASK_GLYPH_SIDE / max(glyph.size)
            width, height = (max(1, round(side * scale)) for side in glyph.size)
            left, top = (MASK_SIDE - width) // 2, (MASK_SIDE - height) // 2
            scaled = np.asarray(glyph.resize((width, height)))
            mask[top : top + height, left : left + width] = scaled
    masks.flags.writeable = False
    return masks


def render_glyphs(
    n_per_class: int, seed: int, split: Split = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a balanced set of random character images.

    Args:
        n_per_class: images of each class, at least 1.
        seed: non-negative; the same seed gives the same images.
        split: the two splits of a seed are independent random streams.

    Returns:
        images, uint8 [N, 3, 32, 32] (RGB, 0..255), and labels, int64 [N] (indices into
        `CLASS_NAMES`, cycling from 0 to 99), with N = 100 * n_per_class.

    Raises:
        ValueError: n_per_class below 1, seed negative, or split unknown.
    """
    if n_per_class < 1:
        raise ValueError(f"n_per_class must be at least 1, got {n_per_class}")
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    stream = get_args(Split).index(split)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))

    labels = np.tile(np.arange(len(CLASS_NAMES), dtype=np.int64), n_per_class)
    images = np.empty((len(labels), 3, IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    for start in range(0, len(labels), CHUNK):
        chunk = slice(start, start + CHUNK)
        images[chunk] = _compose(_blur(_draw_ink(labels[chunk], rng), rng), rng)
    return images, labels


def _draw_ink(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw each label's mask, randomly transformed: ink float32 [n, 1, 32, 32] in 0..1."""
    n = len(labels)
    faces = rng.integers(len(FACES), size=n)
    shrink = MASK_GLYPH_SIDE / (2 * rng.uniform(*GLYPH_SIDES, size=n))
    angle = np.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION, size=n))
    slant = rng.uniform(-MAX_SLANT, MAX_SLANT, size=n)
    shift = 2 * rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=(2, n))

    # Pillow takes the inverse transform, from image to mask, about the corner, not the centre
    cos, sin = shrink * np.cos(angle), shrink * np.sin(angle)
    a, b, d, e = cos + slant * sin, -sin + slant * cos, sin, cos
    middle = MASK_SIDE / 2
    x, y = middle + shift
    inverse = np.stack([a, b, middle - a * x - b * y, d, e, middle - d * x - e * y], axis=1)

    masks, size = glyph_masks(), (MASK_SIDE, MASK_SIDE)
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    drawn = np.empty((n, 1, *size), np.uint8)
    # rounded because the last bits of cos and sin differ between CPU models
    for i, matrix in enumerate(inverse.round(6).tolist()):
        mask = Image.fromarray(masks[faces[i], labels[i]])
        drawn[i, 0] = np.asarray(mask.transform(size, affine, matrix, bilinear))
    doubled = drawn.reshape(n, 1, IMAGE_SIDE, 2, IMAGE_SIDE, 2)
    return doubled.sum(axis=(3, 5), dtype=np.int32).astype(np.float32) / np.float32(4 * 255)


def _blur(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur each image's ink by a random amount."""
    blurred = ink
    for axis in (2, 3):
        for _ in range(BLUR_PASSES):
            blurred = (np.roll(blurred, 1, axis) + blurred + np.roll(blurred, -1, axis)) / 3
    return ink + rng.random((len(ink), 1, 1, 1), dtype=np.float32) * (blurred - ink)


def _compose(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Print coloured ink on graded paper and add grain: uint8 [n, 3, 32, 32]."""
    n = len(ink)
    paper_level = rng.uniform(*PAPER_LEVELS, size=(n, 1))
    ink_level = paper_level - rng.uniform(*CONTRASTS, size=(n, 1))
    paper_colour = _colours(paper_level, MAX_PAPER_CHROMA, rng)
    ink_colour = _colours(ink_level, MAX_INK_CHROMA, rng)

    ramp = np.linspace(-1, 1, IMAGE_SIDE, dtype=np.float32)
    slope = rng.uniform(-MAX_GRADIENT, MAX_GRADIENT, size=(2, n, 3, 1, 1)).astype(np.float32)
    paper = paper_colour + slope[0] * ramp + slope[1] * ramp[:, None]

    # squared so that most images are clean and a few very grainy
    low, high = GRAINS
    strength = low + (high - low) * rng.random((n, 1, 1, 1), dtype=np.float32) ** 2
    grain = rng.integers(-128, 128, size=(n, 1, IMAGE_SIDE, IMAGE_SIDE), dtype=np.int8)
    image = paper + ink * (ink_colour - paper) + strength / 128 * grain
    return image.clip(0, 255).astype(np.uint8)


def _colours(level: np.ndarray, chroma: float, rng: np.random.Generator) -> np.ndarray:
    """Draw colours, float32 [n, 3, 1, 1], of the given luminance [n, 1] (unless clipped)."""
    offset = rng.uniform(-chroma, chroma, size=(len(level), 3))
    offset -= (offset * LUMINANCE).sum(axis=1, keepdims=True)
    return (level + offset).clip(0, 255).astype(np.float32)[..., None, None]
