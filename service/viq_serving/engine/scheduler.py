"""Which of the waiting work is computed next. Plain data: no torch, no asyncio, no lock, no clock of its own.

A batch is of one operation and one size. Lanes share the device by weight and the operations of a lane by time
(`lanes.py`); within a flow the oldest goes first, and what fits beside it comes along, from the other lane too.
"""

from __future__ import annotations

import math
from collections import deque

from viq_serving.engine.lanes import RULES, LaneRules, Lanes
from viq_serving.engine.pace import Pace
from viq_serving.engine.work import Batch, Entry, Flow, Kind
from viq_serving.types import Priority

_LOOK_AHEAD = 256  # entries looked at beyond the oldest for what still fits
_LATELY_S = 2.0  # how long somebody who asked is expected to ask again


class Scheduler:
    """Waiting work in, batches out. `devices` is how many take batches from here."""

    def __init__(self, batch_cost: int, max_age_s: float = math.inf, rules: LaneRules = RULES) -> None:
        self.batch_cost, self.max_age_s, self.rules, self.devices = batch_cost, max_age_s, rules, 1
        self.lanes = Lanes(rules)
        self._waiting: dict[Flow, deque[Entry]] = {}
        self._paces: dict[Kind, Pace] = {}
        self.entries = self.patches = 0
        self._costs: dict[Kind, int] = {}  # of what waits
        self._under_way_s = 0.0  # expected of the batches that are not computed yet
        self._asked = -math.inf  # when somebody last did who waits for the answer

    def put(self, entry: Entry, now: float) -> None:
        """Let `entry` wait."""
        waiting = self._waiting.setdefault(entry.flow, deque())
        if not self.lanes.waiting(entry.flow):
            waiting.clear()
        entry.queued, entry.waits = now, True
        if entry.flow.lane == "interactive":
            self._asked = now
        waiting.append(entry)
        self.lanes.join(entry.flow, now)
        self.entries += 1
        self.patches += entry.patches
        self._costs[entry.flow.kind] = self._costs.get(entry.flow.kind, 0) + entry.cost

    def withdraw(self, entry: Entry) -> None:
        """Forget `entry`, whether it waits, will or did."""
        if entry.waits:
            self.take(entry)
        entry.alive = False

    def next_batch(self, now: float, *, ahead: bool = False, divide: bool = True) -> Batch | None:
        """The next batch, its entries no longer waiting; None if nothing waits. It must be `computed` in the end.

        `ahead`: it will wait for another on its device. `divide`: leave other devices their part of what waits.
        """
        flow = self.lanes.next(now)
        if flow is None:
            return None
        alone = ahead or not divide or self.devices == 1
        choice = _Choice(flow, self, now, self.batch_cost if alone else self._fair_share(flow.kind))
        if flow.lane == "interactive":
            choice.fill(flow, choice.room)
            if choice.cost:  # whoever waits for an answer waits at most twice as long for the company
                choice.fill(flow._replace(lane="bulk"), choice.cost)
        else:
            # Two batches of bulk alone, one behind the other, would be two that an interactive one has to wait for;
            # and while people ask now and then, the one that runs when they do is to be over soon.
            between = now - self._asked < _LATELY_S and not self.waiting("interactive")
            if ahead or between:
                choice.room = min(choice.room, self.batch_cost // 2)
            choice.fill(flow, 0)
            interactive = flow._replace(lane="interactive")
            choice.fill(interactive, int(choice.room * self.rules.share("interactive")))
            choice.fill(flow, choice.room)
            choice.fill(interactive, choice.room)
        batch = choice.batch()
        self.lanes.begin(flow.lane)
        self._under_way_s += batch.expected_s
        self._use(batch, batch.expected_s)
        return batch

    def computed(self, batch: Batch, seconds: float, now: float, *, learn: bool = True) -> None:
        """Tell what `batch` took; `learn` from it unless something was wrong with it."""
        self.lanes.end(batch.flow.lane, now)
        self._under_way_s -= batch.expected_s
        self._use(batch, seconds - batch.expected_s)
        if learn and batch.entries:
            self.learn(batch.flow.kind, batch.cost, seconds)

    def learn(self, kind: Kind, cost: float, seconds: float) -> None:
        """Tell what some work took that no batch of here was."""
        self.pace(kind).observe(cost, seconds)

    def expected_s(self, flow: Flow, cost: float) -> float:
        """Expected seconds until `cost` of `flow` is computed, in full batches on all devices."""
        pace = self.pace(flow.kind)
        return max(pace.seconds(min(cost, self.batch_cost)), pace.seconds(cost, self.batch_cost) / self.devices)

    def oldest(self, lane: Priority | None = None) -> float:
        """When the entry that has waited longest began to wait; infinity if none waits."""
        heads = (self._head(flow) for flow in self._waiting if lane in (None, flow.lane) and self.lanes.waiting(flow))
        return min(heads, default=math.inf)

    def waiting(self, lane: Priority) -> int:
        """Entries that wait in `lane`."""
        return sum(self.lanes.waiting(flow) for flow in self._waiting if flow.lane == lane)

    def clear(self) -> list[Entry]:
        """Everything that waits, which no longer does."""
        left = [entry for waiting in self._waiting.values() for entry in waiting if entry.waits]
        for entry in left:
            self.take(entry)
        return left

    def pace(self, kind: Kind) -> Pace:
        """How long work of `kind` takes, in whichever lane."""
        return self._paces.setdefault(kind, Pace())

    def queue(self, flow: Flow) -> deque[Entry]:
        """What waits in `flow`, and perhaps some that no longer do."""
        return self._waiting.get(flow, deque())

    def take(self, entry: Entry) -> None:
        """Let `entry` wait no longer."""
        self.lanes.leave(entry.flow)
        self.entries -= 1
        self.patches -= entry.patches
        self._costs[entry.flow.kind] -= entry.cost
        entry.waits = False

    def _fair_share(self, kind: Kind) -> int:
        """The cost of a batch that takes about as long as all devices need for what waits and the batches under way.

        Who took more would still compute when the others have nothing left, and then they would take what little has
        come since: large and tiny batches in turns, each image of a tiny one at the price of a batch. For the same
        reason no part is worth less than that price.
        """
        waiting, pace = self._costs[kind], self.pace(kind)
        seconds = pace.seconds(waiting)
        if not seconds or waiting < 2 * pace.price:
            return self.batch_cost
        share = waiting * (1.0 + self._under_way_s / seconds) / self.devices
        return min(self.batch_cost, math.ceil(max(share, pace.price, 1.0)))

    def _use(self, batch: Batch, seconds: float) -> None:
        for flow, part in batch.shares(seconds).items():
            self.lanes.use(flow, part)

    def _head(self, flow: Flow) -> float:
        waiting = self._waiting[flow]
        while not waiting[0].waits:
            waiting.popleft()
        return waiting[0].queued


class _Choice:
    """A batch in the making: what was chosen for it, what was passed by, and the room that is left."""

    def __init__(self, flow: Flow, scheduler: Scheduler, now: float, room: int) -> None:
        self._flow, self._scheduler, self._now = flow, scheduler, now
        self._pace = scheduler.pace(flow.kind)
        self.room, self.cost = room, 0
        self._chosen, self._too_late, self._too_old = list[Entry](), list[Entry](), list[Entry]()
        # What begins now is computed in company; half of the limit is for waiting however long that takes.
        age_s = max(scheduler.max_age_s - self._pace.seconds(scheduler.batch_cost), scheduler.max_age_s / 2)
        self._oldest = now - age_s

    def fill(self, flow: Flow, most: int) -> None:
        """Take what waits in `flow` up to a cost of `most`; the very first goes even if it is larger than a batch."""
        waiting, passed = self._scheduler.queue(flow), list[Entry]()
        most = min(most, self.room)
        while waiting and (most > 0 or not self._chosen) and len(passed) < _LOOK_AHEAD:
            entry = waiting.popleft()
            if not entry.waits:
                continue
            if self._refused(entry):
                continue
            if self._chosen and entry.cost > most:
                passed.append(entry)
                continue
            entry.request.begun = True
            self._chosen.append(entry)
            self._scheduler.take(entry)
            self.cost += entry.cost
            self.room -= entry.cost
            most -= entry.cost
        waiting.extendleft(reversed(passed))

    def batch(self) -> Batch:
        """What was chosen."""
        expected_s = self._pace.seconds(self.cost)
        return Batch(self._flow, self._chosen, expected_s, self._too_late, self._too_old)

    def _refused(self, entry: Entry) -> bool:
        # With nothing else to do it is tried even if too long is expected: only so can that be unlearned.
        needed_s = self._pace.seconds(entry.cost) if self._scheduler.entries > 1 else 0.0
        if entry.request.deadline < self._now + needed_s:
            self._too_late.append(entry)
        elif not entry.request.begun and not entry.request.patient and entry.request.asked < self._oldest:
            self._too_old.append(entry)
        else:
            return False
        self._scheduler.take(entry)
        return True
