"""Pictures in few colours, for small files: the most frequent ones stay exactly as they are.

These are the colours of areas and lines, where every difference is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours for one picture or several: `exact` ones first, then those nearest to the others."""

    exact: tuple[tuple[int, int, int], ...]
    image: Image.Image

    @classmethod
    def of(cls, picture: Image.Image, colours: int, exact: int) -> Palette:
        """`colours` for an RGB picture, of which its `exact` most frequent ones are kept."""
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
        """The RGB picture in these colours, a paletted one."""
        # Pillow looks colours up in steps of four: those to be kept are put in by hand
        pixels = np.array(picture).astype(np.int64) @ (1 << 16, 1 << 8, 1)
        indices = np.array(picture.quantize(palette=self.image, dither=Image.Dither.NONE))
        for index, (red, green, blue) in enumerate(self.exact):
            indices[pixels == (red << 16) + (green << 8) + blue] = index
        found = Image.fromarray(indices, "P")
        found.putpalette(self.image.getpalette() or [])
        return found
