"""What waits for the device: one entry an image, of some request, in some flow; and batches of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from viq.cost import encode_cost
from viq_serving.types import Method, Priority


class Kind(NamedTuple):
    """What can be computed together: one operation of one model."""

    method: Method
    size: str


class Flow(NamedTuple):
    """What waits in one order: one operation of one model, in one lane."""

    method: Method
    size: str
    lane: Priority = "interactive"

    @property
    def kind(self) -> Kind:
        """The same whatever the lane: how long it takes does not depend on that."""
        return Kind(self.method, self.size)


@dataclass(eq=False)
class Request:
    """What the entries of one request share; times are seconds of one clock, here and below.

    `name` is for the log, `costs` is what admission still holds for it, `trace` is whatever the traces know it by.
    Who is `patient` is never too old.
    """

    asked: float
    deadline: float = math.inf
    name: str = ""
    costs: dict[Flow, float] = field(default_factory=dict)
    patient: bool = False
    trace: object = None
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
        self.cost = cost_of(self.flow.method, self.patches)


@dataclass(frozen=True)
class Batch:
    """What is computed together, and what was met on the way and is not: `too_late` for its deadline, `too_old`.

    `flow` is the one whose turn it was; entries of the other lane may ride along.
    """

    flow: Flow
    entries: list[Entry]
    expected_s: float
    too_late: list[Entry]
    too_old: list[Entry]

    @cached_property
    def costs(self) -> dict[Flow, int]:
        """Cost of the entries, by flow."""
        costs: dict[Flow, int] = {}
        for entry in self.entries:
            costs[entry.flow] = costs.get(entry.flow, 0) + entry.cost
        return costs

    @property
    def cost(self) -> int:
        """Cost of all entries."""
        return sum(self.costs.values())

    @property
    def patches(self) -> int:
        """Patches of all entries."""
        return sum(entry.patches for entry in self.entries)

    def shares(self, seconds: float) -> dict[Flow, float]:
        """`seconds` of the device as each flow has its part of them."""
        whole = self.cost
        return {flow: seconds * cost / whole for flow, cost in self.costs.items()}


def cost_of(method: Method, patches: int) -> int:
    """Cost of one image to `method`, in units of one patch without attention."""
    return patches if method == "embed" else encode_cost(patches)
