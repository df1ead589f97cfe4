"""SIGTERM under load through every door: what was begun is answered, what comes too late is refused, the exit is clean.

What a caller may see, and must not:

- Until `--drain-delay` is over every request is answered as before; readiness has gone off at once.
- Then a request is refused: 503 `not_ready` or UNAVAILABLE, or there is nobody to connect to.
- HTTP/1.1 has no way to tell an idle client that its connection ends except to close it, so a request may be on its
  way while the server closes. Its caller sees the connection end without a single byte of a reply, which RFC 9112,
  9.3.1, lets it take for "not processed" (every method here may be sent again anyway). That is legitimate only if the
  server has not begun on the request: then its log knows nothing of it.
- gRPC's transport ends a call CANCELLED that has come but not yet been given to the service when it closes, without
  any of our metadata. That, too, is legitimate only if the server has not begun on it.
- Half a reply, a reset while a reply comes, any other status, or wrong codes, are failures.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.waiting import until

if TYPE_CHECKING:
    from tests.doors.conftest import Server

MakePng = Callable[..., bytes]
Start = Callable[..., "Server"]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
SHAPES = ((16, 16), (40, 24), (96, 64), (17, 200), (160, 128), (255, 257))
CALLERS = 4  # of each door
DRAIN_DELAY_S = 2.0
NO_REPLY = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass
class Seen:
    """What callers saw; times are of this process's monotonic clock, in s."""

    answered: list[str] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    unheard: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Load:
    """Callers who go on, each with its own images, until they are refused."""

    def __init__(self, server: Server, images: list[bytes], expected: list[Any]) -> None:
        self.seen, self._server, self._images, self._expected = Seen(), server, images, expected
        callers = [(door, n) for door in DOORS for n in range(CALLERS)]
        self._threads = [threading.Thread(target=self._call, args=caller) for caller in callers]
        for thread in self._threads:
            thread.start()

    def end(self) -> Seen:
        """Wait until all have been refused."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.seen

    def _call(self, door: str, caller: int) -> None:
        turn = caller
        while True:
            turn += 1
            name, index = f"{door}.{caller}.{turn}", turn % len(self._images)
            try:
                reply = self._server.ask(door, "encode", [self._images[index]], request_id=name)
            except NO_REPLY as error:
                if isinstance(error, httpx.RemoteProtocolError) and "without sending a response" not in str(error):
                    self.seen.failed.append(f"{name}: {error!r}")
                self.seen.unheard.append((time.monotonic(), name))
                return
            except Exception as error:  # noqa: BLE001  # whatever it is, it is no answer
                self.seen.failed.append(f"{name}: {error!r}")
                return
            if reply.status == "CANCELLED" and "x-request-id" not in reply.headers:
                self.seen.unheard.append((time.monotonic(), name))
                return
            if reply.status in (503, "UNAVAILABLE"):
                self.seen.refused.append((time.monotonic(), name))
                return
            if reply.items != [self._expected[index]]:
                self.seen.failed.append(f"{name}: {reply}")
                return
            self.seen.answered.append(name)


def listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def watch(ask: Callable[[], bool], since: list[float]) -> threading.Thread:
    """Notes when `ask` first says no, or fails."""

    def look() -> None:
        try:
            while ask():
                threading.Event().wait(0.01)
        except NO_REPLY:
            pass
        since.append(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_sigterm_under_load_loses_no_request(start: Start, make_png: MakePng) -> None:
    server = start("--drain-delay", str(DRAIN_DELAY_S)).ready()
    images = [make_png(*shape) for shape in SHAPES]
    expected = [server.ask("http", "encode", [one]).items[0] for one in images]
    load, not_ready, not_serving = Load(server, images, expected), list[float](), list[float]()
    while len(load.seen.answered) < 40:
        assert not load.seen.failed
        threading.Event().wait(0.01)
    health = HealthStub(server.channel)
    watchers = [
        watch(lambda: server.http.get("/readyz").status_code == 200, not_ready),
        watch(lambda: health.Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING, not_serving),
    ]
    begun = time.monotonic()
    served_before = len(load.seen.answered)
    server.process.send_signal(signal.SIGTERM)
    seen = load.end()
    for watcher in watchers:
        watcher.join(60)
    assert server.process.wait(60) == 0
    assert seen.failed == []
    turned_away = [at for at, _ in (*seen.refused, *seen.unheard)]
    assert len(turned_away) == len(DOORS) * CALLERS
    assert min(turned_away) - begun >= DRAIN_DELAY_S  # served until the delay was over
    assert len(seen.answered) > served_before
    assert begun <= not_ready[0] < min(turned_away)
    assert begun <= not_serving[0] < min(turned_away)
    outcomes = server.access()
    assert {name for name, outcome in outcomes.items() if outcome == "ok"} >= set(seen.answered)
    begun_by_callers = {name: outcome for name, outcome in outcomes.items() if name.startswith(DOORS)}
    assert {name for name, outcome in begun_by_callers.items() if outcome == "ok"} == set(seen.answered)
    assert set(begun_by_callers.values()) <= {"ok", "not_ready"}
    assert not {name for _, name in seen.unheard} & set(begun_by_callers)
    assert "Traceback" not in server.log()


def test_what_waits_when_the_delay_is_over_is_still_computed(start: Start, make_png: MakePng) -> None:
    server = start("--drain-delay", "0", gated=True).ready()
    images = {door: make_png(48, 32, seed=n) for n, door in enumerate(DOORS)}
    expected = {door: server.ask(door, "encode", [one]).items for door, one in images.items()}
    taken = server.gate.count("taken")
    server.gate.close()
    replies: dict[str, Any] = {}

    def ask(door: str) -> None:
        replies[door] = server.ask(door, "encode", [images[door]])

    threads = [threading.Thread(target=ask, args=(door,)) for door in DOORS]
    threads[0].start()
    until(lambda: server.gate.count("taken") == taken + 1, "a batch at the gate")
    for thread in threads[1:]:
        thread.start()
    server.waits(3)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: not listens(server.url.removeprefix("http://")) and not listens(server.grpc), "closed ports")
    assert server.process.poll() is None
    assert replies == {}
    server.gate.open()
    for thread in threads:
        thread.join(60)
    assert {door: reply.items for door, reply in replies.items()} == expected
    assert server.process.wait(60) == 0
