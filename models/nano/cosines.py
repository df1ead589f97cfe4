"""Cosine coefficients of patches and of the 8x8 blocks in them: what the network begins with.

Symbols: `N` patches, laid out channel, row, column as the encoder has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from viq.config import PATCH

COEFFICIENTS = 24
_BLOCK = 8
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5))
_BRIGHT = 14  # of the 24 coefficients; the colour differences share the rest


def frequency_rows(count: int) -> Tensor:
    """Rows `(count, 768)` that take coefficients of about unit variance, the 24 most useful first.

    In each 6 the first 3 are of brightness, as the quantizer has more levels for those.
    """
    bright, first, second = (_ordered(PATCH, colour) for colour in range(3))
    colours = [row for pair in zip(first, second, strict=True) for row in pair]
    leading, rest = bright[:12], [*bright[12:_BRIGHT], *colours[: COEFFICIENTS - _BRIGHT]]
    chosen = [row for i in range(4) for row in (*leading[i::4], *rest[i::4])]
    others = [*bright[_BRIGHT:], *colours[COEFFICIENTS - _BRIGHT :]]
    others.sort(key=lambda row: row[0])
    return torch.stack([basis for _, basis in [*chosen, *others][:count]])


def block_coefficients(patches: Tensor, count: int) -> Tensor:
    """`(N, 768)` to the `count` most useful coefficients of each of a patch's four blocks, `(N, count, 4)`."""
    bright, first, second = (_ordered(_BLOCK, colour) for colour in range(3))
    rows = [bright[0], first[0], second[0], *bright[1:6], *first[1:3], *second[1:3], *bright[6:]][:count]
    basis = torch.stack([row for _, row in rows]).view(count, 3, _BLOCK, _BLOCK)
    cells = patches.view(-1, 3, 2, _BLOCK, 2, _BLOCK)
    return torch.einsum("ncyixj,kcij->nkyx", cells, basis).flatten(2)


def _ordered(side: int, colour: int) -> list[tuple[float, Tensor]]:
    """Frequency and scaled basis of one colour's coefficients, lowest frequency first."""
    n = torch.arange(side)
    cosine = torch.cos(torch.pi * (n + 0.5) * n[:, None] / side) * (2 / side) ** 0.5
    cosine[0] /= 2**0.5
    shade = torch.tensor(_COLOURS[colour])
    shade = shade / shade.norm()
    rows = []
    for v in range(side):
        for u in range(side):
            radius = (u * u + v * v) ** 0.5
            # Photographs' amplitudes fall with the frequency; colour differences are a third of brightness.
            gain = (1 + radius) ** 1.2 * (1.0 if colour == 0 else 3.0) * 1.6 / side
            basis = shade[:, None, None] * torch.outer(cosine[v], cosine[u]) * gain
            rows.append((radius * (1.0 if colour == 0 else 1.8), basis.flatten()))
    return sorted(rows, key=lambda row: row[0])
