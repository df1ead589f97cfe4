from __future__ import annotations

import numpy as np
import pytest
import torch

from viq.packing import Packing
from viq.patches import normalise, pack_images, patchify

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def image(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_become_the_correctly_rounded_values(dtype: torch.dtype) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    packing = pack_images([pixels], 1)
    values = normalise(patchify([pixels], packing), [(16, 16)], packing, dtype)
    true = ((torch.arange(256, dtype=torch.float32) / 255 - 0.5) / 0.5).to(dtype)
    assert torch.equal(values.view(3, 256), true.expand(3, 256))


def test_a_patch_is_the_convolutions_window() -> None:
    pixels = image(48, 32)
    packing = pack_images([pixels], 8)
    values = normalise(patchify([pixels], packing), [(48, 32)], packing, torch.float32)
    kernel = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    plane = (torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255 - 0.5) / 0.5
    expected = torch.nn.functional.conv2d(plane, kernel, stride=16).flatten(2)[0].T
    assert (values[: packing.patches].double() @ kernel.flatten(1).T - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (17, 16), (33, 50)])
def test_pixels_beyond_an_edge_are_zero_after_normalisation(height: int, width: int) -> None:
    pixels = [image(height, width), image(20, 20)]
    packing = pack_images(pixels, 8)
    values = normalise(patchify(pixels, packing), [(height, width), (20, 20)], packing, torch.float32)
    h, w = packing.grids[0]
    plane = values[: h * w].view(h, w, 3, 16, 16).permute(2, 0, 3, 1, 4).reshape(3, 16 * h, 16 * w)
    assert not plane[:, height:].any()
    assert not plane[:, :, width:].any()
    expected = (torch.from_numpy(pixels[0]).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.equal(plane[:, :height, :width], expected)
    assert not values[packing.patches :].any()


def test_the_packing_follows_the_pixels() -> None:
    packing = pack_images([image(1, 1), image(17, 33)], 8)
    assert packing == Packing.of([(1, 1), (2, 3)], 8)
