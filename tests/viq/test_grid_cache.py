from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

from viq.grid_cache import GridCache


class Making:
    """Makes tensors of 4 bytes a patch that hold their grid's number of patches, and notes which it made."""

    def __init__(self) -> None:
        self.made = list[tuple[int, int]]()

    def __call__(self, grid: tuple[int, int]) -> Tensor:
        self.made.append(grid)
        return torch.full(grid, float(grid[0] * grid[1]))


def test_a_grid_is_made_once_while_there_is_room() -> None:
    make = Making()
    cache = GridCache(make, max_bytes=4 * 30)
    assert cache[2, 5] is cache[2, 5]
    assert cache[5, 2].shape == (5, 2)
    assert make.made == [(2, 5), (5, 2)]


def test_what_was_not_asked_for_longest_goes_first_and_bytes_stay_below_the_bound() -> None:
    make = Making()
    cache = GridCache(make, max_bytes=4 * 30)
    for grid in ((1, 10), (2, 5), (10, 1), (1, 10), (3, 4)):  # 10, 10, 10, again the first, then 12
        assert cache[grid].sum() == (grid[0] * grid[1]) ** 2
    make.made.clear()
    assert [cache[grid].shape for grid in ((3, 4), (1, 10))] == [(3, 4), (1, 10)]
    assert make.made == []
    assert cache._bytes == sum(tensor.nbytes for tensor in cache._entries.values()) <= 4 * 30
    assert cache[2, 5] is not None
    assert make.made == [(2, 5)]


def test_a_grid_larger_than_the_bound_is_kept_alone() -> None:
    make = Making()
    cache = GridCache(make, max_bytes=4 * 30)
    first = cache[2, 2]
    assert cache[10, 10] is cache[10, 10]
    assert list(cache._entries) == [(10, 10)]
    assert cache[2, 2] is not first
    assert list(cache._entries) == [(2, 2)]
    assert cache._bytes == 16


def test_threads_that_ask_for_the_same_grid_at_once_count_it_once() -> None:
    together = Barrier(4)

    def make(grid: tuple[int, int]) -> Tensor:
        together.wait(10)
        return torch.ones(grid)

    cache = GridCache(make)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: cache[3, 3], range(4)))
    assert all(torch.equal(one, torch.ones(3, 3)) for one in found)
    assert cache._bytes == 36
