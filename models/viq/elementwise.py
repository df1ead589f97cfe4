"""Transcendental functions whose result does not depend on where an element lies or on the thread count.

torch computes the bulk of a tensor with vector instructions and what is left at the end of each
thread's share with scalar ones, and the two differ in the last bit for erf, tanh, sin and cos (one
float32 GELU value in six). Which elements are "left" depends on the tensor's size and the threads. Here
every share ends on a whole vector, and the last few elements are computed in a padded vector.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.hardware import traced

_SHARE = 32_768  # at::internal::GRAIN_SIZE: with this much for every thread, all threads get equal shares
PIECE = 16_384  # up to this much, one thread does it all (GELU has a smaller grain than the others)
VECTOR = 64  # elements of two 512-bit vectors of 16-bit numbers, the longest step of any vector loop


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) GELU of a contiguous tensor, overwriting it unless gradients are wanted."""
    if traced() or (torch.is_grad_enabled() and x.requires_grad):
        return F.gelu(x)
    return apply(torch.ops.aten.gelu_, x)


def apply(function_: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Overwrite contiguous `x` with the in-place elementwise `function_` of it; returns `x`."""
    if x.device.type != "cpu":
        return function_(x)
    flat = x.view(-1)
    whole = flat.numel() - flat.numel() % VECTOR
    shared = _evenly_shared(whole)
    if shared:
        function_(flat[:shared])
    for start in range(shared, whole, PIECE):
        function_(flat[start : min(start + PIECE, whole)])
    if whole < flat.numel():
        last = flat.new_zeros(VECTOR)
        last[: flat.numel() - whole] = flat[whole:]
        flat[whole:] = function_(last)[: flat.numel() - whole]
    return x


def _evenly_shared(elements: int) -> int:
    """The longest start of `elements` that all of torch's threads share in equal whole vectors."""
    threads = torch.get_num_threads()
    even = elements - elements % (VECTOR * threads)
    return even if even >= threads * _SHARE or threads == 1 else 0
