"""The VAE's channel norm with a gradient of its own: the same values, 1.3 times as fast to train on a CPU.

Symbols: `P` pixels of all maps, `C` channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.vae import ChannelNorm


class TrainedNorm(ChannelNorm):
    """`ChannelNorm` on pixels as rows, with what `_ScaledRows` saves of memory and passes."""

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """`(B, C, H, W)` to the same, SiLU included where asked."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        out: Tensor = _ScaledRows.apply(rows, self.gamma, activate)  # type: ignore[no-untyped-call]
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _ScaledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gamma: Tensor, activate: bool) -> Tensor:
        """`(P, C)` to the same."""
        scale = rows.shape[1] ** 0.5 / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        unit = rows * scale
        ctx.save_for_backward(unit, gamma, scale)
        ctx.activate = activate
        out = unit * gamma
        return F.silu(out, inplace=True) if activate else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the rows and of gamma."""
        unit, gamma, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        if ctx.activate:
            gradient = torch.ops.aten.silu_backward(gradient, unit * gamma)
        weighted = gradient * unit
        along = (weighted @ gamma / unit.shape[1])[:, None]  # the part that only stretches a row, which the norm undoes
        return torch.addcmul(gradient * gamma, unit, along, value=-1).mul_(scale), weighted.sum(0), None


def use_trained_norms(module: nn.Module) -> None:
    """Put `TrainedNorm` in the place of every `ChannelNorm` below `module`, before it has values."""
    for name, child in module.named_children():
        if isinstance(child, ChannelNorm):
            setattr(module, name, TrainedNorm(child.gamma.shape[0]))
        else:
            use_trained_norms(child)
