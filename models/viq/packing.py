"""How several images share one sequence.

Symbols used here and in the network: `N` patches of one image, `(h, w)` its patch grid, `rows` the
length of the packed sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from viq.errors import InvalidInput


@dataclass(frozen=True)
class Packing:
    """Where each image lies in a packed sequence.

    The images follow one another with nothing between them: image `i` owns rows
    `cu_seqlens[i]:cu_seqlens[i+1]`. Rows from `cu_seqlens[-1]` to `rows` belong to nobody; they round the
    whole sequence, once, up to a length for which matrix products treat every row alike.
    """

    grids: tuple[tuple[int, int], ...]
    rows: int
    cu_seqlens: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, grids: Iterable[Sequence[int]], multiple: int = 1) -> Packing:
        """Pack images of these `(h, w)` grids; `rows` becomes a multiple of `multiple`.

        Raises `InvalidInput` for an empty list or a grid without patches.
        """
        pairs = tuple((int(h), int(w)) for h, w in grids)
        if not pairs:
            raise InvalidInput("nothing to pack: no images")
        for h, w in pairs:
            if h < 1 or w < 1:
                raise InvalidInput(f"grid {h}x{w} has no patches")
        ends = tuple(accumulate((h * w for h, w in pairs), initial=0))
        return cls(pairs, -(-ends[-1] // multiple) * multiple, ends)

    @property
    def patches(self) -> int:
        """Patches of all images together; `rows` without the rounding."""
        return self.cu_seqlens[-1]

    @cached_property
    def max_seqlen(self) -> int:
        """Patches of the largest image."""
        return max(h * w for h, w in self.grids)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and one-past-last row of each image."""
        return list(zip(self.cu_seqlens, self.cu_seqlens[1:], strict=False))

    def pad(self, packed: Tensor) -> Tensor:
        """`(patches, …)` to `(rows, …)`, the added rows zero."""
        if packed.shape[0] == self.rows:
            return packed
        padded = packed.new_zeros((self.rows, *packed.shape[1:]))
        padded[: packed.shape[0]] = packed
        return padded

    def split(self, packed: Tensor, per_patch: int = 1) -> list[Tensor]:
        """Views of each image's part of `(rows * per_patch, …)`."""
        return [packed[start * per_patch : end * per_patch] for start, end in self.spans]
