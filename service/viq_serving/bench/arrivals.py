"""When requests are sent, and with which picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Closed:
    """So many callers, each of whom sends its next request when it has its answer."""

    in_flight: int


@dataclass(frozen=True)
class Poisson:
    """Requests at random times, `rate` a second in the mean, whatever becomes of those before."""

    rate: float

    def times(self, seconds: float, seed: int, then: int = 0) -> list[float]:
        """Seconds from the beginning at which requests are due, in order: all below `seconds`, and `then` so many."""
        rng, due = np.random.default_rng([seed, 3]), 0.0
        made = list[float]()
        while True:
            for gap in rng.exponential(1 / self.rate, 256).tolist():
                due += gap
                if due >= seconds:
                    if not then:
                        return made
                    then -= 1
                made.append(due)


Arrivals = Closed | Poisson


def cycle(count: int, seed: int, part: int = 0, parts: int = 1) -> Iterator[int]:
    """Every one of `count` numbers once, in an order that follows from `seed`, then again in another, without end.

    Of `parts` generators each takes every `parts`-th of them, so that together they still send each once before any
    twice.
    """
    position, round_ = part, 0
    while True:
        order = np.random.default_rng([seed, 4, round_]).permutation(count).tolist()
        while position < count:
            yield order[position]
            position += parts
        position, round_ = position - count, round_ + 1
