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

from viq.config import CODES_PER_PATCH
from viq.layers import Linear, Mlp

Product = Callable[[Tensor], Tensor]

FIRST = {"cpu": 32, "cuda": 128}
"""The smallest multiple tried, by device type: more than any library needs at best; whole tiles on CUDA.

For each number of rows oneDNN makes kernels of its own, 0.4 MB a layer, and keeps 1,024 of them. Multiples of 4 would
do in torch 2.13 and spare a lone thumbnail 9 % of its time. With them a service of `nano` was a sixth slower, since it
made the same kernels again and again, and 1.3 GB larger where it could keep all.
"""

_ROWS = {"cpu": 512, "cuda": 16_384}
"""Rows of the reference product, by device type: those of the largest usual pack on CUDA, where the kernel goes on
changing with the rows."""

_EVERY = {"cuda"}
"""Device types on which every number of rows that packs have is tried, also of layers that are given sub-tokens."""

UNSETTLED = 512
"""The multiple of last resort: a network that gets it may give codes that depend on the batch."""


@torch.inference_mode()
def row_multiple(network: nn.Module) -> int:
    """The number that rows of a pack must be a multiple of, for all linear layers of `network`.

    Tries each distinct shape and type of weights with row counts of packs against the bits of many rows: a few of them
    on a CPU, every one on CUDA. Warns, and gives `UNSETTLED`, if even 256 do not suffice, which no known library needs.
    """
    mlps = {_kind(module.fc1): module for module in network.modules() if isinstance(module, Mlp)}
    in_chunks = {id(layer) for mlp in network.modules() if isinstance(mlp, Mlp) for layer in (mlp.fc1, mlp.fc2)}
    linears: dict[object, tuple[Linear, bool]] = {}
    for layer in network.modules():
        if isinstance(layer, Linear):  # of two of a kind the one that may be given more rows
            whole = id(layer) not in in_chunks or linears.get(_kind(layer), (layer, False))[1]
            linears[_kind(layer)] = layer, whole
    products: list[tuple[Product, Linear, bool]] = [(layer, layer, whole) for layer, whole in linears.values()]
    products += [(mlp.hidden, mlp.fc1, False) for mlp in mlps.values()]
    multiple = FIRST.get(products[0][1].weight.device.type, 1)
    for product, layer, whole in products:
        device = layer.bias.device.type
        most, every = _ROWS.get(device, 512), device in _EVERY
        fourfold = every and whole
        x = _rows(layer, most * CODES_PER_PATCH if fourfold else most)
        reference = product(x)
        while multiple < UNSETTLED and not _alike(product, x, reference, _counts(multiple, most, every, fourfold)):
            multiple *= 2
    if multiple >= UNSETTLED:
        warnings.warn("matrix products here depend on the number of rows: codes may depend on the batch", stacklevel=2)
    return multiple


def _alike(product: Product, x: Tensor, reference: Tensor, counts: Iterable[int]) -> bool:
    """Whether products of so many rows have the reference's bits."""
    return all(_same_bits(product(x[-rows:].clone()), reference[-rows:]) for rows in counts)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]  # as numbers, NaN would differ from itself
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def _counts(multiple: int, most: int, every: bool, fourfold: bool) -> Iterable[int]:
    """1, 2, 5, 12 … times `multiple`, below `most`: few, since every load waits. With `every` all multiples, and with
    `fourfold` those of 4 sub-tokens a patch."""
    if not every:
        counts, times, following = list[int](), 1, 2
        while times * multiple < most:
            counts.append(times * multiple)
            times, following = following, times + 2 * following
        return counts
    found = set(range(multiple, most + 1, multiple))
    if fourfold:
        found |= {CODES_PER_PATCH * count for count in found}
    return sorted(found)


def _kind(layer: Linear) -> tuple[torch.Size, torch.dtype]:
    return layer.weight.shape, layer.weight.dtype


def _rows(layer: Linear, count: int) -> Tensor:
    # Drawn on the device itself: on a CPU a GPU's would take seconds.
    make = torch.Generator(layer.bias.device).manual_seed(0)
    shape = count, layer.in_features
    x = torch.randn(shape, generator=make, dtype=torch.float32, device=layer.bias.device)
    return x.to(layer.bias)  # whose type the activations have, also where weights are in fp8
