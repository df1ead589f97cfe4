"""The bytes of body that one request holds."""

from __future__ import annotations

from viq_serving.allowance import Allowance


class Claim:
    """One request's part of an allowance, given back as a whole when the request ends."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance, self._bytes = allowance, 0

    @property
    def limit(self) -> int:
        """The most that all requests together may hold, in bytes."""
        return self._allowance.limit

    def cover(self, amount: int) -> None:
        """Hold at least `amount` bytes from now on; raises `Overloaded` if that is more than is left."""
        if amount > self._bytes:
            self._allowance.take(amount - self._bytes)
            self._bytes = amount

    def release(self) -> None:
        """Give everything back."""
        self._allowance.give(self._bytes)
        self._bytes = 0
