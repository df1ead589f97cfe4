"""Time and ends: deadlines, cancellation, slow clients, connections that age, health through a service's life."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub
from viq_serving.rpc.envelope import _how_cancelled

if TYPE_CHECKING:
    from tests.rpc.conftest import Door, Stuck

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]

NAMES = ("", "viq.v1.ViQ", "inference.GRPCInferenceService")
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def counted(door: Door, outcome: str) -> float:
    labels = {"method": "encode", "door": "grpc", "size": "nano", "priority": "interactive"}
    return door.sample("viq_requests_total", **labels, outcome=outcome)


def test_a_client_that_cancels_cancels_the_work_and_is_counted(
    open_door: Open, stuck: Stuck, one: pb.EncodeRequest
) -> None:
    with open_door(change=stuck.into) as door:
        call = door.viq.Encode.future(one)
        neighbour = door.viq.Encode.future(one)
        door.until(lambda: stuck.begun == 2)
        held = door.tokenizer.bodies.held_now
        call.cancel()
        door.until(lambda: counted(door, "cancelled") == 1)
        assert stuck.cancelled == 1
        assert door.tokenizer.bodies.held_now == held // 2
        door.inside(stuck.let_go.set)
        assert neighbour.result(timeout=60).results[0].codes.data
        assert door.tokenizer.bodies.held_now == 0


def test_a_client_that_vanishes_cancels_its_work(open_door: Open, stuck: Stuck, one: pb.EncodeRequest) -> None:
    with open_door(change=stuck.into) as door:
        channel = door.dial()
        call = ViQStub(channel).Encode.future(one)
        door.until(lambda: stuck.begun == 1)
        channel.close()
        door.until(lambda: counted(door, "cancelled") == 1)
        assert call.code() is grpc.StatusCode.CANCELLED
        assert (stuck.cancelled, door.tokenizer.bodies.held_now) == (1, 0)


# 2.001 s are sent as 2.01: this client's own clock ends the call before the server's.
@pytest.mark.parametrize("timeout_s", [2.0, 2.001])
def test_a_deadline_that_passes_ends_the_work_and_is_counted(
    open_door: Open, stuck: Stuck, one: pb.EncodeRequest, timeout_s: float
) -> None:
    with open_door(change=stuck.into) as door:
        call = door.viq.Encode.future(one, timeout=timeout_s)
        door.until(lambda: stuck.begun == 1)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        door.until(lambda: counted(door, "deadline_exceeded") + counted(door, "cancelled") == 1)
        assert counted(door, "deadline_exceeded") == 1
        assert stuck.cancelled == 1


@pytest.mark.parametrize(
    ("seconds", "left", "outcome"),
    [
        (100.0, 1.0, "deadline_exceeded"),  # 100.001 s are sent as 101
        (1.92, 0.08, "deadline_exceeded"),  # the request was on its way
        (2.0, 0.0, "deadline_exceeded"),
        (1.5, 0.5, "cancelled"),
        (0.01, 0.04, "cancelled"),
        (5.0, None, "cancelled"),
    ],
)
def test_who_leaves_about_the_deadline_is_taken_to_have_kept_it(
    seconds: float, left: float | None, outcome: str
) -> None:
    class Left:
        def time_remaining(self) -> float | None:
            return left

    context: Any = Left()
    assert _how_cancelled(context, seconds) == outcome


def test_a_client_that_cancels_well_before_its_deadline_is_counted_as_one_that_cancels(
    open_door: Open, stuck: Stuck, one: pb.EncodeRequest
) -> None:
    with open_door(change=stuck.into) as door:
        call = door.viq.Encode.future(one, timeout=60)
        door.until(lambda: stuck.begun == 1)
        call.cancel()
        door.until(lambda: counted(door, "cancelled") == 1)


def test_a_message_that_does_not_come_in_time_is_given_up(open_door: Open) -> None:
    never = threading.Event()

    def messages() -> Iterator[bytes]:
        never.wait()
        yield b""

    with open_door(body_read_timeout_s=0.2) as door:
        call = door.channel.stream_unary("/viq.v1.ViQ/Encode").future(messages())
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.2 s" in call.details()
        never.set()


def test_more_requests_than_the_limit_are_refused_at_once_with_a_hint(
    open_door: Open, stuck: Stuck, one: pb.EncodeRequest
) -> None:
    with open_door(change=stuck.into, grpc_max_concurrent_requests=2) as door:
        # Streams a connection are limited, too: others wait at the client.
        channels = [door.dial() for _ in range(3)]
        stubs: list[Any] = [ViQStub(channel) for channel in channels]
        held = [stub.Encode.future(one) for stub in stubs[:2]]
        door.until(lambda: stuck.begun == 2)
        refused = stubs[2].Encode.future(one)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert HealthStub(channels[2]).Check(HealthCheckRequest()).status == SERVING
        door.inside(stuck.let_go.set)
        assert all(call.result(timeout=60).results for call in held)
        assert stubs[2].Encode(one).results
        for channel in channels:
            channel.close()


def test_more_bytes_than_may_be_held_are_refused_with_a_hint(open_door: Open, one: pb.EncodeRequest) -> None:
    with open_door() as door:
        limit = door.tokenizer.bodies.limit
        door.inside(door.tokenizer.bodies.take, limit)
        refused = door.viq.Encode.future(one)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(limit) in refused.details()
        assert "grpc-retry-pushback-ms" in dict(refused.trailing_metadata())
        door.inside(door.tokenizer.bodies.give, limit)
        assert door.viq.Encode(one).results[0].codes.data


def test_connections_age_and_no_request_notices(open_door: Open, one: pb.EncodeRequest) -> None:
    with open_door(grpc_max_connection_age_s=0.2) as door:
        channel, states = door.dial(), list[grpc.ChannelConnectivity]()
        channel.subscribe(states.append)
        stub: Any = ViQStub(channel)

        def connected_anew() -> bool:
            assert stub.Encode(one).results[0].codes.data
            return states.count(grpc.ChannelConnectivity.CONNECTING) >= 3

        door.until(connected_anew)
        channel.close()


def test_connections_over_the_limit_are_not_taken_until_another_one_ends(
    open_door: Open, one: pb.EncodeRequest
) -> None:
    with open_door(max_connections=2) as door:
        assert door.viq.Encode(one).results[0].codes.data
        with door.dial() as second, door.dial(initial_reconnect_backoff_ms=100) as third:
            assert ViQStub(second).Encode(one).results[0].codes.data
            assert ViQStub(third).Encode.future(one).code() is grpc.StatusCode.UNAVAILABLE
            second.close()
            assert ViQStub(third).Encode(one, wait_for_ready=True, timeout=60).results[0].codes.data


def test_health_follows_the_service_from_loading_to_stopping(open_door: Open, model: Any) -> None:
    with open_door(load=False) as door:
        stub: Any = HealthStub(door.channel)
        watches = [stub.Watch(HealthCheckRequest(service=name)) for name in (*NAMES, "")]
        leaver = stub.Watch(HealthCheckRequest())

        def all_are(status: int) -> None:
            assert [stub.Check(HealthCheckRequest(service=name)).status for name in NAMES] == [status] * 3
            assert [next(watch).status for watch in watches] == [status] * 4

        all_are(NOT_SERVING)
        assert next(leaver).status == NOT_SERVING
        leaver.cancel()
        asyncio.run_coroutine_threadsafe(door.tokenizer.load(lambda: [model]), door.loop).result(60)
        all_are(SERVING)
        door.inside(door.tokenizer.drain)
        all_are(NOT_SERVING)
        assert door.viq.Info(pb.InfoRequest()).models
        door.inside(door.tokenizer.stop)
        for watch in watches:  # they would hold up the end of the server
            with pytest.raises(grpc.RpcError):
                next(watch)
            assert watch.code() is grpc.StatusCode.UNAVAILABLE


def test_health_of_an_unknown_service_is_not_found_and_its_watch_says_so(door: Door) -> None:
    stub: Any = HealthStub(door.channel)
    assert stub.Check.future(HealthCheckRequest(service="viq.v9.ViQ")).code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(HealthCheckRequest(service="viq.v9.ViQ"))
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_streams_of_clients_do_not_hold_up_the_end(open_door: Open) -> None:
    never = threading.Event()

    def questions() -> Iterator[Any]:
        never.wait()
        yield from ()

    with open_door() as door:
        reflection = ServerReflectionStub(door.channel).ServerReflectionInfo(questions())
        watch = HealthStub(door.channel).Watch(HealthCheckRequest())
        assert next(watch).status == SERVING
        door.inside(door.tokenizer.stop)
        for call in (reflection, watch):
            with pytest.raises(grpc.RpcError):
                list(call)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
    never.set()
