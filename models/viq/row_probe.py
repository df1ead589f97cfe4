"""Finding out, here and now, how many rows a matrix product needs before it treats every row alike.

Libraries choose kernels by the number of rows, and below some number they choose others, which round
otherwise: 2 rows suffice for oneDNN in torch 2.13, 64 are needed in torch 2.11, and another processor may
differ again. Packs are rounded up to what this finds, so codes are always those of the one kernel for many
rows, and the answer may differ between machines without a code differing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from viq.layers import Linear

FIRST = {"cpu": 32, "cuda": 128}
"""The smallest multiple tried, by device type: more than any library needs at best; whole tiles on CUDA."""

_ROWS = 512  # of the reference product, and the multiple of last resort


@torch.inference_mode()
def row_multiple(network: nn.Module) -> int:
    """The number that rows of a pack must be a multiple of, for all linear layers of `network`.

    Tries each distinct shape with a few row counts and starts against the first 512 rows' bits. Warns if even
    256 do not suffice, which no known library needs.
    """
    shapes = {layer.weight.shape: layer for layer in network.modules() if isinstance(layer, Linear)}
    layers = list(shapes.values())
    multiple = FIRST.get(layers[0].weight.device.type, 1)
    for layer in layers:
        x = _rows(layer)
        reference = layer(x)
        while multiple < _ROWS and not _alike(layer, x, reference, multiple):
            multiple *= 2
    if multiple >= _ROWS:
        warnings.warn("matrix products here depend on the number of rows: codes may depend on the batch", stacklevel=2)
    return multiple


def _alike(layer: Linear, x: Tensor, reference: Tensor, multiple: int) -> bool:
    """Whether products of `multiple` rows, and of some multiples of it, have the reference's bits."""
    return all(
        torch.equal(layer(x[start : start + rows].clone()), reference[start : start + rows])
        for rows, start in _parts(multiple)
    )


def _parts(multiple: int) -> Iterable[tuple[int, int]]:
    for times in (1, 2, 3, 5):
        rows = times * multiple
        if rows < _ROWS:
            yield rows, _ROWS - rows


def _rows(layer: Linear) -> Tensor:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, layer.weight.shape[1], generator=make)
    return x.to(device=layer.weight.device, dtype=layer.weight.dtype)
