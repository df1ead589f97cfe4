"""What rendered pages are drawn with: fonts, colours, wrapped text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[float, float, float, float]


class Fonts:
    """Font files by index; Pillow's own where there are none."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def __len__(self) -> int:
        return max(1, len(self._files))

    def get(self, index: int, size: int) -> Font:
        """Font `index`, modulo how many there are, at `size` pixels."""
        if not self._files:
            return ImageFont.load_default(size)
        return ImageFont.truetype(self._files[index % len(self._files)], size)

    def any(self, draw: np.random.Generator, size: int) -> Font:
        """One of them."""
        return self.get(int(draw.integers(len(self))), size)


def canvas(width: int, height: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    image = Image.new("RGB", (width, height), colour)
    return image, ImageDraw.Draw(image)


def paragraph(
    pen: ImageDraw.ImageDraw, box: Box, text: str, font: Font, colour: Colour, spacing: float = 1.35
) -> float:
    """Text wrapped at the box's width, as far as the box goes; returns where it ended, from the top."""
    left, top, right, bottom = box
    step = _height(font) * spacing
    line = ""
    for word in [*text.split(), None]:
        longer = f"{line} {word}".strip()
        if word is not None and pen.textlength(longer, font=font) <= right - left:
            line = longer
            continue
        if top + step > bottom:
            break
        pen.text((left, top), line, fill=colour, font=font)
        top += step
        line = word or ""
    return top


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A colour between two: `share` of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _height(font: Font) -> float:
    _, top, _, bottom = font.getbbox("Ag")
    return (bottom - top) * 1.15
