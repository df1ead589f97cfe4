"""One generator: its share of a run's load, in this process or in one of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Self

from viq_serving.bench.arrivals import Arrivals, Closed, Poisson, cycle
from viq_serving.bench.doors.choice import door_of
from viq_serving.bench.doors.door import Method, Target
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.handover import read_payload, write_results
from viq_serving.bench.load import Load, Span, closed, opened
from viq_serving.bench.seen import Seen
from viq_serving.client.targets import Tls
from viq_serving.event_loop import allow_files, new_loop

READY = "ready"

Begin = Callable[[], Awaitable[float]]
"""Gives the moment to begin at, once all generators are ready."""


@dataclass(frozen=True)
class Job:
    """What one of `parts` generators does."""

    door: str
    method: Method
    target: Target
    arrivals: Arrivals
    span: Span
    seed: int
    part: int = 0
    parts: int = 1
    check_all: bool = False

    def to_json(self) -> str:
        """As `of_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        held: dict[str, Any] = json.loads(text)
        arrivals = held["arrivals"]
        held["target"]["oip_shape"] = tuple(held["target"]["oip_shape"])
        held["target"]["tls"] = None if held["target"]["tls"] is None else Tls(**held["target"]["tls"])
        made = {
            "target": Target(**held["target"]),
            "span": Span(**held["span"]),
            "arrivals": Closed(**arrivals) if "in_flight" in arrivals else Poisson(**arrivals),
        }
        return cls(**{**held, **made})


async def work(job: Job, payload: Payload, begin: Begin) -> tuple[Load, Seen]:
    """Do a job. Raises `InvalidInput` if its door cannot be opened so."""
    allow_files()  # in an open loop each request may be a connection
    door = door_of(job.door, job.target, payload, job.method)
    sizes = None if job.door == "http" else [8 * one.patches for one in payload.files]  # of others nothing is known
    seen = Seen(wanted=job.method == "encode", all_of_them=job.check_all, sizes=sizes)
    order = cycle(len(payload.files), job.seed, job.part, job.parts)
    await door.open()
    gc.collect()
    gc.freeze()  # what is there stays: a collection that walks through it all would make the generator late
    try:
        if isinstance(job.arrivals, Closed):
            load = await closed(door, job.arrivals, order, job.span, await begin(), seen)
        else:
            moment, seed = await begin(), job.seed * 1009
            load = await opened(door, job.arrivals, order, job.span, moment, seen, seed, job.part, job.parts)
    finally:
        await door.close()
        gc.unfreeze()
    return load, seen


def main() -> None:
    """A process of its own: the folder and the job come on stdin, then, once all are ready, the moment to begin."""
    folder, job = Path(sys.stdin.readline().rstrip("\n")), Job.of_json(sys.stdin.readline())
    payload = read_payload(folder)

    async def begin() -> float:
        print(READY, flush=True)
        moment = float(await asyncio.to_thread(sys.stdin.readline))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        return moment

    with asyncio.Runner(loop_factory=new_loop) as runner:
        load, seen = runner.run(work(job, payload, begin))
    write_results(folder, job.part, load, seen)


async def at_once() -> float:
    """The moment to begin of a generator that waits for no other."""
    return monotonic()


def _end_with_parent() -> None:
    """Who started this process is gone when its end of the pipe is: then nobody wants the results."""
    while os.read(0, 1):
        pass
    os._exit(1)
