"""Finding out at load whether an image gets the same values in any company: of a compiled quantization head on a CPU,
of the whole encoder on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from viq.config import CODES_PER_PATCH
from viq.packing import Packing

if TYPE_CHECKING:
    from viq.encoder import Encoder

Grids = Sequence[tuple[int, int]]
Values = Callable[[Tensor, Packing], Tensor]
"""Rows of a pack to the values before quantization."""

GRIDS = ((1, 1), (3, 5), (8, 8), (2, 31), (5, 5), (1, 16))
"""Images that are tried: few and small, since every load waits for them."""

_LARGER = ((16, 16), (45, 46))
_SIDE = 32


@torch.inference_mode()
def head_is_invariant(encoder: Encoder, multiple: int) -> bool:
    """Whether the head's values of each of `GRIDS` have the same bits alone, among the others, in reverse and with one
    thread."""

    def values(rows: Tensor, packing: Packing) -> Tensor:
        return encoder.head(rows, packing, encoder.rotations(packing))

    return _invariant(values, encoder.project_in.weight, encoder.project_in.in_features, GRIDS, multiple, 0)


@torch.inference_mode()
def encoder_is_invariant(encoder: Encoder, multiple: int, dense_from: int) -> bool:
    """The same of the whole encoder, with larger images, too, and one of `dense_from` patches if that is not 0."""
    dense = ((-(-dense_from // _SIDE), _SIDE),) if dense_from else ()
    grids, inputs = (*GRIDS, *_LARGER, *dense), encoder.patch_embed.in_features
    return _invariant(encoder.project, encoder.project_in.weight, inputs, grids, multiple, dense_from)


def _invariant(
    values: Values, weight: Tensor, width: int, grids: Grids, multiple: int, dense_from: int
) -> bool:  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(h * w, width, generator=draw).to(weight) for h, w in grids]

    def packed(images: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        packing = Packing.of(grids, multiple, dense_from)
        found = values(packing.pad(torch.cat(list(images))), packing)
        return [part.clone() for part in packing.split(found, CODES_PER_PATCH)]

    alone = [packed([image], [grid])[0] for image, grid in zip(images, grids, strict=True)]
    tried = [packed(images, grids), packed(images[::-1], grids[::-1])[::-1]]
    if weight.device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            tried.append(packed(images, grids))
        finally:
            torch.set_num_threads(threads)
    return all(_same(one, first) for found in tried for one, first in zip(found, alone, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))  # bits: as numbers, NaN would differ from itself
