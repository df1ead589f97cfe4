"""When Python looks for garbage among all objects there are: while nobody waits, seldom otherwise.

A full collection holds the interpreter for as long as it takes to walk through every object: half a second with
ten thousand items in flight, in which no answer leaves and no batch begins. A young one is no better there: Python
begins it once 700 more objects were made than freed, and where as many end as begin that comes late and finds every
object made meanwhile, hundreds of thousands. So none begins by itself. What becomes garbage here is freed without
one: requests leave no cycles but gRPC's own, five small objects a call. With it goes memory that is kept free for
the next forward (`viq_serving.heap`).
"""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Callable

from viq_serving.heap import give_freed_memory_back

_LOOK_EVERY_S = 5.0
_IDLE_EVERY_S, _BUSY_EVERY_S = 60.0, 300.0
_MANY = 50_000  # objects more than after the last collection, worth looking at once nobody waits
_GROWN = 1.25  # of the most memory there was, worth a pause: it may be what garbage holds


async def collect(idle: Callable[[], bool]) -> None:
    """Collect what is garbage now, leave what is not out of all collections to come, and go on until cancelled.

    `idle` tells whether nobody would notice a pause.
    """
    was_on = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # what is loaded stays
    now = asyncio.get_running_loop().time
    last, peak, used = now(), _peak(), False
    try:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            since_s = now() - last
            if idle():
                due = gc.get_count()[0] >= _MANY or (used and since_s >= _IDLE_EVERY_S)
            else:
                used = True
                due = since_s >= _BUSY_EVERY_S or _peak() > _GROWN * peak
            if due:
                gc.collect()
                await asyncio.to_thread(give_freed_memory_back)
                last, peak, used = now(), _peak(), False
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _peak() -> int:
    """The most resident memory this process ever had, in the system's unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
