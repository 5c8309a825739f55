"""Features: what a frozen trunk makes of images, kept so that it need not see them again.

Heads, experts, controls and maps on a trunk that stays as it is train in seconds on its features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from nofe_lab.config import one_of
from nofe_lab.data.source import Resident, Source, short_digest, stack_keys

PARTS = 100
"""Images that are seen at once."""


class Features(Resident):
    """Features with labels, in memory: float [N, channels, height, width] in place of the images.

    A vector of d numbers has the shape [d, 1, 1].  Flips, padding and crops need images.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16, torch.bfloat16)

    def __repr__(self) -> str:
        return f"features of {super().__repr__()}"


STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types in which features are kept, by name."""


def features_of(
    trunk: Callable[[Tensor], Tensor], source: Source, origin: str, stored: str = "float32"
) -> Features:
    """The features of all images of a source.

    trunk: raw images uint8 [n, c, h, w] -> features [n, ...], which change by no draw.
    origin: identifies the trunk; with the images' keys it makes those of the features.
    stored: float32 keeps them as they are; float16 (11 bits, up to 65504) and bfloat16 (8 bits)
    take half the memory.  Raises InvalidInput for another type.
    """
    kind = STORED[one_of("stored", stored, STORED)]
    with torch.no_grad():
        parts = [trunk(images).to("cpu", kind) for images in source.parts(PARTS)]
        # an empty split still has features of a shape
        found = torch.cat(parts) if parts else trunk(source.sample([])).to("cpu", kind)
    shape = (*found.shape[1:], 1, 1)[: max(found.ndim - 1, 3)]
    keys = stack_keys(
        short_digest(key.tobytes(), origin, stored) for key in source.keys.cpu().numpy()
    )
    return Features(found.reshape(-1, *shape), source.labels.cpu(), source.groups, keys)
