"""Replicas that hang, names that resolve anew, and time that is kept whatever is waited for."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from viq import Codes
from viq_serving.client import AsyncClient, Client, ServerError, grpc_lane, replicas
from viq_serving.client.targets import targets_of
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQServicer, add_ViQServicer_to_server

CODES = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "nano", "")
_LIMITS = {"max_images": 1, "max_message_bytes": 1_000_000}


class Replica(ViQServicer):
    """Answers everything, once it may."""

    def __init__(self) -> None:
        self.may, self.seen = threading.Event(), list[bytes]()
        self.may.set()

    def Info(self, request: Any, context: Any) -> pb.InfoResponse:  # noqa: N802
        return pb.InfoResponse(limits=_LIMITS)

    def EncodeStream(self, requests: Any, context: Any) -> Iterator[pb.EncodeStreamResponse]:  # noqa: N802
        self.may.wait()
        for request in requests:
            for item in request.items:
                self.seen.append(item.image)
                codes = pb.Codes(data=CODES.to_bytes(), h=1, w=1, height=16, width=16, size="nano")
                yield pb.EncodeStreamResponse(results=[pb.Result(key=item.key, codes=codes)])


@contextmanager
def grpc_at(host: str, port: int = 0) -> Iterator[tuple[int, Replica]]:
    from concurrent.futures import ThreadPoolExecutor

    servicer, server = Replica(), grpc.server(ThreadPoolExecutor(8))
    add_ViQServicer_to_server(servicer, server)
    bound = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield bound, servicer
    finally:
        servicer.may.set()
        server.stop(None).wait()


@contextmanager
def http_at(host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that gives codes; what it was called by those who asked."""
    called: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            called.append(self.headers["host"])
            body = CODES.npz_bytes()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        log_message: Callable[..., None] = lambda *_: None

    with ThreadingHTTPServer((host, port), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, called
        finally:
            server.shutdown()
            thread.join()


class Relay:
    """Passes bytes on to a port until it is told to keep still, with all connections open."""

    def __init__(self, port: int) -> None:
        self._port, self.still = port, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        try:
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass, args=pair))
                    self._threads[-1].start()
        except OSError:
            return

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65_536):
                if not self.still.is_set():
                    other.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


def resolving(monkeypatch: pytest.MonkeyPatch, behind: list[str] | OSError) -> Callable[[list[str] | OSError], None]:
    """Makes the name replicas.test stand for what it is told, from then on."""
    known, real = {"replicas.test": behind}, socket.getaddrinfo

    def look(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        found = known.get(host)
        if isinstance(found, OSError):
            raise found
        if found is None:
            return real(host, port, *rest, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return lambda now: known.update({"replicas.test": now})


def test_a_replica_that_hangs_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = dict.fromkeys(("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"), 200)
    monkeypatch.setattr(grpc_lane, "_OPTIONS", [(name, quick.get(name, value)) for name, value in grpc_lane._OPTIONS])
    with grpc_at("127.0.0.1") as (port, hung), grpc_at("127.0.0.1") as (other, well):
        relay = Relay(port)
        try:
            with Client([relay.address, f"127.0.0.1:{other}"], timeout=120) as client:
                assert client.encode([b"a", b"b", b"c", b"d"]) == [CODES] * 4
                assert len(hung.seen) == len(well.seen) == 2
                relay.still.set()
                assert client.encode([b"e", b"f", b"g", b"h"]) == [CODES] * 4
            assert sorted(well.seen[2:]) == [b"e", b"f", b"g", b"h"]
        finally:
            relay.close()


def test_all_behind_a_name_are_asked_in_turn_over_http_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with http_at("127.0.0.2") as (port, first), http_at("127.0.0.3", port) as (_, second):
        resolving(monkeypatch, ["127.0.0.2", "127.0.0.3"])
        with Client(f"http://replicas.test:{port}") as client:
            assert client.encode([b"x"] * 10) == [CODES] * 10
        assert first == second == [f"replicas.test:{port}"] * 5


def test_each_of_them_is_known_by_a_certificate_for_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    right, wrong = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    for context, name in ((right, "replicas.test"), (wrong, "others.test")):
        authority.issue_cert(name).configure_cert(context)
    with http_at("127.0.0.2", 0, right) as (port, known), http_at("127.0.0.3", port, wrong) as (_, unknown):
        resolving(monkeypatch, ["127.0.0.2", "127.0.0.3"])
        with Client(f"https://replicas.test:{port}", tls=str(tmp_path / "ca.pem"), timeout=120) as client:
            assert client.encode([b"x"] * 4) == [CODES] * 4
        assert (len(known), len(unknown)) == (4, 0)


def test_a_name_with_one_address_or_behind_a_proxy_is_left_to_the_http_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = resolving(monkeypatch, ["127.0.0.2"])
    monkeypatch.setenv("NO_PROXY", "*")
    (target,) = targets_of("http://replicas.test:8000/under")
    assert asyncio.run(target.replicas()) == ["http://replicas.test:8000/under"]
    tell(["127.0.0.3", "127.0.0.2"])
    urls = [f"http://127.0.0.{i}:8000/under" for i in (2, 3)]
    assert asyncio.run(target.replicas()) == urls
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert asyncio.run(target.replicas()) == ["http://replicas.test:8000/under"]


def test_a_name_is_looked_up_anew_and_kept_while_nobody_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_at("127.0.0.2") as (port, first), grpc_at("127.0.0.3", port) as (_, second):
        tell = resolving(monkeypatch, ["127.0.0.2"])
        with Client(f"replicas.test:{port}", in_flight=1) as client:
            assert client.encode([b"x"] * 4) == [CODES] * 4
            assert (len(first.seen), len(second.seen)) == (4, 0)
            monkeypatch.setattr(replicas, "_LOOK_EVERY_S", 0.0)
            tell(socket.gaierror(socket.EAI_AGAIN, "nobody knows"))
            assert client.encode([b"x"] * 4) == [CODES] * 4
            tell(["127.0.0.2", "127.0.0.3"])
            while not second.seen:
                assert client.encode([b"x"]) == [CODES]
            tell(["127.0.0.3"])
            before = -1
            while before != len(first.seen):
                before = len(first.seen)
                assert client.encode([b"x"] * 4) == [CODES] * 4


def test_time_is_kept_while_a_name_is_looked_up_and_for_small_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    known = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        known.wait()
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with monkeypatch.context() as patch, Client("replicas.test:1", timeout=0.2) as client:
        patch.setattr(socket, "getaddrinfo", slow)
        try:
            for question in (lambda: client.encode([b"x"]), client.models, lambda: client.plan([(1, 1)])):
                with pytest.raises(ServerError, match=r"no answer within 0\.2 s") as caught:
                    question()
                assert caught.value.code == "deadline_exceeded"
        finally:
            known.set()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for server in (address, f"http://{address}"):
            with Client(server, timeout=0.2) as client, pytest.raises(ServerError) as caught:
                client.models()
            assert caught.value.code in ("deadline_exceeded", "unreachable")


def test_items_that_nobody_waits_for_any_more_are_not_sent() -> None:
    def source(over: asyncio.Event) -> Iterator[tuple[int, bytes]]:
        yield from ((i, bytes(60_000)) for i in range(100))
        over.set()

    async def run(address: str, replica: Replica) -> None:
        replica.may.clear()
        over = asyncio.Event()
        async with AsyncClient(address) as client:
            first = asyncio.ensure_future(anext(aiter(client.encode_each(source(over)))))
            await over.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            replica.may.set()
            assert await client.encode([b"last"]) == [CODES]

    with grpc_at("127.0.0.1") as (port, replica):
        asyncio.run(run(f"127.0.0.1:{port}", replica))
        assert replica.seen[-1] == b"last"
        assert len(replica.seen) < 50


def test_a_source_that_waits_for_its_answers_gets_them() -> None:
    async def run(address: str) -> list[int]:
        answered = asyncio.Event()
        answered.set()

        async def pairs() -> Any:
            for i in range(3):
                await answered.wait()
                answered.clear()
                yield i, b"x"

        found = []
        async with AsyncClient(address) as client, asyncio.timeout(120):
            async for key, codes in client.encode_each(pairs()):
                assert codes == CODES
                found.append(key)
                answered.set()
        return found

    with grpc_at("127.0.0.1") as (port, _):
        assert asyncio.run(run(f"127.0.0.1:{port}")) == [0, 1, 2]


def test_a_client_of_another_event_loop_says_so() -> None:
    with grpc_at("127.0.0.1") as (port, _):
        client = AsyncClient(f"127.0.0.1:{port}")

        async def twice() -> None:
            assert await client.encode([b"x"]) == [CODES]
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, client.encode([b"x"]))
            await client.close()

        asyncio.run(twice())
