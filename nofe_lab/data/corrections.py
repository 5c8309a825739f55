"""Corrections of labels: a CSV of decisions about single images.

Each line keeps an image's label, relabels the image or excludes it.  An image is known by its file,
seen from the data set's folder (in a parquet file also by its row), and by a checksum, so that no
decision is applied to another image that took its place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch

from nofe_lab.config import InvalidInput, composed, first_line, one_of, shown, some_of
from nofe_lab.data.dataset import Dataset, ImageFile
from nofe_lab.data.source import Source
from nofe_lab.files import read_text, redact_path, user_path, write_file

COLUMNS = ("file", "checksum", "label", "decision", "corrected")
KEEP, RELABEL, EXCLUDE = DECISIONS = ("keep", "relabel", "exclude")


@dataclass(frozen=True)
class Correction:
    """What was decided about one image.  Raises InvalidInput if the decision is none."""

    file: str
    checksum: str
    label: str
    """The class that the image had."""
    decision: str
    corrected: str = ""
    """The class that it gets; "" unless it is relabelled."""

    def __post_init__(self) -> None:
        one_of("the decision", self.decision, DECISIONS)
        if (self.decision == RELABEL) != bool(self.corrected):
            wanted = "name a class" if self.decision == RELABEL else "be empty"
            raise InvalidInput(
                f"'corrected' must {wanted} where the decision is {self.decision!r}; got "
                f"{shown(self.corrected)}."
            )


@dataclass(frozen=True, eq=False)
class Corrections:
    """The decisions of a CSV, by file."""

    path: str | Path
    by_file: Mapping[str, Correction]

    @classmethod
    def read(cls, path: str | Path) -> Corrections:
        """Read a CSV.  Raises InvalidInput if it cannot be read or decides twice on an image."""
        what = f"corrections {str(path)!r}"
        try:
            text = read_text(user_path(path), links=True).removeprefix("\ufeff")
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except (InvalidInput, csv.Error) as error:
            why = redact_path(first_line(error), path).rstrip(".")
            raise InvalidInput(f"{what} cannot be read ({why}).") from error
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        if missing := [name for name in COLUMNS if name not in header]:
            raise InvalidInput(
                f"{what} must be a CSV with the columns {', '.join(COLUMNS)}; it has no "
                f"{some_of(missing)}."
            )
        places = [header.index(name) for name in COLUMNS]
        found: dict[str, Correction] = {}
        for number, row in enumerate(rows[1:], 2):
            if not row:
                continue
            cells = [row[place] if place < len(row) else "" for place in places]
            try:
                decided = Correction(*cells[:2], *map(composed, cells[2:]))
            except InvalidInput as error:
                raise InvalidInput(f"line {number} of {what}: {error}") from None
            if decided.file in found:
                raise InvalidInput(
                    f"line {number} of {what} decides on {decided.file!r} again; accepted: one "
                    "line for each image."
                )
            found[decided.file] = decided
        return cls(path, found)

    def write(self) -> None:
        """Write the CSV atomically.  Raises OSError."""
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(map(astuple, self.by_file.values()))
        write_file(user_path(self.path), text.getvalue())

    def check(
        self, name: str, class_names: tuple[str, ...], files: Mapping[str, ImageFile]
    ) -> None:
        """Raise InvalidInput unless each decision is about an image of the data set, as it is now.

        name: of the data set.  files: see `Dataset`.
        """
        what = f"corrections {str(self.path)!r}"
        for each in self.by_file.values():
            if each.file not in files:
                raise InvalidInput(
                    f"{what} decide on {each.file!r}, which is no image of {name}; accepted: files "
                    f"as they are seen from there, such as {next(iter(files))!r}."
                )
            image = files[each.file]
            if image.checksum and each.checksum != image.checksum:
                raise InvalidInput(
                    f"the image {each.file!r} has changed since {what} decided on it (checksum "
                    f"{image.checksum}, not {each.checksum!r}): decide again, or remove its line."
                )
            if each.label != image.label:
                raise InvalidInput(
                    f"the label of {each.file!r} was {each.label!r} when {what} decided on it, and "
                    f"is {image.label!r} now: decide again, or remove its line."
                )
            if each.corrected:
                one_of(f"{what}: the class of {each.file!r},", each.corrected, class_names)

    def applied(self, dataset: Dataset) -> Dataset:
        """The data set with new labels, and without what is excluded; no image changes its split.

        Raises InvalidInput if a class is left without training images.
        """
        by_key = {dataset.files[each.file].key: each for each in self.by_file.values()}
        number = {name: c for c, name in enumerate(dataset.class_names)}
        done = dict.fromkeys(DECISIONS, 0)

        def corrected(split: Source) -> Source:
            labels, kept = split.labels.clone(), torch.ones(len(split), dtype=torch.bool)
            for i, key in enumerate(split.keys.numpy()):
                if (each := by_key.get(key.tobytes())) is None:
                    continue
                done[each.decision] += 1
                kept[i] = each.decision != EXCLUDE
                if each.decision == RELABEL:
                    labels[i] = number[each.corrected]
            return split.with_labels(labels)[kept]

        parts = [corrected(split) for split in (dataset.train, dataset.val, dataset.test)]
        note = (
            f"By corrections, {done[RELABEL]} of the images have another label and {done[EXCLUDE]} "
            "are left out."
        )
        train, val, test = parts
        try:
            return replace(
                dataset,
                train=train,
                val=val,
                test=test,
                notes=(*dataset.notes, note),
                clearest=None,
            )
        except InvalidInput as error:
            raise InvalidInput(f"with corrections {str(self.path)!r}, {error}") from None
