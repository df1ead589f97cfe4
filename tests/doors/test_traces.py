"""Traces as a collector sees them: a span a request and one a batch, through whichever door the request came."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from tests.doors.collector import Collector, Span
from tests.doors.serving import Server
from tests.waiting import until

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

MakePng = Callable[..., bytes]
Start = Callable[..., Server]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
SERVER_KIND = 2
STAGES = ["preprocess", "queue", "transfer", "compute"]
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
CLOSED = {
    "viq.method": {"encode", "embed", "decode", "plan", "models"},
    "viq.door": set(DOORS),
    "viq.size": {"nano", ""},
    "viq.priority": {"interactive", "bulk"},
    "viq.outcome": {"ok", "invalid_input", "deadline_exceeded"},
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(start: Start, collector: Collector) -> Server:
    """A server with a gate that sends its traces there."""
    return start("--otlp-endpoint", collector.by_grpc, "--drain-delay", "0", gated=True, environment=SOON).ready()


def one(collector: Collector, name: str, **attributes: Any) -> Span:
    """The only such span, once it has arrived."""
    until(lambda: collector.spans(name, **attributes), f"a span {name} with {attributes}")
    (span,) = collector.spans(name, **attributes)
    return span


def parent(trace: str, span: str, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{span}-{flags}"}


def below(collector: Collector, span: Span) -> list[Span]:
    return sorted((each for each in collector.spans() if each.parent == span.id), key=lambda each: each.begun)


@pytest.mark.parametrize("door", DOORS)
def test_a_request_is_a_span_with_its_stages_linked_with_its_batch(
    traced: Server, collector: Collector, door: str, make_png: MakePng
) -> None:
    assert traced.ask(door, "encode", [make_png(40, 70)], request_id=f"alone-{door}").good
    span = one(collector, "encode", request_id=f"alone-{door}")
    assert span.attributes == {
        "viq.method": "encode",
        "viq.door": door,
        "viq.size": "nano",
        "viq.priority": "interactive",
        "viq.outcome": "ok",
        "viq.images": 1,
        "viq.patches": 15,
        "viq.request_id": f"alone-{door}",
    }
    assert (span.kind, span.failed, span.parent) == (SERVER_KIND, False, "")
    assert span.resource["service.name"] == "viq-serving"
    stages = below(collector, span)
    assert [stage.name for stage in stages] == STAGES
    for before, after in pairwise(stages):
        assert before.begun <= before.ended <= after.begun + 1000  # times are rounded to ns one by one
    assert span.begun <= stages[0].begun + 1000
    assert stages[-1].ended <= span.ended + 1000
    (link,) = span.links
    (batch,) = [each for each in collector.spans("batch") if (each.trace, each.id) == link]
    assert batch.links == [(span.trace, span.id)]
    assert batch.attributes["viq.method"] == "encode"
    assert (batch.attributes["viq.images"], batch.attributes["viq.patches"]) == (1, 15)
    assert 0 < batch.attributes["viq.fill"] <= 1
    assert batch.attributes["viq.device"] == "cpu"
    assert abs(batch.begun - stages[2].begun) < 1e6
    assert abs(batch.ended - stages[3].ended) < 1e6


def test_requests_that_are_computed_together_share_a_batch(
    traced: Server, collector: Collector, make_png: MakePng
) -> None:
    taken = traced.gate.count("taken")
    traced.gate.close()
    asked = [("first", "http", 1), ("second", "grpc", 2), ("third", "oip_http", 3)]
    threads = []
    for name, door, images in asked:
        files = [make_png(16, 16, seed) for seed in range(images)]
        threads.append(threading.Thread(target=traced.ask, args=(door, "encode", files), kwargs={"request_id": name}))
        threads[-1].start()
        if name == "first":
            until(lambda: traced.gate.count("taken") == taken + 1, "the first at the gate")
    traced.waits(5)
    traced.gate.open()
    for thread in threads:
        thread.join(60)
    first, second, third = (one(collector, "encode", request_id=name) for name, _, _ in asked)
    assert [span.attributes["viq.images"] for span in (first, second, third)] == [1, 2, 3]
    assert second.links == third.links != first.links
    (batch,) = [each for each in collector.spans("batch") if (each.trace, each.id) == second.links[0]]
    assert sorted(batch.links) == sorted([(second.trace, second.id), (third.trace, third.id)])
    assert batch.attributes["viq.images"] == 5


def test_embedding_an_image_and_decoding_show_every_stage(
    traced: Server, collector: Collector, make_png: MakePng
) -> None:
    image = make_png(32, 32)
    codes = traced.ask("grpc", "encode", [image]).items
    assert traced.ask("grpc", "decode", codes, request_id="decoded").good
    assert traced.ask("grpc", "embed", [image], request_id="embedded").good
    decoded, embedded = (one(collector, m, request_id=r) for m, r in (("decode", "decoded"), ("embed", "embedded")))
    assert [stage.name for stage in below(collector, decoded)] == [*STAGES[1:], "postprocess"]
    assert [stage.name for stage in below(collector, embedded)] == [*STAGES, *STAGES[1:], "postprocess"]
    assert len(embedded.links) == 2
    assert decoded.attributes["viq.patches"] == embedded.attributes["viq.patches"] == 4


@pytest.mark.parametrize("door", DOORS)
def test_the_callers_trace_goes_on(traced: Server, collector: Collector, door: str, make_png: MakePng) -> None:
    number = DOORS.index(door) + 1
    caller = (f"{number:032x}", f"{number:016x}")
    reply = traced.ask(door, "encode", [make_png()], request_id=f"child-{door}", headers=parent(*caller))
    assert reply.good
    span = one(collector, "encode", request_id=f"child-{door}")
    assert (span.trace, span.parent) == caller
    assert {stage.trace for stage in below(collector, span)} == {caller[0]}
    until(lambda: f"child-{door}" in traced.access(), "its line in the log")
    (record,) = [line for line in traced.records() if line["request_id"] == f"child-{door}"]
    assert record["trace_id"] == caller[0]


def test_a_stream_is_one_span_linked_with_the_batches_of_its_items(
    traced: Server, collector: Collector, make_png: MakePng
) -> None:
    items = [pb.Item(key=str(n), image=make_png(32, 16, n)) for n in range(6)]
    sent = (pb.EncodeStreamRequest(items=[item]) for item in items)
    metadata = [("x-request-id", "streamed"), *parent("c" * 32, "d" * 16).items()]
    replies = list(ViQStub(traced.channel).EncodeStream(sent, metadata=metadata))
    assert {result.key for reply in replies for result in reply.results} == {item.key for item in items}
    span = one(collector, "encode", request_id="streamed")
    assert (span.trace, span.parent) == ("c" * 32, "d" * 16)
    assert (span.attributes["viq.images"], span.attributes["viq.patches"]) == (6, 12)
    assert (span.attributes["viq.outcome"], span.attributes["viq.priority"]) == ("ok", "bulk")
    batches = [each for each in collector.spans("batch") if (each.trace, each.id) in span.links]
    assert sum(each.attributes["viq.images"] for each in batches) == 6
    assert {link for each in batches for link in each.links} == {(span.trace, span.id)}


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{'1' * 16}-01", "z" * 100])
def test_a_trace_context_that_is_none_begins_a_trace_of_its_own(
    traced: Server, collector: Collector, header: str
) -> None:
    name = f"odd-{len(header)}-{header[:4].isalnum()}"
    reply = traced.http.get("/v1/models", headers={"traceparent": header, "X-Request-ID": name})
    assert reply.status_code == 200
    span = one(collector, "models", request_id=name)
    assert span.parent == ""
    assert re.fullmatch("[0-9a-f]{32}", span.trace)


def test_what_the_caller_does_not_sample_is_not_sent(traced: Server, collector: Collector, make_png: MakePng) -> None:
    batches = len(collector.spans("batch"))
    for _ in range(3):
        asked = {"request_id": "unsampled", "headers": parent("a" * 32, "b" * 16, "00")}
        assert traced.ask("http", "encode", [make_png()], **asked).good
    assert traced.ask("http", "encode", [make_png()], request_id="sampled").good
    one(collector, "encode", request_id="sampled")
    until(lambda: len(collector.spans("batch")) > batches, "the batch of the one that is sampled")
    assert collector.spans(request_id="unsampled") == []
    assert len(collector.spans("batch")) == batches + 1


@pytest.mark.parametrize("door", DOORS)
def test_errors_of_the_caller_are_outcomes_and_those_of_the_server_failures(
    traced: Server, collector: Collector, door: str, make_png: MakePng
) -> None:
    assert not traced.ask(door, "encode", [b"no image"], request_id=f"bad-{door}").good
    bad = one(collector, "encode", request_id=f"bad-{door}")
    assert (bad.attributes["viq.outcome"], bad.failed, bad.links) == ("invalid_input", False, [])
    traced.gate.close()
    assert not traced.ask(door, "encode", [make_png()], request_id=f"late-{door}", timeout_ms=1500).good
    traced.gate.open()
    late = one(collector, "encode", request_id=f"late-{door}")
    assert (late.attributes["viq.outcome"], late.failed) == ("deadline_exceeded", True)


def test_probes_are_no_requests_and_attributes_come_from_closed_sets(traced: Server, collector: Collector) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/nowhere"):
        traced.http.get(path, headers={"X-Request-ID": "probe"})
    traced.http.get("/v1/models", headers={"X-Request-ID": "after-probes"})
    one(collector, "models", request_id="after-probes")
    assert collector.spans(request_id="probe") == []
    for span in collector.spans():
        for name, values in CLOSED.items():
            assert span.attributes.get(name, next(iter(values))) in values


def test_the_last_spans_are_sent_before_the_end_by_http_too(start: Start, make_png: MakePng) -> None:
    """The standard variables alone switch traces on, name the service and choose the protocol."""
    with Collector() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.by_http,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "pictures",
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        }
        server = start("--drain-delay", "0", environment=variables).ready()
        assert server.ask("http", "encode", [make_png()], request_id="last").good
        assert collector.spans() == []
        assert server.end() == 0
        (span,) = collector.spans("encode", request_id="last")
        assert span.resource["service.name"] == "pictures"
        assert set(collector.paths) == {"/v1/traces"}
