"""What belongs to one request and its reply, through whichever door it came."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import perf_counter

from viq_serving.metrics import Metrics
from viq_serving.tracing import Trace
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
    caller: str = ""
    outcome: str = "ok"
    timings: Timings | None = None
    items: int = 0
    ended: float | None = None
    span: Trace | None = None

    @classmethod
    def begin(cls, door: Door, wanted_id: str | None = None) -> Exchange:
        """A new exchange; `wanted_id` is the caller's request id, replaced unless it is well-formed."""
        given = wanted_id is not None and _REQUEST_ID.fullmatch(wanted_id)
        return cls(wanted_id if wanted_id and given else uuid.uuid4().hex, door, perf_counter())

    def trace(self, metrics: Metrics, headers: Mapping[str, str | bytes]) -> None:
        """Begin a span for it if requests are traced and it is one, in the trace that its `headers` tell of.

        What this task, and those it starts, ask of the engine from here on belongs to that span.
        """
        if metrics.traces is not None and self.method:
            self.span = metrics.traces.begin(self.method, headers, self.seconds())

    def end_trace(self) -> None:
        """End its span, if it has one; `close` does so itself."""
        if self.span is None:
            return
        known: dict[str, str | int] = {
            "viq.method": self.method,
            "viq.door": self.door,
            "viq.size": self.model.size if self.model else "",
            "viq.priority": self.priority,
            "viq.images": self.items,
            "viq.request_id": self.request_id,
        }
        ago_s = perf_counter() - self.begun - self.seconds()
        self.span.end(self.method, self.outcome, known, self.timings, ago_s)
        self.span = None

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
        trace_id = None if self.span is None else self.span.trace_id
        self.end_trace()
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
        if self.caller:
            fields["caller"] = self.caller
        if trace_id is not None:
            fields["trace_id"] = trace_id
        if self.timings is not None:
            fields["timings_ms"] = asdict(self.timings)
        log.info("%s %s: %s", self.door, self.method, self.outcome, extra={"fields": fields})
