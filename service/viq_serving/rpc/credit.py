"""How much of a stream may be unanswered before no more of it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        await self._until(lambda: all(held < most for held, most in zip(self.held, self.most, strict=True)))

    async def take(self, weight: Weight) -> None:
        """Hold `weight`, as soon as it fits."""
        await self._until(lambda: self._fits(weight))
        self.held = Weight(*(held + more for held, more in zip(self.held, weight, strict=True)))

    def give(self, weight: Weight) -> None:
        """Give `weight` back."""
        self.held = Weight(*(held - less for held, less in zip(self.held, weight, strict=True)))
        self._given.set()

    def _fits(self, weight: Weight) -> bool:
        return not self.held.items or all(
            held + more <= most for held, more, most in zip(self.held, weight, self.most, strict=True)
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._given.clear()
            await self._given.wait()
