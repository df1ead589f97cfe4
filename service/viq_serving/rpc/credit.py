"""How much of a stream may be unanswered before no more of it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple


class Weight(NamedTuple):
    """What an item takes of a stream's credit until its answer is with the transport."""

    bytes: int
    patches: int
    items: int = 1


class Credit:
    """The unanswered items of one stream, held against its limits. One task takes, any gives back.

    An item over a limit is taken when it is the only one.
    """

    def __init__(self, most: Weight) -> None:
        self.most, self.held = most, Weight(0, 0, 0)
        self._given = asyncio.Event()

    async def room(self) -> None:
        """Return when at least something could be taken."""
        await self._until(self._some)

    async def take(self, weight: Weight) -> None:
        """Hold `weight`, as soon as it fits."""
        await self._until(partial(self._fits, weight))
        held = self.held
        self.held = Weight(held.bytes + weight.bytes, held.patches + weight.patches, held.items + weight.items)

    def give(self, weight: Weight) -> None:
        """Give `weight` back."""
        held = self.held
        self.held = Weight(held.bytes - weight.bytes, held.patches - weight.patches, held.items - weight.items)
        self._given.set()

    def _some(self) -> bool:
        held, most = self.held, self.most
        return held.bytes < most.bytes and held.patches < most.patches and held.items < most.items

    def _fits(self, weight: Weight) -> bool:
        held, most = self.held, self.most
        return not held.items or (
            held.bytes + weight.bytes <= most.bytes
            and held.patches + weight.patches <= most.patches
            and held.items + weight.items <= most.items
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._given.clear()
            await self._given.wait()
