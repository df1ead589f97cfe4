"""What a process of many connections runs on: its event loop, and as many open files as it may have."""

from __future__ import annotations

import asyncio
from contextlib import suppress


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where there is one (not on Windows), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def allow_files() -> None:
    """Let this process have as many open files, connections among them, as the system allows."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
