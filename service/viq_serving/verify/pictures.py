"""Pictures to verify with: the same on every machine, from one pixel up, of every shape that batching could mind."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from viq.config import grid_of

Pixels = npt.NDArray[np.uint8]

SHAPES = (
    (1, 1), (16, 16), (17, 33), (1, 400), (613, 1), (64, 48), (75, 203), (15, 240), (128, 128), (112, 160),
    (255, 257), (300, 210), (16, 768), (760, 24), (333, 512), (480, 360), (512, 512), (768, 768),
)  # fmt: skip
"""`(H, W)` in pixels: single patches, odd sides, strips, and what is large enough to fill a batch alone."""


@dataclass(frozen=True)
class Picture:
    """RGB pixels `(H, W, 3)` and what to call them."""

    name: str
    pixels: Pixels

    @property
    def patches(self) -> int:
        """Patches that it takes."""
        h, w = grid_of(*self.pixels.shape[:2])
        return h * w

    def png(self) -> bytes:
        """The picture as a file without loss, so that every door is given equal pixels."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()


def synthetic(max_side: int) -> list[Picture]:
    """Noise, gradients and text-like edges in turn, of those shapes that have no side over `max_side` pixels."""
    kinds = (("noise", _noise), ("gradient", _gradient), ("edges", _edges))
    made = []
    for index, (height, width) in enumerate(SHAPES):
        if max(height, width) <= max_side:
            kind, make = kinds[index % len(kinds)]
            made.append(Picture(f"{kind} {width}x{height}", make(height, width)))
    return made


def _noise(height: int, width: int) -> Pixels:
    return _random("noise", height, width, 3)


def _gradient(height: int, width: int) -> Pixels:
    """Each channel rises in another direction, in whole numbers: rounding must not depend on the machine."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    across, down = 255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1)
    return np.stack([across, down, (across + 255 - down) // 2], axis=-1).astype(np.uint8)


def _edges(height: int, width: int) -> Pixels:
    """Rows of dark glyphs of 6x4 dots, each dot two pixels, with gaps between them, on paper of one colour."""
    rows, columns = -(-height // 16), -(-width // 10)
    dots = _random("edges", rows, columns, 6, 4) < 128
    cells = np.zeros((rows, columns, 8, 5), np.bool_)
    cells[:, :, 1:7, :4] = dots
    ink = cells.transpose(0, 2, 1, 3).reshape(8 * rows, 5 * columns).repeat(2, axis=0).repeat(2, axis=1)
    paper, dark = np.array([250, 244, 230], np.uint8), np.array([24, 26, 40], np.uint8)
    return np.where(ink[:height, :width, None], dark, paper)


def _random(seed: str, *shape: int) -> Pixels:
    """Bytes that follow from `seed` and `shape` by a hash: generators of numpy may change with its version."""
    count = int(np.prod(shape))
    return np.frombuffer(hashlib.shake_256(repr((seed, shape)).encode()).digest(count), np.uint8).reshape(shape)


def shuffled(count: int, seed: int) -> Sequence[int]:
    """0 to `count`-1 in an order that follows from `seed`."""
    keys = hashlib.shake_256(f"order {seed}".encode()).digest(8 * count)
    return sorted(range(count), key=lambda index: keys[8 * index : 8 * index + 8])
