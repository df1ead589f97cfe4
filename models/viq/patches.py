"""Pixels to normalised patches: native resolution, no resize, no crop (model.md, "Preprocessing")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from viq.config import PATCH, grid_of
from viq.packing import Packing

_BYTES = PATCH * PATCH * 3


@dataclass(frozen=True, eq=False)
class Patches:
    """One image cut into patches: `rows` is uint8 `(N, 768)`, `image_size` is `(H, W)` in pixels."""

    rows: npt.NDArray[np.uint8]
    image_size: tuple[int, int]

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Patches:
        """The patches of an RGB image `(H, W, 3)`."""
        rows = patchify([pixels], pack_images([pixels], 1)).numpy()
        return cls(rows, (int(pixels.shape[0]), int(pixels.shape[1])))

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid `(h, w)`."""
        return grid_of(*self.image_size)


def patchify(pixels: Sequence[npt.NDArray[np.uint8]], packing: Packing) -> Tensor:
    """Images `(H, W, 3)` to uint8 patches `(rows, 768)`, each patch laid out channel, row, column.

    Pixels beyond an image's edge are zero bytes here; `normalise` makes them zero after normalisation.
    """
    patches = np.zeros((packing.rows, _BYTES), np.uint8)
    for image, (start, end), (h, w) in zip(pixels, packing.spans, packing.grids, strict=True):
        height, width = image.shape[:2]
        if (height, width) != (h * PATCH, w * PATCH):
            padded = np.zeros((h * PATCH, w * PATCH, 3), np.uint8)
            padded[:height, :width] = image
            image = padded
        grid = image.reshape(h, PATCH, w, PATCH, 3).transpose(0, 2, 4, 1, 3)
        patches[start:end].reshape(h, w, 3, PATCH, PATCH)[...] = grid
    return torch.from_numpy(patches)


def normalise(patches: Tensor, image_sizes: Sequence[tuple[int, int]], packing: Packing, dtype: torch.dtype) -> Tensor:
    """uint8 patches to values in [-1, 1] of `dtype` on the same device; pixels beyond an edge become 0.

    A table of the 256 values makes the division by 255 correctly rounded on every device.
    """
    table = _table(dtype, patches.device)
    values = table.index_select(0, patches.view(-1).int()).view(packing.rows, _BYTES)
    values[packing.patches :] = 0
    for (height, width), (start, end), (h, w) in zip(image_sizes, packing.spans, packing.grids, strict=True):
        grid = values[start:end].view(h, w, 3, PATCH, PATCH)
        if height % PATCH:
            grid[-1, :, :, height % PATCH :, :] = 0
        if width % PATCH:
            grid[:, -1, :, :, width % PATCH :] = 0
    return values


def pack_images(pixels: Sequence[npt.NDArray[np.uint8]], multiple: int) -> Packing:
    """The packing of these images `(H, W, 3)`."""
    return Packing.of((grid_of(*image.shape[:2]) for image in pixels), multiple)


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept on the device: a copy there waits for all that it still computes.
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return torch.from_numpy((values - np.float32(0.5)) / np.float32(0.5)).to(device=device, dtype=dtype)
