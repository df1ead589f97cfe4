"""Step C: whether a row's bits depend on how many rows are multiplied and where it lies, by setting; and the speed.

Of torch's product and of Triton's, and whether the two have the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from loadtest.gpu.bits import same_bits
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq.hardware import prepare_cuda

ROWS = (1, 8, 64, 127, *range(128, 16_384 + 1, 128))
"""All that packs have, and some that they never have; of layers that are given sub-tokens four times as many, too."""
TIMED = (256, 512, 1024, 4096, 8192, 16_384)

NEEDS_CUDA = "Triton's kernels are for CUDA, or for a CPU under TRITON_INTERPRET=1"

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """A layer's widths, and the numbers of rows that it is given."""

    inner: int
    out: int
    counts: Sequence[int]


def run(record: Record, device: torch.device, tiny: bool) -> None:
    """torch's own settings first, then without split-K: which numbers of rows give the bits of the most rows. Then the
    same of Triton's product, and how much of it equals torch's without split-K."""
    scale, counts = (64, (1, 8, 32, 64)) if tiny else (1, ROWS)
    # An MLP is given sub-tokens in chunks of no more rows than a pack has.
    layers = {
        name: Shape(_sixteens(inner // scale), _sixteens(out // scale), _counts(counts, fourfold and "fc" not in name))
        for name, (inner, out, fourfold) in LAYERS.items()
    }
    for setting in ("default", "no split-K"):
        if setting != "default" and device.type == "cuda":
            prepare_cuda()
        for name, shape in layers.items():
            _layer(record, {"setting": setting, "layer": name}, F.linear, _operands(shape, device), shape.counts)
    if not runs_triton(device):
        record.add(product="triton", note=NEEDS_CUDA)
        return
    with record.tried(product="triton"):
        _tritons(record, layers, device)


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels are for this device: a GPU, or a CPU where its interpreter was asked for."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _tritons(record: Record, layers: dict[str, Shape], device: torch.device) -> None:
    from loadtest.gpu import kernels

    for name, shape in layers.items():
        operands = _operands(shape, device, kernels.DTYPE)
        for by, by_descriptors in (("triton", False), ("triton, TMA descriptors", True)):
            base = {"product": by, "layer": name}
            with record.tried(**base):
                product = partial(kernels.linear, descriptors=by_descriptors)
                _layer(record, base, product, operands, shape.counts, F.linear)


def _counts(rows: Sequence[int], fourfold: bool) -> list[int]:
    return sorted({*rows, *(4 * count for count in rows)}) if fourfold else list(rows)


def _operands(
    shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What is multiplied, the weights, the bias: `(rows, inner)`, `(out, inner)`, `(out,)`."""
    inner, out, rows = shape.inner, shape.out, shape.counts[-1]
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
        if not same_bits(part, whole[:rows]):
            differ.append(rows)
        if not same_bits(product(x[-rows:].clone(), weight, bias), whole[-rows:]):
            moved.append(rows)
        if not all(
            same_bits(product(x[:rows].clone(), weight, bias), part) for _ in range(3 if rows % 1024 == 0 else 1)
        ):
            unsteady.append(rows)
    row: dict[str, object] = {
        "row_counts": len(counts), "rows_that_differ": differ, "rows_that_differ_at_the_end": moved,
        "rows_not_repeatable": unsteady,
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


def _equal(a: Tensor, b: Tensor) -> float:
    return float((a.contiguous().view(torch.int16) == b.contiguous().view(torch.int16)).float().mean())
