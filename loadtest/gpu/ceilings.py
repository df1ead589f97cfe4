"""Step A: what the device can do at best, which everything else is a share of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds

from viq.hardware import prepare_cuda

# (inner, out, whether its rows are sub-tokens) of every linear layer of the encoder.
LAYERS = {
    "patch_embed": (768, 1536, False),
    "qkv": (1536, 4608, False),
    "proj, mix": (1536, 1536, False),
    "fc1, expand": (1536, 6144, False),
    "fc2": (6144, 1536, False),
    "expand.fc2": (6144, 6144, False),
    "headwise fc1": (1536, 6144, True),
    "headwise fc2": (6144, 1536, True),
    "decrease_dim": (1536, 256, True),
    "headwise qkv": (256, 768, True),
    "headwise proj": (256, 256, True),
    "increase_dim": (256, 1536, True),
    "project_in": (1536, 16, True),
}
ROWS = (256, 1024, 2816, 4096, 8192, 8448, 16_384)
PREDICTED_LIMIT = 790e12


def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Copy rates, the limit, and each layer's product by rows, as a share of the limit."""
    if device.type == "cuda":
        prepare_cuda()
    scale = 64 if tiny else 1
    _copies(record, device, (2**20 if tiny else 2**28))
    side = 8192 // scale
    limit = 2 * side**3 / _product(side, side, side, device)
    record.add(what="limit", side=side, tflops=limit / 1e12, predicted_tflops=PREDICTED_LIMIT / 1e12)
    for name, (inner, out, fourfold) in LAYERS.items():
        for rows in (32, 64) if tiny else ROWS:
            many = rows * 4 if fourfold else rows
            inner_, out_ = max(16, inner // scale), max(16, out // scale)
            took = _product(many, inner_, out_, device)
            reached = 2 * many * inner_ * out_ / took
            record.add(what=name, patches=rows, rows=many, ms=took * 1e3, tflops=reached / 1e12, share=reached / limit)


def _product(rows: int, inner: int, out: int, device: torch.device) -> float:
    x = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    weight = torch.randn(out, inner, device=device, dtype=torch.bfloat16)
    bias = torch.randn(out, device=device, dtype=torch.bfloat16)
    return seconds(lambda: F.linear(x, weight, bias), device)


def _copies(record: Record, device: torch.device, size: int) -> None:
    pinned = device.type == "cuda"
    host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    there, other = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    for name, call in (
        ("to the device", lambda: there.copy_(host, non_blocking=True)),
        ("to the host", lambda: host.copy_(there, non_blocking=True)),
        ("on the device, read and write", lambda: other.copy_(there)),
    ):
        moved = size * (2 if "read" in name else 1)
        record.add(what=f"copy {name}", bytes=size, gb_per_s=moved / seconds(call, device) / 1e9)
