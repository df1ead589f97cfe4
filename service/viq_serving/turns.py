"""Whether a thread waits for its turn on a processor, or takes it from one that computes.

By default Linux often does the latter as soon as there is something to do for a thread that has slept. What was in
that processor's cache is then fetched anew, and where all of them compute that costs more than it gains
(`bench/interrupting.py`). So a server's threads that compute on CPUs, decode or encode wait until a processor is free
or theirs in turn. Its event loop does not: beside a flood of requests, those it could not refuse in time would wait at
its door. In extractions it made no difference.
"""

from __future__ import annotations

import os


def wait_for_turns() -> bool:
    """Let the calling thread, and all that it starts from here on, take a processor only when one is free or due.

    False where the system has no such policy or forbids it, or where the operator, or whoever started this process,
    has chosen one.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return False
    try:
        chosen = os.sched_getscheduler(0) != os.SCHED_OTHER
        if not chosen:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return False
    return not chosen
