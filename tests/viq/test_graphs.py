"""The buffers of recorded graphs; on a CPU, where nothing can be recorded, they are computed on again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from viq import rope
from viq.attention import _DENSE_WIDTH, _cudnn, _flash, _varlen, attention, by_size
from viq.encoder import Encoder, EncoderShape
from viq.errors import InvalidInput
from viq.fp8 import quantise_trunk
from viq.graphs import BUDGETS, SLOTS, Graphs, Pair, check_experiments
from viq.packing import Ends, Packing

SHAPE = EncoderShape(32, 1, 2, 1, 1, 16, 8, (8, 8, 8, 6, 5))


@pytest.fixture(scope="module", params=["float32", "fp8"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(SHAPE)
    torch.nn.init.normal_(made.pos_embed)
    made.requires_grad_(False).eval()
    if request.param == "fp8":
        quantise_trunk(made.to(torch.bfloat16))
    return made


def again(run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
    values, codes = (one.clone() for one in run())

    def replay() -> None:
        for buffer, result in zip((values, codes), run(), strict=True):
            buffer.copy_(result)

    return replay, (values, codes)


def drawn(packing: Packing, encoder: Encoder, seed: int) -> Tensor:
    patches = torch.randn(packing.rows, 768, generator=torch.Generator().manual_seed(seed))
    return patches.to(encoder.project_in.weight.dtype)


@torch.inference_mode()
def test_packs_of_every_kind_have_the_eager_codes_though_they_share_buffers(encoder: Encoder) -> None:
    replayed: list[int] = []

    def record(run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
        replay, results = again(run)

        def counted() -> None:
            replayed.append(len(results[1]) // 4)
            replay()

        return counted, results

    graphs = Graphs(encoder, 128, record)
    assert not graphs.dropped
    replayed.clear()
    packs = ([(16, 16)], [(1, 1)], [(3, 5), (7, 7), (1, 9)], [(2, 2)] * SLOTS, [(15, 17)], [(20, 20), (1, 1)], [(4, 4)])
    for seed, grids in enumerate(packs):
        packing = Packing.of(grids, 128)
        patches = drawn(packing, encoder, seed)
        codes = graphs.codes(patches, packing)
        assert codes is not None
        assert torch.equal(codes, encoder(patches, packing)[: packing.patches * 4]), grids
    assert replayed == [256, 256, 256, 256, 256, 512, 256]
    table, weight = encoder.rotations(Packing.of([(1, 256)])), encoder.project_in.weight
    assert torch.equal(table, rope.table((1, 256), 4, 16, weight.dtype))  # what the buffers were made of is untouched


@torch.inference_mode()
def test_packs_too_large_for_a_graph_are_left_to_the_eager_network(encoder: Encoder) -> None:
    graphs = Graphs(encoder, 512, again)
    for grids in ([(BUDGETS[-1] + 1, 1)], [(1, 1)] * (SLOTS + 1)):
        packing = Packing.of(grids, 512)
        assert graphs.codes(torch.zeros(packing.rows, 768), packing) is None


@torch.inference_mode()
def test_a_graph_is_made_for_sequences_as_long_as_it_computes_and_no_longer_than_need_be(encoder: Encoder) -> None:
    """Attention leaves out what lies beyond the length that its grid was made for, also of the rows of nobody."""
    longest: list[int] = []

    def record(run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
        longest.append(int(run.__self__._where.longest))  # type: ignore[attr-defined]
        return again(run)

    graphs = Graphs(encoder, 256, record)
    assert longest == [256, 256, 512, 256, 768, 256, 1024, 256, 1024, 1536, 256, 1024, 2048]
    for sizes, expected in (
        ((256,), (256, 256)),
        ((200, 100), (512, 256)),
        ((257,), (512, 512)),
        ((250,) * 4, (1024, 256)),
        ((250,) * 5, (1536, 1024)),  # 286 rows are nobody's
        ((1025,), (1536, 1536)),
        ((2000,), (2048, 2048)),
        ((256,) * 8, (2048, 256)),
    ):
        graph = graphs.graph_for(Packing.of([(1, size) for size in sizes], 256))
        assert graph is graphs._graphs[expected], sizes


@torch.inference_mode()
def test_a_graph_that_gives_other_bits_is_dropped_and_its_packs_are_left_to_the_eager_network(encoder: Encoder) -> None:
    def record(run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
        replay, (values, codes) = again(run)

        def wrong() -> None:
            replay()
            if len(codes) == 4 * 384:
                values[0, 0] += 0.01  # less than a code shows

        return wrong, (values, codes)

    graphs = Graphs(encoder, 128, record)
    assert graphs.dropped == [(384, 256), (384, 384)]
    for patches, there in ((256, True), (257, False), (384, False), (385, True)):
        packing = Packing.of([(1, patches)], 128)
        assert (graphs.codes(drawn(packing, encoder, 0), packing) is not None) == there


def test_images_are_attended_by_their_own_size_whatever_lies_beside_them() -> None:
    q, k, v = (torch.randn(200, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    calls: list[tuple[str, int]] = []

    def small(a: Tensor, b: Tensor, c: Tensor, where: Ends) -> Tensor:
        calls.append(("small", len(a)))
        return attention(a, b, c, where)

    def large(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        calls.append(("large", len(a)))
        return attention(a, b, c, Packing.of([(1, len(a))]))

    for sizes, expected in (
        ((20, 30, 50, 60, 7), [("small", 50), ("large", 50), ("large", 60), ("small", 40)]),
        ((50, 49), [("large", 50), ("small", 49), ("large", 101)]),  # the rows of nobody are attended, too
        ((200,), [("large", 200)]),
        ((3,) * 60, [("small", 200)]),
    ):
        calls.clear()
        packing = Packing.of([(1, size) for size in sizes], 200, 50)
        out = by_size(q, k, v, packing, small, large)
        assert calls == expected
        whole = attention(q, k, v, Packing.of([(1, size) for size in sizes]))
        assert torch.equal(out[: packing.patches], whole[: packing.patches])


@pytest.mark.parametrize("width", [96, 256])
def test_the_operators_of_cuda_take_what_they_are_given_by_this_version_of_torch(width: int) -> None:
    """Nothing is computed on the meta device: arguments are matched, and shapes and types follow."""
    rows, heads = 40, 4
    packed = torch.empty(rows, 3, heads, width, dtype=torch.bfloat16, device="meta")
    q, k, v = packed.unbind(1)
    where = Ends(torch.empty(4, dtype=torch.int32, device="meta"), torch.tensor([rows]))
    found = [_varlen(q, k, v, where), _flash(q, k, v, *where), *([_cudnn(q, k, v)] if width <= _DENSE_WIDTH else [])]
    assert all((one.shape, one.dtype) == (q.shape, q.dtype) for one in found)


@pytest.mark.parametrize(
    ("device", "head", "graphs", "from_", "told"),
    [
        ("cpu", "eager", True, 0, "not for head eager on cpu"),
        ("cuda", "compile", False, 4096, "not for head compile on cuda"),
        ("cuda", "eager", True, 2048, "images of up to 2048 are for CUDA graphs"),
        ("cuda", "eager", False, -1, "from -1 patches"),
    ],
)
def test_experiments_that_mean_nothing_or_would_move_codes_are_refused(
    device: str, head: str, graphs: bool, from_: int, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_experiments(torch.device(device), torch.bfloat16, head, ("encoder",), graphs, from_)
    check_experiments(torch.device("cuda"), torch.bfloat16, "eager", ("encoder",), True, 2049)


@pytest.mark.parametrize(("graphs", "from_"), [(True, 0), (False, 4096)])
def test_experiments_are_not_for_float32_whose_attention_is_image_by_image(graphs: bool, from_: int) -> None:
    with pytest.raises(InvalidInput, match="for 16 bits, not for float32"):
        check_experiments(torch.device("cuda"), torch.float32, "eager", ("encoder",), graphs, from_)


@torch.inference_mode()
def test_no_graph_has_a_number_of_rows_whose_products_may_have_other_bits(encoder: Encoder) -> None:
    for multiple, expected in ((128, 384), (512, 512)):
        graphs = Graphs(encoder, multiple, again)
        for patches, rows in ((300, expected), (1025, 1536)):
            graph = graphs.graph_for(Packing.of([(1, patches)], multiple))
            assert graph is not None
            assert graph.rows == rows
