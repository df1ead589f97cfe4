"""The blocks that encoder, embedder and decoder share.

Symbols: `rows` of a packed sequence, `C` width, `H` heads, `D = C/H`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.attention import attention
from viq.hardware import functional, traced
from viq.linear import linear, linear_gelu
from viq.packing import Ends, Packing

_MLP_ROWS = {"cpu": 4096, "cuda": 16_384}
"""Rows of a hidden layer held at a time: 100 MB of float32 at the released width. A GPU needs some 8,000 to be full."""

BLOCK_EPS = 1e-6
HEAD_EPS = 1e-5


class Linear(nn.Linear):
    """`nn.Linear` computed by `viq.linear.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(rows, in)` to `(rows, out)`."""
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Exact (erf) GELU of `forward`, `(rows, in)` to `(rows, out)`."""
        return linear_gelu(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """`(rows, width)` to `(rows, out)`, some rows at a time so that the hidden layer stays small."""
        most = _MLP_ROWS.get(x.device.type, x.shape[0])
        if traced() or x.shape[0] <= most:
            return self._whole(x)
        return torch.cat([self._whole(part) for part in x.split(most)])

    def hidden(self, x: Tensor) -> Tensor:
        """`(rows, width)` to the hidden layer, `(rows, hidden)`."""
        return self.fc1.gelu(x)

    def _whole(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection laid out `[3][H][D]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | Ends) -> Tensor:
        """`(rows, C)` to `(rows, C)`."""
        rows, width = x.shape
        q, k, v = self.qkv(x).view(rows, 3, self.heads, width // self.heads).unbind(1)
        return self.proj(attention(q, k, v, packing).reshape(rows, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: `x += attn(LN(x)); x += mlp(LN(x))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, BLOCK_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, BLOCK_EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, packing: Packing | Ends) -> Tensor:
        """`(rows, C)` to `(rows, C)`."""
        x = added(x, self.attn(self.norm1(x), packing))
        return added(x, self.mlp(self.norm2(x)))


class ResidualMlp(nn.Module):
    """`x + mlp(LN(x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, HEAD_EPS)
        self.mlp = Mlp(width, 2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(rows, C)` to `(rows, C)`."""
        return added(x, self.mlp(self.norm(x)))


def added(x: Tensor, branch: Tensor) -> Tensor:
    """`x + branch`, both `(rows, C)`; into `branch`, which nobody else holds, but not in a graph for others.

    Nor into what a gradient is wanted of, since a hook on the way back may hold it; nor under autocast, where `branch`
    has fewer bits than `x` and the sum must not.
    """
    shared = functional() or (torch.is_grad_enabled() and branch.requires_grad) or branch.dtype != x.dtype
    return x + branch if shared else branch.add_(x)


def plain_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine parameters, `(rows, C)`."""
    return F.layer_norm(x, x.shape[-1:], eps=HEAD_EPS)
