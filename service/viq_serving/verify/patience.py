"""Asking again while a server is full, for as long as it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from viq_serving.errors import Overloaded

T = TypeVar("T")

PATIENCE_S = 120.0


def patiently(ask: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """What `ask` returns once the server has room; raises `Overloaded` if it has none for `patience_s` seconds."""
    ends = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except Overloaded as full:
            if time.monotonic() + full.retry_after_s > ends:
                raise
            time.sleep(full.retry_after_s)
