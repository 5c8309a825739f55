"""Trained networks with the names of their classes: `load` opens one, `predict` asks it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nofe_lab.config import (
    InvalidInput,
    one_of,
    real_number,
    some_of,
)
from nofe_lab.data import Source
from nofe_lab.data.features import Features
from nofe_lab.data.pictures import image_tensor
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import Predictions
from nofe_lab.files import digest_of_tensors
from nofe_lab.inference.answers import Answers
from nofe_lab.inference.asked import Picture, ask
from nofe_lab.inference.card import save_for_publishing
from nofe_lab.inference.expert import Expert
from nofe_lab.inference.export import Exported, export, metadata_of
from nofe_lab.inference.kept import (
    MODEL,
    VAL,
    Description,
    certainty_of,
    check_takes_pictures,
    class_names_of,
    hashes_of,
    load_specialties,
    logits_of_cards,
    seen_by,
    thumbnails_of,
)
from nofe_lab.machine import PRECISIONS, Machine, seeded
from nofe_lab.networks import CNN, Backbone, NofE, described
from nofe_lab.networks.catalogue import Network
from nofe_lab.runs import DamagedRun, Run, open_run
from nofe_lab.specialties import Specialties

TOLERANCE = 1e-3
"""Largest difference between the logits of a network that was built again and those of the trained
one, as a share of the largest logit."""

KEPT_OTHERWISE = "install the versions that are named in run.json"
"""What to do if a network of the library is not what it was."""


class Classifier(ImageNetwork):
    """A trained network with the names of its classes: pictures of any size -> `Answers`.

    As a torch module it takes raw images, uint8 [N, c, h, w], and gives logits [N, n].
    """

    def __init__(
        self,
        run: Run,
        description: Description,
        class_names: tuple[str, ...],
        partition: Specialties | None,
        preprocess: Preprocess,
        network: nn.Module,
        precision: str,
    ) -> None:
        super().__init__(preprocess, network, precision)
        self.run = run
        self.description = description
        self.class_names = class_names
        """Of the data set; those of the outputs are `output_names`."""
        self.specialties = partition
        """The partition of a generalist or a network of experts; None for flat networks."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs: classes, or the specialties of a generalist."""
        if self.description.kind == "generalist" and self.specialties is not None:
            return tuple(map(self.specialties.title, range(self.specialties.K)))
        return self.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        return self.description.image_shape

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file says of it; lists and objects as JSON."""
        title = str(self.run.about["title"])
        about = metadata_of(self.run, title, self.image_shape, self.output_names)
        if self.specialties is not None:
            about["specialties"] = self.specialties.to_json()
        return about

    def outputs(self, images: Tensor, experts: int | None = None) -> dict[str, Tensor]:
        """The outputs of an exported file for raw images: logits and probabilities [N, n]."""
        logits = self.logits(images, experts)
        return {"logits": logits, "probabilities": logits.softmax(1)}

    def export(self, path: Path | str, experts: int | None = None) -> Exported:
        """Write it as an .onnx or a .pt2 file, which is checked (see `nofe_lab.inference.export`).

        experts: how many experts answer for each image, by the gate; None: all, or the usual ones.
        """
        check_takes_pictures(self.run, self.description)
        if experts is None:
            return export(self, path)
        self.check_experts(experts)
        return export(self, path, experts=experts)

    def publish(self, folder: Path | str, thumbnails: bool = True) -> Run:
        """Write the run as a folder to publish, with a model card (see `save_for_publishing`).

        `nofe_lab.load` reads it.  thumbnails: whether the training images that the run keeps are in
        it.  Raises InvalidInput also if the weights were changed since it was loaded.
        """
        if digest_of_tensors(self.state_dict()) != digest_of_tensors(self.run.weights()):
            raise InvalidInput(
                f"the weights of {self.run.about['title']} were changed; what is published is its "
                "run, with the weights that were trained: load it again."
            )
        return save_for_publishing(self.run, folder, thumbnails)

    def expert(self, k: int | str) -> Expert:
        """One specialty as a small network of its own, on the same weights (see `Expert`).

        k: its number, from 0, or its name.  Raises InvalidInput if there is no such expert.
        """
        if not isinstance(self.network, NofE):
            raise InvalidInput(
                f"{self.run.about['title']} has no experts; accepted: networks of experts."
            )
        assert self.specialties is not None
        k = self.specialties.number(k) if isinstance(k, str) else k
        return Expert(self, k, self.run, self.description, self.specialties)

    @property
    def report(self) -> dict[str, float]:
        """The figures of its final report, such as test_accuracy; empty if it was not tested."""
        return self.run.reports

    def has_seen(self, images: Tensor) -> NDArray[np.bool_]:
        """Whether it has trained on prepared images uint8 [N, c, h, w]: [N], by their hashes."""
        return np.isin(hashes_of(images), self._seen)

    @property
    def knows_seen(self) -> bool:
        """Whether `has_seen` can tell: runs of earlier versions keep no hashes."""
        return len(self._seen) > 0

    @cached_property
    def _seen(self) -> NDArray[np.uint32]:
        return seen_by(self.run)

    @property
    def thumbnails(self) -> Tensor:
        """Training images that it answers most clearly, uint8 [C, 3, 3, height, width].

        Raises InvalidInput if the run keeps none, and DamagedRun if they are not of C classes.
        """
        return thumbnails_of(self.run, len(self.class_names))

    def predict(
        self,
        what: Picture | Sequence[Picture] | Source,
        experts: int | None = None,
        coverage: float | None = None,
    ) -> Answers:
        """Answer for pictures of any size, prepared as the training images were.

        what: the path of an image or of a folder of images; a PIL image; pixels uint8, as an array
        [height, width] or [height, width, 1, 3 or 4], or N of the latter, or as a tensor [channels,
        height, width] or [N, channels, height, width]; a `Source`; or a list of these.
        experts: how many experts a network of experts with a gate runs for each image; None: all,
            or the usual ones (see `NofE.logits`).
        coverage: answer with the class for this share of the val images, those that the network is
        most certain of, and with the specialty otherwise; None: always with the class.
        Images that cannot be read are named in a warning and in `Answers.unreadable`; the others
        are answered.  Raises InvalidInput if none can be read, or an argument does not fit.

        >>> nofe_lab.load("data/runs/nofe-...").predict("rose.png").labels
        """
        if experts is not None:
            self.check_experts(experts)
        elif isinstance(self.network, NofE):
            experts = self.network.usual_experts
        threshold = None if coverage is None else self._threshold(coverage, experts)
        asked = ask(self, self.description, what, lambda images: self._routed(images, experts))
        logits, *ran = asked.outputs
        return Answers(
            asked.names,
            self.output_names,
            Predictions(logits, np.zeros(len(logits), dtype=np.int64)).probabilities,
            self.specialties if self.output_names == self.class_names else None,
            ran[0] if ran else None,
            threshold,
            asked.unreadable,
        )

    def prepare(self, what: Path | bytes | Image.Image | np.ndarray | Tensor) -> Tensor:
        """One picture as the network takes it (see `image_tensor`): uint8 [channels, h, w]."""
        return image_tensor(what, self.description.image_shape, self.description.bit_depth)

    def _routed(self, images: Tensor, experts: int | None) -> tuple[Tensor, ...]:
        """The logits, and if some experts are chosen, which."""
        if experts is None:
            return (self(images),)
        assert isinstance(self.network, NofE)
        chosen: list[Tensor] = []

        def few(x: Tensor) -> Tensor:
            logits, ran = self.network.routed(x, experts)  # type: ignore[operator]
            chosen.append(ran)
            return logits

        return self._run(few, images, None), chosen[0]

    def _threshold(self, coverage: float, experts: int | None) -> float:
        """The probability that at least the share `coverage` of the val images reaches."""
        real_number("coverage", coverage, 0, 1)
        if not isinstance(self.network, NofE):
            raise InvalidInput(
                f"coverage (it is {coverage:g}) is for networks of experts, which answer with a "
                f"specialty where they are not certain; {self.run.path.name} has none."
            )
        if not self.run.has(VAL):
            why = "had none (val_fraction sets some aside)"
            if not self.run.has(MODEL):
                why = "was made by an earlier nofe_lab, which kept nothing of them"
            raise InvalidInput(
                f"coverage (it is {coverage:g}) needs val images, on which its threshold is fitted "
                f"after training; {self.run.path.name} {why}."
            )
        val = certainty_of(self.run, len(self.class_names))
        seen = val["probability"][val["experts"] == (experts or len(self.network.branches))]
        if not len(seen):
            measured = some_of([str(m) for m in sorted(set(val["experts"]))], 9)
            raise InvalidInput(f"coverage was fitted for {measured} experts; got {experts}.")
        return float(np.quantile(seen, 1 - coverage))


def load(
    run: Run | Path | str,
    network: Network | None = None,
    *,
    runs_dir: Path | str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> Classifier:
    """Open the trained network of a finished run; needs neither its data nor its Experiment.

    run: a `Run`, the folder of one, wherever it is and whatever its name, or the beginning of its
    id.  network: the network, if it was the user's own: as it was passed for training.
    runs_dir: where runs are looked up by id; None: the default folder.
    It answers in fp32, whatever it was trained in, unless another precision is asked for.

    >>> model = nofe_lab.load("0123456789ab")

    Raises InvalidInput if there is no such run, or its network cannot be built again, and
    DamagedRun if its files were changed.
    """
    where = Machine.pick(device).device
    one_of("precision", precision, PRECISIONS)
    found = open_run(run, runs_dir)
    about = Description.of_run(found)
    check_takes_pictures(found, about)
    class_names = class_names_of(found)
    if about.superclass_of and len(about.superclass_of) != len(class_names):
        raise DamagedRun(
            f"{MODEL} of {found.path.name} has superclasses of {len(about.superclass_of)} classes; "
            f"there are {len(class_names)}."
        )
    partition = None
    if about.kind != "flat":
        partition = load_specialties(found)
        try:
            partition.check_classes(class_names)
        except InvalidInput as error:
            raise DamagedRun(f"specialties.json of {found.path.name}: {error}") from error
    try:
        made = described(about.network, about.image_shape, network)
        built = _built(about, made, class_names, partition)
    except InvalidInput as error:
        raise InvalidInput(
            f"the network of the run {found.path.name} cannot be built again: {error}"
        ) from error
    hint = "pass it as it was when it was trained" if network is not None else KEPT_OTHERWISE
    model = assembled(found, about, class_names, partition, made, built, precision, hint)
    _check_answers(model, hint)
    return model.to(where)


def _built(
    about: Description,
    backbone: Backbone,
    class_names: tuple[str, ...],
    partition: Specialties | None,
) -> nn.Module:
    """The network without its weights."""
    if partition is None or about.kind == "generalist":
        return CNN(backbone, len(class_names) if partition is None else partition.K, "published", 0)
    network = NofE(backbone, partition, "published", 0, about.branch_width, about.overlap)
    if about.gate_width is not None:
        with seeded(0):
            network.gate = backbone.make_branch(len(class_names), about.gate_width)
        network.usual_experts = about.sparse
    return network


def assembled(
    run: Run,
    about: Description,
    class_names: tuple[str, ...],
    partition: Specialties | None,
    backbone: Backbone,
    network: nn.Module,
    precision: str,
    hint: str,
) -> Classifier:
    """Give an untrained network the weights and the preparation of a run.

    Raises DamagedRun, with a hint what to do, if the run's tensors are not those of the network.
    """
    weights = run.weights()
    channels, height, width = about.image_shape
    shapes = [(channels, 1, 1), (channels, 1, 1)]
    whole = [(channels, height, width), (1, 1, 1)]  # the mean image
    names = ("preprocess.mean", "preprocess.scale")
    if [tuple(weights[name].shape) for name in names if name in weights] == whole:
        shapes = whole
    mean, scale = map(torch.zeros, shapes)
    dtypes = (Features if about.of_features else Source).dtypes
    preprocess = Preprocess(mean, scale, backbone.input_shape[1:], about.image_shape, dtypes)
    model = Classifier(run, about, class_names, partition, preprocess, network, precision)
    expected = model.state_dict()
    for name in sorted(set(weights) | set(expected)):
        here, there = (
            f"{each[name].dtype} {list(each[name].shape)}" if name in each else "missing"
            for each in (weights, expected)
        )
        if here != there:
            raise DamagedRun(
                f"weights.safetensors of {run.path.name} are not those of {run.about['title']}: "
                f"{name!r} is {here}, in the network {there}; {hint}."
            )
    model.load_state_dict(weights)
    return model.eval()


def _check_answers(model: Classifier, hint: str) -> None:
    """Refuse a network that was built again and does not answer as the trained one did."""
    expected = torch.tensor(model.description.answers)
    found = logits_of_cards(ImageNetwork(model.preprocess, model.network))
    if expected.shape == found.shape:
        largest = float(expected.abs().max().clamp(min=1e-6))
        difference = float((found - expected).abs().max())
        if difference <= TOLERANCE * largest:
            return
        how = f"its logits differ by {difference:.2g}, the largest is {largest:.2g}"
    else:
        how = f"it gives logits {list(found.shape)}, not {list(expected.shape)}"
    raise InvalidInput(
        f"the network of the run {model.run.path.name}, built again, does not answer as it did "
        f"when it was trained ({how}): {hint}."
    )
