"""Patches to codes. Nothing after `project_in` runs: what follows it in training is the embedder's work.

Symbols: `rows` of the packed sequence, `C` width, `S` = 4 sub-tokens a patch, `d` FSQ dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq import rope
from viq.attention import attention
from viq.config import CODES_PER_PATCH, PATCH
from viq.fsq import quantise
from viq.grid_cache import GridCache
from viq.layers import BLOCK_EPS, Block, Linear, Mlp, plain_norm
from viq.packing import Packing


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder, all but `heads` and `levels` read off its tensors."""

    width: int
    depth: int
    heads: int
    head_blocks: int
    headwise_blocks: int
    headwise_width: int
    grid: int
    levels: tuple[int, ...]


class HeadwiseAttention(nn.Module):
    """Attention across patches in which the 4 sub-tokens are the heads, rotated by position."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.decrease_dim = Linear(width, inner) if inner < width else nn.Identity()
        self.qkv = Linear(inner, 3 * inner)
        self.proj = Linear(inner, inner)
        self.increase_dim = Linear(inner, width) if inner < width else nn.Identity()

    def forward(self, z: Tensor, table: Tensor, packing: Packing) -> Tensor:
        """`(rows*S, C)` to `(rows*S, C)`; `table` is `(2, rows, S, D/2)`."""
        qkv = self.qkv(self.decrease_dim(z))
        inner = qkv.shape[1] // 3
        q, k, v = qkv.view(packing.rows, CODES_PER_PATCH, 3, inner).unbind(2)
        out = attention(rope.rotate(q, table), rope.rotate(k, table), v, packing)
        return self.increase_dim(self.proj(out.reshape(-1, inner)))  # type: ignore[no-any-return]


class HeadwiseBlock(nn.Module):
    """Pre-norm block of the quantization head, on sub-tokens."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, BLOCK_EPS)
        self.attn = HeadwiseAttention(width, inner)
        self.norm2 = nn.LayerNorm(width, BLOCK_EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, z: Tensor, table: Tensor, packing: Packing) -> Tensor:
        """`(rows*S, C)` to `(rows*S, C)`."""
        z = z + self.attn(self.norm1(z), table, packing)
        return z + self.mlp(self.norm2(z))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Vision transformer and quantization head, on a pack of images."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width = shape.width
        self.levels = shape.levels
        self.patch_embed = Linear(3 * PATCH * PATCH, width)
        self.pos_embed = nn.Parameter(torch.empty(1, shape.grid * shape.grid, width))
        self.trunk = nn.ModuleList(Block(width, shape.heads) for _ in range(shape.depth))
        self.head_trunk = nn.ModuleList(Block(width, shape.heads) for _ in range(shape.head_blocks))
        self.expand = Mlp(width, CODES_PER_PATCH * width, CODES_PER_PATCH * width)
        self.mix = Mlp(width, width, width)
        self.headwise = nn.ModuleList(HeadwiseBlock(width, shape.headwise_width) for _ in range(shape.headwise_blocks))
        self.project_in = Linear(width, len(shape.levels))
        self._headwise_width = shape.headwise_width
        self._positions = GridCache(self.position_rows)
        self._rotations = GridCache(self._rotation)

    def forward(self, patches: Tensor, packing: Packing) -> Tensor:
        """Normalised patches `(rows, 768)` to codes, int32 `(rows*S,)`."""
        return quantise(self.project(patches, packing), self.levels)

    def project(self, patches: Tensor, packing: Packing) -> Tensor:
        """Normalised patches `(rows, 768)` to the values before quantization, `(rows*S, d)`."""
        x = self.patch_embed(patches) + self._position(packing)
        for block in self.trunk:
            x = block(x, packing)
        x = plain_norm(x)
        for block in self.head_trunk:
            x = block(x, packing)
        z = self.mix(self.expand(x).view(packing.rows * CODES_PER_PATCH, -1))
        rotations = [self._rotations[grid] for grid in packing.grids]
        table = torch.stack([packing.pad(_joined([t[part] for t in rotations])) for part in (0, 1)])
        for block in self.headwise:
            z = block(z, table, packing)
        return self.project_in(z)  # type: ignore[no-any-return]

    def position_rows(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding resized to `grid`, `(N, C)`."""
        h, w = grid
        side = round(self.pos_embed.shape[1] ** 0.5)
        square = self.pos_embed.view(1, side, side, -1).permute(0, 3, 1, 2)
        if grid != (side, side):
            square = F.interpolate(square, size=(h, w), mode="bilinear", align_corners=False)
        return square.permute(0, 2, 3, 1).reshape(h * w, -1)

    def _rotation(self, grid: tuple[int, int]) -> Tensor:
        weight = self.project_in.weight
        return rope.table(grid, CODES_PER_PATCH, self._headwise_width, weight.dtype).to(weight.device)

    def _position(self, packing: Packing) -> Tensor:
        # While it is trained the parameter changes under the cache, and gradients must reach it.
        trains = torch.is_grad_enabled() and self.pos_embed.requires_grad
        rows = [self.position_rows(grid) if trains else self._positions[grid] for grid in packing.grids]
        return packing.pad(_joined(rows))


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def encoder_shape(shapes: dict[str, tuple[int, ...]], heads: int, levels: Sequence[int]) -> EncoderShape:
    """The shape that an encoder's tensors imply, by this module's parameter names; may raise `KeyError`."""
    width = shapes["patch_embed.weight"][0]
    decrease = shapes.get("headwise.0.attn.decrease_dim.weight")
    return EncoderShape(
        width=width,
        depth=count(shapes, "trunk"),
        heads=heads,
        head_blocks=count(shapes, "head_trunk"),
        headwise_blocks=count(shapes, "headwise"),
        headwise_width=decrease[0] if decrease else width,
        grid=round(shapes["pos_embed"][1] ** 0.5),
        levels=tuple(levels),
    )


def count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    """Number of blocks stored under `prefix.0`, `prefix.1`, …"""
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{prefix}.")})
