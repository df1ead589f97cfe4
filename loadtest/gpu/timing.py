"""How long something takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_AHEAD_CYCLES = 60_000_000  # some 30 ms, in which ten calls of several launches each are queued


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    call: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 2, *, queued: bool = True
) -> float:
    """Median seconds of `call` on the device; on CUDA between events.

    `queued`: the device is first given something else to do, so that all calls wait for it in its queue and none of
    them for the host, which takes longer to launch a short kernel than that runs. Without, a call of many launches
    takes as long as these, if they take longer.
    """
    for _ in range(warm):
        call()
    wait(device)
    if device.type != "cuda":
        return statistics.median(_wall(call) for _ in range(repeats))
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    if queued:
        torch.cuda._sleep(_AHEAD_CYCLES)
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    wait(device)
    return float(statistics.median(begin.elapsed_time(end) for begin, end in marks)) / 1e3


def wall(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call until the device has done it, host work included."""
    wait(device)
    begun = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - begun


def peak_mib(device: torch.device) -> float | None:
    """The most memory in use since the last question, in MiB; None where that is not known."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return most


def held_mib(device: torch.device) -> float | None:
    """Memory that this process keeps of the device's, in use or not, in MiB; None where that is not known."""
    return torch.cuda.memory_reserved(device) / 2**20 if device.type == "cuda" else None


def _wall(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
