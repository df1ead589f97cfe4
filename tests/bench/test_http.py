"""The plain door at servers that answer in every way that HTTP/1.1 allows, and in some that it does not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.bench.foreign import HANG_UP, foreign, plain

from viq.errors import InvalidInput
from viq_serving.bench.doors.door import Answer, Target
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.doors.plain import PlainDoor
from viq_serving.bench.pictures import PictureFile

CODES = np.arange(24, dtype="<u2")


def asked(url: str, count: int = 1, **told: Any) -> tuple[list[Answer], PlainDoor]:
    """Answers to `count` requests one after another over one door."""
    payload = Payload([PictureFile(0, 32, 48, b"picture")], "jpeg")
    made: list[PlainDoor] = []

    async def ask() -> list[Answer]:
        door = PlainDoor(Target(url, **told), payload)
        made.append(door)
        await door.open()
        answers = [await door.ask(0) for _ in range(count)]
        await door.close()
        return answers

    return asyncio.run(ask()), made[0]


@pytest.mark.parametrize(
    "pieces",
    [
        plain("200 OK", CODES.tobytes(), "Content-Type: application/octet-stream"),
        [b"HTTP/1.1 100 Continue\r\n\r\n", *plain("200 OK", CODES.tobytes())],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2", b"0;x=y\r\n" + CODES.tobytes()[:32],
         b"\r\n10\r\n" + CODES.tobytes()[32:] + b"\r\n0\r\n", b"\r\n"],
        [bytes([byte]) for byte in plain("200 OK", CODES.tobytes())[0]],
        plain("200 OK", json.dumps({"codes": CODES.tolist()}).encode(), "content-type: application/json"),
        plain("200 OK", json.dumps({"results": [{"codes": CODES.reshape(6, 4).tolist()}]}).encode(),
              "content-type: application/json; charset=utf-8"),
    ],
    ids=["length", "interim", "chunked", "byte by byte", "json", "nested json"],
)  # fmt: skip
def test_codes_are_read_however_an_answer_is_cut(pieces: list[bytes]) -> None:
    with foreign(lambda number: pieces) as server:
        answers, door = asked(server.url, 3)
        assert [answer.kind for answer in answers] == ["", "", ""]
        assert all(door.codes_of(answer) == CODES.tobytes() for answer in answers)
        assert server.requests == [b"picture"] * 3


def test_an_answer_may_end_with_its_connection() -> None:
    with foreign(lambda number: [b"HTTP/1.0 200 OK\r\n\r\n", CODES.tobytes(), HANG_UP]) as server:
        answers, door = asked(server.url, 2)
        assert [door.codes_of(answer) for answer in answers] == [CODES.tobytes()] * 2


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    with foreign(lambda number: []) as server:
        (answer,), _ = asked(server.url, timeout_s=0.05)
        assert answer.kind == "timeout"


def test_a_kept_connection_that_was_closed_meanwhile_is_no_error() -> None:
    hung_up: list[int] = []

    def answers(number: int) -> Sequence[bytes]:
        if number == 1:
            hung_up.append(number)
            return [HANG_UP]
        return plain("200 OK", CODES.tobytes())

    with foreign(answers) as server:
        given, _ = asked(server.url, 2)
        assert [answer.kind for answer in given] == ["", ""]
        assert hung_up == [1]
        assert len(server.requests) == 3


def test_rejects_are_told_with_their_hint_and_errors_with_their_code() -> None:
    full = json.dumps({"error": {"code": "overloaded"}}).encode()
    replies = [
        plain("429 Too Many Requests", full, "Retry-After: 2", "Retry-After-Ms: 1500"),
        plain("429 Too Many Requests", b"no", "Retry-After: 2"),
        plain("429 Too Many Requests", b""),
        plain("500 Internal Server Error", b"<html>"),
        plain("422 Unprocessable", json.dumps({"error": "no picture"}).encode()),
    ]
    with foreign(lambda number: replies[number]) as server:
        given, _ = asked(server.url, len(replies))
    assert [(one.kind, one.reject, one.hint_s) for one in given] == [
        ("429 overloaded", True, 1.5),
        ("429", True, 2.0),
        ("429", True, None),
        ("500", False, None),
        ("422 no picture", False, None),
    ]


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([b"SSH-2.0-x\r\n\r\n"], "broken reply: the answer begins with 'SSH-2.0-x'"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"], "broken reply: an answer has content-length '-5'"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"],
            "broken reply: a chunk of an answer begins with",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-6\r\n", b"x" * 99],
            "broken reply: a chunk of an answer",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n"],
            "broken reply: an answer is over 1073741824",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000],
            "broken reply: a chunk of an answer has no",
        ),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000], "broken reply: the head of an answer is over 65536 bytes"),
    ],
)
def test_what_is_no_answer_is_an_error_of_its_own(pieces: list[bytes], kind: str) -> None:
    with foreign(lambda number: pieces) as server:
        (answer,), _ = asked(server.url)
        assert answer.kind.startswith(kind)


def test_a_server_that_hangs_up_or_is_not_there_is_an_error() -> None:
    with foreign(lambda number: [HANG_UP]) as server:
        (answer,), _ = asked(server.url)
        assert answer.kind == "ConnectionResetError: the server closed the connection"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (answer,), _ = asked(f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert answer.kind.startswith("ConnectionRefusedError")


def test_an_answer_without_codes_is_told() -> None:
    with foreign(lambda number: plain("200 OK", b'{"other": 1}', "content-type: application/json")) as server:
        (answer,), door = asked(server.url)
        with pytest.raises(ValueError, match="holds no codes"):
            door.codes_of(answer)


@pytest.mark.parametrize("url", ["host:80", "ftp://host", "http://", "http://host:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="server"):
        PlainDoor(Target(url), Payload([], "jpeg"))


def test_a_line_break_cannot_be_smuggled_into_a_request() -> None:
    payload = Payload([PictureFile(0, 1, 1, b"x")], "jpeg")
    with pytest.raises(InvalidInput, match="line break"):
        PlainDoor(Target("http://host", headers={"Authorization": "Bearer a\r\nX: y"}), payload)
