"""Which replica is asked next: in turn, those that failed only after a while, those that are new at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

from viq.codes import Codes
from viq_serving.client.calls import Again, Ask, Lane
from viq_serving.client.errors import UNREACHABLE, ServerError
from viq_serving.client.targets import Target

T = TypeVar("T")

_LOOK_EVERY_S, _LOOK_AGAIN_S = 30.0, 1.0  # for other replicas; sooner while some do not answer
_REST_S, _LONGEST_REST_S = 0.1, 5.0
_AT_ONCE_S = 0.05


class Replicas:
    """Lanes to all replicas behind some addresses. Used from one event loop only."""

    def __init__(self, targets: Sequence[Target], open_lane: Callable[[Target, str], Lane], retries: int) -> None:
        self._targets, self._open_lane, self._retries = targets, open_lane, retries
        self._lanes: dict[str, Lane] = {}
        self._rests: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._looked = -_LOOK_EVERY_S
        self._looking = asyncio.Lock()
        self._turn, self._closed = 0, False
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, ask: Ask, given: bytes | Codes, timeout_s: float) -> Any:
        """The answer for one item, from whichever replica gives it.

        Raises the item's `ViQError`, or what the last replica said once `retries` are used up or time is.
        """
        end = monotonic() + timeout_s
        for tried in range(self._retries + 1):
            left_s = end - monotonic()
            if left_s <= 0:
                break
            address = await self._next(stale=tried > 0)
            try:
                async with asyncio.timeout(left_s):
                    answer = await self._lanes[address].ask(ask, given, left_s)
            except Again as again:
                self._failed(address, again)
                if tried == self._retries:
                    raise again.error from None
                await asyncio.sleep(min(_pause_s(tried, again.after_s), max(0.0, end - monotonic())))
            except TimeoutError:
                break
            else:
                self._failures.pop(address, None)
                return answer
        raise ServerError("deadline_exceeded", f"no answer within {timeout_s:g} s")

    async def query(self, question: Callable[[Lane], Awaitable[T]]) -> T:
        """What some replica answers to a small `question` to its lane."""
        for tried in range(self._retries + 1):
            address = await self._next(stale=tried > 0)
            try:
                return await question(self._lanes[address])
            except Again as again:
                self._failed(address, again)
                if tried == self._retries:
                    raise again.error from None
                await asyncio.sleep(_pause_s(tried, again.after_s))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close all lanes."""
        self._closed = True
        lanes, self._lanes = list(self._lanes.values()), {}
        await asyncio.gather(*(lane.close() for lane in lanes), *self._leaving, return_exceptions=True)

    async def _next(self, *, stale: bool) -> str:
        """The address whose turn it is."""
        if self._closed:
            raise ServerError(UNREACHABLE, "the client is closed")
        if monotonic() - self._looked > (_LOOK_AGAIN_S if stale else _LOOK_EVERY_S) or not self._lanes:
            async with self._looking:
                if monotonic() - self._looked > _LOOK_AGAIN_S or not self._lanes:
                    await self._look()
        addresses, now = list(self._lanes), monotonic()
        fit = [one for one in addresses if self._rests.get(one, 0.0) <= now]
        if not fit:  # all of them failed a moment ago: the one that has rested longest
            return min(addresses, key=lambda one: self._rests.get(one, 0.0))
        self._turn += 1
        return fit[self._turn % len(fit)]

    async def _look(self) -> None:
        """See which replicas there are now: a name may stand for others than before."""
        found: dict[str, Target] = {}
        for target in self._targets:
            found |= dict.fromkeys(await target.replicas(), target)
        self._looked = monotonic()
        if not found and not self._lanes:
            names = ", ".join(target.text for target in self._targets)
            raise ServerError(UNREACHABLE, f"no answer from {names}: the name is not known")
        if not found:
            return
        for address in [one for one in self._lanes if one not in found]:
            self._leave(self._lanes.pop(address))
        for address, target in found.items():
            if address not in self._lanes:
                self._lanes[address] = self._open_lane(target, address)

    def _leave(self, lane: Lane) -> None:
        task = asyncio.get_running_loop().create_task(lane.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _failed(self, address: str, again: Again) -> None:
        """Let a replica rest that does not answer; one that is only full is asked in its turn."""
        if again.after_s is not None:
            return
        count = self._failures[address] = self._failures.get(address, 0) + 1
        self._rests[address] = monotonic() + min(_LONGEST_REST_S, _REST_S * 2 ** min(count, 10)) * random.random()  # noqa: S311  # no secret


def _pause_s(tried: int, hint_s: float | None) -> float:
    """Seconds before the next try: what the server asks for, else more each time, and never all at the same moment."""
    if hint_s is not None:
        return hint_s * (1 + 0.2 * random.random())  # noqa: S311
    longest = min(_LONGEST_REST_S, _AT_ONCE_S * float(2**tried))
    return longest * random.random()  # noqa: S311
