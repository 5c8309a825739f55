"""How fast images are streamed from a large folder, beside torchvision's ImageFolder."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image

from nofe_lab.bench.tables import save_table
from nofe_lab.compat import import_torchvision
from nofe_lab.config import whole_number
from nofe_lab.data import Batches, load_dataset
from nofe_lab.files import writable_path
from nofe_lab.recipes import Recipe

CLASSES = 1000
SIDE, BATCH = 224, 128
"""Of what a network sees, in pixels, and images a step."""

PHOTOGRAPH = (320, 240)
"""(width, height) of the files, in pixels."""

TIMED = 24
"""Batches that are timed at once."""


def write_folder(folder: Path, images: int) -> None:
    """Write so many JPEG files in ImageNet's layout, no two of which have the same content."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(100):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(file, "JPEG")
        contents.append(file.getvalue())
    per_class = images // CLASSES
    for c, split in itertools.product(range(CLASSES), ("train", "val")):
        place = folder / split / f"n{c:08d}"
        place.mkdir(parents=True)
        held_out = max(per_class // 20, 1)
        for i in range(held_out if split == "val" else per_class - held_out):
            content = contents[(7 * c + i) % len(contents)]
            comment = f"{split} {c} {i}".encode()
            head = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (place / f"{i}.JPEG").write_bytes(content[:2] + head + content[2:])


def measure(images: int, workers: int, repeats: int, output: str | None, command: str) -> None:
    """Time a folder of so many images, and print the table.

    workers: of both ways.  repeats: of each, in turn.  output: a CSV file for the table; its first
    line is `command`.
    """
    whole_number("images", images, 5 * CLASSES)
    whole_number("workers", workers, 1)
    whole_number("repeats", repeats, 1)
    target = writable_path("output", output) if output is not None else None
    recipe = Recipe(1, 0.1, batch_size=BATCH)
    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        write_folder(folder, images)
        os.environ["NOFE_CACHE"] = f"{place}/cache"
        for what in ("listed for the first time", "listed again"):
            began = time.perf_counter()
            data = load_dataset(
                f"folder:{folder}", image_size=SIDE, streaming=True, loader_workers=workers
            )
            rows.append((what, time.perf_counter() - began, "s"))
        batches = Batches(data.train, recipe, 0, torch.device("cpu"))
        began = time.perf_counter()
        stream = batches.epoch(0)
        next(stream)
        rows.append(("first batch after the listing", time.perf_counter() - began, "s"))
        rows += _paired(batches, folder, workers, repeats)
        taken = []
        for n, _ in enumerate(batches.epoch(1)):
            if n in (len(batches) // 10, len(batches) - 1):
                taken.append(_memory() / 2**20)
        rows.append(("memory after a tenth of an epoch", taken[0], "MiB"))
        rows.append(("memory at its end", taken[-1], "MiB"))
    found = pd.DataFrame(rows, columns=["what", "value", "unit"]).round(3)
    save_table(found, target, command, images=images, workers=workers, side=SIDE, repeats=repeats)


def _paired(
    batches: Batches, folder: Path, workers: int, repeats: int
) -> list[tuple[str, float, str]]:
    """Images a second of both ways, in turn, and the median of their ratios."""
    theirs = _image_folder(folder, workers)
    speeds: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):  # the first warms up
        for way, stream in enumerate((batches.epoch(repeat), iter(theirs))):
            speed = _speed(stream)
            if repeat:
                speeds[way].append(speed)
            del stream
            time.sleep(1)  # until its workers have done what they were told
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    return [
        ("ours", median(speeds[0]), "images/s"),
        ("ImageFolder + DataLoader", median(speeds[1]), "images/s"),
        ("ours / ImageFolder + DataLoader", median(ratios), "ratio"),
    ]


def _speed(stream: Iterator[object]) -> float:
    """Images a second, from the second batch on."""
    next(stream)
    began = time.perf_counter()
    for _ in range(TIMED):
        next(stream)
    return TIMED * BATCH / (time.perf_counter() - began)


def _image_folder(folder: Path, workers: int) -> Iterable[object]:
    import_torchvision()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.PILToTensor()]
    return torch.utils.data.DataLoader(
        ImageFolder(folder / "train", transforms.Compose(steps)),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )


def _memory() -> int:
    """Bytes that this process and its workers have for themselves, and share."""
    own = psutil.Process()
    return sum(each.memory_full_info().pss for each in (own, *own.children(recursive=True)))
