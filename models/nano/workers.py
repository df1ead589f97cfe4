"""Several processes that train one network: on CPUs two of one thread each do twice the work of one of two threads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class Workers:
    """This process among `count`; alone it talks to nobody."""

    def __init__(self, rank: int, count: int, meeting: str) -> None:
        self.rank, self.count = rank, count
        if count > 1:
            distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)

    def average(self, parameters: Iterable[nn.Parameter], extra: Tensor) -> Tensor:
        """Average gradients over all processes in place; returns the average of `extra`, float32 `(n,)`."""
        if self.count == 1:
            return extra
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([extra, *(gradient.reshape(-1) for gradient in gradients)])
        distributed.all_reduce(flat)
        flat /= self.count
        start = len(extra)
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return flat[: len(extra)]

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            distributed.destroy_process_group()
