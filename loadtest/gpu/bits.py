"""Whether two results are the same, bit by bit: as numbers, NaN would differ from itself and -0 equal 0."""

from __future__ import annotations

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether tensors of one shape and type hold the same bits."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
