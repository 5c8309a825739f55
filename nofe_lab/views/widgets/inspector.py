"""The prediction inspector: one image, and how each part of the networks responds to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset, Source
from nofe_lab.data.pictures import UnreadableImage, image_tensor
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import Predictions
from nofe_lab.inspection import Inspection, Inspector
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import (
    View,
    check,
    check_choice,
    hex_colours,
    script,
    sketch_colours,
    sprite,
)

CHOICES = ("corrected", "introduced", "wrong in both", "all")
BEST = 5


class PredictionInspector(View):
    """Single predictions: features of the trunk, answers of each expert, and where they look.

    >>> inspector = PredictionInspector(data, data.val, base, nofe, base_said, nofe_said)
    >>> inspector.which = "introduced"  # mistakes that the experts introduced
    >>> inspector.place = 3
    >>> inspector.index = 17  # an image of the split

    split: the images.  base, nofe: the networks; a NofE with a gate shows its choice too.
    base_said, nofe_said: their predictions for the split.  which: the images to step through
    (corrected, introduced, wrong in both, all); place: the position among them.  Images from
    elsewhere can be uploaded, drawn if they are small, or passed to `ask`; index is -1 then.
    Raises InvalidInput if the arguments do not fit together or a trait is set to an invalid value.
    """

    _esm = script("experts", "sketch", "inspector")
    _asking = False
    what = "prediction"

    index = traitlets.Int(-1, help="The image, by its number in the split.").tag(sync=True)
    which = traitlets.Unicode("all", help="The images to step through.").tag(sync=True)
    place = traitlets.Int(0, help="The position among these.").tag(sync=True)
    choices = traitlets.List(traitlets.List()).tag(sync=True)
    size = traitlets.Int(0, help="How many images there are to step through.").tag(sync=True)
    in_step = traitlets.Bool(False, help="Whether the image shown is that of `place`.").tag(
        sync=True
    )
    problem = traitlets.Unicode(help="Why an upload cannot be shown.").tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    drawing = traitlets.Dict(
        allow_none=True, help="Shape and colours of a drawing; None: images are too large."
    ).tag(sync=True)

    def __init__(
        self,
        dataset: Dataset,
        split: Source,
        base: ImageNetwork,
        nofe: ImageNetwork,
        base_said: Predictions,
        nofe_said: Predictions,
    ) -> None:
        if not len(split):
            raise InvalidInput("the split must have images; got one without.")
        labels = split.labels.numpy()
        for name, said in (("base CNN", base_said), ("NofE", nofe_said)):
            if not np.array_equal(said.labels, labels):
                raise InvalidInput(f"the predictions of {name} must be for the split's images.")
        self.inspector = Inspector(base, nofe)
        self.specialties = self.inspector.network.specialties
        self.specialties.check_classes(dataset.class_names)
        self.dataset = dataset
        self.split = split
        before, after = base_said.predicted == labels, nofe_said.predicted == labels
        self.images = {
            "corrected": np.flatnonzero(~before & after),
            "introduced": np.flatnonzero(before & ~after),
            "wrong in both": np.flatnonzero(~before & ~after),
            "all": np.arange(len(labels)),
        }
        names = {
            "corrected": "mistakes that the NofE corrected",
            "introduced": "mistakes that it introduced",
            "wrong in both": "wrong in both",
            "all": "all images",
        }
        shape = split.image_shape
        colours = sketch_colours(dataset.thumbnails, shape)
        super().__init__(
            choices=[[key, f"{text} ({len(self.images[key])})"] for key, text in names.items()],
            drawing=colours and {**colours, "shape": shape},
        )
        self.which = next(key for key in CHOICES if len(self.images[key]))
        self._restart()

    @check("which")
    def _check_which(self, proposal: Any) -> str:
        which = check_choice(proposal, CHOICES)
        if not len(self.images[which]):
            raise InvalidInput(f"there are no images of the kind {which!r}.")
        return which

    @check("place")
    def _check_place(self, proposal: Any) -> int:
        place: int = proposal["value"]
        n = len(self.images[self.which])
        if not 0 <= place < n:
            raise InvalidInput(f"place must be from 0 to {n - 1}; got {place}.")
        return place

    @check("index")
    def _check_index(self, proposal: Any) -> int:
        index: int = proposal["value"]
        if not (0 <= index < len(self.split) or (index == -1 and self._asking)):
            raise InvalidInput(f"index must be from 0 to {len(self.split) - 1}; got {index}.")
        return index

    @traitlets.observe("which")
    def _restart(self, change: Any = None) -> None:
        self.size = len(self.images[self.which])
        if self.place:
            self.place = 0
        else:
            self.step(0)

    def step(self, by: int) -> None:
        """Go forward (or back) by so many images; if another image is shown, return to `place`."""
        here = self.place if self.in_step else self.place - by
        self.place = min(max(here + by, 0), self.size - 1)
        self._go()

    @traitlets.observe("place")
    def _step(self, change: Any) -> None:
        self._go()

    def _go(self) -> None:
        self.index = int(self.images[self.which][self.place])

    @traitlets.observe("index")
    def _look(self, change: Any) -> None:
        if change["new"] >= 0:
            label = int(self.split.labels[change["new"]])
            title = f"image {change['new']}: {self.dataset.class_names[label]}"
            self._show(self.split.sample([change["new"]])[0], title, label)

    def ask(self, image: Tensor, title: str = "an image of yours") -> Inspection:
        """Inspect an image uint8 [channels, height, width] of the data set's size."""
        expected = self.split.image_shape
        if tuple(image.shape) != expected or image.dtype != torch.uint8:
            raise InvalidInput(
                f"an image must be uint8 {list(expected)}; got {image.dtype} {list(image.shape)}."
            )
        self._asking = True
        try:
            self.index = -1
        finally:
            self._asking = False
        return self._show(image, title, None)

    def _show(self, image: Tensor, title: str, label: int | None) -> Inspection:
        found = self.inspector(image)
        names = self.dataset.class_names
        colours = hex_colours(self.specialties.K)
        rows = []
        for n, k in enumerate(self.specialties.nonempty):
            own = int(found.best[n])
            rows.append(
                {
                    "name": self.specialties.names[k],
                    "colour": colours[k],
                    "best": names[own],
                    "alone": float(found.alone[own]),
                    "mass": float(found.mass[n]),
                    "gate": None if found.gate is None else float(found.gate[n]),
                    "right": label is not None and self.specialties.of[label] == k,
                    "answers": n == found.expert,
                }
            )
        maps = plots.inspected_maps(image, found, self.specialties)
        self._current = (image, found, title)
        with self.hold_sync():
            self.problem = ""
            self.in_step = self.index == int(self.images[self.which][self.place])
            self.pictures = sprite(list(maps.values()), 160)
            self.detail = {
                "title": title,
                "captions": list(maps),
                "experts": rows,
                "networks": [
                    {"name": name, "best": self._best(shares, label, colours)}
                    for name, shares in (("base CNN", found.base), ("NofE", found.nofe))
                ],
            }
            self.words = self._in_words(title, found)
        return found

    def _best(self, shares: Any, label: int | None, colours: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "name": self.dataset.class_names[c],
                "share": float(shares[c]),
                "text": f"{shares[c]:.0%}",
                "colour": colours[self.specialties.of[c]],
                "strong": bool(c == label),
            }
            for c in np.argsort(-shares, kind="stable")[:BEST]
        ]

    def _in_words(self, title: str, found: Inspection) -> str:
        names = self.dataset.class_names
        base, nofe = int(found.base.argmax()), int(found.nofe.argmax())
        k = self.specialties.nonempty[found.expert]
        more = self.inspector.network.overlap - 1
        said = (
            f"{title}. base CNN: {names[base]} ({found.base[base]:.0%}); NofE: {names[nofe]} "
            f"({found.nofe[nofe]:.0%}), by the expert of specialty {self.specialties.names[k]}"
            f"{f' and {more} more' if more else ''}."
        )
        if found.gate is not None:
            chosen = self.specialties.nonempty[int(found.gate.argmax())]
            said += f" The gate would run specialty {self.specialties.names[chosen]} first."
        return said

    def obey(self, what: dict[str, Any], buffers: list[Any]) -> None:
        """Carry out a step or inspect an uploaded file."""
        if what["do"] == "step":
            self.step(int(what["by"]))
            return
        name = str(what.get("name", "the file"))
        shape, depth = self.split.image_shape, self.dataset.bit_depth
        try:
            image = image_tensor(bytes(buffers[0]), shape, depth)
        except UnreadableImage as error:
            self.problem = f"{name!r} cannot be shown ({error})."
            return
        self.ask(image, name)

    def figures(self) -> dict[str, Figure]:
        image, found, title = self._current
        return {"prediction": plots.plot_inspection(image, found, self.specialties, title)}
