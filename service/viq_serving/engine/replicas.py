"""Loaded models as replicas: what computes beside one another, and must compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from viq_serving.engine.warmup import warmed_up
from viq_serving.engine.work import Kind
from viq_serving.errors import WeightsError

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

Replica = Mapping[str, "Model"]
"""The models of one device, by size."""


_MOST = 4
"""Replicas on a CPU unless set: some work on while others exchange work with the event loop, all under one lock."""


def replicas_on(device: str) -> int:
    """How many batches `device` computes at a time, unless set: operations are small."""
    return min(_MOST, torch.get_num_threads()) if device.startswith("cpu") else 1


@dataclass(frozen=True)
class Loaded:
    """Replicas that are warm, the threads they share on a CPU, and cost and seconds of the work that warmed them."""

    replicas: Sequence[Replica]
    threads: int
    learned: Sequence[tuple[Kind, int, float]]


def loaded(load: Callable[[], Sequence[Model]]) -> Loaded:
    """Run `load` and warm what it gives; raises `WeightsError` if the replicas are not alike.

    A size that comes again begins another replica. It may be the same model: one may compute on several threads at
    once, as it holds nothing but weights, and tensors of the patch grid in a cache with a lock.
    """
    replicas = _replicas(load())
    _check_alike(replicas)
    distinct = {id(model): model for replica in replicas for model in replica.values()}
    return Loaded(replicas, torch.get_num_threads(), warmed_up(list(distinct.values())))


def _replicas(models: Sequence[Model]) -> list[Replica]:
    replicas: list[dict[str, Model]] = [{}]
    for model in models:
        if model.size in replicas[-1]:
            replicas.append({})
        replicas[-1][model.size] = model
    return list(replicas)


def _check_alike(replicas: Sequence[Replica]) -> None:
    """Whoever is answered by one replica today may be answered by another tomorrow: both must give the same codes."""
    first = replicas[0]
    for other in replicas[1:]:
        if other.keys() != first.keys():
            raise WeightsError(f"replicas hold different sizes: {', '.join(first)} and {', '.join(other)}")
        for size, model in other.items():
            ours = first[size]
            if model.fingerprint != ours.fingerprint:
                raise WeightsError(
                    f"replicas of size {size} would not give the same codes: "
                    f"{ours.device} has fingerprint {ours.fingerprint}, {model.device} has {model.fingerprint}"
                )
