"""The memory of a device: how much is held, whether it ran out, and letting go of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device's memory, or the host's, did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


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


def free_memory() -> None:
    """Give back what is kept for reuse."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
