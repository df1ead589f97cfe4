"""Step I: float16 and fp8 beside bfloat16: how fast their products are, and how many codes agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq import layers
from viq.row_probe import row_multiple

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of float8_e4m3fn
PREDICTED = {"float16 and float32": 0.985, "bfloat16 and float32": 0.89, "fp8 and bfloat16": 0.3}


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Products of each type, then the codes of one pack in each, against those of float32."""
    rows, scale = (64, 64) if tiny else (8192, 1)
    for name, (inner, out, _) in LAYERS.items():
        _products(record, name, rows, max(16, inner // scale), max(16, out // scale), device)
    codes = {}
    for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        codes[kind] = _codes(device, dtype, tiny)
    ours = vars(layers)["linear"]
    vars(layers)["linear"] = _emulated
    try:
        codes["fp8"] = _codes(device, torch.bfloat16, tiny)
    finally:
        vars(layers)["linear"] = ours
    for one, other in (("bfloat16", "float32"), ("float16", "float32"), ("fp8", "bfloat16"), ("fp8", "float32")):
        equal = float((codes[one] == codes[other]).float().mean())
        record.add(what="codes", of=[one, other], equal=equal, numbers=bool((codes[one] >= 0).all()),
                   predicted=PREDICTED.get(f"{one} and {other}"))  # fmt: skip


def _products(record: Record, name: str, rows: int, inner: int, out: int, device: torch.device) -> None:
    row: dict[str, object] = {}
    for kind in ("bfloat16", "float16", "fp8"):
        dtype = torch.float16 if kind == "float16" else torch.bfloat16
        x, weight = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, out))
        bias = torch.randn(out, device=device, dtype=dtype)
        calls: dict[str, Callable[[], Tensor]] = {f"{kind}_ms": partial(F.linear, x, weight, bias)}
        if kind == "fp8":
            calls = {"fp8_ms": _ready(x, weight), "fp8_with_quantising_ms": partial(_scaled, x, weight, bias)}
        try:
            for name_, call in calls.items():
                row[name_] = seconds(call, device) * 1e3
        except RuntimeError as error:
            row[f"{kind}_error"] = str(error).splitlines()[0]
    record.add(what=name, rows=rows, inner=inner, out=out, **row)


def _ready(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The product alone, of what is in fp8 already."""
    a, b = _quantised(x), _quantised(weight)
    return lambda: torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), out_dtype=torch.bfloat16)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    a, b = _quantised(x), _quantised(weight)
    return torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), out_dtype=torch.bfloat16) + bias


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in fp8 and the scale of each row, `(rows, 1)` float32."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / _LARGEST
    return (x.float() / scale).to(FP8), scale


def _emulated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The rounding of fp8 with one scale a row, multiplied in the activations' type: runs everywhere."""
    a, b = (q[0].to(x.dtype) * q[1].to(x.dtype) for q in (_quantised(x), _quantised(weight)))
    return F.linear(a, b, bias)


def _codes(device: torch.device, dtype: torch.dtype, tiny: bool) -> Tensor:
    encoder = network.encoder(device, torch.float32, tiny).to(dtype)  # the same weights, rounded
    pack = network.TINY_PACKS[-1] if tiny else network.Pack("", (512, 256, 256))
    packing = pack.packing(row_multiple(encoder))
    patches = network.inputs(packing, device, torch.float32).to(dtype)
    return encoder(patches, packing)[: packing.patches * 4].cpu()  # type: ignore[no-any-return]
