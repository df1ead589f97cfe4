"""Computing on a thread that still can.

When oneDNN cannot have the memory for the code it generates, its generator notes so for the thread and never forgets:
from then on that thread computes what it has computed before, and nothing of another shape, however much memory there
is ("could not create a primitive", seen with torch 2.13). A new thread knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SAID = "could not create a primitive"
"""What oneDNN says of it, and says no more."""


class FreshThread:
    """Has work done by the thread that asks; after such an error by one of its own, a new one after each."""

    def __init__(self) -> None:
        self._own: ThreadPoolExecutor | None = None

    def do(self, work: Callable[[], T]) -> T:
        """What `work` gives; raises what it raises."""
        try:
            return work() if self._own is None else self._own.submit(work).result()
        except RuntimeError as error:
            if SAID in str(error):
                self.close()
                self._own = ThreadPoolExecutor(1, "viq-fresh")
            raise

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._own is not None:
            self._own.shutdown(wait=False)
            self._own = None
