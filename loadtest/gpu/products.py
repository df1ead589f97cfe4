"""Step C: whether a row's bits depend on how many rows are multiplied and where it lies, by setting; and the speed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq.hardware import prepare_cuda

ROWS = (1, 8, 64, 127, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2816, 4096, 5632, 8192, 8448, 11_264, 16_384)
TIMED = (256, 512, 1024, 4096, 8192, 16_384)


def run(record: Record, device: torch.device, tiny: bool) -> None:
    """torch's own settings first, then without split-K: which numbers of rows give the bits of the most rows."""
    scale, counts = (64, (1, 8, 32, 64)) if tiny else (1, ROWS)
    for setting in ("default", "no split-K"):
        if setting != "default" and device.type == "cuda":
            prepare_cuda()
        for name, (inner, out, _) in LAYERS.items():
            _layer(record, {"setting": setting, "layer": name}, max(16, inner // scale), max(16, out // scale), counts,
                   device)  # fmt: skip


def _layer(
    record: Record, base: dict[str, str], inner: int, out: int, counts: Sequence[int], device: torch.device
) -> None:
    draw = torch.Generator(device).manual_seed(inner + out)
    x = torch.randn(counts[-1], inner, device=device, generator=draw).to(torch.bfloat16)
    weight = (torch.randn(out, inner, device=device, generator=draw) * inner**-0.5).to(torch.bfloat16)
    bias = torch.randn(out, device=device, generator=draw).to(torch.bfloat16)
    whole = F.linear(x, weight, bias)
    differ, moved, unsteady = [], [], []
    for rows in counts[:-1]:
        part = F.linear(x[:rows].clone(), weight, bias)
        if not _same(part, whole[:rows]):
            differ.append(rows)
        if not _same(F.linear(x[-rows:].clone(), weight, bias), whole[-rows:]):
            moved.append(rows)
        if not all(_same(F.linear(x[:rows].clone(), weight, bias), part) for _ in range(3)):
            unsteady.append(rows)
    record.add(**base, rows_that_differ=differ, rows_that_differ_at_the_end=moved, rows_not_repeatable=unsteady)
    for rows in [rows for rows in TIMED if rows <= counts[-1]]:
        took = seconds(lambda rows=rows: F.linear(x[:rows], weight, bias), device)  # type: ignore[misc]
        record.add(**base, rows=rows, ms=took * 1e3, tflops=2 * rows * inner * out / took / 1e12)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))
