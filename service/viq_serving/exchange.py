"""What belongs to one request and its reply, through whichever door it came."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from dataclasses import asdict, dataclass
from time import perf_counter

from viq_serving.metrics import Metrics
from viq_serving.types import Door, ModelInfo, Priority, Timings

log = logging.getLogger("viq.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass
class Exchange:
    """One request: its id, door and beginning; the rest is filled in as it becomes known.

    `method` is from a closed set ("encode", "plan" …), "" for what is not counted; `outcome` is "ok", an error
    code, or "cancelled".
    """

    request_id: str
    door: Door
    begun: float
    method: str = ""
    model: ModelInfo | None = None
    priority: Priority = "interactive"
    outcome: str = "ok"
    timings: Timings | None = None
    items: int = 0
    ended: float | None = None

    @classmethod
    def begin(cls, door: Door, wanted_id: str | None = None) -> Exchange:
        """A new exchange; `wanted_id` is the caller's request id, replaced unless it is well-formed."""
        given = wanted_id is not None and _REQUEST_ID.fullmatch(wanted_id)
        return cls(wanted_id if wanted_id and given else uuid.uuid4().hex, door, perf_counter())

    def seconds(self) -> float:
        """Seconds since it began, until it ended if it has."""
        return (self.ended or perf_counter()) - self.begun

    def end(self, metrics: Metrics) -> None:
        """Note that it is answered, and count and log it when the event loop has nothing more urgent to do."""
        self.ended = perf_counter()
        asyncio.get_running_loop().call_soon(self.close, metrics)

    def close(self, metrics: Metrics) -> None:
        """Count and log the request, once it is answered."""
        if not self.method:
            return
        size, seconds = self.model.size if self.model else "", self.seconds()
        metrics.answered(self.method, self.door, size, self.priority, self.outcome, seconds)
        if not log.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": self.request_id,
            "door": self.door,
            "method": self.method,
            "size": size,
            "priority": self.priority,
            "outcome": self.outcome,
            "items": self.items,
            "duration_ms": round(1000 * seconds, 3),
        }
        if self.timings is not None:
            fields["timings_ms"] = asdict(self.timings)
        log.info("%s %s: %s", self.door, self.method, self.outcome, extra={"fields": fields})
