"""Patches to codes. Nothing after `project_in` runs: what follows it in training is the embedder's work.

Symbols: `rows` of the packed sequence, `C` width, `S` = 4 sub-tokens a patch, `d` FSQ dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq import rope
from viq.config import CODES_PER_PATCH, PATCH
from viq.fsq import quantise
from viq.grid_cache import GridCache
from viq.head import HeadwiseBlock, head_values
from viq.layers import Block, Linear, Mlp
from viq.packing import Ends, Packing

HeadBackend = Callable[[Tensor, Packing, Tensor], Tensor]
"""What computes the quantization head: trunk output `(rows, C)`, rotations `(2, rows, S, F)`; to `(rows*S, d)`."""


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
        self.head: HeadBackend = partial(head_values, self)
        self._headwise_width = shape.headwise_width
        self._positions = GridCache(self.position_rows)
        self._positions_of: tuple[int, ...] = ()
        self._rotations = GridCache(self._rotation)

    def forward(self, patches: Tensor, packing: Packing) -> Tensor:
        """Normalised patches `(rows, 768)` to codes, int32 `(rows*S,)`."""
        return quantise(self.project(patches, packing), self.levels)

    def project(self, patches: Tensor, packing: Packing) -> Tensor:
        """Normalised patches `(rows, 768)` to the values before quantization, `(rows*S, d)`."""
        return self.head(self.trunk_rows(patches, packing), packing, self.rotations(packing))

    def values(self, patches: Tensor, positions: Tensor, rotations: Tensor, where: Ends) -> Tensor:
        """`project` by the eager head, on what depends on grids made beforehand: `positions(…)`, `rotations(…)`."""
        return head_values(self, self.blocks(patches, positions, where), where, rotations)

    def trunk_rows(self, patches: Tensor, packing: Packing) -> Tensor:
        """Normalised patches `(rows, 768)` to what the quantization head is given, `(rows, C)`."""
        return self.blocks(patches, self.positions(packing), packing)

    def rotations(self, packing: Packing) -> Tensor:
        """Cosines and sines of the head-wise blocks, `(2, rows, S, F)`."""
        return packing.joined(self.rotation_parts(packing), dim=1)

    def rotation_parts(self, packing: Packing) -> list[Tensor]:
        """Those of each image, `(2, N, S, F)`."""
        return [self._rotations[grid] for grid in packing.grids]

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
        made = rope.table(grid, CODES_PER_PATCH, self._headwise_width, weight.dtype)
        if weight.device.type != "cuda":
            return made.to(weight.device)
        return made.pin_memory().to(weight.device, non_blocking=True)  # else it waits for all that is computed there

    def positions(self, packing: Packing) -> Tensor:
        """Position rows of a pack, `(rows, C)`."""
        return packing.joined(self.position_parts(packing))

    def position_parts(self, packing: Packing) -> list[Tensor]:
        """Those of each image, `(N, C)`."""
        # While it is trained gradients must reach the parameter.
        trains = torch.is_grad_enabled() and self.pos_embed.requires_grad
        kept = self._position_cache()
        return [self.position_rows(grid) if trains else kept[grid] for grid in packing.grids]

    def _position_cache(self) -> GridCache:
        """The rows of this parameter as it is now; an optimizer, or other weights, change it."""
        table = self.pos_embed
        now = id(table), table.data_ptr(), 0 if table.is_inference() else table._version
        if now != self._positions_of:
            self._positions, self._positions_of = GridCache(self.position_rows), now
        return self._positions

    def blocks(self, patches: Tensor, positions: Tensor, packing: Packing | Ends) -> Tensor:
        """`trunk_rows` on `positions(…)` made beforehand."""
        x: Tensor = self.patch_embed(patches) + positions
        for block in self.trunk:
            x = block(x, packing)
        return x


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
