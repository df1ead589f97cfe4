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
    beyond = edges(image_sizes, packing)
    return values_of_bytes(patches, table(dtype, patches.device), packing.patches, beyond, PATCH)


def edges(image_sizes: Sequence[tuple[int, int]], packing: Packing) -> list[tuple[int, int, int, int, int, int]]:
    """Images with pixels beyond an edge: their first and one-past-last row, their grid, and how many of the pixels of a
    patch at the bottom and at the right are theirs, 0 for all."""
    found = []
    for (height, width), (start, end), (h, w) in zip(image_sizes, packing.spans, packing.grids, strict=True):
        if height % PATCH or width % PATCH:
            found.append((start, end, h, w, height % PATCH, width % PATCH))
    return found


def values_of_bytes(
    patches: Tensor, table: Tensor, count: int, beyond: list[tuple[int, int, int, int, int, int]], side: int
) -> Tensor:
    """uint8 patches `(rows, 3*side*side)`, of which `count` are somebody's, to what `table` has for them; see `edges`.

    TorchScript, too.
    """
    values = table.index_select(0, patches.view(-1).int()).view(patches.shape[0], -1)
    values[count:] = 0
    for start, end, h, w, down, right in beyond:
        grid = values[start:end].view(h, w, 3, side, side)
        if down > 0:
            grid[-1, :, :, down:, :] = 0
        if right > 0:
            grid[:, -1, :, :, right:] = 0
    return values


def pack_images(pixels: Sequence[npt.NDArray[np.uint8]], multiple: int) -> Packing:
    """The packing of these images `(H, W, 3)`."""
    return Packing.of((grid_of(*image.shape[:2]) for image in pixels), multiple)


@cache
def table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values of the 256 bytes, `(256,)`."""
    # Kept on the device: a copy there waits for all that it still computes.
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return torch.from_numpy((values - np.float32(0.5)) / np.float32(0.5)).to(device=device, dtype=dtype)
