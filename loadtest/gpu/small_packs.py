"""Step F: CUDA graphs against the eager network on packs of up to 2k patches, bit by bit and in time."""

from __future__ import annotations

import torch
from loadtest.gpu import network
from loadtest.gpu.record import Record
from loadtest.gpu.timing import peak_mib, seconds, wall

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
    ((45, 45),),
)
PREDICTED_LONE_256_MS = 4.0


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Each pack eagerly and by a graph; on a CPU, where there are none, the same buffers are computed on again."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = network.encoder(device, dtype, tiny)
    multiple = row_multiple(encoder)
    graphs = Graphs(encoder, multiple, None if device.type == "cuda" else network.again)
    for grids in GRIDS[1:3] if tiny else GRIDS:
        with record.tried(grids=[list(grid) for grid in grids]):
            _pack(record, encoder, graphs, grids, Packing.of(grids, multiple), device, dtype)


def _pack(
    record: Record, encoder: Encoder, graphs: Graphs, grids: tuple[tuple[int, int], ...], packing: Packing,
    device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    x = network.inputs(packing, device, dtype)
    codes = graphs.codes(x, packing)
    if codes is None:
        raise RuntimeError(f"{packing.patches} patches are over the largest graph, {BUDGETS[-1]}")
    real = encoder(x, packing)[: codes.shape[0]]
    taken = {}
    for name, call in (("eager", lambda: encoder(x, packing)), ("graph", lambda: graphs.codes(x, packing))):
        taken[f"{name}_ms"] = seconds(call, device) * 1e3
        taken[f"{name}_alone_ms"] = wall(call, device) * 1e3
    record.add(
        grids=[list(grid) for grid in grids], patches=packing.patches, equal=torch.equal(codes, real), **taken,
        predicted_ms=PREDICTED_LONE_256_MS if grids == GRIDS[0] else None, peak_mib=peak_mib(device),
    )  # fmt: skip
