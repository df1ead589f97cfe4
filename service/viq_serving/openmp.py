"""How torch's CPU threads wait for one another."""

from __future__ import annotations

import os

_SPINS = "10000"  # some 50 µs: longer than from one operation of a forward to the next, shorter than a time slice


def spin_briefly() -> None:
    """Let threads that have nothing to do sleep soon; only before torch is imported, which reads it then.

    By default an idle OpenMP thread spins for milliseconds. In a process with other threads that want the cores
    (event loop, image decoding, the neighbours on the machine) a wait may then last a time slice; to sleep at once
    costs a wake-up an operation (`bench/spinning.py`, `bench/throughput.py`). What the operator sets stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
