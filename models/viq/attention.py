"""Full attention within each image of a pack: the only place that picks an attention kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.hardware import has_amx, scripting, traced
from viq.packing import Ends, Packing
from viq.torch_warnings import quiet_about_torch

Small = Callable[[Tensor, Tensor, Tensor, Ends], Tensor]
Large = Callable[[Tensor, Tensor, Tensor], Tensor]

_DENSE_WIDTH = 128  # the widest head of cuDNN's kernel; the head-wise blocks' 256 stay with the other
_QUERY_CHUNK = 4096  # queries at a time where a head is too wide for a fused CUDA kernel
_HOLD_SCORES = {"cuda"}  # a CPU's kernel takes heads of any width in blocks
# Whether torch's `varlen_attn` does, as it does after 2.13.
_PREFERS_CUDNN = tuple(int(part) for part in torch.__version__.split(".")[:2]) > (2, 13)


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
    """Attention that never crosses images: `(rows, H, D)` each, scale `D**-0.5`, to `(rows, H, D)`.

    Rows that belong to no image come back as anything finite. Every image is computed as if it were alone: which
    kernel and which blocking depend on the image and never on the pack.
    """
    if isinstance(packing, Ends) and traced():
        if scripting():
            out: Tensor = scripted(_fused(q.device, q.dtype), _widens(q.device, q.dtype))(q, k, v, *packing)
        else:
            out = _opaque(q, k, v, *packing)
        return out
    return _attend(q, k, v, packing)


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that `attention` uses, for the fingerprint."""
    if _fused(device, dtype):
        return "varlen-fa2"
    return "sdpa-float32" if _widens(device, dtype) else "sdpa"


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of heads too wide for fused CUDA kernels: `(B, 1, N, D)` each.

    Where all scores would be held the queries are taken in chunks, which is exact row by row and bounds their memory.
    """
    if q.device.type not in _HOLD_SCORES or q.shape[2] <= _QUERY_CHUNK:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(_QUERY_CHUNK, dim=2)], dim=2)


def _fused(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    # With AMX, torch's 16-bit kernel chooses its blocking by the number of threads.
    return device.type == "cpu" and dtype != torch.float32 and has_amx()


def _attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
    if _fused(q.device, q.dtype):
        if isinstance(packing, Packing) and packing.dense_from and q.shape[2] <= _DENSE_WIDTH:
            return by_size(q, k, v, packing, _varlen, _cudnn)
        return _varlen(q, k, v, packing.on(q.device) if isinstance(packing, Packing) else packing)
    return _image_by_image(q, k, v, packing.spans)


def _image_by_image(q: Tensor, k: Tensor, v: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    dtype = q.dtype
    if _widens(q.device, dtype):
        q, k, v = q.float(), k.float(), v.float()
    # An operation of a small image takes as long as the calls around it, so what can be done once is.
    pack, parts = [t.transpose(0, 1)[None] for t in (q, k, v)], []
    for start, end in spans:
        a, b, c = (t.narrow(2, start, end - start) for t in pack)
        parts.append(F.scaled_dot_product_attention(a, b, c)[0].transpose(0, 1))
    if q.shape[0] > spans[-1][1]:
        parts.append(q.new_zeros((q.shape[0] - spans[-1][1], *q.shape[1:])))
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)


def _varlen(q: Tensor, k: Tensor, v: Tensor, where: Ends) -> Tensor:
    # FlashAttention-2's varlen kernel is the same for an image alone and in any pack: its tile follows from the
    # head width and each block walks its own image's keys. The rows of no image are one more sequence.
    from torch.nn.attention.varlen import varlen_attn

    longest = int(where.longest)
    if _PREFERS_CUDNN:  # for some lengths, and that length is the pack's: so the operator below, which does not choose
        return _flash(q, k, v, where.ends, where.longest)
    out = varlen_attn(q, k, v, where.ends, where.ends, longest, longest)
    return out if isinstance(out, Tensor) else out[0]


def by_size(q: Tensor, k: Tensor, v: Tensor, packing: Packing, small: Small, large: Large) -> Tensor:
    """Attention by `large` for each image of at least `packing.dense_from` patches, by `small` for runs of others."""
    out = q.new_empty(q.shape)
    for start, end, where in packing.runs(q.device):
        a, b, c = q[start:end], k[start:end], v[start:end]
        out[start:end] = large(a, b, c) if where is None else small(a, b, c, where)
    return out


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # One image a call, never several of one size: with those the kernel would depend on how many there are. And the
    # operator itself, since `sdpa_kernel` chooses for all threads of the process, which attend otherwise meanwhile.
    a, b, c = (t.transpose(0, 1)[None] for t in (q, k, v))
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(a, b, c, None, False)[0]
    return out[0].transpose(0, 1)


@torch.library.custom_op("viq::attention", mutates_args=())
def _opaque(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
    """`attention` as one operator that compilers leave alone, so that its bits are those of the eager network."""
    return _attend(q, k, v, Ends(ends, longest)).contiguous()


@_opaque.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _by_image(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
    # Read by TorchScript, with what that knows of Python.
    a, b, c, start = q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], 0
    bounds: list[int] = ends.long().tolist()
    parts: list[Tensor] = []
    for end in bounds[1:]:
        rows = end - start
        if rows > 0:
            image = F.scaled_dot_product_attention(
                a.narrow(2, start, rows), b.narrow(2, start, rows), c.narrow(2, start, rows)
            )
            parts.append(image[0].transpose(0, 1))
        start = end
    return torch.cat(parts)


def _widened_by_image(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
    return _by_image(q.float(), k.float(), v.float(), ends, longest).to(q.dtype)


def _flash(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
    # The operator below `varlen_attn`, which is Python and so no part of a saved program.
    most = int(longest.item())
    return torch.ops.aten._flash_attention_forward(q, k, v, ends, ends, most, most, 0.0, False, False)[0]  # type: ignore[no-any-return]


@cache
def scripted(fused: bool, widens: bool) -> Any:
    """The attention of programs that run without this package; `fused` on CUDA in 16 bits."""
    with quiet_about_torch():
        return torch.jit.script(_flash if fused else _widened_by_image if widens else _by_image)
