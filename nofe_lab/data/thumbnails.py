"""Thumbnails: images of files that are decoded when they are shown, each resized to a square."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nofe_lab.data.pictures import UnreadableImage, decode, only_bombs_reported
from nofe_lab.data.source import Source, short_digest, stack_keys

SIDE = 96
"""Of a thumbnail, in pixels."""

MISSING = 200
"""Grey value of the pixels of a file that cannot be decoded."""


class Thumbnails(Source):
    """Images by their files, for looking at a few of many: nothing is decoded before it is shown.

    files: paths or contents of N image files.  labels: int64 [N].  names: of the images.
    A file that cannot be decoded is a grey square, and named in `unreadable`.
    """

    def __init__(
        self, files: Sequence[Path | bytes | None], labels: Tensor, names: Sequence[str]
    ) -> None:
        self.files = files
        self.labels = labels
        self.names = names
        self.unreadable: dict[str, str] = {}
        """Name -> reason."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, SIDE, SIDE

    @property
    def keys(self) -> Tensor:
        return stack_keys(short_digest(name) for name in self.names)

    def __getitem__(self, index: Tensor | slice) -> Thumbnails:
        chosen = torch.arange(len(self))[index].tolist()
        files, names = [self.files[i] for i in chosen], [self.names[i] for i in chosen]
        return Thumbnails(files, self.labels[index], names)

    def to(self, device: torch.device) -> Thumbnails:
        return Thumbnails(self.files, self.labels.to(device), self.names)

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        for index in indices:
            with only_bombs_reported():
                images = [self._thumbnail(i) for i in index.tolist()]
            empty = torch.empty((0, *self.image_shape), dtype=torch.uint8)
            yield (torch.stack(images) if images else empty).to(self.labels.device)

    def _thumbnail(self, index: int) -> Tensor:
        try:
            pixels = decode(self.files[index], SIDE).pixels
        except UnreadableImage as error:
            self.unreadable[self.names[index]] = str(error)
            return torch.full(self.image_shape, MISSING, dtype=torch.uint8)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
