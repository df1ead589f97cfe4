"""Spans of requests, and of the batches that computed them, for an OpenTelemetry collector.

OpenTelemetry is imported only when there is a collector to send to. Whatever goes wrong here is in the log, and no
request notices.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic, monotonic_ns, time_ns
from typing import TYPE_CHECKING

from viq_serving.types import Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext, Tracer

log = logging.getLogger("viq.tracing")

SERVICE = "viq-serving"

_MAX_LINKS = 1024  # of a batch; the standard variable for it goes before
_MAX_PARTS = 128  # of a request, after which only its batches tell more
_FAILED = ("internal", "not_ready", "deadline_exceeded")  # of the errors those that are the server's own

_current: ContextVar[Trace | None] = ContextVar("viq_trace", default=None)


def here() -> Trace | None:
    """The span of the request that this task works for; None if it is not traced."""
    return _current.get()


@dataclass(frozen=True)
class Part:
    """What one batch did for one request; times are on the clock of `time.monotonic`, in s."""

    method: str
    images: int
    patches: int
    prepared_from: float | None
    queued: float
    begun: float
    transfer_s: float
    compute_s: float


@dataclass(frozen=True)
class Batch:
    """What was computed together."""

    method: str
    size: str
    images: int
    patches: int
    fill: float
    device: str
    begun: float
    transfer_s: float
    compute_s: float


class Trace:
    """The span of one request, while it lasts; used on the event loop alone."""

    def __init__(self, tracer: Tracer, span: Span, anchor: int) -> None:
        """`anchor` is what `_anchor` gave when it began: one for all of its times, or its stages would overlap."""
        self._tracer, self._span, self._since = tracer, span, anchor
        self._parts: list[Part] = []

    @property
    def context(self) -> SpanContext:
        """What others link to."""
        return self._span.get_span_context()

    @property
    def trace_id(self) -> str:
        """As it is written in headers and logs."""
        return f"{self.context.trace_id:032x}"

    def computed(self, batch: SpanContext, part: Part) -> None:
        """Note that a batch, which has that span, did a part of it; nothing once it has ended, as when it is late."""
        if self._span.is_recording() and len(self._parts) < _MAX_PARTS:
            self._span.add_link(batch)
            self._parts.append(part)

    def end(
        self, name: str, outcome: str, known: Mapping[str, str | int], timings: Timings | None, ago_s: float
    ) -> None:
        """End it as of `ago_s` seconds ago, with its stages as spans below it and what is `known` as attributes."""
        from opentelemetry.trace import Status, StatusCode

        with harmless():
            for stage, begun, seconds in self._stages(timings):
                self._child(stage, begun, seconds)
            by_method: dict[str, int] = {}
            for part in self._parts:
                by_method[part.method] = by_method.get(part.method, 0) + part.patches
            patches = max(by_method.values(), default=0)
            self._span.update_name(name)
            self._span.set_attributes({**known, "viq.outcome": outcome, "viq.patches": patches})
            if outcome in _FAILED:
                self._span.set_status(Status(StatusCode.ERROR, outcome))
            self._span.end(_epoch_ns(monotonic() - ago_s, self._since))

    def _stages(self, timings: Timings | None) -> Iterator[tuple[str, float, float]]:
        """Name, beginning and seconds of each stage."""
        finished = None
        for part in self._parts:
            if part.prepared_from is not None:
                yield "preprocess", part.prepared_from, part.queued - part.prepared_from
            yield "queue", part.queued, part.begun - part.queued
            yield "transfer", part.begun, part.transfer_s
            yield "compute", part.begun + part.transfer_s, part.compute_s
            finished = max(finished or 0.0, part.begun + part.transfer_s + part.compute_s)
        if finished is not None and timings is not None and timings.postprocess:
            yield "postprocess", finished, timings.postprocess / 1000

    def _child(self, stage: str, begun: float, seconds: float) -> None:
        from opentelemetry.trace import set_span_in_context

        start = _epoch_ns(begun, self._since)
        self._tracer.start_span(stage, set_span_in_context(self._span), start_time=start).end(
            start + max(0, int(1e9 * seconds))
        )


class Traces:
    """Makes spans and sends them, on a thread of its own."""

    def __init__(self, exporter: SpanExporter, version: str, environ: Mapping[str, str]) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._exporter = exporter
        name = OTELResourceDetector().detect().attributes.get("service.name", SERVICE)
        resource = Resource.create({"service.name": name, "service.version": version})
        limits = SpanLimits(max_links=None if "OTEL_SPAN_LINK_COUNT_LIMIT" in environ else _MAX_LINKS)
        self._requests = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Whether to sample is decided for requests; a batch is told of if one of its requests is.
        self._batches = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=limits)
        processor = BatchSpanProcessor(exporter)
        self._requests.add_span_processor(processor)
        self._batches.add_span_processor(processor)
        self._request, self._batch = (one.get_tracer(SERVICE, version) for one in (self._requests, self._batches))

    def begin(self, name: str, headers: Mapping[str, str | bytes], ago_s: float) -> Trace | None:
        """The span of a request that came `ago_s` seconds ago, None if it is not to be sent.

        It is part of the trace that `headers` tell of, if they do, and `here()` in this task and those it starts.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        _current.set(None)  # not that of a request before it, whose task may have begun this one
        with harmless():
            anchor = _anchor()
            start = _epoch_ns(monotonic() - ago_s, anchor)
            span = self._request.start_span(name, extract(headers), SpanKind.SERVER, start_time=start)
            if span.is_recording():
                trace = Trace(self._request, span, anchor)
                _current.set(trace)
                return trace
        return None

    def computed(self, batch: Batch, parts: Sequence[tuple[Trace, Part]]) -> None:
        """A batch is computed, which did `parts` of requests; to be called before these end."""
        from opentelemetry.trace import Link

        if not parts:
            return
        with harmless():
            anchor = _anchor()
            span = self._batch.start_span(
                "batch",
                links=[Link(trace.context) for trace, _ in parts],
                start_time=_epoch_ns(batch.begun, anchor),
                attributes={
                    "viq.method": batch.method,
                    "viq.size": batch.size,
                    "viq.images": batch.images,
                    "viq.patches": batch.patches,
                    "viq.fill": round(batch.fill, 4),
                    "viq.device": batch.device,
                    "viq.transfer_ms": round(1000 * batch.transfer_s, 3),
                    "viq.compute_ms": round(1000 * batch.compute_s, 3),
                },
            )
            span.end(_epoch_ns(batch.begun + batch.transfer_s + batch.compute_s, anchor))
            for trace, part in parts:
                trace.computed(span.get_span_context(), part)

    async def close(self, within_s: float) -> None:
        """Send what there is, and take no more; give up after `within_s` seconds."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            with harmless():
                self._requests.shutdown()
                self._batches.shutdown()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done.set)

        # A collector that does not answer must not keep the process from ending: no thread that is waited for.
        threading.Thread(target=send, name="viq-traces", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), within_s)
        except TimeoutError:
            log.warning("traces could not be sent within %g s: the last ones are lost", within_s)
            with harmless():
                self._exporter.shutdown()  # it tries again and again


def _anchor() -> int:
    """Nanoseconds since 1970 when the clock of `time.monotonic` was at 0, as of now."""
    before, now, after = monotonic_ns(), time_ns(), monotonic_ns()
    return now - (before + after) // 2


def _epoch_ns(at: float, anchor: int) -> int:
    """A time of `time.monotonic` as nanoseconds since 1970."""
    return anchor + int(1e9 * at)


@contextmanager
def harmless() -> Iterator[None]:
    """Whatever goes wrong with a span is in the log and nowhere else."""
    try:
        yield
    except Exception:
        log.exception("a span could not be made")
