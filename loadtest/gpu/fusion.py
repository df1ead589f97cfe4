"""Step G: what the passes over memory between the products cost, and what torch's compiler and Triton make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.products import NEEDS_CUDA, runs_triton
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds, wall
from torch import Tensor

from viq import rope
from viq.fsq import quantise
from viq.hardware import prepare_cuda
from viq.linear import linear_gelu
from viq.packing import Packing
from viq.row_probe import row_multiple

PREDICTED = {
    "add and LayerNorm": "6 of 54 KB a patch and block",
    "GELU": "24 of 54 KB: 5 % of a 1024² image",
    "fc1 and GELU": "Triton's breaks even at about 580 TFLOP/s, saves about 2 % of a 1024² image at 650",
    "rotary": "14 launches to one",
}


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Each pass eagerly and compiled, then the whole head, then Triton's kernels; bits and codes beside the times."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = 64 if tiny else 1536
    for rows in (32,) if tiny else (1024, 4096, 16_384):
        with record.tried(what="passes", rows=rows):
            _passes(record, rows, width, dtype, device, compiled=not tiny)
    if tiny:
        record.add(what="head compiled", note="left out of --tiny: compiling takes half a minute")
    else:
        with record.tried(what="head"):
            _head(record, device, dtype)
    if not runs_triton(device):
        record.add(by="triton", note=NEEDS_CUDA)
        return
    with record.tried(by="triton"):  # last: a kernel that goes astray takes the process's CUDA with it
        _tritons(record, (1, 32) if tiny else (256, 1024, 4096, 16_384), width, device)


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
            eager_ms=seconds(lambda x=x, p=packing, t=table: encoder.head(x, p, t), device, queued=False) * 1e3,  # type: ignore[misc]
            compiled_ms=seconds(lambda x=x, p=packing, t=table: fused(x, p, t), device, queued=False) * 1e3,  # type: ignore[misc]
        )  # fmt: skip


def _tritons(record: Record, counts: Sequence[int], width: int, device: torch.device) -> None:
    from loadtest.gpu import kernels

    if device.type == "cuda":
        prepare_cuda()
    draw = torch.Generator(device).manual_seed(width)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=draw).to(kernels.DTYPE)

    weight, bias, gain, shift = drawn(4 * width, width) * width**-0.5, drawn(4 * width), drawn(width), drawn(width)
    for rows in counts:
        x, y, wide, table = drawn(rows, width), drawn(rows, width), drawn(rows, 4, 3, 256), drawn(2, rows, 4, 128)
        heads = wide.unbind(2)[0]  # the queries lie between keys and values

        def normed(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
            total = x + y
            return total, F.layer_norm(total, (width,), gain, shift, 1e-6)

        fc1 = partial(linear_gelu, x, weight, bias)
        pairs: dict[tuple[str, str], tuple[Callable[[], object], Callable[[], object]]] = {
            ("fc1 and GELU", "triton"): (partial(kernels.linear, x, weight, bias, gelu=True), fc1),
            ("fc1 and GELU", "triton, TMA descriptors"): (
                partial(kernels.linear, x, weight, bias, gelu=True, descriptors=True), fc1,
            ),
            ("rotary", "triton"): (partial(kernels.rotate, heads, table), partial(rope.rotate, heads, table)),
            ("add and LayerNorm", "triton"): (partial(kernels.add_norm, x, y, gain, shift, 1e-6), normed),
        }  # fmt: skip
        for (name, by), (ours, eager) in pairs.items():
            with record.tried(what=name, by=by, rows=rows):
                row: dict[str, object] = {"first_ms": wall(ours, device) * 1e3}
                took = seconds(ours, device)
                row |= {"ms": took * 1e3, "eager_ms": seconds(eager, device) * 1e3}
                if name == "fc1 and GELU":
                    row["tflops"] = 2 * rows * weight.numel() / took / 1e12
                row["values_equal"] = _shares(ours(), eager())
                record.add(what=name, by=by, rows=rows, **row, predicted=PREDICTED[name])


def _shares(ours: object, theirs: object) -> list[float]:
    """The share of equal values, of each tensor that was returned."""
    pairs = [(ours, theirs)] if isinstance(ours, Tensor) else zip(ours, theirs, strict=True)  # type: ignore[call-overload]
    return [float((a == b).float().mean()) for a, b in pairs]


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
        record.add(what=name, rows=rows, eager_ms=seconds(call, device) * 1e3, predicted=PREDICTED.get(name))
        if not compiled:
            continue
        with record.tried(what=f"{name}, compiled", rows=rows):
            fused = torch.compile(call, dynamic=True)
            record.add(
                what=f"{name}, compiled", rows=rows, first_ms=wall(fused, device) * 1e3,
                ms=seconds(fused, device) * 1e3, values_equal=float((call() == fused()).float().mean()),
            )  # fmt: skip
