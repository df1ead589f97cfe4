"""Training pictures: crops of mixed sizes and shapes, a whole batch from one seed.

A crop is a picture of its own to the network, at its native resolution; none is resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from viq.config import PATCH, grid_of
from viq.packing import Packing
from viq.patches import normalise, patchify

Pixels = npt.NDArray[np.uint8]
_DOCUMENT_SHARE = 0.35
_SHAPES = ((4, 4), (4, 4), (4, 6), (6, 4), (5, 5), (6, 6), (8, 6), (6, 8), (8, 8), (4, 10), (10, 4), (10, 10), (12, 8),
           (8, 12), (12, 12), (16, 12), (12, 16))  # fmt: skip
"""Grids of crops; the small ones are in the majority, as what the network must learn is mostly local."""


@dataclass(frozen=True)
class Batch:
    """A pack of crops: patches `(rows, 768)` and, for each crop, its pixels in [-1, 1], `(3, H, W)`."""

    patches: Tensor
    packing: Packing
    targets: list[Tensor]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.patches.to(device), self.packing, [target.to(device) for target in self.targets])


class Crops:
    """Crops of the prepared pictures in a folder. Raises `FileNotFoundError` if it holds none."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.png"))
        self._documents = [_read(path) for path in paths if path.stem.startswith("document-")]
        named = [path for path in paths if not path.stem.startswith("document-")]
        # A photograph's scales count once, so that no photograph counts more for having more of them.
        groups: dict[str, list[Pixels]] = {}
        for path in named:
            groups.setdefault(path.stem.rpartition("-")[0], []).append(_read(path))
        self._photographs = list(groups.values())
        if not self._documents or not self._photographs:
            raise FileNotFoundError(f"{folder}: no prepared pictures; run the data step first (make nano-data)")

    def batch(self, seed: Sequence[int], patches: int) -> Batch:
        """Crops of about `patches` patches together, the same ones for the same seed."""
        draw = np.random.default_rng(list(seed))
        pixels: list[Pixels] = []
        left = patches
        while left >= 16:
            h, w = _SHAPES[int(draw.integers(len(_SHAPES)))]
            if h * w > left:
                h, w = 4, 4
            pixels.append(self._crop(draw, h * PATCH, w * PATCH))
            left -= h * w
        return batch_of(pixels)

    def _crop(self, draw: np.random.Generator, height: int, width: int) -> Pixels:
        if draw.random() < 0.2:  # as most pictures, not a whole number of patches
            height, width = height - int(draw.integers(PATCH)), width - int(draw.integers(PATCH))
        if draw.random() < _DOCUMENT_SHARE:
            picture = self._documents[int(draw.integers(len(self._documents)))]
        else:
            scales = self._photographs[int(draw.integers(len(self._photographs)))]
            picture = scales[int(draw.integers(len(scales)))]
        height, width = min(height, picture.shape[0]), min(width, picture.shape[1])
        top, left = (int(draw.integers(n)) for n in (picture.shape[0] - height + 1, picture.shape[1] - width + 1))
        crop = picture[top : top + height, left : left + width]
        if draw.random() < 0.5:
            crop = crop[:, ::-1]
        if draw.random() < 0.15:
            crop = crop[::-1]
        return _coloured(crop, draw) if draw.random() < 0.5 else np.ascontiguousarray(crop)


def batch_of(pixels: Sequence[Pixels]) -> Batch:
    """A pack of these pictures `(H, W, 3)`."""
    packing = Packing.of(grid_of(*image.shape[:2]) for image in pixels)
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in pixels]
    patches = normalise(patchify(pixels, packing), sizes, packing, torch.float32)
    targets = [torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1 for image in pixels]
    return Batch(patches, packing, targets)


def _coloured(crop: Pixels, draw: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and tint moved a little; now and then the channels in another order."""
    values = crop.astype(np.float32) / 255
    if draw.random() < 0.1:
        values = values[..., draw.permutation(3)]
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * np.float32(draw.uniform(0.4, 1.5))
    values = 0.5 + (values - 0.5) * np.float32(draw.uniform(0.7, 1.2)) + np.float32(draw.uniform(-0.12, 0.12))
    values = values + draw.uniform(-0.05, 0.05, 3).astype(np.float32)
    scaled: npt.NDArray[np.float32] = np.clip(values, 0, 1) * 255 + 0.5
    return scaled.astype(np.uint8)


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
