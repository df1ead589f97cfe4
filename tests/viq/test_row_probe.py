from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import viq.layers
from viq.layers import Linear
from viq.linear import linear
from viq.row_probe import FIRST, row_multiple


def network() -> nn.Module:
    make = torch.Generator().manual_seed(0)
    layers = nn.Sequential(Linear(96, 40), Linear(40, 5))
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=make))
    return layers


def another_kernel_below(rows: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A product that sums in another order for fewer than `rows` rows, as libraries do."""

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.shape[0] < rows:
            half = x.shape[1] // 2
            return x[:, :half] @ weight[:, :half].T + (x[:, half:] @ weight[:, half:].T + bias)
        return linear(x, weight, bias)

    return product


def test_packs_are_rounded_to_what_the_library_here_needs() -> None:
    found = row_multiple(network())
    assert found in (FIRST["cpu"], 2 * FIRST["cpu"])


@pytest.mark.parametrize("needed", [64, 128, 256])
def test_a_library_that_needs_more_rows_gets_them(monkeypatch: pytest.MonkeyPatch, needed: int) -> None:
    monkeypatch.setattr(viq.layers, "linear", another_kernel_below(needed))
    assert row_multiple(network()) == needed


def test_a_library_that_never_settles_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viq.layers, "linear", another_kernel_below(512))
    with pytest.warns(UserWarning, match="codes may depend on the batch"):
        assert row_multiple(network()) == 512
