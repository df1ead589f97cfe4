"""Finding out at load whether a compiled quantization head gives an image the same values in any company."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from viq.config import CODES_PER_PATCH
from viq.packing import Packing

if TYPE_CHECKING:
    from viq.encoder import Encoder

GRIDS = ((1, 1), (3, 5), (8, 8), (2, 31), (5, 5), (1, 16))
"""Images that are tried: few and small, since every load waits for them."""


@torch.inference_mode()
def invariant(encoder: Encoder, multiple: int) -> bool:
    """Whether values of each of `GRIDS` have the same bits alone, among the others, in reverse and with one thread."""
    draw = torch.Generator().manual_seed(0)
    weight = encoder.project_in.weight
    images = [torch.randn(h * w, weight.shape[1], generator=draw).to(weight) for h, w in GRIDS]
    alone = [_values(encoder, [image], [grid], multiple)[0] for image, grid in zip(images, GRIDS, strict=True)]
    there = _values(encoder, images, GRIDS, multiple)
    back = _values(encoder, images[::-1], GRIDS[::-1], multiple)[::-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = _values(encoder, images, GRIDS, multiple)
    finally:
        torch.set_num_threads(threads)
    return all(_same(one, first) for tried in (there, back, single) for one, first in zip(tried, alone, strict=True))


def _values(
    encoder: Encoder, images: Sequence[Tensor], grids: Sequence[tuple[int, int]], multiple: int
) -> list[Tensor]:
    packing = Packing.of(grids, multiple)
    values = encoder.head(packing.pad(torch.cat(list(images))), packing, encoder.rotations(packing))
    return [part.clone() for part in packing.split(values, CODES_PER_PATCH)]


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))  # bits: as numbers, NaN would differ from itself
