"""What came of the items of one stream: each counted as a request is, the stream itself one line in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import perf_counter

from viq_serving.errors import ViQError
from viq_serving.exchange import Exchange
from viq_serving.metrics import Metrics
from viq_serving.rpc.credit import Weight
from viq_serving.rpc.errors import code_of

log = logging.getLogger("viq.access")


@dataclass(eq=False, slots=True)
class Item:
    """One item that was read and is not answered yet."""

    key: str
    weight: Weight
    begun: float


class Tally:
    """The items of one stream."""

    def __init__(self, exchange: Exchange, metrics: Metrics) -> None:
        self._exchange, self._metrics = exchange, metrics
        self._open: set[Item] = set()
        self.items = self.failed = 0

    def begun(self, key: str, weight: Weight) -> Item:
        """Note an item that was read."""
        item = Item(key, weight, perf_counter())
        self.items += 1
        self._open.add(item)
        return item

    def answered(self, item: Item, error: ViQError | None) -> None:
        """Count an item whose answer is with the transport, as failed with `error` if there is one."""
        self._open.discard(item)
        self.failed += error is not None
        self._count(item, "ok" if error is None else code_of(error))

    def close(self) -> None:
        """Count what was left unanswered by how the stream ended, and say in the log what became of it all."""
        exchange, unanswered = self._exchange, len(self._open)
        for item in self._open:
            self._count(item, exchange.outcome)
        self._open.clear()
        exchange.items = self.items
        if not self.items:
            return
        fields = {
            "request_id": exchange.request_id,
            "door": exchange.door,
            "method": f"{exchange.method}_stream",
            "size": exchange.model.size if exchange.model else "",
            "priority": exchange.priority,
            "outcome": exchange.outcome,
            "items": self.items,
            "failed": self.failed,
            "unanswered": unanswered,
            "duration_ms": round(1000 * exchange.seconds(), 3),
        }
        if exchange.caller:
            fields["caller"] = exchange.caller
        if exchange.span is not None:
            fields["trace_id"] = exchange.span.trace_id
        exchange.end_trace()
        log.info("grpc %s_stream: %s", exchange.method, exchange.outcome, extra={"fields": fields})

    def _count(self, item: Item, outcome: str) -> None:
        exchange, seconds = self._exchange, perf_counter() - item.begun
        size = exchange.model.size if exchange.model else ""
        self._metrics.answered(exchange.method, exchange.door, size, exchange.priority, outcome, seconds)
        if log.isEnabledFor(logging.DEBUG):
            fields = {"request_id": exchange.request_id, "key": item.key, "duration_ms": round(1000 * seconds, 3)}
            log.debug("item of a stream: %s", outcome, extra={"fields": fields})
