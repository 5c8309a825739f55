"""What each network of the study answered for each test image, in files beside the table.

A row holds means over images.  Its answers give what else is asked of a trained network without
training it again: intervals over images and seeds, ensembles, and answers with the specialty where
the class is uncertain.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, first_line, whole_number
from nofe_lab.data.source import short_digest
from nofe_lab.evaluation import Predictions
from nofe_lab.files import (
    UnreadableFile,
    memory,
    open_regular,
    parse_json,
    user_path,
    write_file,
)
from nofe_lab.specialties import Specialties
from nofe_lab.statistics import paired_interval_over_seeds

KEPT = 5
"""Classes that are kept for each image."""

KEPT_EXPERTS = (1, 2)
"""Numbers of experts whose answers are kept beside the network's own."""

_ARRAYS = ("classes", "probabilities", "specialty", "specialty_probability")
_DAMAGED = (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class TopAnswers:
    """The k most probable classes of N test images; k is `KEPT`, or C if there are fewer.

    labels: [N], the right classes.  images: the fingerprint of the images and their labels.
    classes: [N, k], from the most probable on.  probabilities: float16 [N, k].
    C: the number of classes.
    specialty, specialty_probability: [N], of the most probable specialty, summed over its classes;
    None, like specialties, for a network without any.
    """

    labels: NDArray[np.integer]
    images: str
    classes: NDArray[np.integer]
    probabilities: NDArray[np.float16]
    C: int
    specialty: NDArray[np.integer] | None = None
    specialty_probability: NDArray[np.float16] | None = None
    specialties: Specialties | None = None

    @classmethod
    def of(
        cls, found: Predictions, images: str, specialties: Specialties | None = None
    ) -> TopAnswers:
        """The answers of a network's predictions; images, specialties: see the class."""
        best = (-found.logits).argsort(axis=1, kind="stable")[:, :KEPT]
        probabilities = np.take_along_axis(found.probabilities, best, axis=1)
        C = found.logits.shape[1]
        small = np.min_scalar_type(C - 1)
        answers = (found.labels.astype(small), images, best.astype(small), _half(probabilities), C)
        if specialties is None:
            return cls(*answers)
        sums = specialties.sums(found.probabilities)
        specialty = sums.argmax(axis=1).astype(small)
        return cls(*answers, specialty, _half(sums.max(axis=1)), specialties)

    @property
    def top1(self) -> NDArray[np.integer]:
        """The most probable class of each image [N]."""
        return self.classes[:, 0]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether that is the image's label [N]."""
        return self.top1 == self.labels

    @property
    def accuracy(self) -> float:
        """The share of images for which it is."""
        return float(self.right.mean())

    @property
    def certainty(self) -> pd.DataFrame:
        """The columns of `Predictions.certainty`, for `nofe_lab.evaluation.coverage_table`.

        Raises InvalidInput for a network without specialties.
        """
        if self.specialty is None:
            raise InvalidInput("this network has no specialties; a network of experts has.")
        return pd.DataFrame(
            {
                "label": self.labels.astype(np.int64),
                "predicted": self.top1.astype(np.int64),
                "probability": self.probabilities[:, 0].astype(np.float64),
                "specialty": self.specialty.astype(np.int64),
            }
        )

    @property
    def spread(self) -> NDArray[np.float32]:
        """Probabilities of all classes [N, C]; those not kept share equally what is left."""
        kept = self.probabilities.astype(np.float32)
        left = np.clip(1 - kept.sum(axis=1, keepdims=True), 0, None)
        others = left / max(self.C - kept.shape[1], 1)
        found = np.repeat(others, self.C, axis=1)
        np.put_along_axis(found, self.classes.astype(np.int64), kept, axis=1)
        return found


def ensemble(networks: Sequence[TopAnswers]) -> TopAnswers:
    """The answers of the mean of the networks' probabilities (see `TopAnswers.spread`).

    Raises InvalidInput without networks, and if they answered for different images.
    """
    images = _same_images(networks)
    mean = np.mean([each.spread for each in networks], axis=0)
    with np.errstate(divide="ignore"):  # log 0
        found = Predictions(np.log(mean), networks[0].labels.astype(np.int64))
    return TopAnswers.of(found, images)


def difference(
    own: Sequence[TopAnswers], other: Sequence[TopAnswers]
) -> tuple[float, float, float]:
    """The accuracy of an arm minus that of another, with its 95 % interval.

    own, other: the answers with each seed, in the same order of seeds.  See
    `paired_interval_over_seeds`.  Raises InvalidInput if seeds or images differ.
    """
    if len(own) != len(other):
        raise InvalidInput(
            f"a difference needs the same seeds of both arms; got {len(own)} and {len(other)}."
        )
    _same_images([*own, *other])
    right, other_right = (np.stack([each.right for each in arm]) for arm in (own, other))
    return paired_interval_over_seeds(right, other_right)


def write_answers(
    results: Path, keys: Mapping[str, Any], found: Mapping[int | None, TopAnswers]
) -> None:
    """Write the answers of a row, by the number of experts; None: as it answers.

    keys: the row's study, arm and seed.  Labels are written once for all rows of the same images.
    """
    whole = found[None]
    about = {
        **keys,
        "images": whole.images,
        "C": whole.C,
        "specialties": None if whole.specialties is None else whole.specialties.to_json(),
    }
    arrays = {
        f"{name}_{experts or 'all'}": np.asfortranarray(array)  # ranks apart compress better
        for experts, each in found.items()
        for name in _ARRAYS
        if (array := getattr(each, name)) is not None
    }
    os.makedirs(answers_folder(results), exist_ok=True)
    labels = _labels_path(results, whole.images)
    if not labels.exists():
        _write(labels, labels=whole.labels)
    _write(_path(results, keys), about=np.array(json.dumps(about)), **arrays)


def read_answers(
    results: Path | str, study: str, arm: str, seed: int, experts: int | None = None
) -> TopAnswers:
    """Read the answers of a row of the table `results`, with so many experts; None: as it answers.

    Raises InvalidInput if they were not kept, and UnreadableFile for a damaged file.
    """
    if experts is not None:
        whole_number("experts", experts, 1)
    results, row = user_path(results), f"{study}: {arm}, seed {seed}"
    path = _path(results, {"study": study, "arm": arm, "seed": seed})
    if not path.exists():
        raise InvalidInput(
            f"{row} has no answers beside {results.name}; rows made before answers were kept have "
            "none."
        )
    try:
        arrays = _read(path)
        about = parse_json(str(arrays["about"]))
        specialties = about["specialties"]
        kept: dict[str, Any] = {name: arrays.get(f"{name}_{experts or 'all'}") for name in _ARRAYS}
        if kept["classes"] is not None:
            return TopAnswers(
                _read(_labels_path(results, about["images"]))["labels"],
                about["images"],
                C=about["C"],
                specialties=None if specialties is None else Specialties.from_json(specialties),
                **kept,
            )
    except _DAMAGED as error:
        raise UnreadableFile(f"{path.name!r} holds no answers ({first_line(error)}).") from error
    raise InvalidInput(
        f"{row} has no answers of {experts} experts; arms with a gate have those of "
        f"{' and '.join(map(str, KEPT_EXPERTS))}, all have those of None, the network's own."
    )


def read_all_answers(results: Path, rows: pd.DataFrame) -> dict[str, dict[int, TopAnswers]]:
    """The answers of rows of the table `results`, by arm and seed, where they were kept."""
    found: dict[str, dict[int, TopAnswers]] = {}
    for study, arm, seed in zip(rows["study"], rows["arm"], rows["seed"], strict=True):
        if _path(results, {"study": study, "arm": arm, "seed": seed}).exists():
            found.setdefault(arm, {})[seed] = read_answers(results, study, arm, seed)
    return found


def answers_folder(results: Path) -> Path:
    """The folder of the answers of a table's rows."""
    return results.with_name(f"{results.stem}_answers")


def _half(probabilities: NDArray[np.float64]) -> NDArray[np.float16]:
    return probabilities.astype(np.float16)


def _same_images(networks: Sequence[TopAnswers]) -> str:
    images = {each.images for each in networks}
    if len(images) != 1:
        raise InvalidInput(
            f"answers can be compared for the same images; got {len(networks)} networks with "
            f"{len(images)} sets of images."
        )
    return images.pop()


def _path(results: Path, keys: Mapping[str, Any]) -> Path:
    """The file of a row: names of arms hold what file systems refuse, so it is a digest."""
    digest = short_digest(*(str(keys[name]) for name in ("study", "arm", "seed"))).hex()
    return answers_folder(results) / f"{digest}.npz"


def _labels_path(results: Path, images: str) -> Path:
    return answers_folder(results) / f"labels-{images}.npz"


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_file(path, content.getvalue())


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with open_regular(path, memory()) as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
