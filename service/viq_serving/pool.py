"""The threads that decode and encode images: work of the interactive lane first, and never all of them for bulk.

Nor none of them: while all of them are wanted without end, bulk has one in turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from viq_serving.errors import NotReady
from viq_serving.processors import processors
from viq_serving.turns import wait_for_turns
from viq_serving.types import Priority

T = TypeVar("T")

_Work = tuple[Callable[[], object], Future[Any] | None]
"""What is to be run, and what tells of it if somebody waits for that."""

_BEFORE_BULK = 4
"""So much interactive work goes before bulk that waits and has no thread at all; then it gets one."""


class Pool:
    """As many threads as there are processors for this process, at least two, with a queue for each lane."""

    def __init__(self) -> None:
        self._threads = max(2, processors())
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="viq-images", initializer=wait_for_turns)
        self._waiting: dict[Priority, deque[_Work]] = {"interactive": deque(), "bulk": deque()}
        self._running, self._bulk, self._most_bulk, self._lock = 0, 0, self._threads - 1, Lock()
        self._before_bulk = 0  # taken while bulk waits and has no thread
        self._ended = False

    def submit(self, lane: Priority, work: Callable[[], object]) -> None:
        """Run `work` on a thread, which must raise nothing, after what waits in its lane and in a better one.

        Raises `NotReady` once the pool is shut down.
        """
        self._put(lane, (work, None))

    async def run(self, lane: Priority, work: Callable[[], T]) -> T:
        """What `work` gives, run on a thread as `submit` does."""
        done = Future[T]()
        self._put(lane, (partial(_settle, done, work), done))
        return await asyncio.wrap_future(done)

    def shutdown(self, *, wait: bool) -> None:
        """Take no more work and forget what waits, whose askers hear so; `wait` for what runs."""
        with self._lock:
            self._ended = True
            left = [done for waiting in self._waiting.values() for _, done in waiting if done is not None]
            for waiting in self._waiting.values():
                waiting.clear()
        for done in left:
            if done.set_running_or_notify_cancel():
                done.set_exception(NotReady("the service has stopped"))
        self._executor.shutdown(wait=wait, cancel_futures=True)

    def _put(self, lane: Priority, work: _Work) -> None:
        with self._lock:
            if self._ended:
                raise NotReady("the service has stopped")
            self._waiting[lane].append(work)
            # To call a thread costs more than all else here; one that works looks again before it stops.
            if self._running < self._threads and (lane == "interactive" or self._bulk < self._most_bulk):
                self._executor.submit(self._next)
                self._running += 1

    def _next(self) -> None:
        """All that there is to do now. Whatever waits, a thread is called or works that will look for it."""
        while (taken := self._take()) is not None:
            lane, (work, _) = taken
            try:
                work()
            finally:
                if lane == "bulk":  # before it looks again: another may just have left it what is over the limit
                    with self._lock:
                        self._bulk -= 1

    def _take(self) -> tuple[Priority, _Work] | None:
        with self._lock:
            overtaken = bool(self._waiting["bulk"]) and not self._bulk
            if self._waiting["interactive"] and not (overtaken and self._before_bulk >= _BEFORE_BULK):
                self._before_bulk = self._before_bulk + 1 if overtaken else 0
                return "interactive", self._waiting["interactive"].popleft()
            if self._waiting["bulk"] and self._bulk < self._most_bulk:
                self._bulk, self._before_bulk = self._bulk + 1, 0
                return "bulk", self._waiting["bulk"].popleft()
            self._running -= 1
            return None


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001  # whatever it is, the one who waits must hear of it
        done.set_exception(error)
