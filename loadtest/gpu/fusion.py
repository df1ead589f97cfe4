"""Step G: what the passes over memory between the products cost, and what torch's compiler makes of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds, wall
from torch import Tensor

from viq import rope
from viq.fsq import quantise
from viq.packing import Packing
from viq.row_probe import row_multiple

PREDICTED = {"add and LayerNorm": "6 of 54 KB a patch and block", "GELU": "24 of 54 KB: 5 % of a 1024² image"}


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Each pass eagerly and compiled, then the whole head; bits and codes beside the times."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = 64 if tiny else 1536
    for rows in (32,) if tiny else (1024, 4096, 16_384):
        with record.tried(what="passes", rows=rows):
            _passes(record, rows, width, dtype, device, compiled=not tiny)
    if tiny:
        record.add(what="head compiled", note="left out of --tiny: compiling takes half a minute")
        return
    with record.tried(what="head"):
        _head(record, device, dtype)


def _head(record: Record, device: torch.device, dtype: torch.dtype) -> None:
    from viq.head_backends import _Compiled

    encoder = network.encoder(device, dtype, False)
    multiple, fused = row_multiple(encoder), _Compiled(encoder)
    for side in (256, 1024):
        packing = Packing.of([(side // 16, side // 16)], multiple)
        x = encoder.trunk_rows(network.inputs(packing, device, dtype), packing)
        table = encoder.rotations(packing)
        real = packing.patches * 4  # what stands in the rows of nobody differs
        eager, other = encoder.head(x, packing, table)[:real], fused(x, packing, table)[:real]
        record.add(
            what="head", side=side, values_equal=float((eager == other).float().mean()),
            codes_equal=float((quantise(eager, encoder.levels) == quantise(other, encoder.levels)).float().mean()),
            eager_ms=seconds(lambda x=x, p=packing, t=table: encoder.head(x, p, t), device) * 1e3,  # type: ignore[misc]
            compiled_ms=seconds(lambda x=x, p=packing, t=table: fused(x, p, t), device) * 1e3,  # type: ignore[misc]
        )  # fmt: skip


def _passes(record: Record, rows: int, width: int, dtype: torch.dtype, device: torch.device, compiled: bool) -> None:
    x, y = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    hidden = torch.randn(rows, 4 * width, device=device, dtype=dtype)
    gain, shift = torch.ones(width, device=device, dtype=dtype), torch.zeros(width, device=device, dtype=dtype)
    weight, bias = torch.randn(4 * width, width, device=device, dtype=dtype), hidden[0].clone()
    heads = torch.randn(rows, 4, 256, device=device, dtype=dtype)
    table = torch.randn(2, rows, 4, 128, device=device, dtype=dtype)

    def add_and_norm() -> Tensor:
        total = x + y
        return total + F.layer_norm(total, (width,), gain, shift, 1e-6)

    calls: dict[str, Callable[[], Tensor]] = {
        "add and LayerNorm": add_and_norm,
        "GELU": lambda: F.gelu(hidden),
        "fc1": lambda: F.linear(x, weight, bias),
        "fc1 and GELU": lambda: F.gelu(F.linear(x, weight, bias)),
        "rotary": lambda: rope.rotate(heads, table),
    }
    for name, call in calls.items():
        row = {"eager_ms": seconds(call, device) * 1e3}
        if compiled:
            fused = torch.compile(call, dynamic=True)
            row["first_ms"] = wall(fused, device) * 1e3
            row["compiled_ms"] = seconds(fused, device) * 1e3
            row["values_equal"] = float((call() == fused()).float().mean())
        record.add(what=name, rows=rows, **row, predicted=PREDICTED.get(name))
