"""The contact sheet: original, nano and JPEG of equal size side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]

_CELL, _HEIGHT, _CAPTION, _GAP, _COLUMNS = 270, 203, 18, 6, 2
LIMIT = 400_000
"""Bytes that the sheet may take."""


@dataclass(frozen=True)
class Row:
    """One picture three times, and the PSNR of the last two."""

    name: str
    original: Pixels
    nano: Pixels
    jpeg: Pixels
    nano_psnr: float
    jpeg_psnr: float


def contact_sheet(rows: Sequence[Row], out: Path) -> None:
    """Write the sheet, two pictures a line, as the best JPEG below `LIMIT` bytes."""
    wide, tall = 3 * (_CELL + _GAP) + 2 * _GAP, _HEIGHT + _CAPTION + _GAP
    sheet = Image.new("RGB", (_COLUMNS * wide, max(1, -(-len(rows) // _COLUMNS)) * tall), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, row in enumerate(rows):
        left, top = i % _COLUMNS * wide, i // _COLUMNS * tall
        captions = (row.name, f"nano, {row.nano_psnr:.1f} dB", f"JPEG of as many bytes, {row.jpeg_psnr:.1f} dB")
        for j, (pixels, caption) in enumerate(zip((row.original, row.nano, row.jpeg), captions, strict=True)):
            x = left + j * (_CELL + _GAP) + _GAP
            pen.text((x, top + 2), caption, fill="black", font=font)
            sheet.paste(_fitted(pixels), (x, top + _CAPTION))
    for quality in range(90, 20, -5):
        sheet.save(out, "JPEG", quality=quality, optimize=True)
        if out.stat().st_size <= LIMIT:
            break


def _fitted(pixels: Pixels) -> Image.Image:
    """The picture cut to the cell's shape about its middle, at native size where it is at most twice the cell."""
    image = Image.fromarray(pixels)
    scale = min(2.0, image.width / _CELL, image.height / _HEIGHT)
    width, height = _CELL * scale, _HEIGHT * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize((_CELL, _HEIGHT), Image.Resampling.LANCZOS, (left, top, left + width, top + height))
