"""How several images share one sequence.

Symbols used here and in the network: `N` patches of one image, `(h, w)` its patch grid, `rows` the
length of the packed sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from viq.errors import InvalidInput

T = TypeVar("T")


class Ends(NamedTuple):
    """Where each sequence of a pack lies, as tensors: for what is compiled or recorded once and fed any pack.

    `ends` is int32 `(sequences + 1,)` on the device, from 0 to all rows; empty sequences are allowed. `longest`,
    int64 `(1,)` on the CPU, is at least the length of the longest: kernels size their grid by it, nothing more.
    """

    ends: Tensor
    longest: Tensor

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and one-past-last row of each sequence that has rows; waits for the device."""
        ends: list[int] = self.ends.tolist()
        return [(start, end) for start, end in pairwise(ends) if end > start]


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
    dense_from: int = 0

    @classmethod
    def of(cls, grids: Iterable[Sequence[int]], multiple: int = 1, dense_from: int = 0) -> Packing:
        """Pack images of these `(h, w)` grids; `rows` becomes a multiple of `multiple`.

        On CUDA images of at least `dense_from` patches are attended one by one with another kernel, if it is not 0.
        Raises `InvalidInput` for an empty list or a grid without patches.
        """
        pairs = tuple((int(h), int(w)) for h, w in grids)
        if not pairs:
            raise InvalidInput("nothing to pack: no images")
        for h, w in pairs:
            if h < 1 or w < 1:
                raise InvalidInput(f"grid {h}x{w} has no patches")
        ends = tuple(accumulate((h * w for h, w in pairs), initial=0))
        return cls(pairs, -(-ends[-1] // multiple) * multiple, ends, dense_from)

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

    @cached_property
    def sequences(self) -> tuple[int, ...]:
        """`cu_seqlens`, the rows of nobody being one more sequence."""
        return self.cu_seqlens if self.rows == self.patches else (*self.cu_seqlens, self.rows)

    def on(self, device: torch.device) -> Ends:
        """The sequences as tensors on `device`, copied there once a pack and without waiting for it."""
        kept: dict[torch.device, Ends] = self.__dict__.setdefault("_on", {})
        if device not in kept:
            host = torch.tensor(self.sequences, dtype=torch.int32, pin_memory=device.type == "cuda")
            longest = max(self.max_seqlen, self.rows - self.patches)
            kept[device] = Ends(host.to(device, non_blocking=True), torch.tensor([longest]))
        return kept[device]

    def runs(self, device: torch.device) -> list[tuple[int, int, Ends | None]]:
        """First and one-past-last row of each image of at least `dense_from` patches, with None, and of each run of
        others between them, with its `Ends`. An image's own size says which it is."""
        kept: dict[torch.device, list[tuple[int, int, Ends | None]]] = self.__dict__.setdefault("_runs", {})
        if device not in kept:
            found, small = list[tuple[int, int, Ends | None]](), [0]
            for start, end in pairwise((*self.sequences, self.rows + 1)):
                if end <= self.rows and end - start < self.dense_from:
                    small.append(end)
                    continue
                if len(small) > 1:
                    part = Packing(tuple((1, b - a) for a, b in pairwise(small)), small[-1] - small[0],
                                   tuple(one - small[0] for one in small))  # fmt: skip
                    found.append((small[0], small[-1], part.on(device)))
                if end <= self.rows:
                    found.append((start, end, None))
                small = [end]
            kept[device] = found
        return kept[device]

    def joined(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The parts of all images one after another along `dim`, `patches` long together, then zeros up to `rows`."""
        return joined(list(parts), self.rows, dim)

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


def joined(parts: list[Tensor], rows: int, dim: int) -> Tensor:
    """The parts one after another along `dim`, then zeros up to `rows`. TorchScript, too."""
    missing = rows
    for part in parts:
        missing -= part.shape[dim]
    if missing > 0:
        shape = list(parts[0].shape)
        shape[dim] = missing
        parts = parts + [parts[0].new_zeros(shape)]  # noqa: RUF005  # TorchScript knows no other way
    return torch.cat(parts, dim)


def chunks(items: Sequence[T], patches: Sequence[int], most: int) -> Iterator[list[T]]:
    """Runs of items of at most `most` patches together, or one item of more."""
    chunk: list[T] = []
    held = 0
    for item, size in zip(items, patches, strict=True):
        if chunk and held + size > most:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += size
    if chunk:
        yield chunk
