from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import viq.fp8
import viq.layers
import viq.model
import viq.row_probe
from viq import ViQ
from viq.embedder import Embedder
from viq.fp8 import Fp8Linear
from viq.layers import Linear, Mlp
from viq.linear import linear
from viq.row_probe import FIRST, UNSETTLED, row_multiple


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
    assert found in [FIRST["cpu"] * times for times in (1, 2, 4, 8)]


@pytest.mark.parametrize("needed", [64, 128, 256])
def test_a_library_that_needs_more_rows_gets_them(monkeypatch: pytest.MonkeyPatch, needed: int) -> None:
    monkeypatch.setattr(viq.layers, "linear", another_kernel_below(needed))
    assert row_multiple(network()) == needed


def test_a_library_that_never_settles_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viq.layers, "linear", another_kernel_below(512))
    with pytest.warns(UserWarning, match="codes may depend on the batch"):
        assert row_multiple(network()) == 512


def test_a_kernel_of_one_number_of_rows_is_met_where_all_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = row_multiple(network())

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return another_kernel_below(3 * usual + 1 if x.shape[0] == 3 * usual else 0)(x, weight, bias)

    monkeypatch.setattr(viq.layers, "linear", product)
    assert row_multiple(network()) == usual  # once, twice and five times that are tried on a CPU
    monkeypatch.setattr(viq.row_probe, "_EVERY", {"cpu"})
    assert row_multiple(network()) == 2 * usual


def test_where_all_are_tried_sub_tokens_are_four_times_the_rows_of_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x, weight, bias) * (1.02 if x.shape[0] == 1920 else 1)  # 4 x 480, which is 15 x 32

    mlp = Mlp(96, 40, 5).requires_grad_(False)
    usual = row_multiple(nn.ModuleList([network(), mlp]))
    monkeypatch.setattr(viq.layers, "linear", product)
    assert row_multiple(network()) == usual
    monkeypatch.setattr(viq.row_probe, "_EVERY", {"cpu"})
    assert row_multiple(network()) == max(usual, 64)  # of which 480 is no multiple
    assert row_multiple(nn.ModuleList([mlp])) == usual  # it is given its rows in chunks
    like_another = nn.ModuleList([Linear(96, 40).requires_grad_(False), mlp])
    assert row_multiple(like_another) == row_multiple(like_another[::-1]) == max(usual, 64)


def test_a_layer_in_8_bits_is_probed_beside_one_of_its_shape_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network().to(torch.bfloat16)
    first = plain.get_submodule("0")
    assert isinstance(first, Linear)
    mixed = nn.Sequential(Fp8Linear(first), plain)
    usual = row_multiple(mixed)
    assert usual < 128

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # By more than another order of sums makes: few of those are seen after rounding to 16 bits.
        return linear(x, weight, bias) * (1.02 if x.shape[0] < 128 else 1)

    monkeypatch.setattr(viq.fp8, "linear", product)
    assert row_multiple(plain) == usual
    assert row_multiple(mixed) == 128


def test_what_the_embedder_needs_is_no_matter_for_the_fingerprint_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ViQ.from_pretrained(device="cpu", parts=("encoder",))
    monkeypatch.setattr(viq.model, "row_multiple", lambda part: UNSETTLED if isinstance(part, Embedder) else 32)
    both = ViQ.from_pretrained(device="cpu", parts=("encoder", "embedder"))
    assert both.row_multiple == UNSETTLED
    assert both.invariant
    assert both.fingerprint == alone.fingerprint
