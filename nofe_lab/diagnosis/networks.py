"""Runs any torch module on images that it has not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from nofe_lab.config import InvalidInput, first_line, one_of, shown, some_of, true_or_false
from nofe_lab.data import Dataset, Source, load_dataset
from nofe_lab.data.folders import list_image_folder
from nofe_lab.data.pictures import UnreadableImage, decode, only_bombs_reported
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.data.sources import READY_MADE
from nofe_lab.data.thumbnails import Thumbnails
from nofe_lab.diagnosis.tables import CheckedPredictions, checked_names
from nofe_lab.evaluation import EVALUATION_PIXELS, images_at_once
from nofe_lab.files import user_path
from nofe_lab.inference import Classifier
from nofe_lab.networks.tracing import modes_kept
from nofe_lab.specialties import class_number
from nofe_lab.training.events import watched

Prepare = Callable[[Any], Any]

SPLITS = ("train", "val", "test")
KNOWN = (*READY_MADE, "folder", "parquet", "hub")
"""How names of data sets begin."""

ACCEPTED = "a Dataset, a Source, the name of a data set such as 'folder:DIR', or a folder"


def run_module(
    model: nn.Module,
    images: Any,
    prepare: Prepare | None,
    class_names: Sequence[str] | None,
    split: str | None,
    skip_unreadable: bool,
) -> tuple[CheckedPredictions, Source, str, str | None]:
    """Run a module on images (see `nofe_lab.look`).

    Returns its answers, the images, what they are in words, and the name of their data set.
    """
    true_or_false("skip_unreadable", skip_unreadable)
    if images is None:
        raise InvalidInput(f"a module needs images; accepted: {ACCEPTED}.")
    if not isinstance(model, ImageNetwork) and not callable(prepare):
        raise InvalidInput(
            f"prepare must say how an image becomes an input of {type(model).__name__}: a function "
            "of an image (PIL, or a tensor uint8 [3, height, width]) such as torchvision's "
            f"weights.transforms(); got {shown(prepare)}."
        )
    if isinstance(model, Classifier):
        if model.output_names != model.class_names:
            raise InvalidInput(
                f"{title_of(model)} answers with specialties, not with classes; accepted: a base "
                "CNN, a control or a network of experts."
            )
        class_names = class_names or model.class_names
    outputs = checked_names(class_names) if class_names is not None else None
    source, names, about, dataset = find_images(model, images, split, skip_unreadable)
    if isinstance(model, Classifier) and isinstance(source, Thumbnails):
        prepare = prepare or model.prepare
    names = names or outputs
    if names is None:
        highest = int(source.labels.max()) if len(source) else 1
        names = checked_names([str(c) for c in range(max(highest + 1, 2))])
    if not len(source):
        raise InvalidInput(f"there are no images in {about}; accepted: at least one.")
    outputs = outputs or names
    of_output = np.array([class_number(name, outputs) for name in names])
    skipped: dict[int, str] | None = {} if skip_unreadable else None
    probabilities, seen = _probabilities(model, source, prepare, len(outputs), skipped)
    notes: tuple[str, ...] = ()
    if skipped and isinstance(source, Thumbnails):
        left_out = [f"{source.names[i]} ({why})" for i, why in sorted(skipped.items())]
        notes = (f"Left out, since they cannot be decoded: {some_of(left_out)}.",)
        source = source[torch.tensor([i for i in range(len(source)) if i not in skipped])]
    if seen.any() and split != "train":
        if seen.all():
            raise InvalidInput(
                f"{title_of(model)} has trained on all of the {about}; accepted: images that it "
                "has not seen, such as split='test', or split='train' for these."
            )
        notes = (*notes, f"Left out, since it has trained on them: {seen.sum():,} images.")
        source, probabilities = source[torch.from_numpy(~seen)], probabilities[~seen]
        about = about.replace(f"{len(seen):,}", f"{len(source):,}", 1)
    labels = of_output[source.labels.cpu().numpy()]
    answers = CheckedPredictions(
        outputs, labels, probabilities.argmax(axis=1), probabilities, notes=notes
    )
    return answers, source, about, dataset


def title_of(model: nn.Module) -> str:
    """What a module is called: a trained network by what it is, any other by its class."""
    return str(model.run.about["title"]) if isinstance(model, Classifier) else type(model).__name__


def find_images(
    model: nn.Module | None, images: Any, split: str | None, skip_unreadable: bool = False
) -> tuple[Source, tuple[str, ...] | None, str, str | None]:
    """The images to look at, their class names, both in words, and the name of the data set.

    Of a Dataset: val, or test where it has none; `split` chooses another.
    """
    if split is not None:
        one_of("split", split, SPLITS)
    name = None
    if isinstance(images, (str, Path)):
        name = str(images)
        is_name = name.partition(":")[0] in KNOWN
        name = f"folder:{name}" if not is_name and user_path(name).is_dir() else name
        # a folder that it was trained on has images that it has seen
        is_own = isinstance(model, ImageNetwork)
        if isinstance(model, Classifier):
            is_own = model.run.about["dataset"] == name
        if name.startswith("folder:") and not is_own:
            return (*_of_folder(name, split), name)
        size = None
        if isinstance(model, ImageNetwork) and model.preprocess.image_shape:
            size = model.preprocess.image_shape[1] if name.startswith("folder:") else None
        images = load_dataset(name, image_size=size, skip_unreadable=skip_unreadable)
    if isinstance(images, Source):
        if split is not None:
            raise InvalidInput(f"split is for data sets; got {split!r} for a Source.")
        return images, None, f"{len(images):,} images", None
    if not isinstance(images, Dataset):
        raise InvalidInput(f"images must be {ACCEPTED}; got {type(images).__name__}.")
    chosen = split or ("val" if len(images.val) else "test")
    source: Source = getattr(images, chosen)
    about = f"{len(source):,} {chosen} images of {images.name}"
    known = images.name.partition(":")[0] in KNOWN
    return source, images.class_names, about, name or (images.name if known else None)


def _of_folder(name: str, split: str | None) -> tuple[Source, tuple[str, ...], str]:
    class_names, listed, _ = list_image_folder(name, name.removeprefix("folder:"))
    has_splits = len(listed) > 1
    chosen = split or next(each for each in ("val", "test", "train") if each in listed)
    if chosen not in listed or (split and not has_splits):
        there = ", ".join(listed) if has_splits else "no folders of splits"
        raise InvalidInput(f"{name!r} has {there}; got split={split!r}.")
    part = listed[chosen]
    about = f"{len(part.labels):,} {chosen + ' ' if has_splits else ''}images of {name}"
    return Thumbnails(list(part.encoded), part.labels, part.names), class_names, about


def _probabilities(
    model: nn.Module,
    source: Source,
    prepare: Prepare | None,
    C: int,
    skipped: dict[int, str] | None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """For every image not skipped, the probabilities of the module's C outputs, [N, C].

    Also whether the module is known to have trained on it, bool [N].
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    found, seen = [], []
    with (
        modes_kept(model),
        torch.inference_mode(),
        tqdm(total=len(source), unit="image", leave=False, disable=not watched()) as bar,
    ):
        model.eval()
        for batch in _inputs(model, source, prepare, skipped):
            try:
                output = model(batch.to(device))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                raise InvalidInput(
                    f"{type(model).__name__} does not take the images as prepared, {batch.dtype} "
                    f"{list(batch.shape)} ({first_line(error)})."
                ) from error
            found.append(_as_probabilities(model, output, len(batch), C))
            known = model.has_seen(batch) if isinstance(model, Classifier) else None
            seen.append(np.zeros(len(batch), bool) if known is None else known)
            bar.update(len(batch))
    probabilities: NDArray[np.float32] = torch.cat(found).numpy()
    if not np.isfinite(probabilities).all():
        row = int((~np.isfinite(probabilities)).any(axis=1).argmax())
        raise InvalidInput(f"the outputs of {type(model).__name__} for image {row} are not finite.")
    return probabilities, np.concatenate(seen)


def _as_probabilities(model: nn.Module, output: Any, n: int, C: int) -> Tensor:
    output = getattr(output, "logits", output)  # transformers
    name = type(model).__name__
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != n:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidInput(f"{name} must give logits [{n}, {C}] for {n} images; got {got}.")
    if output.shape[1] != C:
        raise InvalidInput(
            f"{name} has {output.shape[1]} outputs, but there are {C} classes; class_names takes "
            "the names of its outputs, in order."
        )
    output = output.float().cpu()
    is_softmax = bool((output >= 0).all()) and bool((output.sum(1) - 1).abs().max() < 1e-3)
    return output if is_softmax else output.softmax(1)


def _inputs(
    model: nn.Module, source: Source, prepare: Prepare | None, skipped: dict[int, str] | None
) -> Iterator[Tensor]:
    """Yield batches of a module's inputs; the larger the inputs, the fewer in a batch.

    skipped: takes the indices of images that cannot be decoded, and why; None: they are refused.
    """
    if isinstance(model, ImageNetwork) and prepare is None:
        yield from source.parts(images_at_once(source.image_shape))
        return
    assert prepare is not None
    with only_bombs_reported():
        one = _Prepared(source, prepare, skipped)
    size = max(EVALUATION_PIXELS // max(one.shape[1:].numel(), 1), 1)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(source), size):
            with only_bombs_reported():
                made = list(pool.map(one, range(start, min(start + size, len(source)))))
            inputs = [x for x in made if x is not None]
            odd = next((x for x in inputs if x.shape != one.shape), None)
            if odd is not None:
                raise InvalidInput(
                    f"prepare must give inputs of one size; got {list(one.shape)} and "
                    f"{list(odd.shape)}: resize and crop them."
                )
            if inputs:
                yield torch.stack(inputs)


class _Prepared:
    """The inputs made of a source's images, one at a time.

    `prepare` is handed a PIL image, as evaluations with torchvision and timm do, or else a tensor
    uint8 [channels, height, width]: what it makes a tensor of, for the first image.
    """

    def __init__(self, source: Source, prepare: Prepare, skipped: dict[int, str] | None) -> None:
        self.source = source
        self.prepare = prepare
        self.skipped = skipped
        pixels = next((p for i in range(len(source)) if (p := self._pixels(i)) is not None), None)
        if pixels is None:
            raise InvalidInput(f"none of {len(source):,} images can be decoded.")
        failed = []
        for self.as_pil in (True, False):
            try:
                made = self._prepared(pixels)
            except Exception as error:  # the caller's own function
                failed.append(first_line(error))
                continue
            if isinstance(made, Tensor) and made.ndim == 3:
                self.shape = made.shape
                return
            failed.append(
                f"tensor {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            )
        raise InvalidInput(
            "prepare must make a tensor [channels, height, width] of an image; it made of a PIL "
            f"image: {failed[0]}; of a tensor: {failed[1]}."
        )

    def __call__(self, index: int) -> Tensor | None:
        pixels = self._pixels(index)
        if pixels is None:
            return None
        try:
            made = self._prepared(pixels)
        except Exception as error:  # the caller's own function
            name = f"image {index}"
            name = self.source.names[index] if isinstance(self.source, Thumbnails) else name
            raise InvalidInput(f"prepare fails for {name} ({first_line(error)}).") from error
        assert isinstance(made, Tensor)
        return made

    def _prepared(self, pixels: NDArray[np.uint8]) -> Any:
        if not self.as_pil:
            return self.prepare(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        return self.prepare(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))

    def _pixels(self, index: int) -> NDArray[np.uint8] | None:
        """An image [height, width, channels]; None if it is skipped."""
        if not isinstance(self.source, Thumbnails):
            pixels: NDArray[np.uint8] = self.source.sample([index])[0].cpu().numpy()
            return np.ascontiguousarray(pixels.transpose(1, 2, 0))
        try:
            return decode(self.source.files[index]).pixels
        except UnreadableImage as error:
            if self.skipped is None:
                raise InvalidInput(
                    f"{self.source.names[index]} cannot be decoded ({error}); "
                    "skip_unreadable=True goes on without it."
                ) from error
            self.skipped[index] = str(error)
            return None
