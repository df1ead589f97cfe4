"""How much may be on its way: items and bytes of one call, bytes of all files that a client has read."""

from __future__ import annotations

import asyncio
from collections import deque


class Window:
    """Items and bytes on their way, against their limits; one item always goes."""

    def __init__(self, items: int, bytes_: int) -> None:
        self._items, self._bytes = items, bytes_
        self._held = self._held_bytes = 0

    def room(self, weight: int) -> bool:
        """Whether an item of so many bytes may go."""
        return not self._held or (self._held < self._items and self._held_bytes + weight <= self._bytes)

    def take(self, weight: int) -> None:
        """An item goes."""
        self._held, self._held_bytes = self._held + 1, self._held_bytes + weight

    def give(self, weight: int) -> None:
        """An item is done with."""
        self._held, self._held_bytes = self._held - 1, self._held_bytes - weight


class Room:
    """Bytes that are held, against a limit; who comes first is let in first, and one always is."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._holders = most, 0, 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, weight: int) -> None:
        """Wait for room for so many bytes, and hold them."""
        if self._line or not self._fits(weight):
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((weight, place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.give(weight)  # let in just then
                raise
            return
        self._hold(weight)

    def give(self, weight: int) -> None:
        """Hold so many bytes no more."""
        self._held, self._holders = self._held - weight, self._holders - 1
        while self._line and (self._line[0][1].done() or self._fits(self._line[0][0])):
            next_weight, place = self._line.popleft()
            if not place.done():
                self._hold(next_weight)
                place.set_result(None)

    def _fits(self, weight: int) -> bool:
        return not self._holders or self._held + weight <= self._most

    def _hold(self, weight: int) -> None:
        self._held, self._holders = self._held + weight, self._holders + 1
