"""JPEG and WebP at the number of bytes that a picture's codes take: the best of four scales, each at the highest
quality that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nano.measures import psnr

Pixels = npt.NDArray[np.uint8]

OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True, "progressive": True},
    "WEBP": {"method": 4},
}
_SCALES = (1.0, 0.7, 0.5, 0.35)


@dataclass(frozen=True)
class Coded:
    """A picture as a codec gives it back, from a file of `size` bytes in all."""

    pixels: Pixels
    size: int
    quality: int
    scale: float
    """Below 1 the picture was shrunk before it was coded and enlarged afterwards."""


def at_bytes(pixels: Pixels, limit: int, codec: str) -> Coded | None:
    """The coded picture of highest PSNR within `limit` bytes; `None` if no quality and scale fits."""
    best: Coded | None = None
    for scale in _SCALES:
        found = _best_quality(pixels, limit, codec, scale)
        if found and (best is None or psnr(found.pixels, pixels) > psnr(best.pixels, pixels)):
            best = found
    return best


def _best_quality(pixels: Pixels, limit: int, codec: str, scale: float) -> Coded | None:
    """The highest quality that fits, by bisection: the size grows with it."""
    height, width = pixels.shape[:2]
    whole = Image.fromarray(pixels)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = whole if scale == 1 else whole.resize(size, Image.Resampling.LANCZOS)
    low, high, fitting, chosen = 1, 95, b"", 0
    while low <= high:
        quality = (low + high) // 2
        file = BytesIO()
        small.save(file, codec, quality=quality, **OPTIONS[codec])
        if len(file.getvalue()) <= limit:
            fitting, chosen, low = file.getvalue(), quality, quality + 1
        else:
            high = quality - 1
    if not fitting:
        return None
    with Image.open(BytesIO(fitting)) as image:
        decoded = image.convert("RGB")
    if scale != 1:
        decoded = decoded.resize((width, height), Image.Resampling.BICUBIC)
    return Coded(np.asarray(decoded), len(fitting), chosen, scale)
