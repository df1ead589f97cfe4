"""Finding out, here and now, how many rows a matrix product needs before it treats every row alike.

Libraries choose kernels by the number of rows, and below some number they choose others, which round
otherwise: 2 rows suffice for oneDNN in torch 2.13, 64 are needed in torch 2.11, and another processor may
differ again. Packs are rounded up to what this finds, so codes are always those of the one kernel for many
rows, and the answer may differ between machines without a code differing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from viq.layers import Linear, Mlp

Product = Callable[[Tensor], Tensor]

FIRST = {"cpu": 32, "cuda": 128}
"""The smallest multiple tried, by device type: more than any library needs at best; whole tiles on CUDA."""

_ROWS = {"cpu": 512, "cuda": 16_384}
"""Rows of the reference product, by device type. On CUDA the kernel goes on changing with the rows."""

_EACH = {"cuda": 16}
"""How many of the first multiples are all tried, by device type: small products have a kernel each, on a GPU."""

UNSETTLED = 512
"""The multiple of last resort: a network that gets it may give codes that depend on the batch."""


@torch.inference_mode()
def row_multiple(network: nn.Module) -> int:
    """The number that rows of a pack must be a multiple of, for all linear layers of `network`.

    Tries each distinct shape and type of weights with a few row counts against the bits of many rows. Warns, and gives
    `UNSETTLED`, if even 256 do not suffice, which no known library needs.
    """
    linears = {_kind(module): module for module in network.modules() if isinstance(module, Linear)}
    mlps = {_kind(module.fc1): module for module in network.modules() if isinstance(module, Mlp)}
    products: list[tuple[Product, Linear]] = [(layer, layer) for layer in linears.values()]
    products += [(mlp.hidden, mlp.fc1) for mlp in mlps.values()]
    multiple = FIRST.get(products[0][1].weight.device.type, 1)
    for product, layer in products:
        x = _rows(layer)
        reference = product(x)
        while multiple < UNSETTLED and not _alike(product, x, reference, multiple):
            multiple *= 2
    if multiple >= UNSETTLED:
        warnings.warn("matrix products here depend on the number of rows: codes may depend on the batch", stacklevel=2)
    return multiple


def _alike(product: Product, x: Tensor, reference: Tensor, multiple: int) -> bool:
    """Whether products of `multiple` rows, and of some multiples of it, have the reference's bits."""
    counts = _counts(multiple, x.shape[0], _EACH.get(x.device.type, 0))
    return all(_same_bits(product(x[-rows:].clone()), reference[-rows:]) for rows in counts)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]  # as numbers, NaN would differ from itself
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def _counts(multiple: int, most: int, each: int) -> Iterable[int]:
    """1, 2, 5, 12 … times `multiple`, below `most`: few, since every load waits; and all up to `each` times."""
    counts, times, following = set(range(multiple, min(each * multiple + 1, most), multiple)), 1, 2
    while times * multiple < most:
        counts.add(times * multiple)
        times, following = following, times + 2 * following
    return sorted(counts)


def _kind(layer: Linear) -> tuple[torch.Size, torch.dtype]:
    return layer.weight.shape, layer.weight.dtype


def _rows(layer: Linear) -> Tensor:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS.get(layer.bias.device.type, 512), layer.in_features, generator=make, dtype=torch.float32)
    return x.to(layer.bias)  # whose type the activations have, also where weights are in fp8
