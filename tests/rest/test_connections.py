"""Too many connections, idle ones, and many requests at once on one of them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import httpx
import pytest
from tests.waiting import until

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]

MAX_CONNECTIONS = 4
PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[httpx.Client]:
    """A server for few connections, which do not stay idle for long."""
    with serve(max_connections=MAX_CONNECTIONS, keep_alive_s=0.3) as client:
        yield client


def dial(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)


def rest(wire: socket.socket) -> bytes:
    return b"".join(iter(lambda: wire.recv(65536), b""))


def request(client: httpx.Client, path: str, *headers: str) -> bytes:
    """A whole reply, on a connection of its own."""
    with dial(client) as wire:
        wire.sendall("\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode())
        return rest(wire)


@contextmanager
def full(client: httpx.Client) -> Iterator[None]:
    """As many connections as there may be, all with a request whose body the server waits for."""
    with ExitStack() as stack:
        waiting = 0
        while waiting < MAX_CONNECTIONS:
            wire = stack.enter_context(dial(client))
            wire.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            if wire.recv(12) == b"HTTP/1.1 100":
                waiting += 1
            else:
                wire.close()
        yield


def test_over_the_limit_of_connections_work_is_503_and_probes_are_answered(small: httpx.Client) -> None:
    with full(small):
        reply = request(small, "/v1/models")
        start, _, body = reply.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in start.lower()
        assert json.loads(body)["error"]["code"] == "not_ready"
        assert str(MAX_CONNECTIONS) in json.loads(body)["error"]["message"]
        for path in ("/livez", "/readyz", "/v2/health/ready"):
            reply = request(small, path)
            assert reply.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in reply.lower()
        upload = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000)
        with dial(small) as wire:
            wire.sendall(upload)
            assert rest(wire).startswith(b"HTTP/1.1 503 ")
    until(lambda: request(small, "/v1/models", "Connection: close").startswith(b"HTTP/1.1 200 "), "they have gone")


def test_far_over_the_limit_connections_are_hung_up_on(small: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(small):
        monkeypatch.setattr("viq_serving.rest.connection._RESERVE", 0)
        with dial(small) as wire, suppress(ConnectionResetError):
            assert wire.recv(1) == b""


def test_a_surplus_connection_that_asks_nothing_is_closed(small: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viq_serving.rest.connection._SURPLUS_TIMEOUT_S", 0.1)
    with full(small), dial(small) as wire:
        assert wire.recv(1) == b""


def test_an_idle_connection_is_closed_after_its_time(small: httpx.Client) -> None:
    with dial(small) as wire:
        wire.sendall(PROBE)
        begun = time.monotonic()
        assert rest(wire).startswith(b"HTTP/1.1 200 ")
        assert 0.2 < time.monotonic() - begun < 15


def test_requests_sent_at_once_are_answered_in_order(client: httpx.Client, make_image: MakeImage) -> None:
    image = make_image()
    encode = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image
    with dial(client) as wire:
        wire.sendall(encode + PROBE + encode + LAST_PROBE)
        replies = rest(wire).split(b"HTTP/1.1 200 OK\r\n")
    assert [b'"codes":' in reply for reply in replies[1:]] == [True, False, True, False]


def test_of_too_many_requests_sent_at_once_the_first_are_answered_and_the_last_says_close(
    client: httpx.Client,
) -> None:
    with dial(client) as wire:
        wire.sendall(PROBE * 1000)
        reply = b""
        with suppress(ConnectionResetError):  # after the last reply
            for chunk in iter(lambda: wire.recv(65536), b""):
                reply += chunk
    replies = reply.lower().split(b"http/1.1 200 ok\r\n")[1:]
    assert 10 < len(replies) < 100
    assert [b"connection: close" in one for one in replies] == [False] * (len(replies) - 1) + [True]


def test_what_follows_the_last_of_too_many_is_no_part_of_it(client: httpx.Client, make_image: MakeImage) -> None:
    image = make_image()
    encode = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image
    with dial(client) as wire:
        wire.sendall(encode + PROBE * 15 + encode * 3 + b"nonsense")
        reply = b""
        with suppress(ConnectionResetError):
            for chunk in iter(lambda: wire.recv(65536), b""):
                reply += chunk
    assert reply.count(b"HTTP/1.1 ") == reply.count(b"HTTP/1.1 200 ") == 17
    assert reply.count(b'"codes":') == 2
