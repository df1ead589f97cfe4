"""When traces are sent, how, and that nothing that goes wrong with them reaches anybody else."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextvars import Context
from time import monotonic

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from viq_serving import otlp
from viq_serving.errors import SettingsError
from viq_serving.otlp import traces_of
from viq_serving.settings import Settings
from viq_serving.tracing import Batch, Part, Trace, Traces, here
from viq_serving.types import Timings

OFF = """
import sys
import viq_serving.exchange
from viq_serving.settings import Settings
from viq_serving.otlp import traces_of
assert traces_of(Settings.load(), "1.2.3", {}) is None
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
OTLP = "OTEL_EXPORTER_OTLP_"


class Sent(InMemorySpanExporter):
    """Spans that were sent, and to where."""

    endpoint: str | None = None


@pytest.fixture(autouse=True)
def promptly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send without delay."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def traces(sent: Sent) -> Iterator[Traces]:
    made = Traces(sent, "1.2.3", {})
    yield made
    asyncio.run(made.close(60))


def begun(traces: Traces, headers: Mapping[str, str] = {}) -> Trace:
    trace = Context().run(traces.begin, "encode", headers, 0.0)
    assert trace is not None
    return trace


def part(begun_at: float) -> Part:
    return Part("encode", 1, 4, begun_at - 0.3, begun_at - 0.2, begun_at, 0.01, 0.05)


def batch(begun_at: float, images: int = 1) -> Batch:
    return Batch("encode", "nano", images, 4 * images, 0.5, "cpu", begun_at, 0.01, 0.05)


def made(settings: Settings, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str | None]:
    """The protocol and endpoint that `traces_of` chooses."""
    chosen = list[tuple[str, str | None]]()

    def exporters() -> Mapping[str, object]:
        def maker(protocol: str) -> object:
            def make(endpoint: str | None) -> Sent:
                chosen.append((protocol, endpoint))
                return Sent()

            return make

        return {protocol: maker(protocol) for protocol in ("grpc", "http/protobuf")}

    monkeypatch.setattr(otlp, "_exporters", exporters)
    traces = traces_of(settings, "1.2.3", environ)
    assert traces is not None
    asyncio.run(traces.close(60))
    (one,) = chosen
    return one


def test_without_an_endpoint_opentelemetry_is_not_even_imported() -> None:
    assert subprocess.run([sys.executable, "-c", OFF], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("switch", [{"OTEL_SDK_DISABLED": "TRUE"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_standard_switches_turn_them_off(switch: dict[str, str]) -> None:
    assert traces_of(Settings.load({"otlp_endpoint": "http://localhost:4317"}), "1.2.3", switch) is None


@pytest.mark.parametrize(
    ("flags", "environ", "chosen"),
    [
        ({"otlp_endpoint": "http://a:4317"}, {}, ("grpc", "http://a:4317")),
        ({"otlp_endpoint": "https://a"}, {}, ("grpc", "https://a")),
        ({"otlp_endpoint": "http://a:4318"}, {}, ("http/protobuf", "http://a:4318")),
        ({"otlp_endpoint": "http://a:4318", "otlp_protocol": "grpc"}, {}, ("grpc", "http://a:4318")),
        ({"otlp_endpoint": "http://a:1"}, {OTLP + "PROTOCOL": "http/protobuf"}, ("http/protobuf", "http://a:1")),
        ({"otlp_endpoint": "http://a:4317"}, {OTLP + "ENDPOINT": "http://b:4318"}, ("grpc", "http://a:4317")),
        ({}, {OTLP + "ENDPOINT": "http://b:4318"}, ("http/protobuf", None)),
        ({}, {OTLP + "TRACES_ENDPOINT": "http://b:4317"}, ("grpc", None)),
        (
            {},
            {OTLP + "ENDPOINT": "http://b", OTLP + "PROTOCOL": "grpc", OTLP + "TRACES_PROTOCOL": "http/protobuf"},
            ("http/protobuf", None),
        ),
    ],
)
def test_flags_go_before_variables_and_those_for_traces_before_those_for_all(
    flags: dict[str, str], environ: dict[str, str], chosen: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(Settings.load(flags), environ, monkeypatch) == chosen


def test_a_protocol_that_there_is_not_is_named() -> None:
    with pytest.raises(SettingsError, match="http/json"):
        traces_of(Settings.load(), "1", {OTLP + "ENDPOINT": "http://b", OTLP + "PROTOCOL": "http/json"})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "schedule_delay_millis must be positive"),
        (OTLP + "COMPRESSION", "foo", "foo"),
        (OTLP + "ENDPOINT", "http://b:port", "port"),
    ],
)
def test_a_standard_variable_that_cannot_be_used_is_a_setting_that_cannot(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=told):
        traces_of(Settings.load(), "1", {OTLP + "ENDPOINT": "http://b", name: value})


def test_headers_that_cannot_be_read_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(OTLP + "HEADERS", "Authorization: Bearer opensesame")
    made = traces_of(Settings.load({"otlp_endpoint": "http://127.0.0.1:9"}), "1", {})
    assert made is not None
    asyncio.run(made.close(60))
    assert "Header format invalid" in caplog.text
    assert "opensesame" not in caplog.text


@pytest.mark.parametrize("url", ["localhost:4317", "ftp://a", "http://user:word@a", "http://", "http://a b"])
def test_what_is_no_url_fails(url: str) -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        Settings.load({"otlp_endpoint": url})


def test_a_trace_is_here_in_the_task_that_began_it_and_those_it_starts(traces: Traces) -> None:
    async def inner() -> Trace | None:
        return here()

    async def request() -> bool:
        trace = traces.begin("encode", {}, 0.0)
        return trace is not None and await asyncio.create_task(inner()) is here() is trace

    async def both() -> list[bool]:
        return await asyncio.gather(*(request() for _ in range(2)))

    assert asyncio.run(both()) == [True, True]
    assert here() is None


def test_a_sampler_that_wants_none_leaves_nothing(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traces = Traces(sent, "1.2.3", {})
    assert Context().run(traces.begin, "encode", {}, 0.0) is None
    assert here() is None
    asyncio.run(traces.close(60))
    assert sent.get_finished_spans() == ()


def test_a_request_that_is_not_traced_has_nothing_of_the_one_before_it(traces: Traces) -> None:
    """On one connection the task of a request may begin that of the next."""

    async def next_request() -> Trace | None:
        traces.begin("encode", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}, 0.0)
        return here()

    async def first_request() -> Trace | None:
        assert traces.begin("encode", {}, 0.0) is not None
        return await asyncio.create_task(next_request())

    assert asyncio.run(first_request()) is None


def test_a_batch_that_comes_after_the_end_of_a_request_links_it_all_the_same(
    traces: Traces, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    trace, now = begun(traces), monotonic()
    trace.end("encode", "deadline_exceeded", {}, None, 0.0)
    traces.computed(batch(now), [(trace, part(now))])
    asyncio.run(traces.close(60))
    request, computed = sent.get_finished_spans()
    assert (request.links, [link.context for link in computed.links]) == ((), [trace.context])
    assert caplog.records == []


def test_a_batch_links_all_of_its_requests(traces: Traces, sent: Sent) -> None:
    many, now = [begun(traces) for _ in range(300)], monotonic()
    traces.computed(batch(now, 300), [(trace, part(now)) for trace in many])
    for trace in many:
        trace.end("encode", "ok", {"viq.size": "nano"}, None, 0.0)
    asyncio.run(traces.close(60))
    (span,) = [one for one in sent.get_finished_spans() if one.name == "batch"]
    assert [link.context for link in span.links] == [trace.context for trace in many]


def test_a_request_of_very_many_batches_tells_of_the_first_ones_only(traces: Traces, sent: Sent) -> None:
    trace = begun(traces)
    for index in range(500):
        traces.computed(batch(float(index)), [(trace, part(float(index)))])
    trace.end("encode", "ok", {}, Timings(postprocess=3.0), 0.0)
    asyncio.run(traces.close(60))
    (span,) = [one for one in sent.get_finished_spans() if one.name == "encode"]
    assert len(span.links) == 128
    assert len([one for one in sent.get_finished_spans() if one.name == "compute"]) == 128


def test_what_fails_within_is_in_the_log_and_nowhere_else(
    traces: Traces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no span today")

    trace, now = begun(traces), monotonic()
    monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", broken)
    assert traces.begin("encode", {}, 0.0) is None
    traces.computed(batch(now), [(trace, part(now))])
    trace.computed(trace.context, part(now))
    trace.end("encode", "ok", {}, None, 0.0)
    assert len(caplog.records) == 3
    assert all("no span today" in str(record.exc_info) for record in caplog.records)


def test_a_collector_that_does_not_answer_keeps_nobody_waiting(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More spans than are kept for it, too; the end waits for as long as it was told to."""
    caplog.set_level(logging.WARNING)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        traces = traces_of(Settings.load({"otlp_endpoint": url, "otlp_protocol": "http/protobuf"}), "1.2.3", {})
        assert traces is not None
        for _ in range(5000):
            begun(traces).end("encode", "ok", {}, None, 0.0)
        asyncio.run(traces.close(0.05))
    assert "traces could not be sent within 0.05 s" in caplog.text
