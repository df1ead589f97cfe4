"""Codes to features for a language model: a function of each patch's own 4 codes alone.

Symbols: `N` patches in all, `C` width, `d` FSQ dimensions, `K` codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from viq.config import CODES_PER_PATCH
from viq.encoder import count
from viq.errors import InvalidInput
from viq.layers import Linear, Mlp, ResidualMlp
from viq.packing import Packing
from viq.row_probe import row_multiple


@dataclass(frozen=True)
class EmbedderShape:
    """Sizes of an embedder, read off its tensors."""

    width: int
    codebook_size: int
    dimensions: int
    residual_blocks: int


class Embedder(nn.Module):
    """Codebook values through three projectors to one feature of width C a patch."""

    def __init__(self, shape: EmbedderShape) -> None:
        super().__init__()
        width = shape.width
        self.codebook = nn.Parameter(torch.empty(shape.codebook_size, shape.dimensions))
        self.lift = Linear(shape.dimensions, width)
        self.merge = Mlp(CODES_PER_PATCH * width, CODES_PER_PATCH * width, width)
        self.refine = Mlp(width, width, width)
        self.residual = nn.ModuleList(ResidualMlp(width) for _ in range(shape.residual_blocks))
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))
        self._multiples: dict[tuple[torch.device, torch.dtype], int] = {}  # of rows, where features were asked for

    @classmethod
    def from_pretrained(
        cls, root: str | Path | None = None, size: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> Embedder:
        """Load only the embedder of `size` from a weights root (see `ViQ.from_pretrained` for both).

        Its file is all that is needed: no encoder, and no fingerprint. With `dtype` `fp8` it is in bfloat16.
        """
        from viq.parts import load_embedder_alone  # a model is built of embedders, so it cannot be imported above

        return load_embedder_alone(root, size, device, dtype)

    @torch.no_grad()  # and not inference_mode, whose tensors no layer that is trained takes
    def forward(self, codes: Tensor) -> Tensor:
        """Packed codes, whole numbers `(N, 4)` or flat `(4N,)`, to features `(N, C)`, which trained layers may take.

        Raises `InvalidInput` for another shape or a code outside the codebook.
        """
        if codes.dtype.is_floating_point or codes.dtype == torch.bool or codes.numel() % CODES_PER_PATCH:
            raise InvalidInput(f"codes are {codes.dtype} {tuple(codes.shape)}, expected whole numbers (N, 4) or (4N,)")
        indices = codes.reshape(-1, CODES_PER_PATCH).to(self.codebook.device, torch.int64)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.codebook):
            wrong = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
            raise InvalidInput(f"code {wrong} is out of range: 0 to {len(self.codebook) - 1}")
        if not len(indices):
            return self.scale.new_empty((0, len(self.scale)))
        where = indices.device, self.scale.dtype
        if where not in self._multiples:
            self._multiples[where] = row_multiple(self)
        packing = Packing.of([(1, len(indices))], self._multiples[where])
        return self.features(packing.pad(indices))[: packing.patches]

    def features(self, codes: Tensor) -> Tensor:
        """Codes already checked, int64 `(rows, 4)`, to features `(rows, C)`."""
        return self.project(self.codebook[codes.reshape(-1)])

    def project(self, values: Tensor) -> Tensor:
        """Codebook values `(rows*4, d)` to features `(rows, C)`."""
        x = self.lift(values)
        x = self.refine(self.merge(x.view(x.shape[0] // CODES_PER_PATCH, -1)))
        for block in self.residual:
            x = block(x)
        scaled: Tensor = x * self.scale + self.shift
        return scaled


def embedder_shape(shapes: dict[str, tuple[int, ...]]) -> EmbedderShape:
    """The shape that an embedder's tensors imply, by this module's parameter names; may raise `KeyError`."""
    width, dimensions = shapes["lift.weight"]
    return EmbedderShape(width, shapes["codebook"][0], dimensions, count(shapes, "residual"))
