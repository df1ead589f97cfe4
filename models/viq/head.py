"""The quantization head: what the trunk gives, to the values before quantization (model.md, quantization head).

Symbols: `rows` of the packed sequence, `C` width, `S` = 4 sub-tokens a patch, `D` width of a head-wise head,
`F = D/2`, `d` FSQ dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from viq import rope
from viq.attention import attention
from viq.config import CODES_PER_PATCH
from viq.layers import BLOCK_EPS, Linear, Mlp, added, plain_norm
from viq.packing import Ends, Packing

if TYPE_CHECKING:
    from viq.encoder import Encoder


class HeadwiseAttention(nn.Module):
    """Attention across patches in which the 4 sub-tokens are the heads, rotated by position."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.decrease_dim = Linear(width, inner) if inner < width else nn.Identity()
        self.qkv = Linear(inner, 3 * inner)
        self.proj = Linear(inner, inner)
        self.increase_dim = Linear(inner, width) if inner < width else nn.Identity()

    def forward(self, z: Tensor, table: Tensor, packing: Packing | Ends) -> Tensor:
        """`(rows*S, C)` to `(rows*S, C)`; `table` is `(2, rows, S, F)`."""
        qkv = self.qkv(self.decrease_dim(z))
        inner = qkv.shape[1] // 3
        q, k, v = qkv.view(-1, CODES_PER_PATCH, 3, inner).unbind(2)
        out = attention(rope.rotate_(q, table), rope.rotate_(k, table), v, packing)
        return self.increase_dim(self.proj(out.reshape(-1, inner)))  # type: ignore[no-any-return]


class HeadwiseBlock(nn.Module):
    """Pre-norm block of the quantization head, on sub-tokens."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, BLOCK_EPS)
        self.attn = HeadwiseAttention(width, inner)
        self.norm2 = nn.LayerNorm(width, BLOCK_EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, z: Tensor, table: Tensor, packing: Packing | Ends) -> Tensor:
        """`(rows*S, C)` to `(rows*S, C)`."""
        z = added(z, self.attn(self.norm1(z), table, packing))
        return added(z, self.mlp(self.norm2(z)))


class HeadGraph(nn.Module):
    """The head as a function of tensors alone, on an encoder's own weights: what is compiled, saved and exported."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.head_trunk, self.headwise = encoder.head_trunk, encoder.headwise
        self.expand, self.mix, self.project_in = encoder.expand, encoder.mix, encoder.project_in

    def forward(self, x: Tensor, ends: Tensor, longest: Tensor, table: Tensor) -> Tensor:
        """`(rows, C)`, the two tensors of `Ends`, rotations `(2, rows, S, F)`; to `(rows*S, d)`."""
        return head_values(self, x, Ends(ends, longest), table)


def head_values(parts: HeadGraph | Encoder, x: Tensor, packing: Packing | Ends, table: Tensor) -> Tensor:
    """What the trunk gave `(rows, C)` to the values before quantization `(rows*S, d)`."""
    x = plain_norm(x)
    for block in parts.head_trunk:
        x = block(x, packing)
    z = parts.mix(parts.expand(x).view(-1, x.shape[1]))
    for block in parts.headwise:
        z = block(z, table, packing)
    return parts.project_in(z)  # type: ignore[no-any-return]
