"""Work beside the event loop, where it is long enough to keep others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

P = ParamSpec("P")
T = TypeVar("T")

_LONG_BYTES = 16 * 2**10  # about a millisecond of JSON; a thread costs a few tenths


async def aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, which handles `size` bytes; on a thread if they are many."""
    if size > _LONG_BYTES:
        return await run_in_threadpool(work, *args, **kwargs)
    return work(*args, **kwargs)
