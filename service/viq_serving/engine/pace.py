"""How long work takes, learned from work done."""

from __future__ import annotations

_KEPT = 0.95  # of what is known when something new is learned: about the last twenty batches count


class Pace:
    """Seconds of a batch as `base + slope * cost`, fitted by least squares to the batches of late.

    A batch has a price of its own, so that seconds per cost alone would be far too high for large work after
    only small work was seen.
    """

    def __init__(self) -> None:
        self._n = self._cost = self._seconds = self._cost2 = self._product = 0.0

    def observe(self, cost: float, seconds: float) -> None:
        """Learn that a batch of `cost` took `seconds`."""
        self._n = self._n * _KEPT + 1
        self._cost = self._cost * _KEPT + cost
        self._seconds = self._seconds * _KEPT + seconds
        self._cost2 = self._cost2 * _KEPT + cost * cost
        self._product = self._product * _KEPT + cost * seconds

    def seconds(self, cost: float, per_batch: float | None = None) -> float:
        """Expected seconds for `cost`, in batches of at most `per_batch`; 0 while nothing is known."""
        if self._n == 0 or cost <= 0:
            return 0.0
        base, slope = self._fit()
        batches = 1.0 if per_batch is None else max(1.0, cost / per_batch)
        return base * batches + slope * cost

    def _fit(self) -> tuple[float, float]:
        spread = self._n * self._cost2 - self._cost * self._cost
        if spread <= 1e-9 * self._n * self._cost2:  # batches of one cost only
            return 0.0, self._seconds / self._cost
        slope = (self._n * self._product - self._cost * self._seconds) / spread
        base = (self._seconds - slope * self._cost) / self._n
        if slope <= 0 or base < 0:  # noise
            return 0.0, self._seconds / self._cost
        return base, slope
