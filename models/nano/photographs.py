"""A photograph out of a package: read, tone-mapped if it must be, and brought to sizes that people post."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

LONGEST = 1536
"""Longest side, in pixels, of a photograph as it is prepared: of 18 megapixels most are blur."""

_SCALES = (1536, 896, 512, 288)
_STEP = 0.8  # a scale nearer than this to the one before is no other


def read_photograph(path: Path) -> Image.Image:
    """The picture as RGB."""
    if path.suffix == ".exr":
        return Image.fromarray(_tone_mapped(path))
    with Image.open(path) as image:
        image.draft("RGB", (2 * LONGEST, 2 * LONGEST))  # a JPEG of 18 megapixels is decoded at a fraction
        return image.convert("RGB")


def at_most(image: Image.Image, longest: int) -> Image.Image:
    """The picture shrunk to a longest side of `longest`, or as it is if it is smaller."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def scales(image: Image.Image) -> list[Image.Image]:
    """The picture at several sizes, largest first, none of them enlarged."""
    found: list[Image.Image] = []
    for longest in _SCALES:
        scaled = at_most(image, longest)
        if not found or max(scaled.size) < _STEP * max(found[-1].size):
            found.append(scaled)
    return found


def _tone_mapped(path: Path) -> Pixels:
    """A high-dynamic-range panorama as bytes: exposed for its median, Reinhard's curve, sRGB's gamma."""
    import OpenEXR  # type: ignore[import-not-found, import-untyped, unused-ignore]  # of the recipe alone

    channels = OpenEXR.File(str(path)).channels()
    linear = np.maximum(np.nan_to_num(np.asarray(channels["RGB"].pixels, np.float32)), 0)
    exposed = linear * np.float32(0.35 / max(float(np.median(linear)), 1e-6))
    mapped = exposed * (1 + exposed / 16) / (1 + exposed)  # white at 4 times the middle
    encoded = np.clip(mapped, 0, 1) ** np.float32(1 / 2.2)
    return np.rint(encoded * 255).astype(np.uint8)
