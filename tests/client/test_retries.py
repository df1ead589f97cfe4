"""What is sent again and when: against a replica that says exactly what a test wants."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any

import grpc
import numpy as np
import pytest

from viq import Codes
from viq_serving.client import Client, ServerError
from viq_serving.client.calls import Ask, weight_of
from viq_serving.client.options import READING
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQServicer, add_ViQServicer_to_server

CODES = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "nano", "")

End = tuple[grpc.StatusCode, str, dict[str, str], int]
"""Status, error code, trailers, and after how many answers."""


class Scripted(ViQServicer):
    """Ends its first streams as it is told, with what comes before an end answered; then answers everything."""

    def __init__(self, ends: list[End]) -> None:
        self.ends, self.seen, self.times = ends, list[bytes](), list[float]()

    def Info(self, request: Any, context: Any) -> pb.InfoResponse:  # noqa: N802
        return pb.InfoResponse(limits={"max_images": 1, "max_message_bytes": 10_000})

    def EncodeStream(self, requests: Any, context: Any) -> Iterator[pb.EncodeStreamResponse]:  # noqa: N802
        self.times.append(monotonic())
        end = self.ends.pop(0) if self.ends else None
        for request in requests:
            for item in request.items:
                if end is not None and end[3] == 0:
                    code, name, trailers, _ = end
                    context.set_trailing_metadata((*((("viq-error-code", name),) if name else ()), *trailers.items()))
                    context.abort(code, "as told")
                self.seen.append(item.image)
                if end is not None:
                    end = (*end[:3], end[3] - 1)
                codes = pb.Codes(data=CODES.to_bytes(), h=1, w=1, height=16, width=16, size="nano")
                yield pb.EncodeStreamResponse(results=[pb.Result(key=item.key, codes=codes)])


@contextmanager
def scripted(*ends: End) -> Iterator[tuple[str, Scripted]]:
    servicer, server = Scripted(list(ends)), grpc.server(ThreadPoolExecutor(8))
    add_ViQServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


def test_items_without_an_answer_are_sent_again_when_a_stream_ends() -> None:
    with scripted((grpc.StatusCode.UNAVAILABLE, "not_ready", {}, 3)) as (address, servicer), Client(address) as client:
        results = list(client.encode_each((i, bytes([i])) for i in range(8)))
    assert results == [(i, CODES) for i in range(8)]
    assert sorted(servicer.seen) == [bytes([i]) for i in range(8)]  # what was answered is not asked again
    assert len(servicer.times) == 2


def test_a_full_server_is_asked_again_when_it_says_and_else_not() -> None:
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    with scripted((full, "overloaded", {"grpc-retry-pushback-ms": "400"}, 0)) as (address, servicer):
        with Client(address) as client:
            assert client.encode([b"x"]) == [CODES]
        assert servicer.times[1] - servicer.times[0] >= 0.4
    with scripted((full, "overloaded", {}, 0)) as (address, servicer), Client(address) as client:
        with pytest.raises(ServerError, match="overloaded"):
            client.encode([b"x"])
        assert len(servicer.times) == 1


def test_what_stands_between_may_end_a_stream_or_ask_for_patience() -> None:
    ends: list[End] = [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", {}, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", {"grpc-retry-pushback-ms": "1"}, 0),
    ]
    with scripted(*ends) as (address, servicer), Client(address) as client:
        assert list(client.encode_each((i, b"x") for i in range(3))) == [(i, CODES) for i in range(3)]
        assert len(servicer.times) == 3


def test_a_server_that_is_full_for_longer_than_there_is_time_is_not_waited_for() -> None:
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    with scripted((full, "overloaded", {"grpc-retry-pushback-ms": "3600000"}, 0)) as (address, servicer):
        with Client(address, timeout=3000) as client, pytest.raises(ServerError, match="overloaded"):
            client.encode([b"x"])
        assert len(servicer.times) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL])
def test_other_ends_are_final(code: grpc.StatusCode) -> None:
    with scripted((code, "unauthenticated", {}, 0)) as (address, servicer), Client(address) as client:
        with pytest.raises(ServerError, match="unauthenticated: as told"):
            client.encode([b"x"])
        assert len(servicer.times) == 1


def test_tries_are_bounded_and_an_item_too_large_for_a_message_harms_no_other() -> None:
    ends: list[End] = [(grpc.StatusCode.UNAVAILABLE, "not_ready", {}, 0)] * 10
    with scripted(*ends) as (address, servicer), Client(address, retries=2) as client:
        with pytest.raises(ServerError, match="not_ready"):
            client.encode([b"x"])
        assert len(servicer.times) == 3
    with scripted() as (address, servicer), Client(address) as client:
        results = dict(client.encode_each([("a", b"x"), ("b", bytes(20_000)), ("c", b"y")]))
        assert (results["a"], results["c"]) == (CODES, CODES)
    # The limit is known once the first stream is open.
    with scripted() as (address, servicer), Client(address) as client:
        client.encode([b"x"])
        results = dict(client.encode_each([("b", bytes(20_000))]))
        assert "max_message_bytes" in str(results["b"])


@contextmanager
def http(answers: list[tuple[int, dict[str, str]]]) -> Iterator[tuple[str, list[float]]]:
    """An HTTP server that gives these statuses and headers, then codes."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            times.append(monotonic())
            status, headers = answers.pop(0) if answers else (200, {})
            body = CODES.npz_bytes() if status == 200 else b'{"error": {"code": "told", "message": "as told"}}'
            body = headers.pop("body", "").encode() or body
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        log_message: Callable[..., None] = lambda *_: None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", times
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("first", "tries", "least_s"),
    [
        ((503, {"retry-after": "1"}), 2, 0.0),
        ((429, {"retry-after-ms": "300", "retry-after": "9"}), 2, 0.3),
        ((429, {}), 1, 0.0),
        ((500, {}), 1, 0.0),
        ((502, {"body": "<html>of a proxy</html>"}), 2, 0.0),
        ((504, {"body": "<html>of a proxy</html>"}), 2, 0.0),
        ((504, {}), 1, 0.0),
    ],
)
def test_the_same_over_http(
    first: tuple[int, dict[str, str]], tries: int, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http([first]) as (url, times):
        with Client(url) as client:
            ((_, result),) = client.encode_each([("a", b"x")])
        assert len(times) == tries
        assert (result == CODES) == (tries == 2)
        assert times[-1] - times[0] >= least_s


def test_an_answer_that_is_none_of_the_service_is_no_fault_of_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http([(200, {"body": "<html>log in first</html>"})]) as (url, _), Client(url) as client:
        ((_, result),) = client.encode_each([("a", b"x")])
    assert isinstance(result, ServerError)
    assert (result.code, "none of a ViQ service" in str(result)) == ("unreachable", True)


def test_files_that_are_read_and_not_answered_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    read, most, lock = 0, 0, threading.Lock()

    with http([]) as (url, times), Client(url, in_flight_bytes=100_000) as client:

        def file() -> bytes:
            nonlocal read, most
            with lock:
                read += 1
                most = max(most, read - len(times))
            return bytes(50_000)

        assert list(client.encode_each((i, file) for i in range(30))) == [(i, CODES) for i in range(30)]
    assert most <= 2 + READING


def test_pictures_that_come_back_are_counted_before_they_come() -> None:
    large = Codes(np.zeros((60, 100, 4), np.uint16), (960, 1600), "nano", "")
    assert weight_of(large, Ask("decode")) == 3 * 960 * 1600
    assert weight_of(large, Ask("embed")) == 8 * 60 * 100


def test_a_closed_client_says_so_and_one_that_nobody_closed_harms_nobody() -> None:
    with scripted() as (address, _):
        client = Client(address)
        client.close()
        client.close()
        with pytest.raises(ServerError, match="the client is closed"):
            client.encode([b"x"])
        with pytest.raises(ServerError, match="the client is closed"):
            client.models()
        use = f"from viq_serving.client import Client; c = Client('{address}'); print(c.encode([b'x'])[0].grid)"
        done = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("(1, 1)\n", "")


def test_errors_of_a_server_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ServerError("overloaded", "as told")))  # noqa: S301
    assert (type(error), error.code, str(error)) == (ServerError, "overloaded", "as told")
