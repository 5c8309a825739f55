"""Widgets: a thin interactive coat over the plots.

A widget lets a reader choose what a plot function draws, by mouse or keyboard, and holds the choice
in traits that a program can read and set.  It shows its first picture even where no kernel runs (a
saved notebook, a rendered page): what it hands to the notebook carries a PNG beside the widget.
"""

from __future__ import annotations

import base64
import difflib
import io
from html import escape
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset
from nofe_lab.specialties import Specialties
from nofe_lab.views.plots import plot_class

DPI = 110


class SpecialtyBrowser(ipywidgets.VBox):  # type: ignore[misc]
    """Browse the specialties and their classes: what they look like, what they are mistaken for.

    >>> browser = SpecialtyBrowser(dataset, specialties, nofe_predictions.confusion)
    >>> browser.class_name = "shark"  # its specialty and its picture follow

    confusion: counts [C, C], row = label, column = prediction.
    The traits `specialty` (0 to K - 1), `label` (0 to C - 1) and `class_name` follow each other and
    the two menus; setting a specialty chooses its first class.  Raises InvalidInput if a specialty
    or a class is unknown, or if the arguments do not fit together.
    """

    specialty = traitlets.Int(-1, help="The chosen specialty, from 0 to K - 1.")
    label = traitlets.Int(-1, help="The chosen class, from 0 to C - 1.")
    class_name = traitlets.Unicode(help="The name of the chosen class.")

    def __init__(
        self, dataset: Dataset, specialties: Specialties, confusion: NDArray[np.int64]
    ) -> None:
        self.dataset = dataset
        self.specialties = specialties
        self.confusion = confusion
        names = specialties.class_names
        wide = {"description_width": "initial"}
        self._specialty_menu = ipywidgets.Dropdown(
            options=[(_entry(specialties, k), k) for k in specialties.nonempty],
            description="Specialty",
            style=wide,
        )
        self._class_menu = ipywidgets.Dropdown(
            options=[(names[c], c) for c in specialties.order], description="Class", style=wide
        )
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self._summary = ipywidgets.HTML()
        menus = ipywidgets.HBox([self._specialty_menu, self._class_menu])
        super().__init__([menus, self._picture, self._summary])
        self.label = specialties.order[0]
        traitlets.link((self, "specialty"), (self._specialty_menu, "value"))
        traitlets.link((self, "label"), (self._class_menu, "value"))

    @property
    def png(self) -> bytes:
        """The current picture."""
        picture: bytes = self._picture.value
        return picture

    @traitlets.validate("specialty")
    def _check_specialty(self, proposal: Any) -> int:
        k: int = proposal["value"]
        if k not in self.specialties.nonempty:
            raise InvalidInput(
                f"specialty {k} has no class; accepted: "
                f"{', '.join(map(str, self.specialties.nonempty))}."
            )
        return k

    @traitlets.validate("label")
    def _check_label(self, proposal: Any) -> int:
        label: int = proposal["value"]
        if not 0 <= label < self.specialties.C:
            raise InvalidInput(f"label must be from 0 to {self.specialties.C - 1}; got {label}.")
        return label

    @traitlets.validate("class_name")
    def _check_class_name(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if name not in self.specialties.class_names:
            nearest = difflib.get_close_matches(name, self.specialties.class_names, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise InvalidInput(
                f"class {name!r} is none of the {self.specialties.C} classes of "
                f"{self.dataset.name}{hint}."
            )
        return name

    @traitlets.observe("specialty")
    def _choose_specialty(self, change: Any) -> None:
        if self.specialties.of[self.label] != change["new"]:
            self.label = self.specialties.members(change["new"])[0]

    @traitlets.observe("class_name")
    def _choose_class(self, change: Any) -> None:
        self.label = self.specialties.class_names.index(change["new"])

    @traitlets.observe("label")
    def _choose_label(self, change: Any) -> None:
        self.specialty = self.specialties.of[change["new"]]
        self.class_name = self.specialties.class_names[change["new"]]
        self._draw()

    def _draw(self) -> None:
        figure = plot_class(self.dataset, self.specialties, self.confusion, self.label)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        self._picture.value = png.getvalue()
        self._summary.value = escape(self._in_words())

    def _in_words(self) -> str:
        """What the picture shows, for those who do not see it."""
        row = self.confusion[self.label]
        k = self.specialties.of[self.label]
        errors = int(row.sum() - row[self.label])
        inside = int(row[list(self.specialties.members(k))].sum() - row[self.label])
        return (
            f"Class {self.class_name}, specialty {self.specialties.names[k]}: {row[self.label]} of "
            f"{row.sum()} images right; {inside} of {errors} mistakes inside the specialty."
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs) or {}
        png = base64.b64encode(self.png).decode()
        return {**bundle, "text/plain": self._in_words(), "image/png": png}


def _entry(specialties: Specialties, k: int) -> str:
    n = specialties.sizes[k]
    return f"{specialties.names[k]} ({n} {'class' if n == 1 else 'classes'})"
