"""How many processors this process may use, which in a container is fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def processors(root: Path = Path("/")) -> int:
    """At least 1: those it may run on, or its control group's share of their time, rounded up, where that is less.

    A thread beyond that share would only use up the time of the others. `root` is where the system's files are.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = root / "sys/fs/cgroup"
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            told = " ".join((group / name).read_text(encoding="ascii") for name in names).split()
            quota, period = (int(one) for one in told)
        except (OSError, ValueError):  # of another version, or "max"
            continue
        if quota > 0 and period > 0:  # -1 is no limit
            usable = min(usable, max(1, math.ceil(quota / period)))
    return usable
