"""When Python looks for garbage among all objects there are: while nobody waits, seldom otherwise.

A full collection holds the interpreter for as long as it takes to walk through every object: half a second with
ten thousand items in flight, in which no answer leaves and no batch begins. What becomes garbage here is freed
without one, cycles being rare (an error with its frames), and young ones are collected as always.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

_YOUNG, _MIDDLE = 5_000, 10  # objects, and collections of them, until the next: a millisecond, and a few
_NEVER = 1_000_000_000
_LOOK_EVERY_S, _BUSY_EVERY_S = 5.0, 300.0


async def collect(idle: Callable[[], bool]) -> None:
    """Collect what is garbage now, leave what is not out of all collections to come, and go on until cancelled.

    `idle` tells whether nobody would notice a pause.
    """
    gc.collect()
    gc.freeze()  # what is loaded stays
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    now = asyncio.get_running_loop().time
    last = now()
    try:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            young_since = gc.get_count()[2]
            if young_since and (idle() or now() - last >= _BUSY_EVERY_S):
                gc.collect()
                last = now()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
