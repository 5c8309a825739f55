"""One expert of a network of experts as a small network of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from nofe_lab.config import InvalidInput
from nofe_lab.data import Source
from nofe_lab.data.batches import Augmentation
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import Predictions, predict
from nofe_lab.inference.answers import Answers
from nofe_lab.inference.asked import Picture, ask
from nofe_lab.inference.export import Exported, export, metadata_of
from nofe_lab.inference.kept import (
    Description,
    check_takes_pictures,
    expert_of,
    expert_row,
    hashes_in,
    seen_by,
)
from nofe_lab.log import log
from nofe_lab.networks import NofE
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties

SEEN_BY_CHANCE = 0.01
"""Share of images that may have the hash of a training image, since data sets repeat some."""


class Expert(ImageNetwork):
    """One specialty of a network of experts: pictures -> one of its classes, or none of them.

    As a torch module it takes raw images, uint8 [N, c, h, w], and gives the logits [N, n] of its
    branch, for the specialty's n classes.  Its score of an image is the gate's log-odds of its
    classes or, without a gate, the log-sum-exp of its logits; where the score is below `threshold`
    it answers "none of mine".  Trunk, branch and gate are those of the whole network, not copies.
    """

    def __init__(
        self,
        whole: ImageNetwork,
        k: int,
        run: Run,
        description: Description,
        specialties: Specialties,
    ) -> None:
        assert isinstance(whole.network, NofE)
        super().__init__(whole.preprocess, whole.network.expert(k), whole.precision)
        self.k, self.run, self.description = k, run, description
        self.class_names = specialties.class_names_of(k)
        self.title = specialties.title(k)
        """The name of the specialty."""
        self._members = np.array(specialties.members(k))
        self._whole = lambda: whole  # a module would become a part of this one
        self._kept = expert_of(run, k)
        self.threshold = None if self._kept is None else self._kept["threshold"]
        """The least score of an image of its own, in nats, fitted on val images so that the mean of
        two shares is largest: own images that it takes, and others that it leaves.  None if the run
        had no val images: see `fit`."""

    def forward(self, images: Tensor, drawn: Augmentation | None = None) -> Tensor:
        return super().forward(images, drawn)[:, :-1]

    def fit(self, images: Source) -> Expert:
        """Fit the threshold on images of all classes, which the network has not trained on.

        Warns if it has.  Raises InvalidInput if none is of the expert's own classes.
        """
        seen = np.isin(hashes_in(images), seen_by(self.run)).mean()
        if seen > SEEN_BY_CHANCE:
            log.warning(
                f"{seen:.0%} of the images are training images: the threshold of the expert of "
                f"{self.title} is fitted on answers that it has learned."
            )
        self._kept = self._measured(images, None)
        self.threshold = self._kept["threshold"]
        return self

    def measure(self, images: Source | None = None) -> pd.DataFrame:
        """Compare it with the whole network, one row each, on images of all classes.

        images: None: those on which its threshold was fitted, by default the val images.
        Columns: parameters and multiply-accumulates of one image; of the images of its own classes,
        the shares that are answered with one of them (found) and with the right one (accuracy); of
        the others, the share that is answered with one of its classes (false alarms).
        """
        self._check_threshold()
        found = self._kept if images is None else self._measured(images, self.threshold)
        assert found is not None  # checked
        whole = self._whole().network
        assert isinstance(whole, NofE)
        unused = whole.gate is not None and whole.usual_experts is None
        gate = count_parameters(whole.gate) if unused else 0  # type: ignore[arg-type]
        networks = (
            (f"expert of {self.title}", "", self.network, count_parameters(self.network)),
            ("whole network", "whole_", whole, count_parameters(whole) - gate),
        )
        rows = [
            {
                "network": name,
                "parameters": parameters,
                "multiply-accumulates": count_macs(network, self._input_shape),
                "found": found[f"{prefix}found"],
                "accuracy": found[f"{prefix}accuracy"],
                "false alarms": found[f"{prefix}false_alarms"],
            }
            for name, prefix, network, parameters in networks
        ]
        return pd.DataFrame(rows)

    def predict(self, what: Picture | Sequence[Picture] | Source) -> Answers:
        """Answer for pictures of any size (see `Classifier.predict`), or say "none of mine"."""
        threshold = self._check_threshold()
        asked = ask(self, self.description, what, lambda images: (self._scored(images),))
        (found,) = asked.outputs
        probabilities = Predictions(found[:, :-1], np.zeros(len(found), np.int64)).probabilities
        margin = found[:, -1].astype(np.float64) - threshold
        return Answers(
            asked.names, self.class_names, probabilities, unreadable=asked.unreadable, margin=margin
        )

    def export(self, path: Path | str) -> Exported:
        """Write it as an .onnx or a .pt2 file (see `nofe_lab.inference.export`)."""
        check_takes_pictures(self.run, self.description)
        return export(self, path)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        return self.description.image_shape

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file says of it; lists as JSON."""
        title = f"expert of {self.title}, {self.run.about['title']}"
        about = metadata_of(self.run, title, self.image_shape, self.class_names)
        return about | {"specialty": self.title, "none_of_mine": "margin below 0"}

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of an exported file for raw images.

        logits and probabilities [N, n] of its own classes; margin [N], the score minus the
        threshold: below 0 the image is none of its own.
        """
        found = self._scored(images)
        logits, margin = found[:, :-1], found[:, -1] - self._check_threshold()
        return {"logits": logits, "probabilities": logits.softmax(1), "margin": margin}

    @property
    def _input_shape(self) -> tuple[int, int, int]:
        window = self.preprocess.window or self.image_shape[1:]
        return (self.image_shape[0], *window)

    def _scored(self, images: Tensor) -> Tensor:
        """The logits and the score [N, n + 1]."""
        return super().forward(images)

    def _measured(self, images: Source, threshold: float | None) -> dict[str, float]:
        found = predict(ImageNetwork(self.preprocess, self.network, self.precision), images).logits
        whole = predict(self._whole(), images)
        logits, score = found[:, :-1], found[:, -1]
        return expert_row(self.k, self._members, logits, score, whole, threshold)

    def _check_threshold(self) -> float:
        if self.threshold is None:
            raise InvalidInput(
                f"the expert of {self.title} cannot tell its own images from others: its run had "
                "no val images to fit a threshold on; expert.fit(images) fits it on others."
            )
        return self.threshold
