"""Matrix products of the encoder's trunk in 8 bits: dtype `fp8`.

A row of activations and a row of a weight, which makes one output column, are float8_e4m3fn with a scale each: the
largest magnitude of the row over 448. Sums are in float32; they are scaled, the bias is added, and that is rounded once
to bfloat16. All else is as with dtype bfloat16: what is around these products, patches to rows, the quantization head,
embedder and decoder.

On CUDA one kernel does it all; not yet run there. On a CPU it is emulated, for tests and to compare codes: the same
8-bit values are multiplied in float32, with sums in another order, more slowly than in bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from viq.elementwise import gelu
from viq.errors import InvalidInput
from viq.hardware import FP8
from viq.layers import Linear
from viq.linear import linear

if TYPE_CHECKING:
    from viq.encoder import Encoder

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""448, which the largest magnitude of each row becomes."""

_LEAST = 1e-12  # what the largest magnitude of a row counts as at least: one of zeros needs a scale, too
_TILE = 16  # CUDA's kernels take widths that are multiples of this


class Fp8Linear(Linear):
    """A linear layer of fp8 weights, for inference alone; activations and bias are bfloat16."""

    scale: Tensor

    def __init__(self, plain: Linear) -> None:
        """Quantise the weight of `plain`, which is not kept."""
        super().__init__(plain.in_features, plain.out_features, device="meta")
        weight, scale = quantised(plain.weight.detach())
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), plain.bias
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(rows, in)` to `(rows, out)`; raises `InvalidInput` where gradients are wanted."""
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad or self.bias.requires_grad):
            raise InvalidInput(f"dtype {FP8} has no gradients: train in bfloat16 or float32")
        rows, scale = quantised(x)
        product = emulated if x.device.type == "cpu" else multiplied
        return product(rows, scale, self.weight, self.scale, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Exact (erf) GELU of the rounded product, as in bfloat16: `(rows, in)` to `(rows, out)`."""
        return gelu(self(x))


def quantise_trunk(encoder: Encoder) -> None:
    """Have the trunk's blocks multiply in fp8; each weight in bfloat16 is let go as soon as its layer is replaced.

    Raises `InvalidInput` for a width that CUDA's kernels do not take.
    """
    width = encoder.project_in.in_features
    if encoder.project_in.weight.device.type == "cuda" and width % _TILE:
        raise InvalidInput(
            f"dtype {FP8} on CUDA needs a width that is a multiple of {_TILE}; of these weights: {width}"
        )
    for module in list(encoder.trunk.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Linear):
                setattr(module, name, Fp8Linear(layer))


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(rows, K)` in fp8 and the scale of each row, float32 `(rows, 1)`.

    A value that is no finite number makes its row's scale infinite or NaN, and all that is computed with the row NaN.
    The cast alone would not do: torch 2.13 turns infinity into 448.
    """
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min(_LEAST) / LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def multiplied(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor) -> Tensor:
    """Rows `(rows, K)` and a weight `(N, K)` in fp8, scales `(rows, 1)` and `(N, 1)`, bias `(N,)`; to `(rows, N)`.

    Tensor cores of Hopper sum with fewer bits than float32 has; without `use_fast_accum` such sums are short.
    """
    return torch._scaled_mm(
        a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=False
    )


def emulated(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor) -> Tensor:
    """What `multiplied` computes, but for the order of sums, by the product that treats every row alike."""
    return linear(a.float() * a_scale, b.float() * b_scale, bias.float()).to(torch.bfloat16)
