"""What a network is asked about: pictures of any kind and size, prepared as its training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from nofe_lab.config import InvalidInput, first_line, shown, some_of
from nofe_lab.data import Source
from nofe_lab.data.folders import files_in
from nofe_lab.data.pictures import ENDINGS, PixelBudget, UnreadableImage, image_tensor
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import images_at_once
from nofe_lab.files import user_path
from nofe_lab.inference.kept import PARTS, Description
from nofe_lab.log import log
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.training.events import watched

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""What a trained network takes, or several of it."""


class Asked(NamedTuple):
    """What a network gave for the pictures that could be read."""

    names: tuple[str, ...]
    outputs: tuple[np.ndarray, ...]
    """Each with one row a picture."""
    unreadable: tuple[tuple[str, str], ...]
    """Names and reasons of the others."""


def ask(
    model: ImageNetwork,
    about: Description,
    what: Picture | Sequence[Picture] | Source,
    forward: Callable[[Tensor], tuple[Tensor, ...]],
) -> Asked:
    """Prepare pictures and run `forward`, a part of `model`, on them, batch by batch.

    what: see `Classifier.predict`.  forward: images uint8 [N, c, h, w] -> tensors of N rows.
    Raises InvalidInput if no picture can be read; of some that cannot, a warning tells.
    """
    pictures = list(_listed(what))
    size = images_at_once(about.image_shape)
    device = model.preprocess.mean.device
    unreadable: list[tuple[str, str]] = []
    names: list[str] = []
    outputs: list[tuple[Tensor, ...]] = []
    budget = PixelBudget()

    def read(named: tuple[str, Any]) -> Tensor | str:
        if isinstance(named[1], InvalidInput):
            return str(named[1]).rstrip(".")
        try:
            return image_tensor(named[1], about.image_shape, about.bit_depth, budget)
        except UnreadableImage as error:
            return str(error)

    bar = tqdm(total=len(pictures), unit="image", delay=2, leave=False, disable=not watched())
    with modes_kept(model), torch.inference_mode(), ThreadPoolExecutor() as pool, bar:
        model.eval()
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
                found = forward(torch.stack(images).to(device))
                outputs.append(tuple(each.cpu() for each in found))
            bar.update(len(part))
    why = [f"{name} ({reason})" for name, reason in unreadable]
    if not names:
        raise InvalidInput(
            f"no image can be read: {some_of(why, separator='; ')}; accepted: image files, "
            "folders of them, PIL images, and pixels uint8."
        )
    if why:
        log.warning(f"{len(why)} of {len(pictures)} images cannot be read: {some_of(why)}.")
    joined = tuple(torch.cat(each).numpy() for each in zip(*outputs, strict=True))
    return Asked(tuple(names), joined, tuple(unreadable))


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
        for part in what.parts(PARTS):
            yield from _pixels(part, number)
        return
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
