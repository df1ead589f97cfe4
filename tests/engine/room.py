"""Requests that ask for room in a queue, and hold it until they are told to leave."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from viq_serving.engine.admission import Admission
from viq_serving.engine.lanes import LaneRules
from viq_serving.engine.work import Flow
from viq_serving.types import Terms

ENCODE, EMBED = Flow("encode", "nano"), Flow("embed", "nano")
BULK = ENCODE._replace(lane="bulk")
OF_BULK = Terms(priority="bulk")
PATIENT = Terms(patient=True)
PATIENT_BULK = Terms(priority="bulk", patient=True)


def slow(flow: Flow, cost: float) -> float:
    return cost / 100


def admission(max_patches: int = 1000, max_age_s: float = 10.0) -> Admission:
    return Admission(max_patches, max_age_s, slow, lambda: 100.0, LaneRules(0.2))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Have pytest call a coroutine function."""

    @wraps(test)
    def sync() -> None:
        asyncio.run(test())

    return sync


class Holder:
    """A request as a task: it asks for room, notes that it has it, and keeps it until it is told to leave."""

    def __init__(self, room: Admission, patches: int, terms: Terms, done: list[Holder] | None = None) -> None:
        self.inside, self._leave = False, asyncio.Event()
        self._done = done
        costs = {Flow("encode", "nano", terms.priority): float(patches)}
        self.task = asyncio.create_task(self._hold(room.admitted(patches, costs, math.inf, terms)))

    async def _hold(self, room: Any) -> None:
        async with room:
            self.inside = True
            if self._done is not None:
                self._done.append(self)
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def holding(*arguments: Any) -> Holder:
    """A `Holder` that has had every chance to be let in."""
    holder = Holder(*arguments)
    await settled()
    return holder


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(question: Coroutine[Any, Any, Any], kind: type[Exception], match: str) -> Any:
    with pytest.raises(kind, match=match) as error:
        await question
    return error.value


async def enter(room: Admission, patches: int, costs: dict[Flow, float], left_s: float, terms: Terms = Terms()) -> None:
    async with room.admitted(patches, costs, left_s, terms):
        pass
