"""Where one request's time goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

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

    def timings(self) -> Timings:
        """The sums so far, in milliseconds."""
        return Timings(**{stage: round(1000 * seconds, 3) for stage, seconds in self._seconds.items()})
