"""Step C: whether a row's bits depend on how many rows are multiplied and where it lies, by setting; and the speed.

Of torch's product and of Triton's, and whether the two have the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq.hardware import prepare_cuda

ROWS = (1, 8, 64, 127, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2816, 4096, 5632, 8192, 8448, 11_264, 16_384)
TIMED = (256, 512, 1024, 4096, 8192, 16_384)

NEEDS_CUDA = "Triton's kernels are for CUDA, or for a CPU under TRITON_INTERPRET=1"

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(record: Record, device: torch.device, tiny: bool) -> None:
    """torch's own settings first, then without split-K: which numbers of rows give the bits of the most rows. Then the
    same of Triton's product, and how much of it equals torch's without split-K."""
    scale, counts = (64, (1, 8, 32, 64)) if tiny else (1, ROWS)
    layers = {name: (_sixteens(inner // scale), _sixteens(out // scale)) for name, (inner, out, _) in LAYERS.items()}
    for setting in ("default", "no split-K"):
        if setting != "default" and device.type == "cuda":
            prepare_cuda()
        for name, (inner, out) in layers.items():
            _layer(
                record, {"setting": setting, "layer": name}, F.linear, _operands(inner, out, counts[-1], device), counts
            )
    if not runs_triton(device):
        record.add(product="triton", note=NEEDS_CUDA)
        return
    with record.tried(product="triton"):
        _tritons(record, layers, counts, device)


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels are for this device: a GPU, or a CPU where its interpreter was asked for."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _tritons(record: Record, layers: dict[str, tuple[int, int]], counts: Sequence[int], device: torch.device) -> None:
    from loadtest.gpu import kernels

    for name, (inner, out) in layers.items():
        operands = _operands(inner, out, counts[-1], device, kernels.DTYPE)
        for product, by_descriptors in (("triton", False), ("triton, TMA descriptors", True)):
            base = {"product": product, "layer": name}
            with record.tried(**base):
                _layer(record, base, partial(kernels.linear, descriptors=by_descriptors), operands, counts, F.linear)


def _operands(
    inner: int, out: int, rows: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """What is multiplied, the weights, the bias: `(rows, inner)`, `(out, inner)`, `(out,)`."""
    draw = torch.Generator(device).manual_seed(inner + out)
    x = torch.randn(rows, inner, device=device, generator=draw).to(dtype)
    weight = (torch.randn(out, inner, device=device, generator=draw) * inner**-0.5).to(dtype)
    return x, weight, torch.randn(out, device=device, generator=draw).to(dtype)


def _layer(
    record: Record, base: dict[str, str], product: Product, operands: tuple[Tensor, Tensor, Tensor],
    counts: Sequence[int], other: Product | None = None,
) -> None:  # fmt: skip
    """Bits and speed of a layer's `product`, by rows; and the share of its values that has the bits of `other`."""
    x, weight, bias = operands
    whole = product(x, weight, bias)
    differ, moved, unsteady = [], [], []
    for rows in counts[:-1]:
        part = product(x[:rows].clone(), weight, bias)
        if not _same(part, whole[:rows]):
            differ.append(rows)
        if not _same(product(x[-rows:].clone(), weight, bias), whole[-rows:]):
            moved.append(rows)
        if not all(_same(product(x[:rows].clone(), weight, bias), part) for _ in range(3)):
            unsteady.append(rows)
    row: dict[str, object] = {
        "rows_that_differ": differ, "rows_that_differ_at_the_end": moved, "rows_not_repeatable": unsteady,
    }  # fmt: skip
    if other is not None:
        shares = [_equal(product(x[:rows], weight, bias), other(x[:rows], weight, bias)) for rows in counts]
        row |= {"counts": counts, "equal_to_torch": shares}
    record.add(**base, **row)
    for rows in [rows for rows in TIMED if rows <= counts[-1]]:
        took = seconds(lambda rows=rows: product(x[:rows], weight, bias), x.device)  # type: ignore[misc]
        record.add(**base, rows=rows, ms=took * 1e3, tflops=2 * rows * weight.numel() / took / 1e12)


def _sixteens(width: int) -> int:
    return max(16, width // 16 * 16)  # Triton's product is for these only; so are all widths of the network


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))


def _equal(a: Tensor, b: Tensor) -> float:
    return float((a.contiguous().view(torch.int16) == b.contiguous().view(torch.int16)).float().mean())
