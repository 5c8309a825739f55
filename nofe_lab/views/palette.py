"""Pictures in few colours, for small files; the most frequent colours stay exact.

Those are the colours of areas and lines, where every difference is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours of one or several pictures: the exact ones, then approximations of the rest."""

    exact: tuple[tuple[int, int, int], ...]
    image: Image.Image

    @classmethod
    def of(cls, picture: Image.Image, colours: int, exact: int) -> Palette:
        """So many `colours` for an RGB picture, its `exact` most frequent ones among them."""
        counts = picture.getcolors(picture.width * picture.height) or []
        frequent = [colour for _, colour in sorted(counts, reverse=True)]
        if len(frequent) > colours:
            kept = frequent[:exact]
            others = picture.quantize(colours - exact).getpalette() or []
            rest = others[: 3 * (colours - exact)]
        else:
            kept, rest = frequent, []
        image = Image.new("P", (1, 1))
        image.putpalette([channel for colour in kept for channel in colour] + rest)  # type: ignore[attr-defined]
        return cls(tuple(kept), image)  # type: ignore[arg-type]

    def apply(self, picture: Image.Image) -> Image.Image:
        """Convert an RGB picture to one with this palette."""
        # Pillow looks colours up in steps of four: set the exact ones by hand
        pixels = np.array(picture).astype(np.int64) @ (1 << 16, 1 << 8, 1)
        indices = np.array(picture.quantize(palette=self.image, dither=Image.Dither.NONE))
        for index, (red, green, blue) in enumerate(self.exact):
            indices[pixels == (red << 16) + (green << 8) + blue] = index
        found = Image.fromarray(indices, "P")
        found.putpalette(self.image.getpalette() or [])
        return found
