"""What is open and what is not, at both ports; health and reflection beside the services."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

if TYPE_CHECKING:
    from tests.doors.conftest import Server

MakePng = Callable[..., bytes]
Start = Callable[..., "Server"]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
SERVICES = ("", "viq.v1.ViQ", "inference.GRPCInferenceService")
METHODS = ("viq.v1.ViQ/Info", "viq.v1.ViQ/Plan", "inference.GRPCInferenceService/ServerLive",
           "inference.GRPCInferenceService/ServerMetadata", "inference.GRPCInferenceService/ModelMetadata",
           "viq.v1.ViQ/Bogus")  # fmt: skip
CLOSED = ("/metrics", "/docs", "/openapi.json", "/v1/models", "/v2", "/v2/models/viq-encode", "/bogus")
OPEN = ("/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready")
REFUSED = (401, "UNAUTHENTICATED")


@pytest.fixture(scope="module")
def locked(start: Start) -> Server:
    """A server that asks for a key."""
    flags = ("--drain-delay", "0", "--metrics-port", "0")
    return start(*flags, environment={"VIQ_API_KEYS": "good, better"}).ready()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("key", [None, "bad", "goo", "good, better"])
def test_without_a_known_key_nothing_is_encoded(locked: Server, door: str, key: str | None, make_png: MakePng) -> None:
    reply = locked.ask(door, "encode", [make_png()], key=key)
    assert reply.status in REFUSED
    assert reply.code == ("" if door == "oip_http" else "unauthenticated")
    assert "key" in reply.message
    assert reply.headers["x-request-id"]
    if "http" in door:
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("door", DOORS)
def test_with_any_of_the_keys_everything_works(locked: Server, door: str, make_png: MakePng) -> None:
    for key in ("good", "better"):
        codes = locked.ask(door, "encode", [make_png()], key=key)
        assert codes.good
        assert locked.ask(door, "decode", codes.items, key=key).good


def test_on_http_health_is_open_and_all_else_is_closed(locked: Server) -> None:
    assert {locked.http.get(path).status_code for path in OPEN} == {200}
    key = {"Authorization": "Bearer good"}
    for path in CLOSED:
        assert locked.http.get(path).status_code == 401
        assert locked.http.get(path, headers=key).status_code == (404 if path == "/bogus" else 200)


def test_on_grpc_health_is_open_and_all_else_is_closed(locked: Server) -> None:
    for name in SERVICES:
        assert HealthStub(locked.channel).Check(HealthCheckRequest(service=name)).status == HealthCheckResponse.SERVING
        watch = HealthStub(locked.channel).Watch(HealthCheckRequest(service=name))
        assert next(watch).status == HealthCheckResponse.SERVING
        watch.cancel()
    for path in METHODS:
        assert locked.call(path, b"").status == "UNAUTHENTICATED"
        assert locked.call(path, b"", metadata=[("authorization", "Bearer good")]).status != "UNAUTHENTICATED"
    with pytest.raises(grpc.RpcError) as caught:
        listed(locked)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert listed(locked, metadata=[("authorization", "Bearer good")])


def test_a_missing_key_is_told_before_a_body_is_read(locked: Server) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        wire.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert wire.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_the_metrics_port_needs_no_key_and_serves_nothing_else(locked: Server) -> None:
    with httpx.Client(trust_env=False) as client:
        assert "viq_ready 1.0" in client.get(locked.metrics).text
        for path in ("/v1/models", "/docs", "/readyz"):
            assert client.get(locked.metrics.removesuffix("/metrics") + path).status_code == 404


def test_keys_are_neither_logged_nor_shown(locked: Server) -> None:
    shown = locked.http.get("/metrics", headers={"Authorization": "Bearer good"}).text
    assert "better" not in locked.log() + shown


def test_reflection_lists_and_describes_every_service_on_the_same_port(server: Server) -> None:
    names = {"viq.v1.ViQ", "inference.GRPCInferenceService", "grpc.health.v1.Health"}
    assert names <= set(listed(server))
    for symbol in names:
        asked = ServerReflectionRequest(file_containing_symbol=symbol)
        (answer,) = ServerReflectionStub(server.channel).ServerReflectionInfo(iter([asked]))
        assert answer.file_descriptor_response.file_descriptor_proto


def test_health_of_a_name_that_there_is_not_is_not_found(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(server.channel).Check(HealthCheckRequest(service="bogus"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def listed(server: Server, **options: Any) -> list[str]:
    """The services that reflection lists."""
    asked = ServerReflectionRequest(list_services="")
    (answer,) = ServerReflectionStub(server.channel).ServerReflectionInfo(iter([asked]), **options)
    return [one.name for one in answer.list_services_response.service]
