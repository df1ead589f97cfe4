"""Requests sent through a door as their arrivals say, and what became of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from time import monotonic, process_time

from viq_serving.bench.arrivals import Closed, Poisson
from viq_serving.bench.doors.door import Door
from viq_serving.bench.records import Records
from viq_serving.bench.seen import Seen

_TICK_S = 0.02
_AFTER_FAILURE_S = 0.02  # a server that refuses at once shall not be asked in a tight circle


@dataclass(frozen=True)
class Span:
    """How long to send, after `warm_s` seconds that do not count: for `seconds`, or until `requests` were sent."""

    warm_s: float
    seconds: float | None = None
    requests: int | None = None


@dataclass
class Load:
    """All that one generator sent and measured. The window of what counts is from `start` to `end`."""

    records: Records = field(default_factory=Records)
    start: float = 0.0
    end: float = 0.0
    lag: list[float] = field(default_factory=list)
    """How late the generator was from `start` on, in seconds: at each request of an open loop, else at the ticks of a
    clock."""
    cpu_s: float = 0.0
    """Seconds of a processor that the generator itself took from `start` to `end`."""


async def closed(door: Door, arrivals: Closed, order: Iterator[int], span: Span, begin: float, seen: Seen) -> Load:
    """Callers that wait for their answers, from the moment `begin` on.

    With a number of seconds the callers go on without a pause from warm-up to the end, and those under way then are
    waited for; with a number of requests the window is from the first one's sending to the last one's answer.
    """
    load = Load(start=begin + span.warm_s)

    async def callers(until: float, most: int | None) -> None:
        left = most

        async def call() -> None:
            nonlocal left
            while (now := monotonic()) < until and left != 0:
                left = None if left is None else left - 1
                picture = next(order)
                answer = await door.ask(picture)
                load.records.add(picture, now, now, monotonic(), door.sent_bytes(picture), answer)
                seen.take(picture, answer, door)
                if answer.kind:
                    await asyncio.sleep(_AFTER_FAILURE_S)

        await asyncio.gather(*(call() for _ in range(arrivals.in_flight)))

    await asyncio.sleep(max(0.0, begin - monotonic()))
    clock = asyncio.create_task(_ticks(load))
    if span.seconds is not None:
        load.end = load.start + span.seconds
        await asyncio.gather(callers(load.end, None), _spent(load))
    else:
        if span.warm_s:  # else a timer that is early by a moment would let some be sent that do not count
            await callers(load.start, None)
        load.start, load.cpu_s = monotonic(), -process_time()
        await callers(inf, span.requests)
        load.end, load.cpu_s = monotonic(), load.cpu_s + process_time()
    clock.cancel()
    return load


async def opened(
    door: Door,
    arrivals: Poisson,
    order: Iterator[int],
    span: Span,
    begin: float,
    seen: Seen,
    seed: int,
    part: int = 0,
    parts: int = 1,
) -> Load:
    """Requests at the times that follow from `seed`, from `begin` on; all that were sent are waited for.

    Of several generators each sends every `parts`-th, so that all of them send what one would. With a number of
    requests the window ends when one more would be due.
    """
    load = Load(start=begin + span.warm_s)
    if span.seconds is not None:
        due_after = arrivals.times(span.warm_s + span.seconds, seed)
        load.end = load.start + span.seconds
    else:  # until one more would be due
        *due_after, last = arrivals.times(span.warm_s, seed, (span.requests or 0) + 1)
        load.end = begin + last
    due_after = due_after[part::parts]
    asked = set[asyncio.Task[None]]()

    async def call(picture: int, due: float) -> None:
        begun = monotonic()
        answer = await door.ask(picture)
        load.records.add(picture, due, begun, monotonic(), door.sent_bytes(picture), answer)
        seen.take(picture, answer, door)

    spent = asyncio.create_task(_spent(load))
    for after in due_after:
        due = begin + after
        early = due - monotonic()
        if early > 0:
            await asyncio.sleep(early)
        if due >= load.start:
            load.lag.append(max(0.0, monotonic() - due))
        task = asyncio.create_task(call(next(order), due))
        asked.add(task)
        task.add_done_callback(asked.discard)
        if early <= 0:
            await asyncio.sleep(0)  # also when behind: else nothing that is under way would go on
    await asyncio.gather(spent, *asked)
    return load


async def _ticks(load: Load) -> None:
    """Note how late this event loop is, as long as it runs."""
    while True:
        due = monotonic() + _TICK_S
        await asyncio.sleep(_TICK_S)
        if due >= load.start:
            load.lag.append(max(0.0, monotonic() - due))


async def _spent(load: Load) -> None:
    """Measure the processor's time from the start of the window to its end."""
    await asyncio.sleep(max(0.0, load.start - monotonic()))
    before = process_time()
    await asyncio.sleep(max(0.0, load.end - monotonic()))
    load.cpu_s = process_time() - before
