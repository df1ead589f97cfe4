"""What only a collection of garbage, and the pause that it is, would free."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def left_behind() -> Iterator[list[Any]]:
    """What no collection but the one at the end has found."""
    found: list[Any] = []
    was_on, debugged = gc.isenabled(), gc.get_debug()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(debugged)
        gc.garbage.clear()
        if was_on:
            gc.enable()
