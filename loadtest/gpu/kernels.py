"""Kernels of our own in Triton, which the steps hold against torch's: products with and without GELU, rotations, norms.

Each computes a row in one order, whatever rows it is computed with: tiles and threads are constants. Nothing is chosen
by timing, which would choose other bits in another run. Roundings are where torch's eager operators have theirs.

Symbols: `K` inner and `N` outer width of a product, `C` width, `S` heads of a row, `D` width of a head, `F = D/2`.

They run on CUDA, and under `TRITON_INTERPRET=1` on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Triton's interpreter cuts bfloat16 off where a device rounds it, and multiplies its bits as if they were integers.
DTYPE = torch.float16 if triton.knobs.runtime.interpret else torch.bfloat16

# 192 KiB of shared memory for four stages of operands, of the 227 that a program may have on Hopper; the accumulator
# takes 128 registers of each of 256 threads. Bands of tiles share the rows that are still in the L2 cache.
_TILE = {"tile_rows": 128, "tile_columns": 256, "tile_inner": 64, "band": 8}
_WARPS, _STAGES = 8, 4
_ALIGNED = 16  # elements: what one copy to shared memory moves starts on 16 bytes, and a tile's step is whole ones
_PAIRS = 1024  # elements that a program rotates


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, descriptors: bool = False) -> Tensor:
    """`x @ weight.T + bias`: `(rows, K)`, `(N, K)`, `(N,)` to `(rows, N)`; an element is one float32 sum over K.

    With `gelu` the exact (erf) GELU of what was rounded, as in the released code. With `descriptors` the tensor memory
    accelerator fetches whole tiles, where else each thread fetches its part. Raises `ValueError` where K or N is no
    multiple of 16.
    """
    (rows, inner), columns = x.shape, weight.shape[0]
    if inner % _ALIGNED or columns % _ALIGNED:
        raise ValueError(f"a product of {inner} by {columns}: both must be multiples of {_ALIGNED}")
    x, weight, out = x.contiguous(), weight.contiguous(), x.new_empty((rows, columns))
    tiles = triton.cdiv(rows, _TILE["tile_rows"]) * triton.cdiv(columns, _TILE["tile_columns"])
    if descriptors:
        operands = [
            TensorDescriptor.from_tensor(one, [_TILE[side], _TILE["tile_inner"]])
            for one, side in ((x, "tile_rows"), (weight, "tile_columns"))
        ]
        _product_by_descriptors[(tiles,)](
            *operands, bias, out, rows, columns, inner, gelu=gelu, **_TILE, num_warps=_WARPS, num_stages=_STAGES
        )  # fmt: skip
    else:
        _product[(tiles,)](
            x, weight, bias, out, rows, columns, inner, gelu=gelu, whole=inner % _TILE["tile_inner"] == 0, **_TILE,
            num_warps=_WARPS, num_stages=_STAGES,
        )  # fmt: skip
    return out


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`viq.rope.rotate` in one kernel: `(rows, S, D)` by `table` `(2, rows, S, F)`; `x` may be a part of wider rows."""
    rows, heads, width = x.shape
    if x.stride(2) != 1:
        raise ValueError(f"elements to rotate lie {x.stride(2)} apart: they must be neighbours")
    table, out = table.contiguous(), x.new_empty(x.shape)
    pairs = rows * heads * (width // 2)
    _rotate[(triton.cdiv(pairs, _PAIRS),)](
        x, table[0], table[1], out, pairs, x.stride(0), x.stride(1), heads=heads, frequencies=width // 2, block=_PAIRS,
        num_warps=4,
    )  # fmt: skip
    return out


def add_norm(x: Tensor, y: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + y` and its LayerNorm: twice `(rows, C)`, twice `(C,)`, to twice `(rows, C)`; statistics in float32."""
    rows, width = x.shape
    x, y, total, normed = x.contiguous(), y.contiguous(), x.new_empty(x.shape), x.new_empty(x.shape)
    _add_norm[(rows,)](
        x, y, gain, shift, total, normed, width, eps, block=triton.next_power_of_2(width), num_warps=4
    )  # fmt: skip
    return total, normed


@triton.jit
def _place(
    rows: tl.tensor, columns: tl.tensor, tile_rows: tl.constexpr, tile_columns: tl.constexpr, band: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """First row and column of this program's tile: down `band` tiles, then the next column, at last the next band."""
    down, across = tl.cdiv(rows, tile_rows), tl.cdiv(columns, tile_columns)
    number, size = tl.program_id(0), band * across
    top = number // size * band
    height = tl.minimum(band, down - top)
    return (top + number % size % height) * tile_rows, number % size // height * tile_columns


@triton.jit
def _finish(
    total: tl.tensor, bias: tl.tensor, out: tl.tensor, top: tl.tensor, left: tl.tensor, rows: tl.tensor,
    columns: tl.tensor, gelu: tl.constexpr,
) -> None:  # fmt: skip
    """Finish a tile of sums whose first row and column these are, one half of its columns after the other.

    erf needs many registers beside the sums: on the whole tile some would spill to memory.
    """
    tile_rows: tl.constexpr = total.shape[0]
    half: tl.constexpr = total.shape[1] // 2
    one, other = tl.split(tl.permute(tl.reshape(total, (tile_rows, 2, half)), (0, 2, 1)))
    row = top + tl.arange(0, tile_rows)
    _finish_half(one, bias, out, row, left + tl.arange(0, half), rows, columns, gelu)
    _finish_half(other, bias, out, row, left + half + tl.arange(0, half), rows, columns, gelu)


@triton.jit
def _finish_half(
    total: tl.tensor, bias: tl.tensor, out: tl.tensor, row: tl.tensor, column: tl.tensor, rows: tl.tensor,
    columns: tl.tensor, gelu: tl.constexpr,
) -> None:  # fmt: skip
    """Add the bias to sums, round, apply GELU if wanted, and store what lies inside the output."""
    inside = column < columns
    total += tl.load(bias + column, inside, other=0.0).to(tl.float32)[None, :]
    result = total.to(out.dtype.element_ty)
    if gelu:
        value = result.to(tl.float32)
        result = (value * 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))).to(out.dtype.element_ty)
    where = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(where, result, (row < rows)[:, None] & inside[None, :])


# Neither numbers of rows equal to 1 nor multiples of 16 may have a kernel of their own.
@triton.jit(do_not_specialize=["rows"])
def _product(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor, rows: tl.tensor, columns: tl.tensor,
    inner: tl.tensor, gelu: tl.constexpr, whole: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
    tile_inner: tl.constexpr, band: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of the product; `whole`: K is a multiple of the tile's."""
    top, left = _place(rows, columns, tile_rows, tile_columns, band)
    row, column, k = top + tl.arange(0, tile_rows), left + tl.arange(0, tile_columns), tl.arange(0, tile_inner)
    # Beyond the last row or column that one is read again, so that the loop needs no mask; it is not stored.
    from_x = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inner + k[None, :]
    from_weight = weight + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * inner + k[:, None]
    total = tl.zeros((tile_rows, tile_columns), tl.float32)
    for start in range(0, inner, tile_inner):
        if whole:
            a, b = tl.load(from_x), tl.load(from_weight)
        else:
            inside = k < inner - start
            a = tl.load(from_x, inside[None, :], other=0.0)
            b = tl.load(from_weight, inside[:, None], other=0.0)
        total = tl.dot(a, b, total)
        from_x += tile_inner
        from_weight += tile_inner
    _finish(total, bias, out, top, left, rows, columns, gelu)


@triton.jit(do_not_specialize=["rows"])
def _product_by_descriptors(
    x: tl.tensor_descriptor, weight: tl.tensor_descriptor, bias: tl.tensor, out: tl.tensor, rows: tl.tensor,
    columns: tl.tensor, inner: tl.tensor, gelu: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
    tile_inner: tl.constexpr, band: tl.constexpr,
) -> None:  # fmt: skip
    """The same tile; what lies outside the operands is fetched as zeros."""
    top, left = _place(rows, columns, tile_rows, tile_columns, band)
    total = tl.zeros((tile_rows, tile_columns), tl.float32)
    for start in range(0, inner, tile_inner):
        total = tl.dot(x.load([top, start]), weight.load([left, start]).T, total)
    _finish(total, bias, out, top, left, rows, columns, gelu)


@triton.jit
def _rotate(
    x: tl.tensor, cos: tl.tensor, sin: tl.tensor, out: tl.tensor, pairs: tl.tensor, row_stride: tl.tensor,
    head_stride: tl.tensor, heads: tl.constexpr, frequencies: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate `block` of the pairs `(i, i + F)`, counted as the table counts them."""
    pair = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside, head, frequency = pair < pairs, pair // frequencies, pair % frequencies
    source = x + head // heads * row_stride + head % heads * head_stride + frequency
    a = tl.load(source, inside, other=0.0).to(tl.float32)
    b = tl.load(source + frequencies, inside, other=0.0).to(tl.float32)
    c = tl.load(cos + pair, inside, other=0.0).to(tl.float32)
    s = tl.load(sin + pair, inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = out.dtype.element_ty
    # Eager rounds each product to the activations' dtype, and then the sum.
    first = (a * c).to(kind).to(tl.float32) - (b * s).to(kind).to(tl.float32)
    second = (a * s).to(kind).to(tl.float32) + (b * c).to(kind).to(tl.float32)
    target = out + head * (2 * frequencies) + frequency
    tl.store(target, first.to(kind), inside)
    tl.store(target + frequencies, second.to(kind), inside)


@triton.jit
def _add_norm(
    x: tl.tensor, y: tl.tensor, gain: tl.tensor, shift: tl.tensor, total: tl.tensor, normed: tl.tensor,
    width: tl.tensor, eps: tl.tensor, block: tl.constexpr,
) -> None:  # fmt: skip
    """One row; `block` is the width, or more."""
    column = tl.arange(0, block)
    inside = column < width
    start = tl.program_id(0).to(tl.int64) * width
    both = tl.load(x + start + column, inside, other=0.0).to(tl.float32)
    both += tl.load(y + start + column, inside, other=0.0).to(tl.float32)
    summed = both.to(total.dtype.element_ty)
    tl.store(total + start + column, summed, inside)
    value = summed.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / width + eps)
    weight = tl.load(gain + column, inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, inside, other=0.0).to(tl.float32)
    tl.store(normed + start + column, (centred * scale * weight + offset).to(normed.dtype.element_ty), inside)
