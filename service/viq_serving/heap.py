"""How the C library keeps memory that a forward has freed: for the next one.

A forward frees each activation as soon as the next is made. By default glibc hands those above a threshold, which it
moves by what it has seen, back to the system, and that clears every page anew when they are asked for again: on `nano`
1,400 page faults an image of 256x256 and 23,300 of 1024x1024, some per cent of its time (`bench/heap.py`).

What is kept so is given back when nobody waits, every few minutes otherwise (`viq_serving.garbage`), and at once where
memory has run out.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt(3)
_LARGEST = 32 * 2**20  # from here on blocks come from the system one by one and go back to it; glibc takes no more
_KEPT = 256 * 2**20  # so much may lie free at the end of the main heap
# A thread's heap, its arena, is made of mappings of 64 MiB. glibc drops one that has come empty, whatever the trim
# threshold, unless less than this is left in the one before: a forward that crosses from one into the next would fetch
# the next each time. Address space is asked for ahead so, which takes no memory but counts where it is limited.
_PAD = 64 * 2**20
_USUAL_PAD = 128 * 2**10  # glibc's own

_OPERATORS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_TUNABLES = tuple(f"glibc.malloc.{name}=" for name in ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad"))
_STRICT = "2"  # of overcommit_memory: address space counts as memory


def keep_freed_memory() -> bool:
    """Have blocks of up to 32 MiB used again, not given back; false where that is not this process's choice.

    That is where the C library is not glibc, or where the operator has set how it allocates.
    """
    library = _glibc()
    if library is None or _is_set_already():
        return False
    asked = [(_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT)]  # either ends glibc's own adjusting of both
    if not _address_space_is_limited():
        asked.append((_TOP_PAD, _PAD))
    done = [library.mallopt(*each) for each in asked]
    return all(done)


def give_freed_memory_back(*, scarce: bool = False) -> None:
    """Give the system what lies free, of all threads; other threads' allocations may wait some milliseconds for it.

    Where memory is `scarce`, because some could not be had, no address space is asked for ahead from here on.
    """
    library = _glibc()
    if library is None:
        return
    if scarce and not _is_set_already():
        library.mallopt(_TOP_PAD, _USUAL_PAD)
    library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _is_set_already() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in _OPERATORS) or any(name in tunables for name in _TUNABLES)


def _address_space_is_limited() -> bool:
    if any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == _STRICT
    except OSError:
        return False
