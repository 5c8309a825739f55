"""The embedded data set: its classes and families, its fonts, and its reproducible images."""

import hashlib

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from nofe_lab.data import glyphs

SPLITS: tuple[glyphs.Split, ...] = ("train", "test")


def checksum(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def test_families_partition_100_classes() -> None:
    assert len(glyphs.CLASS_NAMES) == len(set(glyphs.CLASS_NAMES)) == 100
    assert 15 <= len(glyphs.FAMILIES) <= 22
    assert all(3 <= len(members) <= 9 for members in glyphs.FAMILIES.values())
    for name, superclass in zip(glyphs.CLASS_NAMES, glyphs.SUPERCLASS_OF, strict=True):
        assert name in glyphs.FAMILIES[glyphs.SUPERCLASS_NAMES[superclass]]


@pytest.mark.parametrize("face", glyphs.FACES)
def test_every_face_has_every_character(face: str) -> None:
    known = FT2Font(str(glyphs.font_path(face))).get_charmap()
    assert [c for c in glyphs.CLASS_NAMES if ord(c) not in known] == []


@pytest.mark.parametrize("face", range(len(glyphs.FACES)), ids=glyphs.FACES)
def test_no_two_classes_look_the_same_once_cropped_and_scaled(face: int) -> None:
    ink = glyphs.glyph_masks()[face].reshape(100, -1).astype(float)
    overlap = np.array([np.minimum(one, ink).sum(axis=1) for one in ink])
    total = ink.sum(axis=1)
    likeness = overlap / (total[:, None] + total - overlap)  # intersection over union
    np.fill_diagonal(likeness, 0)
    first, second = np.unravel_index(likeness.argmax(), likeness.shape)
    pair = glyphs.CLASS_NAMES[first] + glyphs.CLASS_NAMES[second]
    assert likeness.max() < 0.95, pair


def test_images_and_labels_have_the_documented_form() -> None:
    images, labels = glyphs.render_glyphs(3, seed=0)
    assert images.shape == (300, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == list(range(100)) * 3


def test_same_seed_same_pixels_and_other_seeds_or_splits_other_pixels() -> None:
    train, again = (checksum(glyphs.render_glyphs(2, 1, "train")[0]) for _ in range(2))
    assert train == again
    test = checksum(glyphs.render_glyphs(2, 1, "test")[0])
    other_train, other_test = (checksum(glyphs.render_glyphs(2, 2, s)[0]) for s in SPLITS)
    assert len({train, test, other_train, other_test}) == 4


@pytest.mark.parametrize(
    ("n_per_class", "seed", "split", "complaint"),
    [(0, 0, "train", "n_per_class"), (1, -1, "train", "non-negative"), (1, 0, "val", "split")],
)
def test_bad_arguments_are_refused(
    n_per_class: int, seed: int, split: glyphs.Split, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        glyphs.render_glyphs(n_per_class, seed, split)
