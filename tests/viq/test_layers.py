"""Additions and rotations go into memory that nobody else holds, and take copies where somebody may."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from viq import rope
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


def test_a_rotation_has_the_same_values_with_gradients_and_without() -> None:
    x, table = torch.randn(6, 4, 16), rope.table((2, 3), 4, 16, torch.float32)
    before = x.clone(), table.clone()
    with_gradients = rope.rotate(x.clone().requires_grad_(True), table)
    assert torch.equal(rope.rotate(x, table), with_gradients.detach())
    assert torch.equal(x, before[0])
    assert torch.equal(table, before[1])


def test_a_rotation_by_a_table_of_more_bits_is_not_rounded_halfway() -> None:
    x, table = torch.randn(6, 4, 16).to(torch.bfloat16), rope.table((2, 3), 4, 16, torch.float32)
    expected: Tensor = rope.rotate(x.float(), table)
    assert torch.equal(rope.rotate(x, table), expected)
