from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from viq.elementwise import apply, gelu

FUNCTIONS = {"gelu": gelu, "tanh": lambda x: apply(torch.tanh_, x), "cos": lambda x: apply(torch.cos_, x)}
LENGTHS = (1, 63, 64, 65, 1000, 16_384, 16_385, 65_536, 100_003, 300_000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_value_does_not_depend_on_where_it_lies_or_on_the_threads(
    name: str, dtype: torch.dtype, count: int, threads: Callable[[int], None]
) -> None:
    x = torch.linspace(-6, 6, max(LENGTHS)).to(dtype)
    function_: Callable[[Tensor], Tensor] = FUNCTIONS[name]
    threads(1)
    whole = function_(x.clone())
    threads(count)
    for length in LENGTHS:
        for start in {0, min(1, max(LENGTHS) - length), max(LENGTHS) - length}:
            part = function_(x[start : start + length].clone())
            assert torch.equal(part, whole[start : start + length]), (length, start)


def test_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-6, 6, 1000)
    exact = 0.5 * x.double() * (1 + torch.erf(x.double() / 2**0.5))
    assert (gelu(x.clone()) - exact).abs().max() < 1e-6


def test_gelu_leaves_its_input_alone_when_gradients_are_wanted() -> None:
    x = torch.linspace(-1, 1, 8, requires_grad=True)
    gelu(x).sum().backward()
    assert x.grad is not None
    assert x[0] == -1
