"""Additions and rotations go into memory that nobody else holds, and take copies where somebody may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from viq import rope
from viq.encoder import Encoder, EncoderShape
from viq.layers import Block, ResidualMlp, added
from viq.packing import Packing

PACKING = Packing.of([(4, 4)], 16)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block(32, 2)


def test_what_is_put_in_is_not_written_to(block: Block) -> None:
    x = torch.randn(16, 32)
    before = x.clone()
    with torch.inference_mode():
        block(x, PACKING)
        ResidualMlp(32)(x)
    assert torch.equal(x, before)


def test_in_place_and_beside_gradients_the_sum_has_the_same_bits() -> None:
    x, branch = torch.randn(16, 32), torch.randn(16, 32)
    expected = x + branch
    assert torch.equal(added(x, branch.clone().requires_grad_(True) * 1), expected)
    written = branch.clone()
    assert added(x, written) is written
    assert torch.equal(written, expected)


def test_hooks_on_the_way_back_see_a_branch(block: Block) -> None:
    seen: list[object] = []
    for part in (block.attn, block.mlp):
        part.register_full_backward_hook(lambda module, ins, outs: seen.append(outs))
    block(torch.randn(16, 32), PACKING).sum().backward()
    assert len(seen) == 2


def test_under_autocast_the_sum_keeps_the_bits_of_what_was_added_to(block: Block) -> None:
    x = torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x, PACKING).dtype == torch.float32
        with torch.no_grad():
            assert added(x, torch.ones(16, 32, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.fixture
def table() -> Tensor:
    return rope.table((2, 3), 4, 16, torch.float32)


def test_a_rotation_in_place_has_the_bits_of_one_beside_it(table: Tensor) -> None:
    wider = torch.randn(6, 4, 3, 16)  # as queries lie between keys and values
    x, others, kept = wider[:, :, 0], wider[:, :, 1:].clone(), table.clone()
    expected = rope.rotate(x.clone(), table)
    assert rope.rotate_(x, table) is x
    assert torch.equal(wider[:, :, 0], expected)
    assert torch.equal(wider[:, :, 1:], others)
    assert torch.equal(table, kept)


def test_what_a_gradient_is_wanted_of_is_not_rotated_in_place(table: Tensor) -> None:
    x = torch.randn(6, 4, 16, requires_grad=True)
    before = x.detach().clone()
    rotated = rope.rotate_(x, table)
    assert torch.equal(rotated.detach(), rope.rotate_(before.clone(), table))
    assert torch.equal(x.detach(), before)
    rotated.square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * before, atol=1e-5)  # a rotation keeps lengths


@pytest.mark.parametrize("rotate", [rope.rotate, rope.rotate_])
def test_a_rotation_by_a_table_of_more_bits_is_not_rounded_halfway(
    table: Tensor, rotate: Callable[[Tensor, Tensor], Tensor]
) -> None:
    x = torch.randn(6, 4, 16).to(torch.bfloat16)
    before = x.clone()
    assert torch.equal(rotate(x, table), rope.rotate(before.float(), table))
    assert torch.equal(x, before)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(EncoderShape(32, 1, 2, 1, 1, 16, 8, (8, 8, 8, 6, 5)))
    torch.nn.init.normal_(made.pos_embed)
    return made


def test_tables_kept_from_inference_serve_training_too(encoder: Encoder) -> None:
    patches = torch.randn(16, 768)
    with torch.inference_mode():
        expected = encoder.project(patches, PACKING)
    found = encoder.project(patches, PACKING)
    assert torch.allclose(found.detach(), expected, atol=1e-5)
    found.square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.headwise.parameters())


def test_what_is_encoded_changes_no_table_that_is_kept(encoder: Encoder) -> None:
    with torch.inference_mode():
        before = encoder.rotations(PACKING).clone(), encoder.positions(PACKING).clone()
        for packing in (PACKING, Packing.of([(4, 4), (3, 5)], 16)):
            encoder(torch.randn(packing.rows, 768), packing)
        assert torch.equal(encoder.rotations(PACKING), before[0])
        assert torch.equal(encoder.positions(PACKING), before[1])
