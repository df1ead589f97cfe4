"""The threads for images: people first, bulk never on all of them, and nothing is left undone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from viq_serving.errors import NotReady
from viq_serving.pool import Pool
from viq_serving.types import Priority

THREADS = 3


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr("viq_serving.pool.processors", lambda: THREADS)
    made = Pool()
    yield made
    made.shutdown(wait=True)


class Busy:
    """Work that holds its thread until it is let go, and counts who does so."""

    def __init__(self) -> None:
        self.running, self._lock, self._go = 0, threading.Lock(), threading.Event()
        self.one_more = threading.Condition(self._lock)

    def __call__(self) -> None:
        with self.one_more:
            self.running += 1
            self.one_more.notify_all()
        assert self._go.wait(60)

    def wait_for(self, running: int) -> None:
        with self.one_more:
            assert self.one_more.wait_for(lambda: self.running == running, 60)

    def let_go(self) -> None:
        self._go.set()


def test_bulk_leaves_a_thread_for_interactive_work(pool: Pool) -> None:
    bulk, done = Busy(), threading.Event()
    for _ in range(10):
        pool.submit("bulk", bulk)
    bulk.wait_for(THREADS - 1)
    pool.submit("interactive", done.set)
    assert done.wait(60)
    assert bulk.running == THREADS - 1
    bulk.let_go()
    bulk.wait_for(10)


def test_interactive_work_goes_before_all_bulk_that_waits(pool: Pool) -> None:
    busy, order, all_done = Busy(), list[Priority](), threading.Semaphore(0)

    def note(lane: Priority) -> None:
        order.append(lane)
        all_done.release()

    for _ in range(THREADS):
        pool.submit("interactive", busy)
    busy.wait_for(THREADS)
    for lane in ("bulk",) * 5 + ("interactive",) * 5:
        pool.submit(lane, lambda lane=lane: note(lane))  # type: ignore[misc]
    busy.let_go()
    for _ in range(10):
        assert all_done.acquire(timeout=60)
    # Threads look for work at the same time, so one may be a step behind another.
    assert order.index("bulk") >= 5 - THREADS
    assert order[-1] == "bulk"


def test_interactive_work_without_end_leaves_bulk_a_thread_in_turns(pool: Pool) -> None:
    done, ends = threading.Semaphore(0), threading.Event()

    def again() -> None:
        if not ends.wait(0.001):
            pool.submit("interactive", again)

    for _ in range(10 * THREADS):
        pool.submit("interactive", again)
    for _ in range(5):
        pool.submit("bulk", lambda: done.release())
    try:
        assert all(done.acquire(timeout=20) for _ in range(5))
    finally:
        ends.set()


def test_results_and_errors_come_back_to_the_one_who_asked(pool: Pool) -> None:
    def wrong() -> None:
        raise ValueError("wrong")

    async def live() -> None:
        assert await pool.run("bulk", lambda: 42) == 42
        with pytest.raises(ValueError, match="wrong"):
            await pool.run("interactive", wrong)
        results = await asyncio.gather(*(pool.run(lane, lambda: 1) for lane in ("bulk", "interactive") * 200))
        assert sum(results) == 400

    asyncio.run(live())


def test_what_nobody_waits_for_any_more_is_not_done(pool: Pool) -> None:
    async def live() -> None:
        busy, done = Busy(), threading.Event()
        for _ in range(THREADS):
            pool.submit("interactive", busy)
        await asyncio.to_thread(busy.wait_for, THREADS)
        waits = asyncio.create_task(pool.run("interactive", done.set))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        busy.let_go()
        await pool.run("interactive", lambda: None)
        assert not done.is_set()

    asyncio.run(live())


def test_who_waits_when_all_ends_is_told_so(pool: Pool) -> None:
    async def live() -> None:
        busy = Busy()
        for _ in range(THREADS):
            pool.submit("interactive", busy)
        await asyncio.to_thread(busy.wait_for, THREADS)
        waits = [asyncio.create_task(pool.run(lane, lambda: None)) for lane in ("interactive", "bulk")]
        await asyncio.sleep(0)
        pool.shutdown(wait=False)
        for task in waits:
            with pytest.raises(NotReady):
                await task
        for lane in ("interactive", "bulk"):
            with pytest.raises(NotReady):
                await pool.run(lane, lambda: None)
        busy.let_go()

    asyncio.run(live())
