"""How threads that compute wait: for one another, and for Python's interpreter."""

from __future__ import annotations

import os
import sys

_SPINS = "10000"  # some 50 µs: longer than from one operation of a forward to the next, shorter than a time slice

_TURN_S = 0.0005

_LATELY_S = 1.0


def take_short_turns() -> None:
    """Let no thread keep the interpreter from others that want it for long.

    A forward takes it back after each of some hundred operations: with Python's own 5 ms, beside threads that decode
    or answer, it takes several times as long as alone.
    """
    sys.setswitchinterval(_TURN_S)


def spin_briefly() -> None:
    """Let threads that have nothing to do sleep soon; only before torch is imported, which reads it then.

    By default an idle OpenMP thread spins for milliseconds. In a process with other threads that want the cores
    (event loop, image decoding, the neighbours on the machine) a wait may then last a time slice; to sleep at once
    costs a wake-up an operation (`bench/spinning.py`, `bench/throughput.py`). What the operator sets stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def computing_threads() -> int:
    """How many threads an operation uses on a CPU: all that this process may have."""
    import torch  # not before spin_briefly

    return torch.get_num_threads()


def share_threads(all_threads: int, computing: int) -> None:
    """Let what the calling thread computes next use its part of `all_threads`, so many threads `computing`."""
    import torch

    torch.set_num_threads(max(1, all_threads // max(1, computing)))


class Company:
    """How many threads have computed beside one another within the last second.

    Under load one often begins in the moment in which another has just ended and is about to begin anew. If it then
    took all processors, there would be more threads than processors for as long as its work lasts.
    """

    def __init__(self) -> None:
        self._seen: list[float] = []  # at i: when more than i last computed at once

    def note(self, computing: int, now: float) -> None:
        """Note that `computing` threads compute `now`, in seconds; to be told when one begins and before one ends."""
        self._seen[:computing] = [now] * computing

    def of(self, computing: int, now: float) -> int:
        """The most that computed at once within the last second, `computing` of them `now`."""
        self.note(computing, now)
        return sum(now - seen <= _LATELY_S for seen in self._seen)
