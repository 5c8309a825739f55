"""What a run keeps so that its network can answer without data and experiment."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from nofe_lab.config import (
    InvalidInput,
    check_distinct,
    check_names,
    first_line,
    one_of,
    true_or_false,
    whole_number,
)
from nofe_lab.data import Dataset, Source
from nofe_lab.data.dataset import clearest, label_margins
from nofe_lab.data.pictures import UnreadableImage, decode, rgb
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import Predictions, best_threshold, on_specialty, predict
from nofe_lab.files import parse_json
from nofe_lab.knobs import KNOBS
from nofe_lab.networks import NofE
from nofe_lab.networks.nofe import ExpertsAlone, log_odds
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.runs import DamagedRun, Run
from nofe_lab.specialties import Specialties

MODEL, THUMBNAILS, VAL, SEEN = "model.json", "thumbnails.jpg", "val.csv", "seen.bin"
"""The files of a run that `load` needs beside its weights and the names of its classes."""

EXPERTS = "experts.csv"
"""The file with the thresholds of experts alone, and what they do on val images."""

THUMBNAILS_PER_CLASS = 3
THUMBNAIL_SIDE, MANY_CLASSES = 48, 2000
"""Pixels of the longer side of the largest thumbnails; half of that for so many classes."""
PARTS = 1000
"""Training images that are hashed at once."""

CANDIDATES = 10
"""Training images of a class from which its thumbnails are chosen."""

_FIGURES = ("found", "accuracy", "false_alarms")
"""Of an expert, and with ``whole_`` in front of the whole network (see `on_specialty`)."""

FEW = (1, 2, 3)
"""Numbers of experts for which a gate's certainty is measured on val, beside all of them."""

MAX_SIDE, MAX_VALUES, MAX_EXPERTS = 2**14, 2**24, 10_000
"""Limits of what a run may say about its network: the sides and the values of an image, experts."""


@dataclass(frozen=True)
class Description:
    """What a trained network is made of, as a run keeps it in model.json."""

    kind: str
    """flat, generalist, nofe or gate."""
    network: Mapping[str, Any]
    """See `Backbone.description`."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of prepared images."""
    bit_depth: int
    """See `Dataset`."""
    of_features: bool
    """Whether it takes the features of a frozen trunk (see `Experiment.on_features`)."""
    superclass_names: tuple[str, ...]
    superclass_of: tuple[int, ...]
    """See `Dataset`."""
    branch_width: float = 1.0
    """Of the experts."""
    overlap: int = 1
    """How many experts have an output for a class."""
    gate_width: float | None = None
    """None without a gate."""
    sparse: int | None = None
    """How many experts answer, where a gate has learned together with them (see `NofE`)."""
    answers: tuple[tuple[float, ...], ...] = ()
    """The logits of two test cards (see `logits_of_cards`), by which a network that was built again
    is compared with the trained one."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("flat", "generalist", "nofe", "gate"))
        for length in self.image_shape:
            whole_number("a length of image_shape", length, 1, MAX_SIDE)
        if len(self.image_shape) != 3 or math.prod(self.image_shape) > MAX_VALUES:
            raise InvalidInput(
                f"image_shape must be three lengths, of at most {MAX_VALUES:,} values together; "
                f"got {list(self.image_shape)}."
            )
        whole_number("bit_depth", self.bit_depth, 8, 16)
        true_or_false("of_features", self.of_features)
        width = KNOBS["branch_width"].kind
        width.check("branch_width", self.branch_width)
        whole_number("overlap", self.overlap, 1, MAX_EXPERTS)
        if self.gate_width is not None:
            width.check("gate_width", self.gate_width)
        if self.sparse is not None:
            whole_number("sparse", self.sparse, 1, MAX_EXPERTS)
        has_gate = self.kind == "gate" or (self.kind == "nofe" and self.sparse is not None)
        if has_gate != (self.gate_width is not None):
            raise InvalidInput(f"gate_width of the kind {self.kind!r} is {self.gate_width}.")
        for name in ("name", "split", "stem"):
            if name in self.network and not isinstance(self.network[name], str):
                raise InvalidInput(f"{name} of the network is no text.")
        if "experts" in self.network:
            whole_number("experts", self.network["experts"], 1, MAX_EXPERTS)
            width.check("width", self.network["width"])
        if not all(isinstance(name, str) for name in self.superclass_names):
            raise InvalidInput("a superclass name is no text.")
        check_names("superclass names", self.superclass_names)
        for k in self.superclass_of:
            whole_number("a superclass", k, 0, len(self.superclass_names) - 1)
        if len(set(map(len, self.answers))) > 1:
            raise InvalidInput("its answers are not of one length.")

    def to_json(self) -> str:
        """A JSON object of the fields."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def of_run(cls, run: Run) -> Description:
        """Read a run's description.  Raises DamagedRun, or InvalidInput if the run keeps none."""
        if not run.has(MODEL):
            raise InvalidInput(
                f"the run {run.path.name} was made by an earlier nofe_lab, which did not keep what "
                "its network is made of; experiment.model(stage) opens it where its data are."
            )
        try:
            found = parse_json(run.text(MODEL))
            for name in ("image_shape", "superclass_names", "superclass_of"):
                if not isinstance(found[name], list):
                    raise ValueError(f"{name} is no list")
                found[name] = tuple(found[name])
            found["answers"] = tuple(tuple(map(float, row)) for row in found["answers"])
            found["network"]["name"]
            return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(
                f"{MODEL} of {run.path.name} describes no network ({first_line(error)})."
            ) from error


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
        answers = tuple(map(tuple, logits_of_cards(exact).tolist()))
        files: dict[str, str | bytes] = {MODEL: replace(description, answers=answers).to_json()}

        def margins(images: Source) -> NDArray[np.floating]:
            found = predict(model, images, output_of_class)
            return label_margins(found.logits, found.labels)

        chosen = clearest(dataset.train, margins, THUMBNAILS_PER_CLASS, CANDIDATES)
        files[THUMBNAILS] = _sheet(dataset.train.sample(chosen.flatten()))
        files[SEEN] = np.unique(hashes_in(dataset.train)).astype("<u4").tobytes()
        if isinstance(network, NofE) and len(dataset.val):
            n = len(network.branches)
            usual = network.usual_experts or n
            few = [m for m in FEW if m < n] if network.gate is not None else []
            found = {
                m: predict(exact, dataset.val, experts=None if m == usual else m)
                for m in sorted({*few, usual, n})
            }
            certain = {m: each.certainty(network.specialties) for m, each in found.items()}
            table = pd.concat(certain, names=["experts"]).reset_index(level=0)
            files[VAL] = table.to_csv(index=False)
            if network.overlap == 1:  # no expert is alone in knowing its classes
                alone = _experts_alone(exact, found[usual], dataset.val)
                files[EXPERTS] = alone.to_csv(index=False)
    return files


def _experts_alone(model: ImageNetwork, whole: Predictions, val: Source) -> pd.DataFrame:
    """Each expert alone on val images, on which its threshold is fitted (see `Expert`).

    whole: the predictions of the whole network.
    """
    network = model.network
    assert isinstance(network, NofE)
    experts = whole
    if network.usual_experts is not None:  # of which the gate's answers are a part
        experts = predict(ImageNetwork(model.preprocess, ExpertsAlone(network)), val)
    logits, gate_logits = torch.from_numpy(experts.logits), None
    if network.gate is not None:
        gate = nn.Sequential(network.trunk, network.shared, network.gate)
        gate_logits = torch.from_numpy(predict(ImageNetwork(model.preprocess, gate), val).logits)
    rows = []
    for k in network.specialties.nonempty:
        members = np.array(network.specialties.members(k))
        if not np.isin(whole.labels, members).any():  # no threshold can be fitted
            continue
        own = logits[:, members]
        if gate_logits is None:
            score = own.logsumexp(1)
        else:
            score = log_odds(gate_logits, torch.tensor(network.specialties.of) == k)
        rows.append(expert_row(k, members, own.numpy(), score.numpy(), whole))
    return pd.DataFrame(rows)


def expert_row(
    k: int,
    members: NDArray[np.int64],
    logits: NDArray[np.floating],
    score: NDArray[np.floating],
    whole: Predictions,
    threshold: float | None = None,
) -> dict[str, float]:
    """How an expert alone does on images, beside the whole network (see `on_specialty`).

    members: its classes [n].  logits: its own [N, n].  score: [N], see `ExpertNetwork` in
    nofe_lab.networks.nofe.  whole: the predictions of the whole network.  threshold: None: fitted
    on these images.
    """
    if threshold is None:
        threshold = best_threshold(score, np.isin(whole.labels, members))
    said = np.where(score >= threshold, members[logits.argmax(axis=1)], -1)
    figures = on_specialty(whole.labels, said, members)
    beside = on_specialty(whole.labels, whole.predicted, members)
    whole_figures = {f"whole_{name}": value for name, value in beside.items()}
    return {"specialty": k, "threshold": threshold, **figures, **whole_figures}


def hashes_of(images: Tensor) -> NDArray[np.uint32]:
    """A hash of each image uint8 [N, channels, height, width]: [N].  Others share it by chance."""
    return np.array([zlib.crc32(image.tobytes()) for image in images.cpu().numpy()], np.uint32)


def hashes_in(images: Source) -> NDArray[np.uint32]:
    """The hashes of all images of a split: [N]."""

    def hashes() -> dict[str, Tensor]:
        found = np.concatenate([hashes_of(part) for part in images.parts(PARTS)])
        return {"hashes": torch.from_numpy(found.astype(np.int64))}

    return images.measured("hashes", hashes)["hashes"].numpy().astype(np.uint32)


def seen_by(run: Run) -> NDArray[np.uint32]:
    """The hashes of a run's training images; none of an earlier library's.  Raises DamagedRun."""
    if not run.has(SEEN):
        return np.empty(0, np.uint32)
    content = run.file(SEEN).read_bytes()
    if len(content) % 4:
        raise DamagedRun(f"{SEEN} of {run.path.name} holds no hashes.")
    return np.frombuffer(content, "<u4")


def _grid(C: int) -> tuple[int, int]:
    """Rows of the sheet of thumbnails, and classes side by side in each: nearly a square."""
    columns = max(round((C / THUMBNAILS_PER_CLASS) ** 0.5), 1)
    return -(-C // columns), columns


def _sheet(images: Tensor) -> bytes:
    """The thumbnails of all classes, class by class, as a JPEG."""
    rows, columns = _grid(len(images) // THUMBNAILS_PER_CLASS)
    columns *= THUMBNAILS_PER_CLASS
    _, _, height, width = images.shape
    side = (
        THUMBNAIL_SIDE if len(images) < THUMBNAILS_PER_CLASS * MANY_CLASSES else THUMBNAIL_SIDE // 2
    )
    scale = min(side / max(height, width), 1)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]))
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        small = ImageOps.fit(Image.fromarray(rgb(image)), size)
        sheet.paste(small, (column * size[0], row * size[1]))
    packed = io.BytesIO()
    sheet.save(packed, format="jpeg", quality=85, subsampling=0)
    return packed.getvalue()


def _test_cards(image_shape: tuple[int, int, int]) -> Tensor:
    """Two images that every machine makes alike, of all brightnesses: uint8 [2, c, h, w]."""
    channels, height, width = image_shape
    place = torch.arange(channels * height * width).reshape(image_shape)
    waves = [(place * step // 16) % 256 for step in (7, 45)]
    return torch.stack(waves).to(torch.uint8)


def logits_of_cards(model: ImageNetwork) -> Tensor:
    """The logits [2, n] of two test cards, for a network of any input shape."""
    assert model.preprocess.image_shape is not None
    cards = _test_cards(model.preprocess.image_shape)
    with torch.inference_mode():
        found: Tensor = model.eval()(cards.to(model.preprocess.mean.device)).cpu()
    return found


# --- reading it


def check_takes_pictures(run: Run, about: Description) -> None:
    """Raise InvalidInput if a run's network takes features instead of pictures."""
    if about.of_features:
        raise InvalidInput(
            f"the run {run.path.name} takes the features of a frozen trunk, not pictures; train "
            "its arm on the images, with trunk_rate=0, for a network that does."
        )


def load_specialties(run: Run) -> Specialties:
    """The partition that a generalist learned or a network of experts was built with."""
    return Specialties.from_json(run.text("specialties.json"))


def class_names_of(run: Run) -> tuple[str, ...]:
    """The names of the classes of a run's data set.  Raises DamagedRun."""
    try:
        found = parse_json(run.text("classes.json"))
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("it holds no list of names")
        if len(found) < 2:
            raise ValueError("it holds fewer than 2 names")
        check_names("class names", found)
        check_distinct("class names", found)
    except ValueError as error:
        raise DamagedRun(f"classes.json of {run.path.name}: {error}") from error
    return tuple(found)


def certainty_of(run: Run, C: int) -> pd.DataFrame:
    """How certain a run was of its val images: experts, label, predicted, probability, specialty.

    One row an image and number of experts; labels and predictions are classes from 0 to C - 1, the
    specialty is the most probable one.  Raises DamagedRun.
    """
    table = run.table("val")
    columns = ("experts", "label", "predicted", "specialty", "probability")
    try:
        found = table[list(columns)].astype("float64")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedRun(f"{VAL} of {run.path.name} has no numbers {columns}.") from error
    highest = dict(zip(columns, (MAX_EXPERTS, C - 1, C - 1, MAX_EXPERTS, 1), strict=True))
    is_whole = (found[list(columns[:4])] % 1 == 0).all(axis=None)
    if not len(found) or not is_whole or not found.ge(0).all(axis=None):
        raise DamagedRun(f"{VAL} of {run.path.name} holds no certainties.")
    for name, limit in highest.items():
        if found[name].max() > limit:
            raise DamagedRun(f"{name} in {VAL} of {run.path.name} is above {limit}.")
    return found.astype(dict.fromkeys(columns[:4], int))


def expert_of(run: Run, k: int) -> dict[str, float] | None:
    """What a run keeps of its expert of specialty k on val images (see `expert_row`).

    None if it had no val images of it, or was made by an earlier library.  Raises DamagedRun.
    """
    if not run.has(EXPERTS):
        return None
    table = run.table(EXPERTS.removesuffix(".csv"))
    names = [*_FIGURES, *(f"whole_{name}" for name in _FIGURES)]
    try:
        found = table[["specialty", "threshold", *names]].astype("float64")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedRun(f"{EXPERTS} of {run.path.name} has no numbers {names}.") from error
    rows, shares = found[found["specialty"] == k], found[names]
    is_share = (shares.ge(0) & shares.le(1)) | shares.isna()
    if len(rows) > 1 or not is_share.all(axis=None) or not np.isfinite(found["threshold"]).all():
        raise DamagedRun(f"{EXPERTS} of {run.path.name} holds no figures of experts.")
    return {str(name): float(rows[name].iloc[0]) for name in rows} if len(rows) else None


def thumbnails_of(run: Run, C: int) -> Tensor:
    """The training images that a run keeps of each class, uint8 [C, n, 3, height, width].

    Raises InvalidInput if it keeps none, and DamagedRun if they are not of C classes.
    """
    if not run.has(THUMBNAILS):
        raise InvalidInput(f"the run {run.path.name} keeps no thumbnails.")
    try:
        pixels = decode(run.file(THUMBNAILS)).pixels
    except UnreadableImage as error:
        raise DamagedRun(f"{THUMBNAILS} of {run.path.name} cannot be read ({error}).") from error
    rows, columns = _grid(C)
    columns *= THUMBNAILS_PER_CLASS
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    if not height or not width or pixels.shape[:2] != (rows * height, columns * width):
        raise DamagedRun(f"{THUMBNAILS} of {run.path.name} is not of {C} classes.")
    grid = torch.from_numpy(pixels.copy()).reshape(rows, height, columns, width, 3)
    images = grid.permute(0, 2, 4, 1, 3).reshape(-1, THUMBNAILS_PER_CLASS, 3, height, width)
    return images[:C]
