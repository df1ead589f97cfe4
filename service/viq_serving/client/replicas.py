"""Which replica is asked next: in turn, those that failed only after a while, those that are new at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.client.calls import Again, Ask, Lane
from viq_serving.client.errors import UNREACHABLE, ServerError
from viq_serving.client.targets import Target

T = TypeVar("T")

_LOOK_EVERY_S, _LOOK_AGAIN_S = 30.0, 1.0  # for other replicas; sooner while some do not answer
_LOOK_PATIENCE_S = 1.0  # a name server that is slow keeps nobody from the replicas that are known
_REST_S, _LONGEST_REST_S = 0.1, 5.0
_AT_ONCE_S = 0.05


class Replicas:
    """Lanes to all replicas behind some addresses. Used from one event loop only."""

    def __init__(self, targets: Sequence[Target], open_lane: Callable[[Target, str], Lane], retries: int) -> None:
        self._targets, self._open_lane, self._retries = targets, open_lane, retries
        self._lanes: dict[str, Lane] = {}
        self._behind: dict[str, Target] = {}
        self._rests: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._looked = -_LOOK_EVERY_S
        self._look_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn, self._closed = 0, False
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, ask: Ask, given: bytes | Codes, timeout_s: float) -> Any:
        """The answer for one item, from whichever replica gives it; raises the item's `ViQError`, and as `query`."""
        return await self._answered(lambda lane, left_s: lane.ask(ask, given, left_s), timeout_s)

    async def query(self, question: Callable[[Lane], Awaitable[T]], timeout_s: float) -> T:
        """What some replica answers to a small `question` to its lane.

        Raises what the last replica said once `retries` are used up, or no time is left for another try.
        """
        return await self._answered(lambda lane, _: question(lane), timeout_s)

    async def close(self) -> None:
        """Close all lanes."""
        self._closed = True
        if self._look_task is not None:
            self._look_task.cancel()
        lanes, self._lanes = list(self._lanes.values()), {}
        await asyncio.gather(*(lane.close() for lane in lanes), *self._leaving, return_exceptions=True)

    async def _answered(self, question: Callable[[Lane, float], Awaitable[T]], timeout_s: float) -> T:
        """All tries together end after `timeout_s`, whatever they wait for."""
        end, last = monotonic() + timeout_s, None
        for tried in range(self._retries + 1):
            address, left_s = "", end - monotonic()
            try:
                async with asyncio.timeout(left_s):
                    address = await self._next(stale=tried > 0)
                    answer = await question(self._lanes[address], left_s)
            except Again as again:
                last, pause_s = again.error, _pause_s(tried, again.after_s)
                self._failed(address, again)
                if tried == self._retries or monotonic() + pause_s >= end:
                    raise again.error from None
                await asyncio.sleep(pause_s)
            except TimeoutError:
                break
            else:
                self._failures.pop(address, None)
                return answer
        raise _late(timeout_s, last)

    async def _next(self, *, stale: bool) -> str:
        """The address whose turn it is."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("this client belongs to another event loop: make one in each")
        self._loop = loop
        if self._closed:
            raise ServerError(UNREACHABLE, "the client is closed")
        if not self._lanes or monotonic() - self._looked > (_LOOK_AGAIN_S if stale else _LOOK_EVERY_S):
            await self._refreshed(patiently=stale)
        addresses, now = list(self._lanes), monotonic()
        fit = [one for one in addresses if self._rests.get(one, 0.0) <= now]
        if not fit:  # all of them failed a moment ago: the one that has rested longest
            return min(addresses, key=lambda one: self._rests.get(one, 0.0))
        self._turn += 1
        return fit[self._turn % len(fit)]

    async def _refreshed(self, *, patiently: bool) -> None:
        """Look for other replicas, once for all who ask; who has some waits a moment at most."""
        if self._look_task is None or self._look_task.done():
            self._look_task = asyncio.get_running_loop().create_task(self._look())
            self._look_task.add_done_callback(lambda task: task.cancelled() or task.exception())  # it is known then
        if self._lanes and not patiently:
            return
        looking = self._look_task
        await asyncio.wait({looking}, timeout=_LOOK_PATIENCE_S if self._lanes else None)
        if not self._lanes:
            if looking.cancelled():
                raise ServerError(UNREACHABLE, "the client is closed")
            looking.result()

    async def _look(self) -> None:
        """See which replicas there are now: a name may stand for others than before."""
        found: dict[str, Target] = {}
        for target in self._targets:
            addresses = await target.replicas()
            if addresses is None:  # nobody knows now: those it had are still the best guess
                addresses = [address for address, behind in self._behind.items() if behind is target]
            found |= dict.fromkeys(addresses, target)
        self._looked = monotonic()
        if not found and not self._lanes:
            names = ", ".join(target.text for target in self._targets)
            raise Again(ServerError(UNREACHABLE, f"no answer from {names}: the name is not known"))
        if not found:
            return
        for address in [one for one in self._lanes if one not in found]:
            self._leave(self._lanes.pop(address))
        self._behind = found
        for address, target in found.items():
            if address not in self._lanes:
                self._lanes[address] = self._open_lane(target, address)

    def _leave(self, lane: Lane) -> None:
        task = asyncio.get_running_loop().create_task(lane.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _failed(self, address: str, again: Again) -> None:
        """Let a replica rest that does not answer; one that is only full is asked in its turn."""
        if again.after_s is not None or not address:
            return
        count = self._failures[address] = self._failures.get(address, 0) + 1
        self._rests[address] = monotonic() + min(_LONGEST_REST_S, _REST_S * 2 ** min(count, 10)) * random.random()  # noqa: S311  # no secret


def _pause_s(tried: int, hint_s: float | None) -> float:
    """Seconds before the next try: what the server asks for, else more each time, and never all at the same moment."""
    if hint_s is not None:
        return hint_s * (1 + 0.2 * random.random())  # noqa: S311
    longest = min(_LONGEST_REST_S, _AT_ONCE_S * float(2**tried))
    return longest * random.random()  # noqa: S311


def _late(timeout_s: float, last: ViQError | None) -> ServerError:
    before = "" if last is None else f"; before that: {last}"
    return ServerError("deadline_exceeded", f"no answer within {timeout_s:g} s{before}")
