"""What an image costs to compute on, known from its header alone."""

from __future__ import annotations

ATTENTION_RATIO = 10_800
"""Patches of one image at which attention costs as much as everything else.

model.md, "Cost", at the released width C = 1536: 3.05 GFLOP a patch outside attention against
4 * N**2 * C in each of the 43 trunk-like blocks and 4 * N**2 * 1024 in each of the 3 head-wise ones.
"""


def encode_cost(patches: int) -> int:
    """Cost of encoding one image of `patches` patches, in units of one patch without attention, rounded up.

    Decoding has the same shape, attention over all patches and the rest in proportion to them; embedding is
    in proportion to patches alone.
    """
    return patches + -(-patches * patches // ATTENTION_RATIO)
