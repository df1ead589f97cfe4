"""Compressed bodies, and the room that bodies of all requests share."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import httpx
import pytest
from tests.rest.wires import said
from tests.waiting import until

from viq import ViQ
from viq_serving.allowance import Allowance
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.envelope import Envelope
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]
ServeApp = Callable[[Callable[[Tokenizer, Metrics], Awaitable[Envelope]]], AbstractContextManager[httpx.Client]]

MAX_BODY, ROOM = 50_000, 120_000


@pytest.fixture(scope="module")
def room() -> Allowance:
    """Room for two and a half of the largest bodies."""
    return Allowance(ROOM, "bytes of request bodies")


@pytest.fixture(scope="module")
def narrow(serve_app: ServeApp, room: Allowance) -> Iterator[httpx.Client]:
    """A server with just that room."""

    async def app(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [ViQ.from_pretrained()])
        tokenizer.bodies = room
        return create_app(tokenizer, metrics, Settings(max_body_bytes=MAX_BODY), Keys(Settings()))

    with serve_app(app) as client:
        yield client


@contextmanager
def held(client: httpx.Client, room: Allowance) -> Iterator[None]:
    """Two requests that have announced the largest body there is, and nothing more; after it their room is back."""
    with ExitStack() as stack:
        for count in (1, 2):
            wire = stack.enter_context(dial(client))
            wire.sendall(head(f"Content-Length: {MAX_BODY}"))
            until(partial(_held, room, count * MAX_BODY), "the body has its room")
        yield
    until(lambda: not room.held_now, "the two have left")


def _held(room: Allowance, least: int) -> bool:
    return room.held_now >= least


def dial(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)


def head(*lines: str) -> bytes:
    return "\r\n".join(("POST /v1/encode HTTP/1.1", "Host: x", "Connection: close", *lines, "", "")).encode()


def answer(wire: socket.socket) -> tuple[int, bytes, dict[str, dict[str, str]]]:
    """Status, head and JSON of all that comes until the server closes."""
    reply = said(wire)
    start, _, body = reply.partition(b"\r\n\r\n")
    return int(start.split()[1]), start.lower(), json.loads(body)


def assert_error(reply: httpx.Response, status: int, code: str, words: str = "") -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), reply.text
    assert words in error["message"]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("GZip", gzip.compress), ("deflate", zlib.compress)],
)
def test_a_packed_body_is_the_same_as_a_plain_one(
    narrow: httpx.Client, make_image: MakeImage, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    image = make_image(format="BMP")
    plain = narrow.post("/v1/encode", content=image)
    packed = narrow.post("/v1/encode", content=pack(image), headers={"Content-Encoding": encoding})
    assert packed.status_code == 200
    assert packed.json()["results"] == plain.json()["results"]
    assert packed.headers["ETag"] == plain.headers["ETag"]
    again = narrow.post("/v1/decode", content=pack(plain.content), headers={"Content-Encoding": encoding} | JSON)
    assert again.status_code == 200


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_identity_is_no_encoding(narrow: httpx.Client, make_image: MakeImage, encoding: str) -> None:
    reply = narrow.post("/v1/encode", content=make_image(), headers={"Content-Encoding": encoding})
    assert reply.status_code == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip, deflate", "nonsense"])
def test_other_encodings_are_415_and_the_known_ones_named(narrow: httpx.Client, encoding: str) -> None:
    reply = narrow.post("/v1/encode", content=b"x", headers={"Content-Encoding": encoding})
    assert_error(reply, 415, "unsupported_media_type", "gzip, deflate")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-1],
        lambda packed: packed + b"more",
        lambda packed: packed + packed,
        lambda packed: b"",
        lambda packed: b"plain after all",
        lambda packed: packed[:40] + bytes(40) + packed[80:],
    ],
)
@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_damaged_packed_body_is_400(
    narrow: httpx.Client,
    make_image: MakeImage,
    encoding: str,
    pack: Callable[[bytes], bytes],
    damage: Callable[[bytes], bytes],
) -> None:
    body = damage(pack(make_image(format="BMP")))
    reply = narrow.post("/v1/encode", content=body, headers={"Content-Encoding": encoding})
    assert_error(reply, 400, "malformed", encoding)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_body_is_counted_unpacked(narrow: httpx.Client, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    headers = {"Content-Encoding": encoding}
    at_limit = narrow.post("/v1/encode", content=pack(bytes(MAX_BODY)), headers=headers)
    assert_error(at_limit, 422, "invalid_input")
    over = narrow.post("/v1/encode", content=pack(bytes(MAX_BODY + 1)), headers=headers)
    assert_error(over, 413, "too_large", str(MAX_BODY))


def test_a_bomb_is_refused_before_it_has_come_whole(narrow: httpx.Client) -> None:
    bomb = zlib.compress(bytes(2**25), 9)
    assert len(bomb) < MAX_BODY
    with dial(narrow) as wire:
        wire.sendall(head("Content-Encoding: deflate", f"Content-Length: {len(bomb)}") + bomb[: len(bomb) // 2])
        status, _, body = answer(wire)
    assert (status, body["error"]["code"]) == (413, "too_large")


def test_bodies_that_together_are_too_much_are_429_and_the_room_comes_back(
    narrow: httpx.Client, room: Allowance, make_image: MakeImage
) -> None:
    with held(narrow, room):
        reply = narrow.post("/v1/encode", content=bytes(ROOM - 2 * MAX_BODY + 1))
        assert_error(reply, 429, "overloaded", str(ROOM))
        assert int(reply.headers["Retry-After"]) >= 1
        assert int(reply.headers["Retry-After-Ms"]) >= 1
        assert narrow.get("/readyz").status_code == 200
        assert narrow.post("/v1/encode", content=make_image(16, 16)).status_code == 200  # there is room for this
        assert room.held_now == 2 * MAX_BODY
    assert narrow.post("/v1/encode", content=bytes(MAX_BODY)).status_code == 422


def test_room_is_taken_before_a_body_is_read(narrow: httpx.Client, room: Allowance) -> None:
    with held(narrow, room), dial(narrow) as wire:
        wire.sendall(head(f"Content-Length: {MAX_BODY}", "Expect: 100-continue"))
        assert wire.recv(12) == b"HTTP/1.1 429"


def test_a_body_of_unknown_length_takes_room_as_it_comes(narrow: httpx.Client, room: Allowance) -> None:
    with held(narrow, room), dial(narrow) as wire:
        wire.sendall(head("Transfer-Encoding: chunked"))
        for _ in range((ROOM - 2 * MAX_BODY) // 1000 + 1):
            wire.sendall(b"3e8\r\n" + bytes(1000) + b"\r\n")
        status, start, body = answer(wire)
    assert (status, body["error"]["code"]) == (429, "overloaded")
    assert b"retry-after-ms: " in start


def test_packed_bodies_take_the_room_of_what_is_in_them(narrow: httpx.Client, room: Allowance) -> None:
    body = gzip.compress(bytes(MAX_BODY))
    with held(narrow, room):
        reply = narrow.post("/v1/encode", content=body, headers={"Content-Encoding": "gzip"})
    assert_error(reply, 429, "overloaded")


@pytest.mark.parametrize(
    ("status", "path", "content_type"),
    [
        (200, "/v1/encode", "image/bmp"),
        (400, "/v1/encode", "multipart/form-data; boundary=x"),
        (404, "/v1/encode?size=64k", "image/bmp"),
        (415, "/v1/encode", "text/plain"),
        (422, "/v1/decode", "application/octet-stream"),
    ],
)
def test_however_a_request_ends_its_room_comes_back(
    narrow: httpx.Client, room: Allowance, make_image: MakeImage, status: int, path: str, content_type: str
) -> None:
    body, headers = make_image(100, 100, "BMP"), {"Content-Type": content_type}
    for _ in range(10):  # which together are more than there is room for
        assert narrow.post(path, content=body, headers=headers).status_code == status
    until(lambda: not room.held_now, "all room has come back")


def test_what_is_larger_than_all_the_room_is_413_and_not_429_for_ever(serve: Serve) -> None:
    with serve(max_bytes_in_flight=1000) as client:
        assert_error(client.post("/v1/encode", content=bytes(1001)), 413, "too_large", "1000")
