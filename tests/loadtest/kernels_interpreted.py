"""Run under `TRITON_INTERPRET=1`: the steps' kernels against torch's eager operators on a CPU, told as JSON.

Of each comparison the number of values that differ, and of controls, which have another order or one rounding too few.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from loadtest.gpu import kernels
from tests.loadtest.interpreter import multiply_rows_alike
from torch import Tensor
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from viq import rope

DTYPES = (torch.float16, torch.bfloat16)
# Rows, K and N: fewer than a tile, tiles and a bit, several of them each way, and more of them than a band.
PRODUCTS = ((1, 16, 16), (5, 80, 48), (127, 64, 256), (129, 144, 272), (257, 64, 528), (1153, 16, 16))


def mend_bfloat16() -> None:
    """Have the interpreter round to bfloat16, where it cuts off, and multiply values, where it takes their bits."""
    multiply_rows_alike()
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounded(self: Any, value: Any, kind: Any) -> Any:
        if (value.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, value, kind)
        bits = torch.from_numpy(np.ascontiguousarray(value.data)).to(torch.bfloat16).view(torch.int16)
        return TensorHandle(bits.numpy().view(np.uint16), tl.bfloat16)

    def widened(self: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (cast(self, one, tl.float32) for one in (a, b))
        return dot(self, a, b, *others)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = rounded, widened


def different(a: Tensor, b: Tensor) -> int:
    """Values whose bits differ."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return int((a.contiguous().view(torch.int16) != b.contiguous().view(torch.int16)).sum())


def far(a: Tensor, b: Tensor) -> int:
    """Values that are not the same and not neighbours; these are of one sign, or next to nothing."""
    apart = (a.contiguous().view(torch.int16).int() - b.contiguous().view(torch.int16).int()).abs()
    return int(((apart > 1) & ((a.float() - b.float()).abs() > 1e-6)).sum())


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    """Eighths from -2 to 2: of these every order of summation gives the same float32."""
    return (torch.randint(-16, 17, shape) / 8).to(dtype)


def formula(x: Tensor) -> Tensor:
    """GELU as the released code has it, in float32 with a correctly rounded erf, as the interpreter's is."""
    value = x.float()
    return (value * 0.5 * (1 + torch.erf((value * 0.5**0.5).double()).float())).to(x.dtype)


def products(dtype: torch.dtype, descriptors: bool) -> dict[str, int]:
    """The product, and its GELU, on values of which all sums are exact: there is one right answer."""
    found = dict.fromkeys(
        ("product", "product: control", "gelu", "gelu: formula", "gelu: far", "gelu: control", "values"), 0
    )
    for rows, inner, out in PRODUCTS:
        x, weight, bias = (drawn(*shape, dtype=dtype) for shape in ((rows, inner), (out, inner), (out,)))
        sums = x.float() @ weight.float().T
        expected = (sums + bias.float()).to(dtype)
        found["product"] += different(kernels.linear(x, weight, bias, descriptors=descriptors), expected)
        found["product: control"] += different(sums.to(dtype) + bias, expected)
        x = (x / 8).to(dtype)  # most of GELU happens near nothing
        sums = x.float() @ weight.float().T + bias.float()
        ours, eager = kernels.linear(x, weight, bias, gelu=True, descriptors=descriptors), F.gelu(sums.to(dtype))
        found["gelu"] += different(ours, eager)
        found["gelu: far"] += far(ours, eager)
        found["gelu: formula"] += different(ours, formula(sums.to(dtype)))
        found["gelu: control"] += different(formula(sums).to(dtype), formula(sums.to(dtype)))
        found["values"] += eager.numel()
    return found


def rows_alone(dtype: torch.dtype, descriptors: bool) -> dict[str, int]:
    """Rows alone, and some of them elsewhere, against the same rows among others."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draw).to(dtype) for shape in ((300, 208), (272, 208), (272,)))

    def product(x: Tensor) -> Tensor:
        return kernels.linear(x, weight, bias, gelu=True, descriptors=descriptors)

    whole, found = product(x), 0
    for start, end in ((0, 1), (127, 128), (128, 129), (299, 300), (100, 229), (1, 300)):
        found += different(product(x[start:end]), whole[start:end])
    half = [x.clone(), x.clone()]
    half[0][:, 104:], half[1][:, :104] = 0, 0
    nothing = torch.zeros_like(bias)
    parts = [kernels.linear(one, weight, nothing) for one in half]
    return {"rows": found, "rows: control": different(parts[0] + parts[1], kernels.linear(x, weight, nothing))}


def rotations(dtype: torch.dtype) -> dict[str, int]:
    """Rotations of parts of wider rows, as the head has them; the control rounds once."""
    found = {"rotate": 0, "rotate: control": 0}
    for rows, heads, width in ((1, 1, 2), (3, 4, 10), (37, 4, 16), (5, 4, 256)):
        x = torch.randn(rows, heads, 3, width).to(dtype).unbind(2)[1]
        table = torch.randn(2, rows, heads, width // 2).to(dtype)
        expected = rope.rotate(x, table)
        found["rotate"] += different(kernels.rotate(x, table), expected)
        found["rotate: control"] += different(rope.rotate(x.float(), table.float()).to(dtype), expected)
    return found


def norms(dtype: torch.dtype) -> dict[str, int]:
    """Sum and LayerNorm, all rows and each alone; the control norms a sum that was not rounded."""
    found = dict.fromkeys(("sum", "norm", "norm: far", "norm: rows", "norm: control", "norm: values"), 0)
    for rows, width in ((1, 16), (5, 100), (3, 1536)):
        x, y = (torch.randn(rows, width).to(dtype) * 3 for _ in range(2))
        gain, shift = (torch.randn(width).to(dtype) for _ in range(2))
        total, normed = kernels.add_norm(x, y, gain, shift, 1e-6)
        expected = F.layer_norm(x + y, (width,), gain, shift, 1e-6)
        found["sum"] += different(total, x + y)
        found["norm"] += different(normed, expected)
        found["norm: far"] += far(normed, expected)
        unrounded = F.layer_norm(x.float() + y.float(), (width,), gain.float(), shift.float(), 1e-6).to(dtype)
        found["norm: control"] += different(unrounded, expected)
        found["norm: values"] += expected.numel()
        for row in range(rows):
            alone = kernels.add_norm(x[row : row + 1], y[row : row + 1], gain, shift, 1e-6)[1]
            found["norm: rows"] += different(alone, normed[row : row + 1])
    return found


def refused() -> list[str]:
    """What is said of shapes that the kernels are not for."""
    said = []
    for call in (
        partial(kernels.linear, torch.zeros(1, 24), torch.zeros(16, 24), torch.zeros(16)),
        partial(kernels.rotate, torch.zeros(1, 4, 8).transpose(1, 2), torch.zeros(2, 1, 8, 2)),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


def main() -> None:
    """Print what was found."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    mend_bfloat16()
    found: dict[str, Any] = {"refused": refused()}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for fetched, descriptors in (("", False), (" by descriptors", True)):
            found[name + fetched] = products(dtype, descriptors) | rows_alone(dtype, descriptors)
        found[f"{name} passes"] = rotations(dtype) | norms(dtype)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
