"""Full attention within each image of a pack: the only place that picks an attention kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.hardware import has_amx
from viq.packing import Packing

_QUERY_CHUNK = 4096  # queries at a time where a head is too wide for a fused CUDA kernel


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Attention that never crosses images: `(rows, H, D)` each, scale `D**-0.5`, to `(rows, H, D)`.

    Rows that belong to no image come back as zeros. Every image is computed as if it were alone: which
    kernel and which blocking depend on the image and never on the pack.
    """
    if q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q, k, v, packing)
    return _image_by_image(q, k, v, packing)


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that `attention` uses, for the fingerprint."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "varlen-fa2"
    return "sdpa-float32" if _widens(device, dtype) else "sdpa"


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of heads too wide for fused CUDA kernels: `(B, 1, N, D)` each.

    The queries are taken in chunks, which is exact row by row and bounds the memory of the scores.
    """
    if q.device.type == "cpu" or q.shape[2] <= _QUERY_CHUNK:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(_QUERY_CHUNK, dim=2)], dim=2)


def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    # With AMX, torch's 16-bit kernel chooses its blocking by the number of threads.
    return device.type == "cpu" and dtype != torch.float32 and has_amx()


def _image_by_image(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    dtype = q.dtype
    if _widens(q.device, dtype):
        q, k, v = q.float(), k.float(), v.float()
    parts = []
    for start, end in packing.spans:
        image = [t[start:end].transpose(0, 1)[None] for t in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(image[0], image[1], image[2])[0].transpose(0, 1))
    if packing.rows > packing.patches:
        parts.append(q.new_zeros((packing.rows - packing.patches, *q.shape[1:])))
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    # FlashAttention-2's varlen kernel is the same for an image alone and in any pack: its tile follows from the
    # head width and each block walks its own image's keys. The rows of no image are one more sequence.
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = packing.cu_seqlens, packing.max_seqlen
    if packing.rows > packing.patches:
        ends, longest = (*ends, packing.rows), max(longest, packing.rows - packing.patches)
    cu = torch.tensor(ends, dtype=torch.int32, device=q.device)
    out = varlen_attn(q, k, v, cu, cu, longest, longest)
    return out if isinstance(out, Tensor) else out[0]
