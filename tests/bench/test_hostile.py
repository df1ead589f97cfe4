"""Servers that answer anything, go away or are somebody's own: the generator goes on, and says what came of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tests.bench.foreign import HANG_UP, foreign, plain

from viq_serving.cli.main import main

Bench = Callable[..., tuple[int, dict[str, Any], str]]
SHORT = ("--pictures", 2, "--mix", "32x32", "--warm-up", 0, "--in-flight", 1, "--requests", 4, "--timeout", 60)


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Bench:
    """The command's exit code, its one run, and what it printed."""

    def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
        code = main(["bench", "--json", *map(str, SHORT), *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, json.loads(out)["runs"][0] if out else {}, out + err

    return run


class Answers(grpc.GenericRpcHandler):
    """Answers every call with the same bytes: of a stream one for each message."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        if handler_call_details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(lambda message, context: self._data)

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in messages:
            yield self._data


@contextmanager
def called(data: bytes) -> Iterator[str]:
    """The address of a gRPC server that answers so."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Answers(data)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"outputs": 5}', b'{"outputs": [{"name": "codes"}]}', b"\xff" * 9]
)
@pytest.mark.parametrize("door", ["rest", "oip-http"])
def test_what_is_no_codes_is_told_and_the_run_goes_on(bench: Bench, door: str, body: bytes) -> None:
    model = ("--model", "other", "--size", "nano")  # of a server that is not asked what it is
    with foreign(lambda number: plain("200 OK", body, "Content-Type: application/json")) as server:
        code, run, _ = bench("--door", door, "--url", server.url, "--reply", "json", *model)
    assert code == 1
    assert run["answered"] == 4
    assert run["codes"]["unreadable"]
    assert run["codes"]["digest"] is None


@pytest.mark.parametrize("data", [b"", b"\xff\xff nothing", b"\x0a\x00"])
@pytest.mark.parametrize("door", ["grpc", "oip-grpc"])
def test_what_is_no_message_is_an_error_or_no_codes(bench: Bench, door: str, data: bytes) -> None:
    with called(data) as address:
        code, run, _ = bench("--door", door, "--grpc", address, "--model", "other")
    assert code == 1
    assert run["errors"] or run["codes"]["unreadable"]


def test_a_stream_that_answers_no_message_ends_and_is_begun_again(bench: Bench) -> None:
    with called(b"\xff\xff nothing") as address:
        code, run, _ = bench("--door", "grpc-stream", "--grpc", address, "--model", "other")
    assert code == 1
    assert sum(run["errors"].values()) == 4
    assert "DecodeError" in next(iter(run["errors"]))


def test_codes_of_another_number_of_patches_are_none(bench: Bench) -> None:
    with foreign(lambda number: plain("200 OK", bytes(8), "Content-Type: application/octet-stream")) as server:
        code, run, _ = bench("--door", "rest", "--url", server.url, "--model", "other")
    assert code == 1
    assert run["codes"]["unreadable"].startswith("8 bytes of codes for picture")
    assert run["codes"]["digest"] is None


def test_a_server_that_dies_in_the_middle_leaves_what_it_answered_and_errors(bench: Bench) -> None:
    dead = threading.Event()

    def answers(number: int) -> Sequence[bytes]:
        if number >= 2:
            dead.set()
        return [HANG_UP] if dead.is_set() else plain("200 OK", bytes(32))

    with foreign(answers) as server:
        code, run, _ = bench("--door", "http", "--url", server.url)
    assert code == 1
    assert (run["answered"], sum(run["errors"].values())) == (2, 2)
    assert run["latency_ms"]["max"] is not None


def test_a_password_in_an_address_is_refused_and_not_repeated(bench: Bench) -> None:
    code, _, shown = bench("--door", "http", "--url", "http://me:secret@127.0.0.1:9/encode")
    assert code == 2
    assert "--api-key-file" in shown
    assert "secret" not in shown
