"""Work handed to a device, and its results once they are asked for.

On CUDA a launch returns while the device still computes, so that the next one can be handed over meanwhile;
on a CPU everything is done when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

R = TypeVar("R")


@dataclass(frozen=True)
class Launched(Generic[R]):
    """`results()` waits for the device and gives one result for each item; `transfer_s` is what the copy in took."""

    transfer_s: float
    results: Callable[[], list[R]]


def gathered(parts: Sequence[npt.NDArray[np.generic]], rows: int, device: torch.device) -> Tensor:
    """The arrays one after another, then zeros up to `rows`, as one tensor on `device`.

    For CUDA they are gathered in pinned memory and copied on a stream of their own, beside what is computed.
    """
    shape, dtype = (rows, *parts[0].shape[1:]), torch.from_numpy(parts[0][:0]).dtype
    host = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    filled = sum(len(part) for part in parts)
    np.concatenate(parts, out=host[:filled].numpy())
    host[filled:] = 0
    if device.type != "cuda":
        return host
    copies, computes = _stream(device, "in"), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        there = host.to(device, non_blocking=True)
    computes.wait_stream(copies)
    there.record_stream(computes)
    return there


def on_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying `tensor` to the host; what comes back waits for the copy and gives it.

    CUDA copies on a stream of its own, beside what is computed next.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copies, done = _stream(tensor.device, "out"), torch.cuda.Event()
    copies.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(copies):
        host.copy_(tensor, non_blocking=True)
        done.record(copies)
    tensor.record_stream(copies)

    def wait() -> Tensor:
        done.synchronize()
        return host

    return wait


_streams: dict[tuple[torch.device, str], torch.cuda.Stream] = {}


def _stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    if (device, direction) not in _streams:
        _streams[device, direction] = torch.cuda.Stream(device)
    return _streams[device, direction]
