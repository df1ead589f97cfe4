"""Small packs on a CPU by TorchScript: the operations of the eager network in their order, with no Python between them.

A forward is some hundred operations. Where images are small, Python takes as long to call them as a fifth of what they
compute, and each call needs the interpreter, which other threads of a service want too: whoever lets go of it waits
until they do. So one call does all, from bytes to codes. It calls the same kernels on the same numbers, so values
are equal to the bit; that is tried before it is used, else nothing changes.

Its products take the weights as oneDNN would lay them out anew in each call, which for a few rows takes as long as
a fifth of the product.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import is_
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from viq.config import CODES_PER_PATCH, PATCH
from viq.elementwise import PIECE, VECTOR
from viq.fsq import codes_of, numbering, squashing
from viq.hardware import ours
from viq.layers import Linear
from viq.linear import laid_out
from viq.packing import Ends, Packing, joined
from viq.patches import edges, normalise, table, values_of_bytes
from viq.torch_warnings import quiet_about_torch

if TYPE_CHECKING:
    from viq.encoder import Encoder

ROWS = 1024
"""Rows of the largest pack that is computed so: above, what is computed hides Python."""

_PARAMETERS = 100_000_000  # of the largest network: one of more takes long for each operation
_LAID_OUT = 16_000_000  # of the largest whose weights are held a second time
_EXAMPLE = ((3, 5), (8, 8), (2, 9))  # grids of the pack that the graph is made with; any other fits, too
_TRIED = (((1, 1),), ((3, 5), (8, 8), (2, 31)), ((5, 5), (1, 16), (12, 12), (1, 1)))  # grids of packs
_RUNS = 2  # of each: torch arranges a graph anew after its first run

_ALONE = Lock()  # torch traces one network at a time
# A torch without TorchScript, which is on its way out, or one that cannot make the program, for want of memory too.
_NONE = (AttributeError, NotImplementedError, RuntimeError, TypeError, OSError, MemoryError)


class Scripted:
    """The encoder as one program; computes beside itself on several threads."""

    def __init__(self, encoder: Encoder, multiple: int, *, lay_out: bool) -> None:
        """`lay_out`: the weights of its products, which it then holds once more."""
        self._encoder, self._multiple, self._made_of = encoder, multiple, _Made(encoder, unchanged=lay_out)
        with torch.no_grad(), quiet_about_torch(), ours():
            graph = _Graph(_with_weights_laid_out(encoder) if lay_out else encoder)
            self._run: Any = torch.jit.trace(graph, self._example(), check_trace=False)
            self._whole: Any = torch.jit.script(_Whole(self._run, encoder.levels))

    def codes(
        self,
        patches: Sequence[npt.NDArray[np.uint8]],
        image_sizes: Sequence[tuple[int, int]],
        packing: Packing,
    ) -> Tensor | None:
        """Codes of the patches, each `(N, 768)`, of images `(H, W)`, as `Encoder.forward` gives them.

        None for a pack too large, and where the encoder is no longer what the program was made of.
        """
        if packing.rows > ROWS or not self._made_of.is_so():
            return None
        return self._codes([torch.from_numpy(one) for one in patches], image_sizes, packing)

    def _codes(self, patches: list[Tensor], image_sizes: Sequence[tuple[int, int]], packing: Packing) -> Tensor:
        # No operation of torch's or numpy's here: each would let go of the interpreter.
        encoder, beyond, sequences = self._encoder, edges(image_sizes, packing), list(packing.sequences)
        positions, rotations = encoder.position_parts(packing), encoder.rotation_parts(packing)
        found: Tensor = self._whole(patches, beyond, positions, rotations, sequences, packing.rows)
        return found

    def values(self, patches: Tensor, packing: Packing) -> Tensor:
        """What `Encoder.project` gives, but for the rows of nobody."""
        encoder = self._encoder
        positions, rotations = encoder.positions(packing), encoder.rotations(packing)
        return self._run(patches, positions, rotations, *packing.on(patches.device))  # type: ignore[no-any-return]

    def fits_now(self) -> bool:
        """Whether the encoder is what the program was made of."""
        return self._made_of.is_so()

    @torch.inference_mode()
    def is_exact(self) -> bool:
        """Whether its values have the bits of the eager network's, and its codes are the same, on packs tried now."""
        return all(self._exact_with(grids) for grids in _TRIED)

    def _exact_with(self, grids: Sequence[tuple[int, int]]) -> bool:
        packing = Packing.of(grids, self._multiple)
        draw = torch.Generator().manual_seed(packing.patches)
        shape, real = (packing.patches, self._inputs), packing.patches * CODES_PER_PATCH
        pixels = packing.pad(torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8, device="cpu"))
        sizes = [(PATCH * h - h % PATCH, PATCH * w - w % PATCH) for h, w in grids]
        patches = normalise(pixels, sizes, packing, torch.float32)
        eager = self._encoder.project(patches, packing)[:real].view(torch.int32)
        codes = self._encoder(patches, packing)[:real]
        return all(
            torch.equal(self.values(patches, packing)[:real].view(torch.int32), eager)
            and torch.equal(self._codes(packing.split(pixels), sizes, packing)[:real], codes)
            for _ in range(_RUNS)
        )

    def _example(self) -> tuple[Tensor, ...]:
        packing = Packing.of(_EXAMPLE, self._multiple)
        numbers = torch.linspace(-1, 1, packing.rows * self._inputs, dtype=torch.float32, device="cpu")
        patches = numbers.view(packing.rows, -1)
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
    with _ALONE:
        for lay_out in (True, False) if _size(encoder) <= _LAID_OUT else (False,):
            try:
                made = Scripted(encoder, multiple, lay_out=lay_out)
                if made.is_exact() and made.fits_now():
                    return made
            except _NONE:
                pass
        return None


class _Made:
    """The modules and weights of a network, which a program made of it goes on using when they are replaced.

    Hooks are a matter, too: the program would not call them. Weights that change in place are none, unless they are to
    stay `unchanged`: of that, torch counts what is not written into `Tensor.data`.
    """

    def __init__(self, network: nn.Module, *, unchanged: bool) -> None:
        modules = list(network.modules())
        tables: list[dict[str, Any]] = [t for m in modules for t in (m._modules, m._parameters, m._buffers)]
        held = [(table, name, one) for table in tables for name, one in table.items()]
        self._ask, self._held = [(table.get, name) for table, name, _ in held], [one for _, _, one in held]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._counted = list(network.parameters()) if unchanged else []
        self._changes = self._changes_now()

    def is_so(self) -> bool:
        """Whether they are the same still, and none has a hook."""
        # There are hundreds, and this is asked at each pack.
        same = not any(self._hooks) and all(map(is_, [get(name) for get, name in self._ask], self._held))
        return same and self._changes_now() == self._changes

    def _changes_now(self) -> list[tuple[int, int]]:
        # `Module.to` and the like give a parameter other memory, which counts as no change.
        return [(weight.data_ptr(), weight._version) for weight in self._counted]


class _Graph(nn.Module):
    """The encoder as a function of tensors alone, on its own weights."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, patches: Tensor, positions: Tensor, rotations: Tensor, ends: Tensor, longest: Tensor) -> Tensor:
        return self._encoder.values(patches, positions, rotations, Ends(ends, longest))


class _Whole(nn.Module):
    """What is before and after the graph as TorchScript, which a trace cannot be: it goes through lists.

    It does what `gathered`, `normalise`, `Encoder.positions`, `Encoder.rotations`, `Packing.on` and `quantise` do.
    """

    def __init__(self, graph: nn.Module, levels: tuple[int, ...]) -> None:
        super().__init__()
        here = torch.device("cpu")
        self.graph, self.table = graph, table(torch.float32, here)
        self.stretch, self.offset, self.shift = squashing(levels, here)
        self.centre, self.weights = numbering(levels, here)
        self.side, self.piece, self.vector = PATCH, PIECE, VECTOR

    def forward(
        self,
        pixels: list[Tensor],
        beyond: list[tuple[int, int, int, int, int, int]],
        positions: list[Tensor],
        rotations: list[Tensor],
        sequences: list[int],
        rows: int,
    ) -> Tensor:
        longest, patches = 0, 0
        for part in pixels:
            patches += part.shape[0]
        for index in range(1, len(sequences)):
            longest = max(longest, sequences[index] - sequences[index - 1])
        z = self.graph(
            values_of_bytes(joined(pixels, rows, 0), self.table, patches, beyond, self.side),
            joined(positions, rows, 0),
            joined(rotations, rows, 1),
            torch.tensor(sequences, dtype=torch.int32),
            torch.tensor([longest]),
        )
        bounded = self.tanh(z.float() + self.shift) * self.stretch - self.offset
        return codes_of(bounded, self.centre, self.weights)

    def tanh(self, x: Tensor) -> Tensor:
        """`elementwise.apply(torch.tanh_, x)`, whose pieces need not be the same for the same bits."""
        flat = x.contiguous().view(-1)
        whole = flat.numel() - flat.numel() % self.vector
        for start in range(0, whole, self.piece):
            torch.tanh_(flat[start : min(start + self.piece, whole)])
        left = flat.numel() - whole
        if left > 0:
            last = flat.new_zeros([self.vector])
            last[:left] = flat[whole:]
            flat[whole:] = torch.tanh_(last)[:left]
        return flat.view(x.shape)


def _with_weights_laid_out(network: nn.Module) -> Any:
    """A network of the same modules but for the linear layers, whose weights are laid out for the product.

    All others, and whatever they hold, are those of `network`: none is written to while a graph is made.
    """
    twin = copy.copy(network)
    twin._modules = {name: part and _with_weights_laid_out(part) for name, part in network._modules.items()}
    if isinstance(network, Linear):
        twin._parameters = {"bias": network.bias}
        twin._buffers = {"weight": laid_out(network.weight)}
    return twin


def _size(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())
