"""Trained networks with the names of their classes: `load` opens one, `predict` asks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from nofe_lab.config import (
    InvalidInput,
    first_line,
    one_of,
    real_number,
    shown,
    some_of,
)
from nofe_lab.data import Source
from nofe_lab.data.features import Features
from nofe_lab.data.folders import files_in
from nofe_lab.data.pictures import ENDINGS, PixelBudget, UnreadableImage, image_tensor
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import Predictions, images_at_once
from nofe_lab.files import user_path
from nofe_lab.inference.answers import Answers
from nofe_lab.inference.kept import (
    MODEL,
    VAL,
    Description,
    certainty_of,
    class_names_of,
    hashes_of,
    load_specialties,
    logits_of_cards,
    seen_by,
    thumbnails_of,
)
from nofe_lab.log import log
from nofe_lab.machine import PRECISIONS, Machine
from nofe_lab.networks import CNN, Backbone, NofE, described
from nofe_lab.networks.backbone import seeded
from nofe_lab.networks.catalogue import Network
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.runs import DamagedRun, Run, open_run
from nofe_lab.specialties import Specialties
from nofe_lab.training.events import watched

TOLERANCE = 1e-3
"""Largest difference between the logits of a network that was built again and those of the trained
one, as a share of the largest logit."""

KEPT_OTHERWISE = "install the versions that are named in run.json"
"""What to do if a network of the library is not what it was."""

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""What `Classifier.predict` takes, or several of it."""


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
    def report(self) -> dict[str, float]:
        """The figures of its final report, such as test_accuracy; empty if it was not tested."""
        return self.run.reports

    def has_seen(self, images: Tensor) -> NDArray[np.bool_]:
        """Whether it has trained on prepared images uint8 [N, c, h, w]: [N], by their hashes."""
        return np.isin(hashes_of(images), self._seen)

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
        experts: how many experts a network of experts with a gate runs for each image; None: all.
        coverage: answer with the class for this share of the val images, those that the network is
        most certain of, and with the specialty otherwise; None: always with the class.
        Images that cannot be read are named in a warning and in `Answers.unreadable`; the others
        are answered.  Raises InvalidInput if none can be read, or an argument does not fit.

        >>> nofe_lab.load("data/runs/nofe-...").predict("rose.png").labels
        """
        if experts is not None:
            self.check_experts(experts)
        threshold = None if coverage is None else self._threshold(coverage, experts)
        pictures = list(_listed(what))
        assert self.preprocess.image_shape is not None
        size = images_at_once(self.preprocess.image_shape)
        device = self.preprocess.mean.device
        unreadable: list[tuple[str, str]] = []
        names: list[str] = []
        logits, ran = [], []
        budget = PixelBudget()

        def read(named: tuple[str, Any]) -> Tensor | str:
            if isinstance(named[1], InvalidInput):
                return str(named[1]).rstrip(".")
            try:
                shape = self.description.image_shape
                return image_tensor(named[1], shape, self.description.bit_depth, budget)
            except UnreadableImage as error:
                return str(error)

        bar = tqdm(total=len(pictures), unit="image", delay=2, leave=False, disable=not watched())
        with modes_kept(self), torch.inference_mode(), ThreadPoolExecutor() as pool, bar:
            self.eval()
            for start in range(0, len(pictures), size):
                part = pictures[start : start + size]
                images = []
                for (name, _), image in zip(part, pool.map(read, part), strict=True):
                    if isinstance(image, Tensor):
                        names.append(name)
                        images.append(image)
                    else:
                        unreadable.append((name, image))
                if images:
                    found, chosen = self._routed(torch.stack(images).to(device), experts)
                    logits.append(found.cpu())
                    ran += [] if chosen is None else [chosen.cpu()]
                bar.update(len(part))
        why = [f"{name} ({reason})" for name, reason in unreadable]
        if not names:
            raise InvalidInput(
                f"no image can be read: {some_of(why, separator='; ')}; accepted: image files, "
                "folders of them, PIL images, and pixels uint8."
            )
        if why:
            log.warning(f"{len(why)} of {len(pictures)} images cannot be read: {some_of(why)}.")
        together = Predictions(torch.cat(logits).numpy(), np.zeros(len(names), dtype=np.int64))
        return Answers(
            tuple(names),
            self.output_names,
            together.probabilities,
            self.specialties if self.output_names == self.class_names else None,
            torch.cat(ran).numpy() if ran else None,
            threshold,
            tuple(unreadable),
        )

    def prepare(self, what: Path | bytes | Image.Image | np.ndarray | Tensor) -> Tensor:
        """One picture as the network takes it (see `image_tensor`): uint8 [channels, h, w]."""
        return image_tensor(what, self.description.image_shape, self.description.bit_depth)

    def _routed(self, images: Tensor, experts: int | None) -> tuple[Tensor, Tensor | None]:
        if experts is None:
            return self(images), None
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
        if VAL not in self.run.record["files"]:
            why = "had none (val_fraction sets some aside)"
            if MODEL not in self.run.record["files"]:
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
    if about.of_features:
        raise InvalidInput(
            f"the run {found.path.name} takes the features of a frozen trunk, not pictures; train "
            "its arm on the images, with trunk_rate=0, for a network that does."
        )
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
    network = NofE(backbone, partition, "published", 0, about.branch_width)
    if about.gate_width is not None:
        with seeded(0):
            network.gate = backbone.make_branch(len(class_names), about.gate_width)
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


# --- what is asked about


def _listed(what: object) -> Iterator[tuple[str, Any]]:
    """Each image that is asked about, with a name."""
    if isinstance(what, (list, tuple)):
        if not what:
            raise InvalidInput("predict needs at least 1 image; got none.")
        number = count(1)
        for each in what:
            if not isinstance(each, (str, Path)):
                yield from _pixels(each, number)
                continue
            try:
                yield from _files(each, f"{str(each).rstrip('/')}/")
            except InvalidInput as problem:  # the others are answered
                yield shown(str(each))[1:-1], problem
    elif isinstance(what, (str, Path)):
        yield from _files(what)
    else:
        yield from _pixels(what, count(1))


def _files(written: str | Path, before: str = "") -> Iterator[tuple[str, Any]]:
    """A file, or those in a folder; `before` begins the names of the latter."""
    try:
        path = user_path(written)
        is_folder = path.is_dir()
        if not is_folder and not path.exists():
            raise InvalidInput(f"there is no file or folder {shown(str(written))}.")
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        why = getattr(error, "strerror", None) or first_line(error)
        raise InvalidInput(f"{shown(str(written))} cannot be opened ({why}).") from error
    if not is_folder:
        yield str(written), path
        return
    inside = files_in(path, ENDINGS)
    if not inside:
        raise InvalidInput(
            f"the folder {str(written)!r} holds no images; accepted: files ending in "
            f"{', '.join(ENDINGS)}."
        )
    for file in inside:
        yield f"{before}{file.relative_to(path).as_posix()}", file


def _pixels(what: object, number: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """An image, or several; `number` names them."""
    if isinstance(what, Source):
        what = what.sample(torch.arange(len(what)))
    if isinstance(what, (np.ndarray, Tensor)) and what.ndim == 4:
        if not len(what):
            raise InvalidInput("predict needs at least 1 image; got none.")
        for image in what:
            yield f"image {next(number)}", image
    elif isinstance(what, (Image.Image, np.ndarray, Tensor)):
        yield f"image {next(number)}", what
    else:
        raise InvalidInput(
            "predict takes the path of an image or of a folder, a PIL image, pixels uint8 as an "
            f"array or a tensor, or a list of these; got {type(what).__name__}."
        )
