"""The caller's deadline as the end of a scope."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from viq_serving.errors import DeadlineExceeded
from viq_serving.types import Terms


@asynccontextmanager
async def within(terms: Terms) -> AsyncIterator[None]:
    """A scope that ends at the caller's deadline, as `DeadlineExceeded`."""
    left_s = terms.deadline - monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline has passed already")
    scope = asyncio.timeout(None if math.isinf(left_s) else left_s)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded("the deadline passed before the request was answered") from None
