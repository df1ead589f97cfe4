"""How the C library keeps memory that a forward has freed: for the next one.

A forward frees each activation as soon as the next is made. By default glibc hands those above a threshold, which it
moves by what it has seen, back to the system, and that clears every page anew when they are asked for again: at 256x256
on `nano` 1,400 page faults an image and 7 % of its time, at other sizes little or nothing (`bench/heap.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt(3)
_LARGEST = 32 * 2**20  # from here on blocks come from the system one by one and go back to it; glibc takes no more
_KEPT = 256 * 2**20  # so much may lie free at the end of the heap
# A thread's arena is made of mappings of 64 MiB. glibc drops one that has come empty, whatever the trim threshold,
# unless less than this is left in the one before: a forward that crosses from one into the next would fetch the next
# each time. It is address space that is asked for ahead, not memory.
_PAD = 64 * 2**20

_OPERATORS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_TUNABLES = "glibc.malloc."


def keep_freed_memory() -> bool:
    """Have blocks of up to 32 MiB used again, not given back; false where that is not this process's choice.

    That is where the C library is not glibc, or where the operator has set how it allocates.
    """
    if not sys.platform.startswith("linux") or _is_set_already():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Setting one also ends glibc's own adjusting of the thresholds.
    return all(mallopt(*each) for each in ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _PAD)))


def _is_set_already() -> bool:
    return any(name in os.environ for name in _OPERATORS) or _TUNABLES in os.environ.get("GLIBC_TUNABLES", "")
