"""Step B: attention kernels by the image's number of patches, and whether their bits know the pack.

Symbols: `N` patches of an image, `H` heads, `D` their width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from loadtest.gpu.bits import same_bits
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds, wall
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from viq.attention import _cudnn, attention
from viq.packing import Ends, Packing

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
NUMBERS = (64, 256, 1024, 2048, 4096, 9216, 16_384)
PREDICTED_TFLOPS = {"varlen": "300-350", "cudnn": "500-600"}


def run(record: Record, device: torch.device, tiny: bool) -> None:
    """First call, steady time and rate of each kernel; bits alone, in a pack, with another longest length."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for heads, width in ((2, 16),) if tiny else ((16, 96), (4, 256)):
        for patches in (8, 20) if tiny else NUMBERS:
            q, k, v = (torch.randn(patches, heads, width, device=device, dtype=dtype) for _ in range(3))
            for name, kernel in _kernels(device).items():
                base = {"kernel": name, "N": patches, "heads": heads, "D": width}
                call = partial(kernel, q, k, v)
                try:
                    first, steady = wall(call, device), seconds(call, device)
                except RuntimeError as error:
                    record.add(**base, error=str(error).splitlines()[0])
                    continue
                rate = 4 * patches**2 * heads * width / steady / 1e12
                told = PREDICTED_TFLOPS.get(name) if width == 96 else None
                record.add(**base, first_ms=first * 1e3, ms=steady * 1e3, tflops=rate, predicted_tflops=told)
            with record.tried(bits="all", N=patches, D=width):
                _bits(record, q, k, v)


def _kernels(device: torch.device) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {"varlen" if device.type == "cuda" else "by image": _alone}
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if device.type == "cuda":
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    kernels |= {name: _dense(backend) for name, backend in backends.items()}
    return kernels | ({"cudnn, the operator": _cudnn} if device.type == "cuda" else {})


def _dense(backend: SDPBackend) -> Kernel:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            a, b, c = (t.transpose(0, 1)[None] for t in (q, k, v))
            return F.scaled_dot_product_attention(a, b, c)[0].transpose(0, 1)

    return kernel


def _alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, Packing.of([(1, q.shape[0])]))


def _bits(record: Record, q: Tensor, k: Tensor, v: Tensor) -> None:
    """The product's attention: alone, between others, beside a longer one, and with a longest length too large. Then
    the kernels for one image: again, and from a part of a pack. Last what must not be done: several images stacked."""
    patches, alone = q.shape[0], _alone(q, k, v)
    for name, before, after in (("between others", 37, 64), ("beside a larger one", 0, 2 * patches), ("last", 129, 0)):
        company = [n for n in (before, patches, after) if n]
        packed = []
        for t in (q, k, v):
            others = torch.randn(before + after, *t.shape[1:], device=t.device, dtype=t.dtype)
            packed.append(torch.cat([others[:before], t, others[before:]]))
        out = attention(packed[0], packed[1], packed[2], Packing.of([(1, n) for n in company]))
        equal = same_bits(out[before : before + patches], alone)
        record.add(bits=name, N=patches, D=q.shape[2], equal=equal, holds=equal)
    ends = torch.tensor([0, patches, patches, patches], dtype=torch.int32, device=q.device)
    for longest in (patches, 2 * patches, 16_384):
        out = attention(q, k, v, Ends(ends, torch.tensor([longest])))
        equal = same_bits(out, alone)
        record.add(bits=f"longest said to be {longest}", N=patches, D=q.shape[2], equal=equal, holds=equal)
    for name, kernel in list(_kernels(q.device).items())[1:]:
        with record.tried(bits=f"{name}: again, and out of a pack", N=patches, D=q.shape[2]):
            once, again = kernel(q, k, v), kernel(q, k, v)
            # As a part of a pack has them: strided, and not at the beginning.
            wide = torch.randn(patches + 101, 3, *q.shape[1:], device=q.device, dtype=q.dtype)
            for i, t in enumerate((q, k, v)):
                wide[37 : 37 + patches, i] = t
            part = kernel(*wide[37 : 37 + patches].unbind(1))
            equal = same_bits(once, again) and same_bits(once, part)
            record.add(bits=f"{name}: again, and out of a pack", N=patches, D=q.shape[2], equal=equal)
            stacked = _stacked(name, q, k, v)
            if stacked is not None:
                record.add(
                    control=f"{name}: four images stacked", N=patches, D=q.shape[2], equal=same_bits(stacked, once)
                )


def _stacked(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """The first of four equal images that are attended in one call, by torch's own way to the kernel."""
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}.get(name)
    if backend is None:
        return None
    with sdpa_kernel(backend):
        a, b, c = (t.transpose(0, 1)[None].expand(4, -1, -1, -1).contiguous() for t in (q, k, v))
        return F.scaled_dot_product_attention(a, b, c)[0].transpose(0, 1)
