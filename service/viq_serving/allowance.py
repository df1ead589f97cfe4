"""How much of something may be held at one time, by all requests together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from viq_serving.errors import Overloaded

_RETRY_AFTER_S = 1.0


class Allowance:
    """A counted amount. What is taken must be given back; used from one thread only, the event loop's."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.held_now = limit, 0
        self._what = what

    def take(self, amount: int) -> None:
        """Take `amount`; raises `Overloaded`, and takes nothing, if that is more than is left."""
        if self.held_now + amount > self.limit:
            raise Overloaded(
                f"{self.held_now} {self._what} are held and {amount} more asked for, the limit is {self.limit}",
                _RETRY_AFTER_S,
            )
        self.held_now += amount

    def give(self, amount: int) -> None:
        """Give `amount` back."""
        self.held_now -= amount

    @contextmanager
    def held(self, amount: int) -> Iterator[None]:
        """Hold `amount` inside the `with` block."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)
