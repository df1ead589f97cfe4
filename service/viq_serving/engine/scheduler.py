"""Which of the waiting work is computed next. Plain data: no torch, no asyncio, no lock, no clock of its own.

A flow is one operation of one model; a batch is of one flow. Flows share the device by the seconds they have
used of it; within a flow the oldest goes first, and what fits beside it comes along.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from viq.cost import encode_cost
from viq_serving.engine.pace import Pace
from viq_serving.types import Method

Flow: TypeAlias = tuple[Method, str]
"""Operation and size."""

_LOOK_AHEAD = 256  # entries looked at beyond the oldest for what still fits


@dataclass(eq=False)
class Request:
    """What the entries of one request share; times are seconds of one clock, here and below.

    `name` is for the log, `costs` is what admission still holds for it.
    """

    asked: float
    deadline: float = math.inf
    name: str = ""
    costs: dict[Flow, float] = field(default_factory=dict)
    begun: bool = False


@dataclass(eq=False)
class Entry:
    """One image's worth of work for the device. `alive` until nobody wants it any more.

    `make` makes the work of one that is queued before it is prepared.
    """

    flow: Flow
    patches: int
    request: Request
    work: object = None
    make: Callable[[], object] | None = None
    queued: float = 0.0
    waits: bool = False
    alive: bool = True
    cost: int = field(init=False)

    def __post_init__(self) -> None:
        self.cost = cost_of(self.flow[0], self.patches)


@dataclass(frozen=True)
class Batch:
    """What is computed together, and what was met on the way and is not: `too_late` for its deadline, `too_old`."""

    flow: Flow
    entries: list[Entry]
    cost: int
    expected_s: float
    too_late: list[Entry]
    too_old: list[Entry]

    @property
    def patches(self) -> int:
        """Patches of all entries."""
        return sum(entry.patches for entry in self.entries)


class _Waiting:
    """The entries of one flow, and what the flow has used of the device so far in seconds."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.alive = 0
        self.used_s = 0.0
        self.pace = Pace()


class Scheduler:
    """Waiting work in, batches out."""

    def __init__(self, batch_cost: int, max_age_s: float = math.inf) -> None:
        self.batch_cost, self.max_age_s = batch_cost, max_age_s
        self._flows: dict[Flow, _Waiting] = {}
        self._turn_s = 0.0  # where the flow chosen last stood: one that comes back from idleness starts here
        self.entries = 0
        self.patches = 0

    def put(self, entry: Entry, now: float) -> None:
        """Let `entry` wait."""
        flow = self._flow(entry.flow)
        if not flow.alive:
            flow.entries.clear()
            flow.used_s = max(flow.used_s, self._turn_s)
        entry.queued, entry.waits = now, True
        flow.entries.append(entry)
        flow.alive += 1
        self.entries += 1
        self.patches += entry.patches

    def withdraw(self, entry: Entry) -> None:
        """Forget `entry`, whether it waits, will or did."""
        if entry.waits:
            self._gone(entry)
        entry.alive = False

    def next_batch(self, now: float) -> Batch | None:
        """The next batch, its entries no longer waiting; None if nothing waits."""
        waiting = [(flow.used_s, name) for name, flow in self._flows.items() if flow.alive]
        if not waiting:
            return None
        self._turn_s, name = min(waiting)
        flow = self._flows[name]
        batch = self._chosen(name, flow, now)
        flow.used_s += batch.expected_s
        return batch

    def computed(self, batch: Batch, seconds: float, *, learn: bool = True) -> None:
        """Tell what `batch` took; `learn` from it unless something was wrong with it."""
        flow = self._flow(batch.flow)
        flow.used_s += seconds - batch.expected_s
        if learn and batch.cost:
            flow.pace.observe(batch.cost, seconds)

    def learn(self, flow: Flow, cost: float, seconds: float) -> None:
        """Tell what some work of `flow` took that no batch of here was."""
        self._flow(flow).pace.observe(cost, seconds)

    def expected_s(self, flow: Flow, cost: float) -> float:
        """Expected seconds of device time for `cost` of `flow`, in full batches."""
        return self._flow(flow).pace.seconds(cost, self.batch_cost)

    def oldest(self) -> float:
        """When the entry that has waited longest began to wait; infinity if none waits."""
        return min((self._head(flow) for flow in self._flows.values() if flow.alive), default=math.inf)

    def clear(self) -> list[Entry]:
        """Everything that waits, which no longer does."""
        left = [entry for flow in self._flows.values() for entry in flow.entries if entry.waits]
        for entry in left:
            self._gone(entry)
        return left

    def _chosen(self, name: Flow, flow: _Waiting, now: float) -> Batch:
        chosen, passed, too_late, too_old = list[Entry](), list[Entry](), list[Entry](), list[Entry]()
        room = self.batch_cost
        # What begins now is computed in company; half of the limit is for waiting however long that takes.
        oldest = now - max(self.max_age_s - flow.pace.seconds(self.batch_cost), self.max_age_s / 2)
        while flow.entries and room > 0 and len(passed) < _LOOK_AHEAD:
            entry = flow.entries.popleft()
            if not entry.waits:
                continue
            # With nothing else to do it is tried even if too long is expected: only so can that be unlearned.
            needed_s = flow.pace.seconds(entry.cost) if self.entries > 1 else 0.0
            if entry.request.deadline < now + needed_s:
                too_late.append(entry)
            elif not entry.request.begun and entry.request.asked < oldest:
                too_old.append(entry)
            elif not chosen or entry.cost <= room:  # the oldest goes even if it is larger than a batch
                entry.request.begun = True
                chosen.append(entry)
                room -= entry.cost
            else:
                passed.append(entry)
        flow.entries.extendleft(reversed(passed))
        for entry in (*chosen, *too_late, *too_old):
            self._gone(entry)
        cost = sum(entry.cost for entry in chosen)
        return Batch(name, chosen, cost, flow.pace.seconds(cost), too_late, too_old)

    def _flow(self, name: Flow) -> _Waiting:
        if name not in self._flows:
            self._flows[name] = _Waiting()
        return self._flows[name]

    def _head(self, flow: _Waiting) -> float:
        while not flow.entries[0].waits:
            flow.entries.popleft()
        return flow.entries[0].queued

    def _gone(self, entry: Entry) -> None:
        self._flow(entry.flow).alive -= 1
        self.entries -= 1
        self.patches -= entry.patches
        entry.waits = False


def cost_of(method: Method, patches: int) -> int:
    """Cost of one image to `method`, in units of one patch without attention."""
    return patches if method == "embed" else encode_cost(patches)
