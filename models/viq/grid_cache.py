"""Tensors that depend on a patch grid alone, kept for the grids seen last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from torch import Tensor


class GridCache:
    """Least-recently-used cache of one tensor a grid, bounded by bytes; safe to share between threads."""

    def __init__(self, make: Callable[[tuple[int, int]], Tensor], max_bytes: int = 256 * 2**20) -> None:
        self._make, self._max_bytes = make, max_bytes
        self._entries: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def __getitem__(self, grid: tuple[int, int]) -> Tensor:
        """The tensor of `grid`, made if it is not kept."""
        with self._lock:
            if grid in self._entries:
                self._entries.move_to_end(grid)
                return self._entries[grid]
        made = self._make(grid)
        with self._lock:
            if grid not in self._entries:
                self._entries[grid] = made
                self._bytes += made.nbytes
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1].nbytes
        return made
