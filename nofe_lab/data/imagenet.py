"""ImageNet as it is distributed: validation images in one folder, their classes in a list."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nofe_lab.config import InvalidInput, first_line, shown
from nofe_lab.files import read_text

SOLUTION = "LOC_val_solution.csv"
"""Of the Kaggle competition: image, class and boxes."""

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
"""Of the development kit: the number of each image's class, in the order of the files' names."""

META = "meta.mat"
"""Of the development kit: which number is which class."""

SYNSETS = "LOC_synset_mapping.txt"
"""Of the Kaggle competition: lines of id, blank and names."""


def classes_of_flat(root: Path, folder: Path, files: Sequence[Path]) -> list[str]:
    """The class, such as n01440764, of each of the image files that lie in `folder` itself.

    root: the data set's folder, where `SOLUTION` is looked for, or `TRUTH` with `META`, also in the
    folder of a development kit.  Raises InvalidInput if they are missing or do not fit.
    """
    places = (root, folder, root.parent, *sorted(root.glob("*devkit*/data")), root / "data")
    for place in places:
        if (place / SOLUTION).is_file():
            return _by_name(place / SOLUTION, files)
    for place in places:
        if (place / TRUTH).is_file():
            return _by_number(place, files)
    raise InvalidInput(
        f"{folder} holds images but no class folders; accepted: a folder for each class, or, for "
        f"ImageNet, {SOLUTION} or the development kit's {TRUTH} and {META} in {root}."
    )


def _by_name(path: Path, files: Sequence[Path]) -> list[str]:
    try:
        rows = [(row[0].strip(), row[1].split()) for row in csv.reader(_lines(path)) if row[1:]]
    except csv.Error as error:
        raise InvalidInput(f"{path} cannot be read ({first_line(error)}).") from error
    class_of = {name: words[0] for name, words in rows if words}
    if missing := [file.name for file in files if file.stem not in class_of]:
        raise InvalidInput(f"{path} names no class for {shown(missing[0])}.")
    return [class_of[file.stem] for file in files]


def _by_number(place: Path, files: Sequence[Path]) -> list[str]:
    numbers = [line.strip() for line in _lines(place / TRUTH) if line.strip()]
    if len(numbers) != len(files):
        raise InvalidInput(
            f"{place / TRUTH} must have a line for each of the {len(files):,} images of "
            f"{files[0].parent}; it has {len(numbers):,}."
        )
    if not (place / META).is_file():
        raise InvalidInput(
            f"{place / TRUTH} gives numbers, which only {META} of the same development kit maps to "
            f"classes; there is no {META} beside it."
        )
    class_of = _numbered(place / META)
    if unknown := [number for number in numbers if number not in class_of]:
        raise InvalidInput(f"{place / META} knows no class of number {shown(unknown[0])}.")
    in_order = dict(zip(sorted(files), numbers, strict=True))
    return [class_of[in_order[file]] for file in files]


def _numbered(path: Path) -> dict[str, str]:
    """Class by number."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"].flatten()
        ids, names = synsets["ILSVRC2012_ID"], synsets["WNID"]
        return {str(int(i)): str(name) for i, name in zip(ids, names, strict=True)}
    except Exception as error:  # damaged files make scipy raise almost anything
        raise InvalidInput(f"{path} cannot be read ({first_line(error)}).") from error


def _lines(path: Path) -> list[str]:
    return read_text(path, links=True).removeprefix("\ufeff").splitlines()
