"""How long work takes, learned from work done."""

from __future__ import annotations

_KEPT = 0.95  # of what is known when something new is learned: about the last twenty batches count
_SPREAD = 0.2  # variance of the costs over their mean square, above which they tell base and slope apart
_OUTLIER = 4.0  # times what was expected: a hiccup of the machine counts as no more


class Pace:
    """Seconds of a batch as `scale * (base + slope * cost)`.

    A batch has a price of its own, so that seconds per cost alone would be far too high for large work after
    only small work was seen. Base and slope are fitted by least squares while the costs of late differ; while they
    are all alike, both keep their proportion and only the scale follows.
    """

    def __init__(self) -> None:
        self._n = self._cost = self._seconds = self._cost2 = self._product = 0.0
        self._base = self._slope = 0.0

    def observe(self, cost: float, seconds: float) -> None:
        """Learn that a batch of `cost` took `seconds`."""
        if self._n >= 2:
            seconds = min(seconds, _OUTLIER * self.seconds(cost))
        self._n = self._n * _KEPT + 1
        self._cost = self._cost * _KEPT + cost
        self._seconds = self._seconds * _KEPT + seconds
        self._cost2 = self._cost2 * _KEPT + cost * cost
        self._product = self._product * _KEPT + cost * seconds
        self._fit()

    def seconds(self, cost: float, per_batch: float | None = None) -> float:
        """Expected seconds for `cost`, in batches of at most `per_batch`; 0 while nothing is known."""
        if self._n == 0 or cost <= 0:
            return 0.0
        scale = self._seconds / (self._base * self._n + self._slope * self._cost)
        batches = 1.0 if per_batch is None else max(1.0, cost / per_batch)
        return scale * (self._base * batches + self._slope * cost)

    @property
    def price(self) -> float:
        """The cost that takes as long as a batch by itself, whatever it holds; 0 while that is not known."""
        return self._base / self._slope if self._slope else 0.0

    def _fit(self) -> None:
        spread = self._n * self._cost2 - self._cost * self._cost
        if spread > _SPREAD * self._n * self._cost2:
            slope = (self._n * self._product - self._cost * self._seconds) / spread
            base = (self._seconds - slope * self._cost) / self._n
            if slope > 0 and base >= 0:  # else noise
                self._base, self._slope = base, slope
        if self._slope == 0:  # costs of one kind only so far
            self._slope = self._seconds / self._cost
