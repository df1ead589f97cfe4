"""Whether there is room for a request, decided from what it costs before any of its images is decoded.

Plain numbers, used from the event loop alone; nothing awaits in between, so a request is admitted whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from viq_serving.engine.scheduler import Flow
from viq_serving.errors import DeadlineExceeded, Overloaded, TooLarge

_SOONEST_S, _LATEST_S = 0.05, 60.0  # bounds of a retry hint
_SURE = 0.9  # expectations are means: a tenth is left for what differs from them


class Admission:
    """Patches and cost of what is admitted and not yet answered, held against the limits of the queue."""

    def __init__(
        self,
        max_patches: int,
        max_age_s: float,
        expected_s: Callable[[Flow, float], float],
        batch_cost: Callable[[], float],
    ) -> None:
        self.max_patches, self.max_age_s, self._batch_cost = max_patches, max_age_s, batch_cost
        self.patches = 0
        self._expected_s = expected_s
        self._costs: dict[Flow, float] = {}

    @contextmanager
    def admitted(self, patches: int, costs: Mapping[Flow, float], left_s: float) -> Iterator[dict[Flow, float]]:
        """Hold room for `patches` of these costs inside the `with` block; `left_s` seconds are left to the deadline.

        What is given are the costs still to be computed; `computed` takes from them.

        Raises `TooLarge` for what could never be admitted, `Overloaded` with a hint when it can be tried again,
        `DeadlineExceeded` if what is ahead of it takes longer than is left.
        """
        self._check(patches, costs, left_s)
        held = dict(costs)
        self.patches += patches
        for flow, cost in held.items():
            self._costs[flow] = self._costs.get(flow, 0.0) + cost
        try:
            yield held
        finally:
            self.patches -= patches
            for flow, cost in list(held.items()):
                self.computed(held, flow, cost)

    def computed(self, held: dict[Flow, float], flow: Flow, cost: float) -> None:
        """Count `cost` of what a request holds as done: others need not wait for it any more."""
        done = min(cost, held.get(flow, 0.0))
        if done > 0:
            held[flow] -= done
            self._costs[flow] -= done

    def wait_s(self, flow: Flow) -> float:
        """Expected seconds until all admitted of `flow` is computed, the others having their share meanwhile."""
        own_s = self._expected_s(flow, self._costs.get(flow, 0.0))
        others = ((name, cost) for name, cost in self._costs.items() if name != flow)
        batch = self._batch_cost()
        return own_s + sum(
            min(self._expected_s(name, cost), own_s + self._expected_s(name, batch)) for name, cost in others
        )

    def hint_s(self, surplus_s: float) -> float:
        """When to come again, if `surplus_s` seconds of work must go first."""
        return min(max(surplus_s, _SOONEST_S), _LATEST_S)

    def _check(self, patches: int, costs: Mapping[Flow, float], left_s: float) -> None:
        if patches > self.max_patches:
            raise TooLarge(f"request of {patches} patches in all, the queue holds at most {self.max_patches}")
        surplus, wait_s = self.patches + patches - self.max_patches, max(map(self.wait_s, costs), default=0.0)
        if surplus > 0:
            all_s = sum(self._expected_s(flow, cost) for flow, cost in self._costs.items())
            hint_s = self.hint_s(all_s * surplus / self.patches)
            raise Overloaded(
                f"{self.patches} patches are waiting and {patches} more asked for, the limit is {self.max_patches}",
                hint_s,
            )
        # The last batch before it is as likely to begin late as early, and it will itself be computed in company.
        company_s = sum(self._expected_s(flow, self._batch_cost()) for flow in costs)
        room_s = max(_SURE * self.max_age_s - company_s, self.max_age_s / 2)
        if wait_s > room_s:
            raise Overloaded(
                f"expected to wait {wait_s + company_s:.1f} s for the device, the limit is {self.max_age_s:g} s",
                self.hint_s(wait_s - room_s),
            )
        if self.patches == 0 and left_s > 0:
            return  # tried even if too long is expected: an expectation that is wrong is unlearned only so
        ahead = {flow: self._costs.get(flow, 0.0) + cost for flow, cost in costs.items()}
        needed_s = _SURE * sum(self._expected_s(flow, cost) for flow, cost in ahead.items())
        if needed_s > left_s:
            raise DeadlineExceeded(f"needs about {needed_s:.3f} s, {max(left_s, 0):.3f} s are left to the deadline")
