"""Whether there is room for a request, decided from what it costs before any of its images is decoded.

Plain numbers, used from the event loop alone; nothing awaits between looking and taking, so a request is admitted
whole or not at all. The patient wait for room in line; others are told at once, with a hint when to come again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from viq_serving.engine.lanes import LANES, RULES, LaneRules
from viq_serving.engine.work import Flow
from viq_serving.errors import DeadlineExceeded, Overloaded, TooLarge
from viq_serving.line import Line
from viq_serving.types import Priority, Terms

_SOONEST_S, _LATEST_S = 0.05, 60.0  # bounds of a retry hint
_SURE = 0.9  # expectations are means: a tenth is left for what differs from them
_BULK_MOST, _BULK_LEAST = 0.75, 0.25  # of the queue: what bulk may hold, and up to where room is kept for it

TERMS = Terms()


@dataclass(eq=False)
class Demand:
    """What one request asks room for: patches, and the cost in each flow that is still to be computed."""

    patches: int
    costs: dict[Flow, float]
    lane: Priority


class Admission:
    """Patches and cost of what is admitted and not yet answered, held against the limits of the queue.

    Bulk may hold three quarters of the patches, so that an interactive request finds room beside any flood of it;
    where interactive requests fill the queue, what bulk waits for is kept free up to a quarter.
    """

    def __init__(
        self,
        max_patches: int,
        max_age_s: float,
        expected_s: Callable[[Flow, float], float],
        batch_cost: Callable[[], float],
        rules: LaneRules = RULES,
    ) -> None:
        self.max_patches, self.max_age_s, self._batch_cost, self._rules = max_patches, max_age_s, batch_cost, rules
        self.held: dict[Priority, int] = dict.fromkeys(LANES, 0)
        self._limits = {"interactive": max_patches, "bulk": max(1, int(max_patches * _BULK_MOST))}
        self._expected_s = expected_s
        self._costs: dict[Flow, float] = {}
        self._lines = {lane: Line[Demand](self._entered, self._left) for lane in LANES}

    @property
    def patches(self) -> int:
        """Patches of all that is admitted."""
        return sum(self.held.values())

    @asynccontextmanager
    async def admitted(
        self, patches: int, costs: Mapping[Flow, float], left_s: float, terms: Terms = TERMS
    ) -> AsyncIterator[dict[Flow, float]]:
        """Hold room for `patches` of these costs inside the `with` block; `left_s` seconds are left to the deadline.

        What is given are the costs still to be computed; `computed` takes from them.

        Raises `TooLarge` for what could never be admitted. Unless its terms are patient, who then waits: `Overloaded`
        with a hint when it can be tried again, `DeadlineExceeded` if what is ahead of it takes longer than is left.
        """
        demand, own = Demand(patches, dict(costs), terms.priority), terms.caller.patches if patches else None
        self._refuse_too_large(demand, terms)
        if own is not None:
            await own.wait(patches) if terms.patient else own.take(patches)
        try:
            if terms.patient and patches:
                await self._lines[demand.lane].wait(demand, terms.caller.name)
            else:
                self._check(demand, left_s)
                self._enter(demand)
            try:
                yield demand.costs
            finally:
                self._left(demand)
        finally:
            if own is not None:
                own.give(patches)
            self._serve()

    def computed(self, held: dict[Flow, float], flow: Flow, cost: float) -> None:
        """Count `cost` of what a request holds as done: others need not wait for it any more."""
        done = min(cost, held.get(flow, 0.0))
        if done > 0:
            held[flow] -= done
            self._costs[flow] -= done

    def wait_s(self, flow: Flow) -> float:
        """Expected seconds until all admitted of `flow` is computed, the others having their share meanwhile.

        Of the other lane only what its share allows counts: a flood there is no reason to refuse anybody here.
        """
        own_s, batch = self._expected_s(flow, self._costs.get(flow, 0.0)), self._batch_cost()
        lane_s = own_s + sum(
            min(self._expected_s(name, cost), own_s + self._expected_s(name, batch))
            for name, cost in self._costs.items()
            if name.lane == flow.lane and name != flow
        )
        other_s = sum(self._expected_s(name, cost) for name, cost in self._costs.items() if name.lane != flow.lane)
        share = self._rules.share(flow.lane)
        return lane_s + min(other_s, lane_s * (1 - share) / share)

    def hint_s(self, surplus_s: float) -> float:
        """When to come again, if `surplus_s` seconds of work must go first."""
        return min(max(surplus_s, _SOONEST_S), _LATEST_S)

    def in_line(self, lane: Priority) -> int:
        """How many patient requests of `lane` wait for room."""
        return len(self._lines[lane])

    def _serve(self) -> None:
        """Room was given back: let those in who wait for it, bulk first while it has less than its quarter."""
        for lane in LANES if self.held["bulk"] >= self.max_patches * _BULK_LEAST else reversed(LANES):
            self._lines[lane].serve()

    def _refuse_too_large(self, demand: Demand, terms: Terms) -> None:
        limit, own = self._limits[demand.lane], terms.caller.patches
        if demand.patches > limit:
            who = "the queue holds" if demand.lane == "interactive" else "bulk may hold"
            raise TooLarge(f"request of {demand.patches} patches in all, {who} at most {limit}")
        if own is not None and demand.patches > own.limit:
            raise TooLarge(f"request of {demand.patches} patches in all, the key may have {own.limit} at one time")

    def _check(self, demand: Demand, left_s: float) -> None:
        patches, costs = demand.patches, demand.costs
        if not patches:  # nothing to compute: what is wrong with its items is to be heard, however full it is
            return
        if self.patches == 0 and left_s > 0:  # also if too long is expected: a wrong expectation is unlearned only so
            return
        # Who waits in line goes first: small requests would else take all room before it is enough for a large one.
        first = self._lines[demand.lane].head()
        surplus = self._surplus(demand) + (0 if first is None else first.patches)
        wait_s = max(map(self.wait_s, costs), default=0.0)
        if surplus > 0:
            all_s = sum(self._expected_s(flow, cost) for flow, cost in self._costs.items())
            raise Overloaded(
                f"{self.patches} patches are waiting and {patches} more asked for, the limit is {self.max_patches}"
                + (f", {self._limits['bulk']} of it for bulk" if demand.lane == "bulk" else ""),
                self.hint_s(all_s * surplus / self.patches),
            )
        # The last batch before it is as likely to begin late as early, and it will itself be computed in company.
        company_s = sum(self._expected_s(flow, self._batch_cost()) for flow in costs)
        room_s = max(_SURE * self.max_age_s - company_s, self.max_age_s / 2)
        if wait_s > room_s:
            raise Overloaded(
                f"expected to wait {wait_s + company_s:.1f} s for the device, the limit is {self.max_age_s:g} s",
                self.hint_s(wait_s - room_s),
            )
        ahead = {flow: self._costs.get(flow, 0.0) + cost for flow, cost in costs.items()}
        needed_s = _SURE * sum(self._expected_s(flow, cost) for flow, cost in ahead.items())
        if needed_s > left_s:
            raise DeadlineExceeded(f"needs about {needed_s:.3f} s, {max(left_s, 0):.3f} s are left to the deadline")

    def _surplus(self, demand: Demand) -> int:
        """How many patches must go before there is room."""
        all_then, lane_then = self.patches + demand.patches, self.held[demand.lane] + demand.patches
        return max(all_then + self._kept_from(demand.lane) - self.max_patches, lane_then - self._limits[demand.lane])

    def _kept_from(self, lane: Priority) -> int:
        """Patches that `lane` must leave free for what bulk waits for."""
        waits = self._lines["bulk"].head() if lane == "interactive" and self.patches else None
        if waits is None or self.held["bulk"] + waits.patches > self.max_patches * _BULK_LEAST:
            return 0
        return waits.patches

    def _entered(self, demand: Demand) -> bool:
        if self._surplus(demand) > 0:
            return False
        self._enter(demand)
        return True

    def _enter(self, demand: Demand) -> None:
        self.held[demand.lane] += demand.patches
        for flow, cost in demand.costs.items():
            self._costs[flow] = self._costs.get(flow, 0.0) + cost

    def _left(self, demand: Demand) -> None:
        self.held[demand.lane] -= demand.patches
        for flow, cost in list(demand.costs.items()):
            self.computed(demand.costs, flow, cost)
