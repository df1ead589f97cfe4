"""The one matrix product of the network, chosen so that a row's result depends on that row alone.

Codes are keys that others store, so a low-order bit that moves with the batch is a defect. Measured
on CPU (bench/row_invariance.py): MKL's float32 product, which `torch.nn.functional.linear` calls,
changes a row's low-order bits with the number of rows and of threads, because it splits the inner
dimension between threads. oneDNN's does not above a few rows, on the weights as they lie in the file;
`viq.row_probe` finds out how many, and packs are rounded up to that.

bfloat16 and float16 without matrix instructions for them: torch emulates these at a fifth of float32's
speed. Widening panels of the weights to float32, multiplying there and rounding once is the same
arithmetic (products are exact, sums are in float32), five times as fast.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.elementwise import gelu
from viq.hardware import multiplies_natively, scripting, traced
from viq.torch_warnings import quiet_about_torch

_COLUMNS = 16  # output columns of a CUDA product are a multiple of this
_ROWS = 512  # for which weights are laid out; other numbers want the same
_PANEL = 1_572_864  # weight elements widened at a time: 6 MiB of float32, which stay in the cache


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight.T + bias`: `(rows, K)`, `(N, K)`, `(N,)` to `(rows, N)`."""
    if _trains(x, weight):
        return F.linear(x, weight, bias)
    if x.device.type != "cpu":
        return _aligned(x, weight, bias)
    if multiplies_natively(x.dtype):
        return _product(x, weight, bias)
    return _widened(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Exact (erf) GELU of `linear`: `(rows, K)`, `(N, K)`, `(N,)` to `(rows, N)`.

    In float32 on a CPU one oneDNN kernel does both, which saves a pass over the hidden layer. In 16 bits the
    product is rounded before the GELU, as in the released code, so they stay apart.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and _has_onednn() and not _trains(x, weight):
        product = _scripted()[1] if scripting() else _onednn_gelu
        return product(x, weight, bias)
    return gelu(linear(x, weight, bias))


def laid_out(weight: Tensor) -> Tensor:
    """A copy of `(N, K)` float32 weights on a CPU as oneDNN's products want them, which `linear` takes in its place.

    It is of no other use: torch calls it opaque. Raises `RuntimeError` without oneDNN.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)  # type: ignore[no-any-return]


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the product that `linear` uses, for the fingerprint."""
    if device.type != "cpu":
        return "cublaslt"
    library = "onednn" if _has_onednn() else "blas"
    return library if multiplies_natively(dtype) else f"{library}-widened"


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())


def _trains(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _aligned(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Kernels for odd widths are others than for whole tiles, and need not treat rows alike: `project_in` has 5 or 6.
    out = weight.shape[0]
    missing = -out % _COLUMNS
    if not missing:
        return F.linear(x, weight, bias)
    return F.linear(x, F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing)))[:, :out]


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if not _has_onednn():
        return F.linear(x, weight, bias)
    product = _scripted()[0] if scripting() else _onednn
    return product(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # The oneDNN product behind torch's own CPU compiler; its last arguments name a fused operation, here none.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _onednn_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")  # type: ignore[no-any-return]


@cache
def _scripted() -> tuple[Any, Any]:
    """Both oneDNN products as TorchScript: a trace cannot record their empty list by itself."""
    with quiet_about_torch():
        return torch.jit.script(_onednn), torch.jit.script(_onednn_gelu)


def _widened(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if traced():  # a graph has no use for a loop over panels
        return _product(x.float(), weight.float(), bias.float()).to(x.dtype)
    wide, out = x.float(), x.new_empty((x.shape[0], weight.shape[0]))
    step = max(64, _PANEL // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        panel = slice(start, start + step)
        out[:, panel] = _product(wide, weight[panel].float(), bias[panel].float())
    return out
