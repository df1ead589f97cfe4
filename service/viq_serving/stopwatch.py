"""Where one request's time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from viq_serving.engine.work import Entry
from viq_serving.engine.worker import Answer
from viq_serving.types import Timings

Stage = Literal["preprocess", "queue", "transfer", "compute", "postprocess"]


class Stopwatch:
    """Adds up the stages of one request; a stage that is entered twice counts twice."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = {}

    def add(self, stage: Stage, seconds: float) -> None:
        """Count `seconds` to `stage`."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the time inside the `with` block to `stage`."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - begun)

    def engine(self, asked: float, entries: Sequence[Entry], answers: Sequence[Answer]) -> None:
        """Count a pass through the engine that began at `asked`.

        Images of a request may lie in several batches: preprocessing and queue are those of the image that took
        longest, transfer and compute those of all its batches together.
        """
        done = [(entry, answer) for entry, answer in zip(entries, answers, strict=True) if answer.compute_s]
        if not done:
            return
        self.add("preprocess", max(entry.queued - asked for entry, _ in done))
        self.add("queue", max(answer.begun - entry.queued for entry, answer in done))
        batches = {answer.begun: answer for _, answer in done}.values()
        self.add("transfer", sum(answer.transfer_s for answer in batches))
        self.add("compute", sum(answer.compute_s for answer in batches))

    def timings(self) -> Timings:
        """The sums so far, in milliseconds."""
        return Timings(**{stage: round(1000 * seconds, 3) for stage, seconds in self._seconds.items()})
