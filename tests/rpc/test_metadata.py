"""What travels beside the messages: ids, fingerprints, priorities, keys; and what is counted and logged."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from viq_serving.pb import viq_pb2 as pb
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Terms

if TYPE_CHECKING:
    from tests.rpc.conftest import Door

Open = Callable[..., AbstractContextManager["Door"]]

MADE = r"[0-9a-f]{32}"


def asked(door: Door, one: pb.EncodeRequest, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, dict[str, str]]:
    """Status and trailers of an encode with `metadata`."""
    call = door.viq.Encode.future(one, metadata=metadata)
    return call.code(), dict(call.trailing_metadata())


def listed(channel: grpc.Channel, **options: Any) -> set[str]:
    asked = ServerReflectionRequest(list_services="")
    (reply,) = ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), **options)
    return {service.name for service in reply.list_services_response.service}


def test_a_good_request_id_comes_back_and_a_bad_one_is_replaced(door: Door, one: pb.EncodeRequest) -> None:
    for given in ("abc-1.2_3", "x" * 128):
        assert asked(door, one, ("x-request-id", given))[1]["x-request-id"] == given
        assert asked(door, pb.EncodeRequest(), ("x-request-id", given))[1]["x-request-id"] == given
    for given in ("", "a b", "x" * 129, "a/b"):
        assert re.fullmatch(MADE, asked(door, one, ("x-request-id", given))[1]["x-request-id"])
    assert re.fullmatch(MADE, asked(door, one)[1]["x-request-id"])


def test_every_reply_carries_the_fingerprint(door: Door, one: pb.EncodeRequest) -> None:
    fingerprint = door.tokenizer.model().fingerprint
    for request in (one, pb.EncodeRequest()):
        assert asked(door, request)[1]["viq-fingerprint"] == fingerprint
    for call in (
        door.channel.unary_unary("/no.such/Method").future(b""),
        HealthStub(door.channel).Check.future(HealthCheckRequest()),
        HealthStub(door.channel).Check.future(HealthCheckRequest(service="no")),
        ServerReflectionStub(door.channel).ServerReflectionInfo(iter(())),
    ):
        assert dict(call.trailing_metadata())["viq-fingerprint"] == fingerprint


def test_an_expected_fingerprint_may_be_a_family_or_the_whole(door: Door, one: pb.EncodeRequest) -> None:
    whole = door.tokenizer.model().fingerprint
    for expected in (whole, whole.partition(".")[0]):
        assert asked(door, one, ("viq-expect-fingerprint", expected))[0] is grpc.StatusCode.OK
    for expected in ("0123456789abcdef", whole[:-1], whole[:8], ""):
        status, trailers = asked(door, one, ("viq-expect-fingerprint", expected))
        assert (status, trailers["viq-error-code"]) == (grpc.StatusCode.FAILED_PRECONDITION, "fingerprint_mismatch")
    error = door.viq.Info.future(pb.InfoRequest(), metadata=[("viq-expect-fingerprint", "0123456789abcdef")])
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_priority_and_deadline_reach_the_tokenizer_and_the_count(open_door: Open, one: pb.EncodeRequest) -> None:
    seen: list[Terms] = []

    def spy(tokenizer: Tokenizer) -> None:
        encode = tokenizer.encode

        async def noting(images: Any, model: Any, terms: Terms) -> Any:
            seen.append(terms)
            return await encode(images, model, terms)

        tokenizer.encode = noting  # type: ignore[assignment,method-assign]

    with open_door(change=spy) as door:
        labels = {"method": "encode", "door": "grpc", "size": "nano", "outcome": "ok"}
        for priority in ("interactive", "bulk"):
            assert asked(door, one, ("viq-priority", priority))[0] is grpc.StatusCode.OK
            assert door.sample("viq_requests_total", **labels, priority=priority) == 1
        door.viq.Encode(one, timeout=1000)
        status, trailers = asked(door, one, ("viq-priority", "urgent"))
        assert (status, trailers["viq-error-code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_input")
    assert [terms.priority for terms in seen] == ["interactive", "bulk", "interactive"]
    assert seen[0].deadline == float("inf")
    assert seen[2].deadline < float("inf")


def test_requests_are_counted_and_logged_once(
    open_door: Open, one: pb.EncodeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_door() as door:
        door.viq.Encode(one, metadata=[("x-request-id", "log-me")])
        door.viq.Info(pb.InfoRequest())
        HealthStub(door.channel).Check(HealthCheckRequest())
        listed(door.channel)
        door.channel.unary_unary("/no.such/Method").future(b"").code()
        text = door.inside(door.metrics.text).decode()  # when the loop has done what it had put off
    counted = re.findall(r'viq_requests_total\{door="(\w+)",method="(\w+)",outcome="(\w+)".*\} (\S+)', text)
    expected = [("grpc", "encode", "ok", "1.0"), ("grpc", "info", "ok", "1.0"), ("grpc", "unknown", "not_found", "1.0")]
    assert sorted(counted) == expected
    lines = [getattr(record, "fields", {}) for record in caplog.records if record.name == "viq.access"]
    assert [(line["method"], line["outcome"]) for line in lines] == [(m, outcome) for _, m, outcome, _ in expected]
    assert (lines[0]["request_id"], lines[0]["items"]) == ("log-me", 1)
    assert lines[0]["timings_ms"]["compute"] > 0


KEY = ("authorization", "Bearer sesame")


@pytest.fixture(scope="module")
def locked(open_door: Open) -> Any:
    """A server that asks for a key."""
    with open_door(api_keys="sesame") as door:
        yield door


@pytest.mark.parametrize(
    "metadata", [(), (("authorization", "Bearer other"),), (("authorization", "sesame"),), (("authorization", ""),)]
)
def test_without_a_known_key_only_health_is_open(
    locked: Door, one: pb.EncodeRequest, metadata: tuple[tuple[str, str], ...]
) -> None:
    calls = [
        locked.viq.Encode.future(one, metadata=metadata),
        locked.viq.Info.future(pb.InfoRequest(), metadata=metadata),
        locked.viq.Plan.future(pb.PlanRequest(), metadata=metadata),
        locked.channel.unary_unary("/no.such/Method").future(b"", metadata=metadata),
        locked.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(b"", metadata=metadata),
        locked.channel.unary_unary("/inference.GRPCInferenceService/ServerReady").future(b"", metadata=metadata),
        ServerReflectionStub(locked.channel).ServerReflectionInfo(iter(()), metadata=metadata),
    ]
    for call in calls:
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert dict(call.trailing_metadata())["viq-error-code"] == "unauthenticated"
        assert "sesame" not in call.details()
    assert HealthStub(locked.channel).Check(HealthCheckRequest(), metadata=metadata).status == 1


def test_with_a_key_all_is_open(locked: Door, one: pb.EncodeRequest) -> None:
    assert locked.viq.Encode(one, metadata=[KEY]).results[0].codes.data
    assert locked.viq.Info(pb.InfoRequest(), metadata=[KEY]).models
    assert "viq.v1.ViQ" in listed(locked.channel, metadata=[KEY])


def test_a_request_without_a_key_is_refused_before_its_message_is_read(locked: Door) -> None:
    never = threading.Event()

    def messages() -> Iterator[bytes]:
        never.wait()
        yield b""

    call = locked.channel.stream_unary("/viq.v1.ViQ/Encode").future(messages())
    assert call.code() is grpc.StatusCode.UNAUTHENTICATED
    never.set()


def test_reflection_lists_every_service_and_describes_ours(door: Door) -> None:
    assert listed(door.channel) == {
        "viq.v1.ViQ",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for symbol in ("viq.v1.ViQ", "inference.GRPCInferenceService"):
        asked = ServerReflectionRequest(file_containing_symbol=symbol)
        (reply,) = ServerReflectionStub(door.channel).ServerReflectionInfo(iter([asked]))
        assert reply.file_descriptor_response.file_descriptor_proto
