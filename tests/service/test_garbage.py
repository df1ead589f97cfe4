"""Full collections come while nobody waits, and leave the interpreter as it was when the service ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from viq_serving import garbage


class Cycle:
    """Garbage that only a collection frees."""

    def __init__(self) -> None:
        self.own = self


def old_garbage() -> weakref.ref[Cycle]:
    """A cycle that nobody holds and that has outlived the younger generations."""
    cycle = Cycle()
    gc.collect(1)
    return weakref.ref(cycle)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the collector tells nobody
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "_LOOK_EVERY_S", 0.001)
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before


def test_old_garbage_is_collected_once_nobody_waits() -> None:
    async def run() -> None:
        looks, waiting = 0, True

        def idle() -> bool:
            nonlocal looks
            looks += 1
            return not waiting

        collecting = asyncio.create_task(garbage.collect(idle))
        await until(lambda: gc.get_threshold()[2] == garbage._NEVER)
        left = old_garbage()
        await until(lambda: looks >= 3)
        assert left() is not None
        waiting = False
        await until(lambda: left() is None)
        collecting.cancel()
        await asyncio.wait([collecting])

    asyncio.run(run())


def test_old_garbage_is_collected_in_the_end_though_somebody_always_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_BUSY_EVERY_S", 0.01)

    async def run() -> None:
        collecting = asyncio.create_task(garbage.collect(lambda: False))
        await until(lambda: gc.get_threshold()[2] == garbage._NEVER)
        left = old_garbage()
        await until(lambda: left() is None)
        collecting.cancel()
        await asyncio.wait([collecting])

    asyncio.run(run())
