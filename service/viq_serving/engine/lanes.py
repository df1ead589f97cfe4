"""Whose turn it is on the device: lanes share it by weight, the flows of a lane evenly. Plain data, no clock.

Time used is counted in seconds of the device over the weight, and whoever has used least is next (start-time fair
queueing: Goyal, Vin and Cheng, 1996). One that comes back from idleness starts where the others are, so it is behind
as long as it asks for less than its share, and has saved up nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from viq_serving.engine.work import Flow, Kind
from viq_serving.types import Priority

T = TypeVar("T")

LANES: tuple[Priority, Priority] = ("interactive", "bulk")


@dataclass(frozen=True)
class LaneRules:
    """What each lane gets of the device while both have work, and after how many seconds without it is next anyway.

    A tie goes to `interactive`.
    """

    bulk_share: float = 0.2
    max_wait_s: float = 2.0

    def share(self, lane: Priority) -> float:
        """The part of the device that `lane` has at least, while both always have work."""
        return self.bulk_share if lane == "bulk" else 1 - self.bulk_share


RULES = LaneRules()


class Turns(Generic[T]):
    """Those who have work, and what each has used so far."""

    def __init__(self) -> None:
        self.used: dict[T, float] = {}
        self._now = 0.0  # where the one whose turn it was last stood

    def join(self, one: T) -> None:
        """`one` has work again."""
        self.used[one] = max(self.used.get(one, 0.0), self._now)

    def next(self, working: Iterable[T]) -> T:
        """The one of those `working` that has used least, the first of several."""
        one = min(working, key=lambda one: self.used[one])
        self._now = max(self._now, self.used[one])
        return one

    def use(self, one: T, amount: float) -> None:
        """`one` has used so much, or that much less if it is below 0."""
        self.used[one] = self.used.get(one, self._now) + amount


@dataclass
class Lane:
    """One lane: the flows in it that have work, since when it has had no batch of its own, and how many run now."""

    flows: Turns[Kind] = field(default_factory=Turns)
    working: dict[Kind, int] = field(default_factory=dict)
    since: float = math.inf
    running: int = 0

    def waits_s(self, now: float) -> float:
        """For how long it has had work and no batch of its own."""
        return now - self.since if self.working and not self.running else 0.0


class Lanes:
    """Both lanes, who has work in them, and which flow is next."""

    def __init__(self, rules: LaneRules) -> None:
        self._rules = rules
        self._lanes: dict[Priority, Lane] = {name: Lane() for name in LANES}
        self._turns = Turns[Priority]()
        self.used_s: dict[Priority, float] = dict.fromkeys(LANES, 0.0)

    def join(self, flow: Flow, now: float) -> None:
        """One more entry waits in `flow`."""
        lane = self._lanes[flow.lane]
        if not lane.working:
            self._turns.join(flow.lane)
            lane.since = now
        if flow.kind not in lane.working:
            lane.flows.join(flow.kind)
        lane.working[flow.kind] = lane.working.get(flow.kind, 0) + 1

    def leave(self, flow: Flow) -> None:
        """One entry less waits in `flow`."""
        working = self._lanes[flow.lane].working
        working[flow.kind] -= 1
        if not working[flow.kind]:
            del working[flow.kind]

    def waiting(self, flow: Flow) -> int:
        """How many wait in `flow`."""
        return self._lanes[flow.lane].working.get(flow.kind, 0)

    def next(self, now: float) -> Flow | None:
        """The flow whose turn it is; None if none has work."""
        names = [name for name in LANES if self._lanes[name].working]
        if not names:
            return None
        due, longest = self._turns.next(names), max(names, key=lambda one: self._lanes[one].waits_s(now))
        name = longest if self._lanes[longest].waits_s(now) > self._rules.max_wait_s else due
        kind = self._lanes[name].flows.next(self._lanes[name].working)
        return Flow(kind.method, kind.size, name)

    def begin(self, lane: Priority) -> None:
        """A batch of `lane` has begun."""
        self._lanes[lane].running += 1

    def end(self, lane: Priority, now: float) -> None:
        """A batch of `lane` has ended."""
        self._lanes[lane].running -= 1
        self._lanes[lane].since = now

    def use(self, flow: Flow, seconds: float) -> None:
        """The device has worked for `flow`, or that much less than was said before if it is below 0."""
        self._lanes[flow.lane].flows.use(flow.kind, seconds)
        self._turns.use(flow.lane, seconds / self._rules.share(flow.lane))
        self.used_s[flow.lane] += seconds
