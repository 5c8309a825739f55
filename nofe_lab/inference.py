"""Inference: trained networks that answer, without the data or the experiment that made them.

A run keeps what its network is made of, how images are prepared for it, the names of its classes,
thumbnails of each, and how certain it was of val images.  `load` builds the network again
from that, and `Classifier.predict` takes pictures of any size.  A run never names code to import: a
network of one's own is passed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm.auto import tqdm

from nofe_lab.config import (
    InvalidInput,
    check_distinct,
    check_names,
    first_line,
    one_of,
    real_number,
    some_of,
    true_or_false,
    whole_number,
)
from nofe_lab.data import Dataset, Source
from nofe_lab.data.dataset import clearest, label_margins
from nofe_lab.data.features import Features
from nofe_lab.data.folders import files_in
from nofe_lab.data.pictures import ENDINGS, PixelBudget, UnreadableImage, decode, image_tensor, rgb
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.evaluation import Predictions, images_at_once, predict
from nofe_lab.files import UnreadableFile, parse_json, user_path
from nofe_lab.knobs import KNOBS
from nofe_lab.log import log
from nofe_lab.machine import PRECISIONS, Machine
from nofe_lab.networks import CNN, Backbone, NofE, described
from nofe_lab.networks.catalogue import Network
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.runs import DamagedRun, Run, open_run
from nofe_lab.specialties import Specialties
from nofe_lab.training.events import watched

MODEL, THUMBNAILS, VAL = "model.json", "thumbnails.jpg", "val.csv"
"""The files of a run that `load` needs beside its weights and the names of its classes."""

THUMBNAILS_PER_CLASS = 3
THUMBNAIL_SIDE = 48
"""Pixels of the longer side of the largest thumbnails."""
CANDIDATES = 10
"""Training images of a class from which its thumbnails are chosen."""

FEW = (1, 2, 3)
"""Numbers of experts for which a gate's certainty is measured on val, beside all of them."""

TOLERANCE = 1e-3
"""Largest difference between the logits of a network that was built again and those of the trained
one, as a share of the largest logit."""

MAX_SIDE, MAX_CHANNELS, MAX_EXPERTS = 2**14, 64, 10_000
"""Limits of what a run may say about its network."""

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""What `Classifier.predict` takes, or several of it."""


@dataclass(frozen=True)
class Description:
    """What a trained network is made of, as a run keeps it in model.json."""

    kind: str
    """flat, generalist, nofe or gate."""
    network: Mapping[str, Any]
    """See `Backbone.description`."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of prepared images."""
    bit_depth: int = 16
    """See `Dataset`."""
    of_features: bool = False
    """Whether it takes the features of a frozen trunk (see `Experiment.on_features`)."""
    branch_width: float = 1.0
    """Of the experts."""
    gate_width: float | None = None
    """None without a gate."""
    superclass_names: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    """See `Dataset`."""
    answers: tuple[tuple[float, ...], ...] = ()
    """The logits of two test cards (see `_test_cards`), by which a network that was built again is
    compared with the trained one."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("flat", "generalist", "nofe", "gate"))
        limits = (MAX_CHANNELS, MAX_SIDE, MAX_SIDE)
        for length, limit in zip(self.image_shape, limits, strict=True):
            whole_number("a length of image_shape", length, 1, limit)
        whole_number("bit_depth", self.bit_depth, 8, 16)
        true_or_false("of_features", self.of_features)
        width = KNOBS["branch_width"].kind
        width.check("branch_width", self.branch_width)
        if self.gate_width is not None:
            width.check("gate_width", self.gate_width)
        for name in ("name", "split", "stem"):
            if name in self.network and not isinstance(self.network[name], str):
                raise InvalidInput(f"{name} of the network is no text.")
        if "experts" in self.network:
            whole_number("experts", self.network["experts"], 1, MAX_EXPERTS)
            width.check("width", self.network["width"])
        check_names("superclass names", self.superclass_names)

    def to_json(self) -> str:
        """A JSON object of the fields."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def of_run(cls, run: Run) -> Description:
        """Read a run's description.  Raises DamagedRun, or InvalidInput if the run keeps none."""
        if MODEL not in run.record["files"]:
            raise InvalidInput(
                f"the run {run.path.name} was made by an earlier nofe_lab, which did not keep what "
                "its network is made of; experiment.model(stage) opens it where its data are."
            )
        try:
            found = parse_json(run.text(MODEL))
            for name in ("image_shape", "superclass_names", "superclass_of"):
                found[name] = tuple(found[name])
            found["answers"] = tuple(tuple(map(float, row)) for row in found["answers"])
            found["network"]["name"]
            return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(
                f"{MODEL} of {run.path.name} describes no network ({first_line(error)})."
            ) from error


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network says about N images.

    names: of the images.  class_names: of the network's n outputs.
    probabilities: float64 [N, n], each row sums to 1.
    ran: int64 [N, m], the specialties whose experts ran; None: all.
    threshold: the least probability with which a class is the answer; None: it always is.
    unreadable: why images that were asked for are not among the N, by name.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    partition: Specialties | None = None
    ran: NDArray[np.int64] | None = None
    threshold: float | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

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
        if self.partition is None:
            raise InvalidInput("this network has no specialties; a network of experts has.")
        return self.probabilities @ np.eye(self.partition.K)[list(self.partition.of)]

    @property
    def specialties(self) -> tuple[str, ...]:
        """The specialty of each image's label."""
        assert self.partition is not None
        return tuple(self.partition.title(self.partition.of[c]) for c in self.predicted)

    @property
    def experts(self) -> tuple[tuple[str, ...], ...] | None:
        """The specialties whose experts ran for each image; None: all of them."""
        if self.ran is None or self.partition is None:
            return None
        return tuple(tuple(self.partition.title(k) for k in row) for row in self.ran)

    @property
    def answers(self) -> tuple[str, ...]:
        """The label of each image, or its most probable specialty if the label is too uncertain."""
        if self.threshold is None or self.partition is None:
            return self.labels
        sure = self.probabilities.max(axis=1) >= self.threshold
        best = self.specialty_probabilities.argmax(axis=1)
        return tuple(
            label if certain else self.partition.title(k)
            for label, certain, k in zip(self.labels, sure, best, strict=True)
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row an image: answer and label, specialty, their probabilities, experts that ran."""
        columns: dict[str, Any] = {"image": self.names}
        if self.threshold is not None:
            columns["answer"] = self.answers
        columns |= {"label": self.labels, "probability": self.probabilities.max(axis=1)}
        if (partition := self.partition) is not None:
            of = np.array(partition.of)[self.predicted]
            columns["specialty"] = self.specialties
            columns["specialty probability"] = self.specialty_probabilities[
                np.arange(len(self)), of
            ]
        if (experts := self.experts) is not None:
            columns["experts"] = [", ".join(row) for row in experts]
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        return self.table.to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format="{:.3f}".format)


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
            return self.specialties.names
        return self.class_names

    @property
    def report(self) -> dict[str, float]:
        """The figures of its final report, such as test_accuracy; empty if it was not tested."""
        return self.run.reports

    @property
    def thumbnails(self) -> Tensor:
        """Training images that it answers most clearly, uint8 [C, 3, 3, height, width]."""
        return thumbnails_of(self.run, len(self.class_names))

    def predict(
        self,
        what: Picture | Sequence[Picture] | Source,
        experts: int | None = None,
        coverage: float | None = None,
    ) -> Answers:
        """Answer for pictures of any size, prepared as the training images were.

        what: the path of an image or of a folder of images; a PIL image; pixels uint8, as an array
        [height, width], [height, width, 1, 3 or 4] or [N, ...] of these, or as a tensor [channels,
        height, width] or [N, ...]; a `Source`; or a list of these.
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
        unreadable: dict[str, str] = {}
        names: list[str] = []
        logits, ran = [], []
        budget = PixelBudget()

        def read(named: tuple[str, Any]) -> Tensor | str:
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
                        unreadable[name] = image
                if images:
                    found, chosen = self._routed(torch.stack(images).to(device), experts)
                    logits.append(found.cpu())
                    ran += [] if chosen is None else [chosen.cpu()]
                bar.update(len(part))
        why = [f"{name} ({reason})" for name, reason in unreadable.items()]
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
            unreadable,
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
        """The probability that the share `coverage` of val images reaches."""
        real_number("coverage", coverage, 0, 1)
        if not isinstance(self.network, NofE):
            raise InvalidInput(
                f"coverage (it is {coverage:g}) is for networks of experts, which answer with a "
                f"specialty where they are not certain; {self.run.path.name} has none."
            )
        if VAL not in self.run.record["files"]:
            raise InvalidInput(
                f"coverage (it is {coverage:g}) needs val images, on which its threshold is fitted "
                f"after training; {self.run.path.name} had none (val_fraction sets some aside)."
            )
        val = self.run.table("val")
        try:
            seen = val["probability"][val["experts"] == (experts or len(self.network.branches))]
            measured = sorted(set(val["experts"]))
            quantile = float(np.quantile(seen.to_numpy(float), 1 - coverage)) if len(seen) else None
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedRun(f"{VAL} of {self.run.path.name} holds no probabilities.") from error
        if quantile is None:
            raise InvalidInput(
                f"coverage was fitted for {some_of([*map(str, measured)], 9)} experts; got "
                f"experts={experts}."
            )
        return quantile


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
    model = assembled(found, about, class_names, partition, made, built, precision)
    _check_answers(model, network is not None)
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
        network.gate = backbone.make_branch(len(class_names), about.gate_width)
    return network


def assembled(
    run: Run,
    about: Description,
    class_names: tuple[str, ...],
    partition: Specialties | None,
    backbone: Backbone,
    network: nn.Module,
    precision: str = "fp32",
) -> Classifier:
    """Give an untrained network the weights and the preparation of a run.

    Raises DamagedRun if the run's tensors are not those of the network.
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
                f"{name!r} is {here}, in the network {there}; remove the run to train it anew "
                f"(nofe-lab runs --remove {run.id})."
            )
    model.load_state_dict(weights)
    return model.eval()


def load_specialties(run: Run) -> Specialties:
    """The partition that a generalist learned or a network of experts was built with."""
    return Specialties.from_json(run.text("specialties.json"))


def class_names_of(run: Run) -> tuple[str, ...]:
    """The names of the classes of a run's data set.  Raises DamagedRun."""
    try:
        found = parse_json(run.text("classes.json"))
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("it holds no list of names")
        check_names("class names", found)
        check_distinct("class names", found)
    except ValueError as error:
        raise DamagedRun(f"classes.json of {run.path.name}: {error}") from error
    return tuple(found)


def thumbnails_of(run: Run, C: int) -> Tensor:
    """The training images that a run keeps of each class, uint8 [C, n, 3, height, width].

    Raises InvalidInput if it keeps none, and DamagedRun if they are not of C classes.
    """
    if THUMBNAILS not in run.record["files"]:
        raise InvalidInput(f"the run {run.path.name} keeps no thumbnails.")
    try:
        pixels = decode(run.file(THUMBNAILS)).pixels
    except UnreadableImage as error:
        raise DamagedRun(f"{THUMBNAILS} of {run.path.name} cannot be read ({error}).") from error
    height, width = pixels.shape[0] // C, pixels.shape[1] // THUMBNAILS_PER_CLASS
    if not height or not width or pixels.shape[:2] != (C * height, THUMBNAILS_PER_CLASS * width):
        raise DamagedRun(f"{THUMBNAILS} of {run.path.name} is not of {C} classes.")
    grid = torch.from_numpy(pixels.copy()).reshape(C, height, THUMBNAILS_PER_CLASS, width, 3)
    return grid.permute(0, 2, 4, 1, 3)


# --- what a run keeps


def kept_files(
    model: ImageNetwork,
    about: Mapping[str, Any],
    dataset: Dataset,
    output_of_class: Tensor | None = None,
) -> dict[str, str | bytes]:
    """The files of a run that `load` needs, of a network that has just been trained.

    about: the fields of its `Description` but the answers.
    output_of_class: the correct output for each class, int64 [C]; None: the class itself.
    """
    network = model.network
    exact = ImageNetwork(model.preprocess, network)
    with modes_kept(model):
        description = Description(**about)
        if description.of_features:
            return {MODEL: description.to_json()}
        answers = tuple(map(tuple, _logits_of_cards(exact).tolist()))
        files: dict[str, str | bytes] = {MODEL: replace(description, answers=answers).to_json()}

        def margins(images: Source) -> NDArray[np.floating]:
            found = predict(model, images, output_of_class)
            return label_margins(found.logits, found.labels)

        chosen = clearest(dataset.train, margins, THUMBNAILS_PER_CLASS, CANDIDATES)
        files[THUMBNAILS] = _sheet(dataset.train.sample(chosen.flatten()))
        if isinstance(network, NofE) and len(dataset.val):
            n = len(network.branches)
            few = [m for m in FEW if m < n] if network.gate is not None else []
            parts = []
            for m in (*few, None):
                found = predict(exact, dataset.val, experts=m)
                columns = {
                    "experts": m or n,
                    "label": found.labels,
                    "predicted": found.predicted,
                    "probability": found.probabilities.max(axis=1),
                }
                parts.append(pd.DataFrame(columns))
            files[VAL] = pd.concat(parts).to_csv(index=False)
    return files


def _sheet(images: Tensor) -> bytes:
    """The thumbnails of all classes as a JPEG: a row a class."""
    _, _, height, width = images.shape
    scale = min(THUMBNAIL_SIDE / max(height, width), 1)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = [ImageOps.fit(Image.fromarray(rgb(image)), size) for image in images]
    sheet = Image.new("RGB", (THUMBNAILS_PER_CLASS * size[0], len(small) // 3 * size[1]))
    for place, image in enumerate(small):
        row, column = divmod(place, THUMBNAILS_PER_CLASS)
        sheet.paste(image, (column * size[0], row * size[1]))
    packed = io.BytesIO()
    sheet.save(packed, format="jpeg", quality=85, subsampling=0)
    return packed.getvalue()


def _test_cards(image_shape: tuple[int, int, int]) -> Tensor:
    """Two images that every machine makes alike, of all brightnesses: uint8 [2, c, h, w]."""
    channels, height, width = image_shape
    place = torch.arange(channels * height * width).reshape(image_shape)
    waves = [(place * step // 16) % 256 for step in (7, 45)]
    return torch.stack(waves).to(torch.uint8)


def _logits_of_cards(model: ImageNetwork) -> Tensor:
    assert model.preprocess.image_shape is not None
    cards = _test_cards(model.preprocess.image_shape)
    with torch.inference_mode():
        found: Tensor = model.eval()(cards.to(model.preprocess.mean.device)).cpu()
    return found


def _check_answers(model: Classifier, is_own: bool) -> None:
    """Refuse a network that was built again and does not answer as the trained one did."""
    expected = torch.tensor(model.description.answers)
    found = _logits_of_cards(ImageNetwork(model.preprocess, model.network))
    if expected.shape == found.shape:
        difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if difference <= TOLERANCE:
            return
        how = f"its logits differ by {float(difference):.1%} of the largest"
    else:
        how = f"it gives logits {list(found.shape)}, not {list(expected.shape)}"
    hint = "pass it as it was when it was trained" if is_own else "install the versions in run.json"
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
        for n, each in enumerate(what):
            if isinstance(each, (str, Path)):
                yield from _files(each, alone=False)
            else:
                yield from _pixels(each, f"image {n + 1}")
    elif isinstance(what, (str, Path)):
        yield from _files(what, alone=True)
    else:
        yield from _pixels(what, "image 1")


def _files(written: str | Path, alone: bool) -> Iterator[tuple[str, Any]]:
    try:
        path = user_path(written)
        is_folder = path.is_dir()
        if alone and not is_folder and not path.exists():
            raise InvalidInput(f"there is no file or folder {str(written)!r}.")
    except (UnreadableFile, OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{str(written)!r} cannot be opened ({first_line(error)}).") from error
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
        yield file.relative_to(path).as_posix(), file


def _pixels(what: object, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(what, Source):
        what = what.sample(torch.arange(len(what)))
    if isinstance(what, (np.ndarray, Tensor)) and what.ndim == 4:
        if not len(what):
            raise InvalidInput("predict needs at least 1 image; got none.")
        for n, image in enumerate(what):
            yield f"image {n + 1}", image
    elif isinstance(what, (Image.Image, np.ndarray, Tensor)):
        yield name, what
    else:
        raise InvalidInput(
            "predict takes the path of an image or of a folder, a PIL image, pixels uint8 as an "
            f"array or a tensor, or a list of these; got {type(what).__name__}."
        )
