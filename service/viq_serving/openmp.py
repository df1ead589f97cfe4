"""How torch's CPU threads wait for one another."""

from __future__ import annotations

import os


def sleep_when_idle() -> None:
    """Let threads that have nothing to do sleep instead of spin; only before torch is imported, which reads it then.

    By default an idle OpenMP thread spins for milliseconds. In a process with other threads that want the cores
    (event loop, image decoding, the neighbours on the machine) a wait may then last a time slice: with one busy
    process beside it on 2 cores, a forward of 256x256 on nano takes 132 ms and not 40 (`bench/spinning.py`).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
