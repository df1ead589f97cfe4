from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from viq.linear import linear, linear_gelu

# (inner, out): those of the released model, of the golden ones, and odd ones.
SHAPES = ((1536, 4608), (1536, 256), (256, 768), (1536, 6), (6144, 256), (64, 192), (64, 5), (16, 48), (128, 6))
ROWS = (64, 128, 192, 256, 960, 1024)  # what the probe may settle on, and multiples of it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def operands(inner: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """1100 rows, a weight that keeps their variance, a bias."""
    make = torch.Generator().manual_seed(inner * out)
    x = torch.randn(1100, inner, generator=make).to(dtype)
    weight = (torch.randn(out, inner, generator=make) * inner**-0.5).to(dtype)
    bias = torch.randn(out, generator=make).to(dtype)
    return x, weight, bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "out"), SHAPES)
def test_a_row_does_not_depend_on_the_other_rows_or_on_the_threads(
    inner: int, out: int, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, weight, bias = operands(inner, out, dtype)
    threads(1)
    whole = linear(x, weight, bias)
    for count in (1, 2, 3, 4):
        threads(count)
        for rows in ROWS:
            for start in (0, 40, 1100 - rows):
                part = linear(x[start : start + rows].clone(), weight, bias)
                assert torch.equal(part, whole[start : start + rows]), (count, rows, start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "out"), [(1536, 512), (256, 1024), (64, 256), (128, 512)])
def test_a_hidden_row_does_not_depend_on_the_other_rows_or_on_the_threads(
    inner: int, out: int, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, weight, bias = operands(inner, out, dtype)
    threads(1)
    whole = linear_gelu(x, weight, bias)
    plain = torch.nn.functional.gelu(linear(x, weight, bias))
    assert (whole.float() - plain.float()).abs().max() <= {torch.float32: 2e-6}.get(dtype, 2**-6)
    for count in (1, 2, 3, 4):
        threads(count)
        for rows in ROWS:
            for start in (0, 40, 1100 - rows):
                part = linear_gelu(x[start : start + rows].clone(), weight, bias)
                assert torch.equal(part, whole[start : start + rows]), (count, rows, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_the_exact_one_rounded_once(dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=make).to(dtype) for shape in ((64, 512), (96, 512), (96,)))
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert ((linear(x, weight, bias).double() - exact).abs() / exact.abs().clamp_min(1)).max() <= tolerance


def test_weights_that_train_get_gradients() -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    linear(torch.randn(3, 8), weight, torch.zeros(4)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
