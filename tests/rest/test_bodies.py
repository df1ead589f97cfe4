"""Bodies that are too long, too slow, or never come whole: over bare sockets, as no good client sends them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest
from tests.rest.wires import said
from tests.waiting import until

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]

MAX_BODY = 50_000


@pytest.fixture(scope="module")
def strict(serve: Serve) -> Iterator[httpx.Client]:
    """A server with small limits."""
    with serve(max_body_bytes=MAX_BODY, max_images=2, max_pixels=4000, body_read_timeout_s=0.9) as client:
        yield client


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)


def head(*lines: str) -> bytes:
    return "\r\n".join(("POST /v1/encode HTTP/1.1", "Host: x", "Content-Type: image/png", *lines, "", "")).encode()


def answer(wire: socket.socket) -> tuple[int, bytes, dict[str, dict[str, str]]]:
    """Status, head and JSON of all that comes until the server closes."""
    reply = said(wire)
    start, _, body = reply.partition(b"\r\n\r\n")
    return int(start.split()[1]), start.lower(), json.loads(body)


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_sent(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(head(f"Content-Length: {MAX_BODY + 1}"))
        status, start, body = answer(wire)
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert str(MAX_BODY) in body["error"]["message"]
    assert b"connection: close" in start


def test_a_client_that_waits_for_100_continue_is_refused_without_it(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(head(f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue"))
        assert wire.recv(12) == b"HTTP/1.1 413"


def test_a_body_of_unknown_length_is_counted(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(MAX_BODY // 1000 + 1):
            wire.sendall(b"3e8\r\n" + bytes(1000) + b"\r\n")
        status, _, body = answer(wire)
    assert (status, body["error"]["code"]) == (413, "too_large")


def test_a_client_that_only_sends_still_reads_why_it_was_refused(strict: httpx.Client) -> None:
    reply = strict.post("/v1/encode", content=bytes(20 * MAX_BODY))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_a_body_at_the_limit_is_read(strict: httpx.Client) -> None:
    reply = strict.post("/v1/encode", content=bytes(MAX_BODY))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")


def test_a_body_that_stalls_is_given_up(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(head("Content-Length: 1000") + bytes(10))
        begun = time.monotonic()
        status, _, body = answer(wire)
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert "0.9 s" in body["error"]["message"]
    assert time.monotonic() - begun < 10


def test_a_body_that_trickles_is_given_up(strict: httpx.Client) -> None:
    """The deadline is for the whole body: a byte now and then does not renew it."""
    with connect(strict) as wire:
        wire.sendall(head("Content-Length: 1000"))
        wire.settimeout(0.05)
        reply, sent = b"", 0
        while b"\r\n\r\n" not in reply and sent < 400:
            wire.sendall(b"x")
            sent += 1
            try:
                reply += wire.recv(65536)
            except TimeoutError:
                continue
    assert reply.startswith(b"HTTP/1.1 504")


def test_a_client_that_goes_away_mid_body_leaves_the_server_well(strict: httpx.Client, make_image: MakeImage) -> None:
    for lines in (("Content-Length: 1000",), ("Transfer-Encoding: chunked",)):
        with connect(strict) as wire:
            wire.sendall(head(*lines) + b"5\r\nhello\r\n")
    until(lambda: 'outcome="malformed"' in strict.get("/metrics").text, "they are counted")
    assert strict.post("/v1/encode", content=make_image()).status_code == 200


def test_an_unread_body_does_not_become_the_next_request(strict: httpx.Client) -> None:
    smuggled = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(strict) as wire:
        wire.sendall(head(f"Content-Length: {MAX_BODY + len(smuggled)}") + smuggled)
        reply = said(wire)
    assert reply.count(b"HTTP/1.1 ") == 1


def test_the_limits_of_the_settings_hold(strict: httpx.Client, make_image: MakeImage) -> None:
    assert strict.post("/v1/encode", content=make_image(63, 63)).status_code == 200
    over = strict.post("/v1/encode", content=make_image(64, 63))
    assert (over.status_code, "4000" in over.json()["error"]["message"]) == (413, True)
    many = strict.post("/v1/encode", files=[("image", make_image(1, 1))] * 3)
    assert (many.status_code, "2" in many.json()["error"]["message"]) == (413, True)
    assert strict.get("/v1/models").json()["models"][0]["limits"]["max_images"] == 2


def test_a_head_without_end_is_refused(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ")
        try:
            for _ in range(64):
                wire.sendall(b"a" * 10_000)
        except OSError:
            pass  # it has hung up by now
        try:
            reply = wire.recv(12)
        except ConnectionResetError:
            reply = b""
    assert reply in (b"HTTP/1.1 413", b"")
    assert strict.get("/livez").status_code == 200


def test_a_head_over_the_limit_is_413_in_our_shape(strict: httpx.Client) -> None:
    with connect(strict) as wire:
        wire.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (64 * 2**10))
        status, start, body = answer(wire)
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert b"x-request-id: " in start


@pytest.mark.parametrize("begun", [b"", b"GET /livez HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come_ends_the_connection(
    strict: httpx.Client, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("viq_serving.rest.connection._HEAD_TIMEOUT_S", 0.1)
    with connect(strict) as wire:
        wire.sendall(begun)
        assert wire.recv(1) == b""


def test_a_client_that_does_not_read_its_reply_is_hung_up_on(
    serve: Serve, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would hold the reply in memory, and the service from ending, for as long as it likes."""
    monkeypatch.setattr("viq_serving.rest.connection._READ_TIMEOUT_S", 0.2)
    with serve() as client, socket.socket() as wire:
        # Together as large a reply as of one picture of 1200 x 1200, which takes much longer to compute.
        asked = httpx.Request("POST", client.base_url, files=[("image", make_image(300, 300))] * 16)
        body, kind = asked.read(), asked.headers["Content-Type"]
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect((client.base_url.host, client.base_url.port or 0))
        lines = (
            "POST /v1/embed?format=json HTTP/1.1",
            "Host: x",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
        )
        wire.sendall("\r\n".join((*lines, "", "")).encode() + body)
        # It is counted when the reply has ended, here by hanging up.
        until(lambda: 'method="embed",outcome="ok"' in client.get("/metrics").text, "it is counted")


@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_to_change_the_protocol_is_declined_and_the_request_answered(
    client: httpx.Client, make_image: MakeImage, apart: bool
) -> None:
    """Java's HttpClient makes this offer with every request."""
    image = make_image()
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    request = head(f"Content-Length: {len(image)}", *offer, *(("Expect: 100-continue",) if apart else ()))
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(client) as wire:
        wire.sendall(request if apart else request + image)
        if apart:
            assert wire.recv(64) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it has read the head, and waits for the body
            wire.sendall(image)
        wire.sendall(last)
        reply = b"".join(iter(lambda: wire.recv(65536), b""))
    assert reply.count(b"HTTP/1.1 200 ") == 2
    assert b'"codes":[' in reply


def test_what_follows_a_chunked_body_is_no_header(client: httpx.Client, make_image: MakeImage) -> None:
    image = make_image()
    trailer = b"ViQ-Expect-Fingerprint: other\r\n"
    with connect(client) as wire:
        wire.sendall(head("Transfer-Encoding: chunked", "Connection: close"))
        wire.sendall(b"%x\r\n" % len(image) + image + b"\r\n0\r\n" + trailer + b"\r\n")
        assert answer(wire)[0] == 200


def test_connect_is_refused(client: httpx.Client) -> None:
    with connect(client) as wire:
        wire.sendall(b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(wire)[0] == 400
