"""The next pair of any source, and whether it is there sooner than something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Upcoming(Generic[T]):
    """Takes from a source one by one; of one that is waited for, the next is asked for ahead."""

    def __init__(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        self._ready: Iterator[T] | None = None
        self._awaited: AsyncIterator[T] | None = None
        self._next: asyncio.Task[T | None] | None = None
        if isinstance(source, AsyncIterable):
            self._awaited = aiter(source)
        else:
            self._ready = iter(source)

    async def next(self) -> T | None:
        """The next one, None at the end; raises what the source raises."""
        if self._ready is not None:
            return next(self._ready, None)
        asked, self._next = self._asked(), None
        return await asked

    async def sooner_than(self, other: asyncio.Task[Any]) -> bool:
        """Wait for the next one or for `other`; False as soon as that is done.

        A source that is not waited for always has its next one, unless `other` is done already.
        """
        if self._ready is None and not other.done():
            await asyncio.wait({self._asked(), other}, return_when=asyncio.FIRST_COMPLETED)
        return not other.done()

    async def close(self) -> None:
        """Ask for no more."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    def _asked(self) -> asyncio.Task[T | None]:
        if self._next is None:
            self._next = asyncio.ensure_future(self._after())
        return self._next

    async def _after(self) -> T | None:
        return None if self._awaited is None else await anext(self._awaited, None)
