from __future__ import annotations

from math import prod

import pytest
import torch

from viq.config import VARIANTS
from viq.fsq import basis, bound, codebook, quantise

SIZES = sorted(VARIANTS)


@pytest.mark.parametrize("size", SIZES)
def test_every_code_of_the_codebook_is_quantised_to_itself(size: str) -> None:
    levels = VARIANTS[size].levels
    book = codebook(levels)
    assert book.shape == (VARIANTS[size].codebook_size, len(levels))
    assert book.abs().max() <= 1
    # The inverse of `bound`: what must go in so that exactly these level values come out.
    half = torch.tensor([(level - 1) * (1 + 1e-3) / 2 for level in levels], dtype=torch.float64)
    offset = torch.tensor([0.5 if level % 2 == 0 else 0.0 for level in levels], dtype=torch.float64)
    values = book.double() * torch.tensor([level // 2 for level in levels])
    z = torch.atanh((values + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantise(z.float(), levels), torch.arange(prod(levels), dtype=torch.int32))


@pytest.mark.parametrize("size", SIZES)
def test_extreme_values_stay_inside_the_codebook(size: str) -> None:
    levels = VARIANTS[size].levels
    z = torch.tensor([[s * 1e30] * len(levels) for s in (-1.0, 0.0, 1.0)])
    codes = quantise(z, levels)
    assert codes[0] == 0
    assert codes[2] == prod(levels) - 1
    assert 0 < codes[1] < prod(levels)


def test_the_first_dimension_counts_fastest() -> None:
    assert basis((8, 8, 8, 6, 5)) == [1, 8, 64, 512, 3072]
    assert codebook((8, 8, 4, 3, 3))[:9, 0].tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, -1]


def test_ties_round_to_even() -> None:
    # Three levels have no shift, so tanh(z) * half is the value itself: 0.5 is a tie between 0 and 1.
    z = torch.atanh(torch.tensor([[0.5 / 1.001]], dtype=torch.float64)).float()
    value = bound(z, (3,))
    assert abs(float(value) - 0.5) < 1e-6
    assert int(quantise(z, (3,))) == int(torch.round(value)) + 1
