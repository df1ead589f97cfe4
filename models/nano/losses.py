"""What training minimises: the error that PSNR measures, picture by picture, and small terms for what people see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-4  # squared error, in units of [-1, 1], below which a picture is good enough: 46 dB
_EDGES, _COARSE, _OUTSIDE = 0.05, 0.3, 1.0


def reconstruction(pictures: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of pictures `(3, 16h, 16w)`, not clamped, for targets `(3, H, W)`; and mean PSNR in dB.

    The root of each picture's squared error is averaged: between their sum, in which the worst picture counts most,
    and the mean of their logarithms, which is mean PSNR and in which an empty page counts most.
    """
    losses, squares = [], []
    for picture, target in zip(pictures, targets, strict=True):
        whole = picture[:, : target.shape[1], : target.shape[2]]
        shown = whole.clamp(-1, 1)
        difference = shown - target
        square = difference.square().mean()
        outside = (whole - shown).square().mean()  # beyond the range only this pulls back
        edges = difference.diff(dim=1).abs().mean() + difference.diff(dim=2).abs().mean()
        coarse = F.avg_pool2d(difference, 8, ceil_mode=True, count_include_pad=False).square().mean()
        losses.append(
            (square + _FLOOR).sqrt() + _OUTSIDE * outside + _EDGES * edges + _COARSE * (coarse + _FLOOR).sqrt()
        )
        squares.append(square.detach())
    psnr = (-10 * (torch.stack(squares) / 4 + 1e-10).log10()).mean()
    return torch.stack(losses).mean(), psnr
