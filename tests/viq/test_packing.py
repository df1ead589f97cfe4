from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viq.attention import attention
from viq.errors import InvalidInput
from viq.packing import Packing

grids = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@given(grids=grids, multiple=st.sampled_from([1, 8, 128]))
def test_images_follow_one_another_with_nothing_between(grids: list[tuple[int, int]], multiple: int) -> None:
    packing = Packing.of(grids, multiple)
    assert packing.spans[0][0] == 0
    assert [end for _, end in packing.spans[:-1]] == [start for start, _ in packing.spans[1:]]
    assert [end - start for start, end in packing.spans] == [h * w for h, w in grids]
    assert packing.patches == sum(h * w for h, w in grids)
    assert packing.rows % multiple == 0
    assert 0 <= packing.rows - packing.patches < multiple
    assert packing.max_seqlen == max(h * w for h, w in grids)


@given(grids=grids, per_patch=st.sampled_from([1, 4]))
def test_split_undoes_pad(grids: list[tuple[int, int]], per_patch: int) -> None:
    packing = Packing.of(grids, 8)
    images = [torch.full((h * w, 3), float(i)) for i, (h, w) in enumerate(grids)]
    padded = packing.pad(torch.cat(images))
    assert padded.shape[0] == packing.rows
    assert not padded[packing.patches :].any()
    parts = packing.split(padded.repeat_interleave(per_patch, 0), per_patch)
    for image, part in zip(images, parts, strict=True):
        assert torch.equal(part, image.repeat_interleave(per_patch, 0))


@given(grids=grids, dim=st.sampled_from([0, 1]))
def test_joined_parts_are_those_of_a_split(grids: list[tuple[int, int]], dim: int) -> None:
    packing = Packing.of(grids, 8)
    images = [torch.full((h * w, 3), float(i + 1)) for i, (h, w) in enumerate(grids)]
    joined = packing.joined([image.movedim(0, dim) for image in images], dim).movedim(dim, 0)
    assert joined.shape == (packing.rows, 3)
    assert not joined[packing.patches :].any()
    for part, image in zip(packing.split(joined), images, strict=True):
        assert torch.equal(part, image)


@pytest.mark.parametrize("bad", [[], [(0, 3)], [(2, 2), (3, -1)]])
def test_grids_without_patches_are_refused(bad: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidInput, match=r"no images|no patches"):
        Packing.of(bad)


@given(grids=grids)
def test_attention_never_crosses_images(grids: list[tuple[int, int]]) -> None:
    packing = Packing.of(grids, 8)
    make = torch.Generator().manual_seed(packing.patches)
    q, k, v = (torch.randn(packing.rows, 2, 16, generator=make) for _ in range(3))
    out = attention(q, k, v, packing)
    for start, end in packing.spans:
        scores = torch.einsum("qhd,khd->hqk", q[start:end].double(), k[start:end].double()) * 16**-0.5
        alone = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end].double())
        assert (out[start:end] - alone).abs().max() < 1e-5
    assert not out[packing.patches :].any()
