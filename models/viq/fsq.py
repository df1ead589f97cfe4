"""Finite scalar quantization: reals to level indices to one code, and back (model.md, quantization head, 5).

Symbols: `d` dimensions, `L` levels of one dimension, `K = prod(L)` codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import atanh, prod

import torch
from torch import Tensor

from viq.elementwise import apply

_EPS = 1e-3


def basis(levels: Sequence[int]) -> list[int]:
    """Weight of each dimension's level index in a code: `[1, L0, L0*L1, …]`."""
    return [prod(levels[:i]) for i in range(len(levels))]


def bound(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Squash reals `(M, d)` into the levels' range, float32: what `quantise` rounds."""
    half, offset, shift = squashing(tuple(levels), z.device)
    shifted = z.float() + shift
    if torch.is_grad_enabled() and z.requires_grad:
        return torch.tanh(shifted) * half - offset
    return apply(torch.tanh_, shifted.contiguous()) * half - offset


def quantise(z: Tensor, levels: Sequence[int]) -> Tensor:
    """`project_in`'s output `(M, d)` to codes, int32 `(M,)`; values that are no numbers give -1, which is no code."""
    centre, weights = numbering(tuple(levels), z.device)
    return codes_of(bound(z, levels), centre, weights)


def codes_of(bounded: Tensor, centre: Tensor, weights: Tensor) -> Tensor:
    """What `bound` gave to codes as `quantise` does; see `numbering`. TorchScript, too."""
    indices = torch.round(bounded).to(torch.int32) + centre
    codes = (indices * weights).sum(dim=-1, dtype=torch.int32)
    return codes.masked_fill(bounded.isnan().any(dim=-1), -1)


def codebook(levels: Sequence[int]) -> Tensor:
    """Values of every code, float32 `(K, d)` in [-1, 1]."""
    codes = torch.arange(prod(levels), device="cpu")[:, None]
    sizes, weights = torch.tensor(levels, device="cpu"), torch.tensor(basis(levels), device="cpu")
    half = sizes // 2
    return ((codes // weights) % sizes - half).to(torch.float32) / half


# Kept on the device: a copy there waits for all that it still computes. Not inference tensors: training uses them, too.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def squashing(levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What `bound` shifts, stretches and moves by, each `(d,)`: `tanh(z + shift) * half - offset`."""
    columns = zip(*(_squash(level) for level in levels), strict=True)
    half, offset, shift = (torch.tensor(values, dtype=torch.float32, device=device) for values in columns)
    return half, offset, shift


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def numbering(levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Level index of zero, and weight in a code, of each dimension `(d,)`."""
    centre = torch.tensor([level // 2 for level in levels], device=device)
    return centre, torch.tensor(basis(levels), dtype=torch.int32, device=device)


def _squash(level: int) -> tuple[float, float, float]:
    half = (level - 1) * (1 + _EPS) / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return half, offset, atanh(offset / half)
