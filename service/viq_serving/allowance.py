"""How much of something may be held at one time, by all requests together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from viq_serving.errors import Overloaded
from viq_serving.line import Line

_RETRY_AFTER_S = 1.0


class Allowance:
    """A counted amount. What is taken must be given back; used from one thread only, the event loop's.

    `take` and `held` refuse what there is no room for, `wait` and `patient` wait for it in order.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.held_now = limit, 0
        self._what = what
        self._line = Line[int](self._taken, self._given)

    def take(self, amount: int) -> None:
        """Take `amount`; raises `Overloaded`, and takes nothing, if that is more than is left."""
        if self.held_now + amount > self.limit:
            raise Overloaded(
                f"{self.held_now} {self._what} are held and {amount} more asked for, the limit is {self.limit}",
                _RETRY_AFTER_S,
            )
        self.held_now += amount

    async def wait(self, amount: int) -> None:
        """Take `amount` when there is room and all who waited before have theirs.

        More than the limit is taken when nothing else is held. Who is cancelled holds nothing.
        """
        await self._line.wait(amount)

    def give(self, amount: int) -> None:
        """Give `amount` back."""
        self._given(amount)
        self._line.serve()

    def resize(self, limit: int) -> None:
        """Change the limit; what is held stays held, also if it is more."""
        self.limit = limit
        self._line.serve()

    @contextmanager
    def held(self, amount: int) -> Iterator[None]:
        """Hold `amount` inside the `with` block."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)

    @asynccontextmanager
    async def patient(self, amount: int) -> AsyncIterator[None]:
        """Hold `amount` inside the `with` block, once there is room."""
        await self.wait(amount)
        try:
            yield
        finally:
            self.give(amount)

    def _taken(self, amount: int) -> bool:
        if self.held_now and self.held_now + amount > self.limit:
            return False
        self.held_now += amount
        return True

    def _given(self, amount: int) -> None:
        self.held_now -= amount
