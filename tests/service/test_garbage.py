"""Collections come while nobody waits or memory grows, none by itself, and the interpreter is left as it was."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from viq_serving import garbage


class Cycle:
    """Garbage that only a collection frees."""

    def __init__(self) -> None:
        self.own = self


class People:
    """Whether somebody waits, and how often that was asked."""

    def __init__(self, *, wait: bool) -> None:
        self.wait, self.asked = wait, 0

    def idle(self) -> bool:
        self.asked += 1
        return not self.wait


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the collector tells nobody
            await asyncio.sleep(0)


@asynccontextmanager
async def collecting(people: People) -> AsyncIterator[weakref.ref[Cycle]]:
    """The collector under way, and a cycle that is garbage since."""
    task = asyncio.create_task(garbage.collect(people.idle))
    await until(lambda: people.asked > 0)
    yield weakref.ref(Cycle())
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "_LOOK_EVERY_S", 0.001)
    assert gc.isenabled()
    yield
    assert gc.isenabled()
    assert not gc.get_freeze_count()


async def looked(people: People, times: int = 3) -> None:
    before = people.asked
    await until(lambda: people.asked >= before + times)


def test_no_collection_begins_while_somebody_waits_however_many_objects_there_are() -> None:
    async def run() -> None:
        people = People(wait=True)
        async with collecting(people) as left:
            objects = [[] for _ in range(2 * garbage._MANY)]  # type: list[list[int]]
            await looked(people)
            assert objects
            assert left() is not None

    asyncio.run(run())


def test_many_objects_are_looked_at_once_nobody_waits() -> None:
    async def run() -> None:
        people = People(wait=True)
        async with collecting(people) as left:
            objects = [[] for _ in range(2 * garbage._MANY)]  # type: list[list[int]]
            people.wait = False
            await until(lambda: left() is None)
            assert objects

    asyncio.run(run())


def test_few_objects_are_looked_at_some_time_after_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        people = People(wait=False)
        monkeypatch.setattr(garbage, "_IDLE_EVERY_S", 0.0)
        async with collecting(people) as left:
            await looked(people)
            assert left() is not None, "nothing was done that could have left garbage"
            people.wait = True
            await looked(people)
            people.wait = False
            await until(lambda: left() is None)

    asyncio.run(run())


@pytest.mark.parametrize(("limit", "value"), [("_BUSY_EVERY_S", 0.01), ("_GROWN", 0.5)])
def test_a_collection_comes_in_the_end_and_as_memory_grows(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with collecting(People(wait=True)) as left:
            assert left() is not None
            monkeypatch.setattr(garbage, limit, value)
            await until(lambda: left() is None)

    asyncio.run(run())
