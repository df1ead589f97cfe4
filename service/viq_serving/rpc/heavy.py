"""Work on megabytes, kept off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LIGHT_BYTES = 256 * 2**10
"""Below this a thread costs more than it frees."""


async def run(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args, **kwargs)` over `size` bytes: here if that is little, else on a thread."""
    if size < _LIGHT_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
