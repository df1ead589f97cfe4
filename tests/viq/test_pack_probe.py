from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import viq.head
import viq.layers
from viq.attention import attention, by_size
from viq.encoder import Encoder, EncoderShape
from viq.pack_probe import encoder_is_invariant, head_is_invariant
from viq.packing import Ends, Packing

MULTIPLE = 64


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(EncoderShape(32, 1, 2, 1, 1, 16, 8, (8, 8, 8, 6, 5)))
    torch.nn.init.normal_(made.pos_embed)
    return made.requires_grad_(False).eval()


def known_to(pack: Callable[[Packing], bool]) -> Callable[[Tensor, Tensor, Tensor, Packing | Ends], Tensor]:
    """Attention that is another one, by little, for such packs."""

    def other(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
        out = attention(q, k, v, packing)
        return out * 1.001 if isinstance(packing, Packing) and pack(packing) else out

    return other


def test_the_network_as_it_is_passes(encoder: Encoder) -> None:
    assert encoder_is_invariant(encoder, MULTIPLE, 0)
    assert encoder_is_invariant(encoder, MULTIPLE, 2500)
    assert head_is_invariant(encoder, MULTIPLE)


@pytest.mark.parametrize(
    "pack",
    [
        lambda packing: len(packing.grids) > 1,
        lambda packing: packing.grids[0] == (45, 46) and len(packing.grids) > 1,
        lambda packing: packing.rows > 2112,  # an image of 2070 patches with others
    ],
    ids=["company", "reversed", "rows"],
)
def test_attention_that_knows_the_pack_is_found_out(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Packing], bool]
) -> None:
    monkeypatch.setattr(viq.layers, "attention", known_to(pack))
    assert not encoder_is_invariant(encoder, MULTIPLE, 0)


def test_attention_of_large_images_is_tried_where_it_is_another(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where images from `dense_from` patches on are attended one by one."""
    tried: list[int] = []
    company: list[bool] = []

    def large(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tried.append(len(q))
        return attention(q, k, v, Packing.of([(1, len(q))])) * (1.001 if company[-1] else 1)

    def attended(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
        assert isinstance(packing, Packing)
        company.append(knows and len(packing.grids) > 1)
        return by_size(q, k, v, packing, attention, large)

    monkeypatch.setattr(viq.layers, "attention", attended)
    knows = False
    assert encoder_is_invariant(encoder, MULTIPLE, 2500)
    assert set(tried) == {79 * 32}
    knows = True
    assert not encoder_is_invariant(encoder, MULTIPLE, 2500)


def test_a_head_that_knows_the_pack_is_found_out(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viq.head, "attention", known_to(lambda packing: len(packing.grids) > 1))
    assert not head_is_invariant(encoder, MULTIPLE)
    assert not encoder_is_invariant(encoder, MULTIPLE, 0)
