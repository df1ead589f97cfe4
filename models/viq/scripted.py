"""Small packs on a CPU by TorchScript: the operations of the eager network in their order, with no Python between them.

A forward is some hundred operations. Where images are small, Python takes as long to call them as a fifth of what they
compute, and each call needs the interpreter, which other threads of a service want too. The graph calls the same
kernels on the same numbers, so values are equal to the bit; that is tried before it is used, else nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from viq.config import CODES_PER_PATCH
from viq.fsq import quantise
from viq.head import head_values
from viq.packing import Ends, Packing
from viq.torch_warnings import quiet_about_torch

if TYPE_CHECKING:
    from viq.encoder import Encoder

ROWS = 1024
"""Rows of the largest pack that is computed so: above, what is computed hides Python."""

_PARAMETERS = 100_000_000  # of the largest network: one of more takes long for each operation
_EXAMPLE = ((3, 5), (8, 8), (2, 9))  # grids of the pack that the graph is made with; any other fits, too
_TRIED = (((1, 1),), ((3, 5), (8, 8), (2, 31)), ((5, 5), (1, 16), (12, 12), (1, 1)))  # grids of packs
_RUNS = 2  # of each: torch arranges a graph anew after its first run


class Scripted:
    """The encoder as one program; computes beside itself on several threads."""

    def __init__(self, encoder: Encoder, multiple: int) -> None:
        self._encoder, self._multiple = encoder, multiple
        with torch.no_grad(), quiet_about_torch():
            self._run: Any = torch.jit.trace(_Graph(encoder).eval(), self._example(), check_trace=False)

    def codes(self, patches: Tensor, packing: Packing) -> Tensor | None:
        """Codes of normalised patches `(rows, 768)` as `Encoder.forward` gives them; None for a pack too large."""
        if packing.rows > ROWS:
            return None
        return quantise(self.values(patches, packing), self._encoder.levels)

    def values(self, patches: Tensor, packing: Packing) -> Tensor:
        """What `Encoder.project` gives, but for the rows of nobody."""
        encoder = self._encoder
        positions, rotations = encoder.positions(packing), encoder.rotations(packing)
        return self._run(patches, positions, rotations, *packing.on(patches.device))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def is_exact(self) -> bool:
        """Whether its values have the bits of the eager network's, on packs that are tried now."""
        return all(self._exact_with(grids) for grids in _TRIED for _ in range(_RUNS))

    def _exact_with(self, grids: Sequence[tuple[int, int]]) -> bool:
        packing = Packing.of(grids, self._multiple)
        draw = torch.Generator().manual_seed(packing.patches)
        patches = packing.pad(torch.rand((packing.patches, self._inputs), generator=draw) * 2 - 1)
        real = packing.patches * CODES_PER_PATCH
        ours, eager = self.values(patches, packing)[:real], self._encoder.project(patches, packing)[:real]
        return torch.equal(ours.view(torch.int32), eager.view(torch.int32))

    def _example(self) -> tuple[Tensor, ...]:
        packing = Packing.of(_EXAMPLE, self._multiple)
        patches = torch.linspace(-1, 1, packing.rows * self._inputs).view(packing.rows, -1)
        positions, rotations = self._encoder.positions(packing).clone(), self._encoder.rotations(packing).clone()
        return patches, positions, rotations, *packing.on(patches.device)

    @property
    def _inputs(self) -> int:
        return self._encoder.patch_embed.in_features


def scripted(encoder: Encoder, multiple: int) -> Scripted | None:
    """The program of `encoder`, whose packs have rows by `multiple`; None where there is none or it would not do.

    There is none but in float32 on a CPU, where every operation is one of torch's in the graph, too.
    """
    weight = encoder.project_in.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or _size(encoder) > _PARAMETERS:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # packs are tiny here; bits do not depend on it
    try:
        made = Scripted(encoder, multiple)
        return made if made.is_exact() else None
    except (AttributeError, NotImplementedError, RuntimeError):  # a torch without TorchScript, which is on its way out
        return None
    finally:
        torch.set_num_threads(threads)


class _Graph(nn.Module):
    """The encoder as a function of tensors alone, on its own weights."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, patches: Tensor, positions: Tensor, rotations: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
        where = Ends(ends, longest)
        return head_values(self._encoder, self._encoder.blocks(patches, positions, where), where, rotations)


def _size(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())
