"""What the metrics read from the queue and the devices whenever they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic
from typing import Any

from viq_serving.engine.admission import Admission
from viq_serving.engine.lanes import LANES
from viq_serving.engine.memory import memory_of
from viq_serving.engine.scheduler import Scheduler
from viq_serving.engine.worker import Worker
from viq_serving.metrics import Metrics
from viq_serving.types import Priority


class Gauges:
    """Reads the scheduler under the engine's lock."""

    def __init__(self, scheduler: Scheduler, admission: Admission, lock: AbstractContextManager[Any]) -> None:
        self._scheduler, self._admission, self._lock = scheduler, admission, lock

    def show(self, metrics: Metrics, workers: Sequence[Worker]) -> None:
        """Let `metrics` read from here, and show `workers` as working."""
        metrics.watch_queue(self._queue)
        for lane in LANES:
            metrics.watch_lane(lane, partial(self._lane, lane))
        for number, worker in enumerate(workers):
            metrics.device_up.labels(worker.device, number).set(1)
            metrics.watch_memory(worker.device, memory_of(worker.device))

    def _queue(self) -> tuple[int, int, float]:
        """Entries and patches that wait, and for how many seconds the oldest has."""
        with self._lock:
            waited_s = max(0.0, monotonic() - self._scheduler.oldest())
            return self._scheduler.entries, self._scheduler.patches, waited_s

    def _lane(self, lane: Priority) -> tuple[int, float, int]:
        """Entries of a lane that wait for the device, seconds of the oldest, requests that wait for room."""
        with self._lock:
            waited_s = max(0.0, monotonic() - self._scheduler.oldest(lane))
            return self._scheduler.waiting(lane), waited_s, self._admission.in_line(lane)
