"""Two-dimensional rotary embedding of the head-wise blocks ("golden gate": every frequency has its own direction).

Symbols: `S` = 4 sub-tokens as heads, `F = D/2` frequencies a head, `N = h*w` patches.
"""

from __future__ import annotations

from functools import partial
from math import pi, sqrt

import torch
from torch import Tensor

from viq.elementwise import apply
from viq.hardware import functional

_GOLDEN = pi * (sqrt(5) - 1) / 2
_SLOWEST, _FASTEST = 0.2, 20.0


def angles(grid: tuple[int, int], heads: int, head_dim: int) -> Tensor:
    """Angle of each patch, head and frequency, float32 `(N, S, F)` on the CPU (model.md, quantization head, 4)."""
    h, w = grid
    frequencies = head_dim // 2
    still = round(frequencies / 4)
    line = partial(torch.linspace, dtype=torch.float32, device="cpu")  # whatever the process's defaults are
    moving = _SLOWEST * (_FASTEST / _SLOWEST) ** line(0, 1, frequencies - still)
    omega = torch.cat([moving.new_zeros(still), moving])
    steps = torch.arange(heads * frequencies, dtype=torch.float32, device="cpu")
    phi = steps.view(heads, frequencies) * _GOLDEN
    cos, sin = (apply(f, phi.clone()) for f in (torch.cos_, torch.sin_))
    x = line(-sqrt(w / h), sqrt(w / h), w).view(1, w, 1, 1)
    y = line(-sqrt(h / w), sqrt(h / w), h).view(h, 1, 1, 1)
    return (omega * (x * cos + y * sin)).view(h * w, heads, frequencies)


def table(grid: tuple[int, int], heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of `angles`, `(2, N, S, F)` in `dtype`, the cast coming before both as in the released code."""
    theta = angles(grid, heads, head_dim).to(dtype)
    return torch.stack([apply(torch.cos_, theta.clone()), apply(torch.sin_, theta.clone())])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate `(N, S, D)` by `table` `(2, N, S, F)`; element `i` pairs with `i + F`."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = table[0], table[1]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def rotate_(x: Tensor, table: Tensor) -> Tensor:
    """`rotate`, of the same bits, written over `x`, which nobody else may hold; returns it.

    Something new comes back where a gradient, autocast or a graph for others may want `x` as it was.
    """
    if functional() or (torch.is_grad_enabled() and x.requires_grad) or x.dtype != table.dtype:
        return rotate(x, table)
    a, b = x.chunk(2, dim=-1)
    cos, sin = table[0], table[1]
    of_a, of_b = a * sin, b * sin
    a.mul_(cos).sub_(of_b)
    b.mul_(cos).add_(of_a)
    return x
