"""Step F: CUDA graphs against the eager network on packs of up to 2k patches, bit by bit and in time."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
from loadtest.gpu import network
from loadtest.gpu.bits import same_bits
from loadtest.gpu.record import Record
from loadtest.gpu.timing import held_mib, seconds, wall

from viq.encoder import Encoder
from viq.graphs import BUDGETS, Graphs
from viq.packing import Packing
from viq.row_probe import row_multiple

GRIDS = (
    ((16, 16),),
    ((4, 4),),
    ((16, 16), (8, 8), (1, 1)),
    ((16, 16),) * 3,
    ((32, 32),),
    ((16, 16),) * 5 + ((3, 50),),
    ((32, 32), (16, 16), (16, 16)),
    ((16, 16), (15, 16)),
    ((8, 8),) * 30,
    ((45, 45),),
)
PREDICTED_LONE_256_MS = 4.0
_LONE_CALLS = 20


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Each pack eagerly and by a graph; on a CPU, where there are none, the same buffers are computed on again."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = network.encoder(device, dtype, tiny)
    multiple, before = row_multiple(encoder), held_mib(device)
    begun = perf_counter()
    graphs = Graphs(encoder, multiple, None if device.type == "cuda" else network.again)
    record.add(
        what="recording all of them", seconds=perf_counter() - begun, held_mib_before=before,
        held_mib=held_mib(device), dropped=graphs.dropped, holds=not graphs.dropped,
    )  # fmt: skip
    for grids in GRIDS[1:3] if tiny else GRIDS:
        with record.tried(grids=[list(grid) for grid in grids]):
            _pack(record, encoder, graphs, grids, Packing.of(grids, multiple), device, dtype)


def _pack(
    record: Record, encoder: Encoder, graphs: Graphs, grids: tuple[tuple[int, int], ...], packing: Packing,
    device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    x = network.inputs(packing, device, dtype)
    graph = graphs.graph_for(packing)
    if graph is None:
        raise RuntimeError(f"no graph for {packing.patches} patches: over {BUDGETS[-1]}, or dropped")
    values, codes = graph.replayed(x, packing)
    equal = same_bits(values, encoder.project(x, packing)[: len(values)])
    codes_equal = torch.equal(codes, encoder(x, packing)[: len(codes)])
    taken = {}
    for name, call in (("eager", lambda: encoder(x, packing)), ("graph", lambda: graphs.codes(x, packing))):
        taken[f"{name}_ms"] = seconds(call, device, queued=False) * 1e3
        taken[f"{name}_alone_ms"] = median(wall(call, device) for _ in range(_LONE_CALLS)) * 1e3
    record.add(
        grids=[list(grid) for grid in grids], patches=packing.patches, rows=graph.rows, longest=graph.longest,
        values_equal=equal, codes_equal=codes_equal, holds=equal and codes_equal, **taken,
        predicted_ms=PREDICTED_LONE_256_MS if grids == GRIDS[0] else None,
    )  # fmt: skip
