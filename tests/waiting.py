"""Waiting for what will be true, in place of pauses: as long as a busy machine may take, without keeping it busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 60.0
_LOOK_S = 0.01  # who looks without a pause takes the cores from those whom it waits for


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for `condition`; fail, saying that `what` did not come true, after `patience_s`."""
    ends, pause = time.monotonic() + patience_s, threading.Event()
    while not condition():
        assert time.monotonic() < ends, f"not in {patience_s:g} s: {what}"
        pause.wait(_LOOK_S)
