"""The memory of a device: how much is held or left, whether it ran out, and letting go of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from viq_serving.engine.fresh_thread import SAID
from viq_serving.heap import give_freed_memory_back

_SAID = (
    "can't allocate memory",  # torch's CPU allocator
    SAID,  # of oneDNN; what was warmed up lacks nothing else
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device's memory, or the host's, did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def memory_of(device: str) -> Mapping[str, Callable[[], float]]:
    """Gauges of the memory of `device` in bytes, by kind: of the whole process for a CPU."""
    if not device.startswith("cuda"):
        return {"resident": _resident_bytes}
    return {
        "allocated": lambda: float(torch.cuda.memory_allocated(device)),
        "reserved": lambda: float(torch.cuda.memory_reserved(device)),
        "total": lambda: float(torch.cuda.mem_get_info(device)[1]),
    }


def _resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # no Linux
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def available_bytes(root: Path = Path("/")) -> int:
    """Memory in bytes that new processes may take, caches that can be dropped among it; 0 where the system is silent.

    A container has what its limit leaves, whatever the machine has. `root` is where the system's files are.
    """
    told = _counts(root / "proc/meminfo").get("MemAvailable:")
    if told is None:  # no Linux
        return 0
    left, group = told * 1024, root / "sys/fs/cgroup"
    for most, held, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = (int((group / name).read_text(encoding="ascii")) for name in (most, held))
        except (OSError, ValueError):  # of another version, or "max"
            continue
        left = min(left, limit - used + _counts((group / most).with_name("memory.stat")).get(cached, 0))
    return max(left, 0)


def _counts(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines}


def free_memory() -> None:
    """Give back what is kept for reuse, now that there was too little."""
    gc.collect()
    give_freed_memory_back(scarce=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
