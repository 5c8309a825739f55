"""What a network says about pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import (
    InvalidInput,
)
from nofe_lab.specialties import Specialties

NONE = "none of mine"
"""What an expert alone answers for images of other specialties."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network says about N images.

    names: of the images.  class_names: of the network's n outputs.
    probabilities: float64 [N, n], each row sums to 1.
    ran: int64 [N, m], the specialties whose experts ran; None: all.
    threshold: the least probability with which a class is the answer; None: it always is.
    unreadable: name and reason of images that were asked for and are not among the N.
    margin: float64 [N], of an expert alone: below 0 the image is of none of its classes.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    partition: Specialties | None = None
    ran: NDArray[np.int64] | None = None
    threshold: float | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    margin: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable output for each image [N]."""
        return self.probabilities.argmax(axis=1)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of the most probable class of each image."""
        return tuple(self.class_names[c] for c in self.predicted)

    @cached_property
    def specialty_probabilities(self) -> NDArray[np.float64]:
        """The sums over the classes of each specialty [N, K].

        Raises InvalidInput if the network has no specialties.
        """
        return self._partition.sums(self.probabilities)

    @property
    def _partition(self) -> Specialties:
        if self.partition is None:
            raise InvalidInput("this network has no specialties; a network of experts has.")
        return self.partition

    @property
    def specialties(self) -> tuple[str, ...]:
        """The specialty of each image's label, or the one that is answered in its place.

        Raises InvalidInput as above.
        """
        return tuple(map(self._partition.title, self._specialty))

    @cached_property
    def _specialty(self) -> NDArray[np.int64]:
        best = self.specialty_probabilities.argmax(axis=1)
        return np.where(self._is_sure, np.array(self._partition.of)[self.predicted], best)

    @property
    def _is_sure(self) -> NDArray[np.bool_]:
        if self.margin is not None:
            return self.margin >= 0
        certainty = self.probabilities.max(axis=1)
        return certainty >= (-np.inf if self.threshold is None else self.threshold)

    @property
    def experts(self) -> tuple[tuple[str, ...], ...] | None:
        """The specialties whose experts ran for each image; None: all of them."""
        if self.ran is None or self.partition is None:
            return None
        return tuple(tuple(self.partition.title(k) for k in row) for row in self.ran)

    @property
    def answers(self) -> tuple[str, ...]:
        """The label of each image, or what is said in its place.

        Where the label is too uncertain, the most probable specialty; of an expert alone, `NONE`
        for images of other specialties.
        """
        if self.margin is not None:
            otherwise: tuple[str, ...] = (NONE,) * len(self)
        elif self.threshold is not None and self.partition is not None:
            otherwise = self.specialties
        else:
            return self.labels
        answers = zip(self.labels, self._is_sure, otherwise, strict=True)
        return tuple(label if sure else other for label, sure, other in answers)

    @property
    def table(self) -> pd.DataFrame:
        """One row an image: answer and label, specialty, their probabilities, experts that ran."""
        columns: dict[str, Any] = {"image": self.names}
        if self.threshold is not None or self.margin is not None:
            columns["answer"] = self.answers
        certain = "probability" if self.margin is None else "probability among its own"
        columns |= {"label": self.labels, certain: self.probabilities.max(axis=1)}
        if self.margin is not None:
            columns["margin"] = self.margin
        if self.partition is not None:
            columns["specialty"] = self.specialties
            columns["specialty probability"] = self.specialty_probabilities[
                np.arange(len(self)), self._specialty
            ]
        if (experts := self.experts) is not None:
            columns["experts"] = [", ".join(row) for row in experts]
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        return self.table.to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format="{:.3f}".format)
