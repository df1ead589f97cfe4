"""Two servers behind each proxy, with the configuration that is deployed: restarts under load lose no request.

Run by `make test-deploy`. SIGTERM: no request and no call fails. A stream may be ended UNAVAILABLE, as it is to be, and
what it did not answer is sent again. SIGKILL: what fails succeeds when sent again.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc
import httpx
import pytest

from viq_serving.pb import viq_pb2
from viq_serving.pb.viq_pb2_grpc import ViQStub

_DEPLOY = Path(__file__).parents[3] / "deploy"
_CALLERS = 3  # of each protocol
_ATTEMPTS = 10
_ITEMS = 100  # of a stream: enough for some to be under way whenever a server stops
_DEADLINE_S = 60.0


class Replica(Protocol):
    """What conftest starts."""

    http: int
    grpc: int

    def start(self) -> None: ...
    def end(self, number: signal.Signals) -> int: ...
    def counted(self, name: str, **labels: str) -> float: ...


class Told(Exception):
    """An answer that is no success, in a word."""


class Load:
    """Callers who ask again and again, until told to stop; what became of each request is counted."""

    def __init__(self, http: int, grpc_port: int, picture: bytes) -> None:
        self._url, self._picture = f"http://127.0.0.1:{http}/v1/encode", picture
        # The proxies' doings are to be seen, not this client's own retries.
        self._channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}", [("grpc.enable_retries", 0)])
        self._item = viq_pb2.Item(key="one", image=picture)
        self._stopping = threading.Event()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.given_up: list[str] = []
        self._keys: list[str] = []  # of the stream under way, that are not answered

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask while the block runs."""
        self._stopping.clear()
        with ThreadPoolExecutor(2 * _CALLERS + 1) as pool:
            callers = [
                pool.submit(self._call, *one)
                for one in [("http", self._by_http), ("grpc", self._by_grpc)] * _CALLERS + [("stream", self._by_stream)]
            ]
            try:
                yield
            finally:
                self._stopping.set()
        for caller in callers:
            caller.result()

    def more(self, protocol: str, count: int, until: Callable[[Callable[[], bool]], None]) -> None:
        """Wait until that many more were answered."""
        wanted = self.answered[protocol] + count
        try:
            until(lambda: self.answered[protocol] >= wanted)
        except AssertionError as error:
            raise AssertionError(f"{protocol}: answered {self.answered}, told {self.failed}") from error

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _call(self, protocol: str, ask: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            for _ in range(_ATTEMPTS):
                try:
                    ask()
                except Told as told:
                    self.failed[f"{protocol} {told}"] += 1
                    self._stopping.wait(0.1)
                else:
                    self.answered[protocol] += 1
                    break
            else:
                self.given_up.append(protocol)

    def _by_http(self) -> None:
        try:
            reply = httpx.post(
                self._url, content=self._picture, headers={"Content-Type": "image/png"}, timeout=_DEADLINE_S
            )
        except httpx.TransportError as error:
            raise Told(type(error).__name__) from None
        if reply.status_code != 200:
            raise Told(str(reply.status_code))
        assert reply.json()["results"][0]["grid"] == [3, 4]

    def _by_grpc(self) -> None:
        try:
            reply = ViQStub(self._channel).Encode(
                viq_pb2.EncodeRequest(items=[self._item]), timeout=_DEADLINE_S, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise Told(error.code().name) from None
        assert (reply.results[0].codes.h, reply.results[0].codes.w) == (3, 4)

    def _by_stream(self) -> None:
        """One stream of items, or what an earlier one has left of it."""
        self._keys = self._keys or [str(number) for number in range(_ITEMS)]
        items = [viq_pb2.Item(key=key, image=self._picture) for key in self._keys]
        try:
            messages = iter([viq_pb2.EncodeStreamRequest(items=[item]) for item in items])
            for reply in ViQStub(self._channel).EncodeStream(messages, timeout=10 * _DEADLINE_S, wait_for_ready=True):
                for result in reply.results:
                    assert (result.codes.h, result.codes.w) == (3, 4)
                    self._keys.remove(result.key)  # each is answered once
        except grpc.RpcError as error:
            raise Told(error.code().name) from None
        assert self._keys == []


@pytest.fixture(params=["nginx.conf", "haproxy.cfg", "envoy.yaml"])
def load(
    request: pytest.FixtureRequest,
    replicas: list[Replica],
    picture: bytes,
    ports: Callable[[int], list[int]],
    until: Callable[[Callable[[], bool]], None],
    process: Callable[..., subprocess.Popen[bytes]],
    tool: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Load]:
    """Callers of a proxy that runs the deployed configuration, on other addresses."""
    name = Path(request.param).stem
    program, (http, grpc_port) = tool(name), ports(2)
    text = (_DEPLOY / "proxies" / request.param).read_text()
    for number, replica in enumerate(replicas, 1):
        for inside, outside in ((8000, replica.http), (8001, replica.grpc)):
            text = text.replace(f"viq-{number}:{inside}", f"127.0.0.1:{outside}")
            text = text.replace(
                f"address: viq-{number}, port_value: {inside}", f"address: 127.0.0.1, port_value: {outside}"
            )
        text = text.replace("check port 8000", f"check port {replica.http}", 1)
    text = re.sub(r"\b8080\b", str(http), text)
    text = re.sub(r"\b8081\b", str(grpc_port), text)
    assert "viq-1:" not in text
    config = tmp_path / request.param
    config.write_text(text)
    command = {
        "nginx": [program, "-p", str(tmp_path), "-c", str(config), "-g", f"daemon off; pid {tmp_path}/pid; user root;"],
        "haproxy": [program, "-db", "-f", str(config)],
        "envoy": [program, "-c", str(config), "--log-level", "warning", "--concurrency", "1"],
    }[name]
    with (tmp_path / "log").open("wb") as log:
        process(*command, log=log, cwd=tmp_path)

    def passes() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{http}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(passes)
    assert httpx.get(f"http://127.0.0.1:{http}/metrics").status_code == 404
    callers = Load(http, grpc_port, picture)
    yield callers
    callers.close()


def test_restarts_under_load_lose_no_request(
    load: Load,
    replicas: list[Replica],
    until: Callable[[Callable[[], bool]], None],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy = request.node.callspec.params["load"]

    def done(replica: Replica) -> dict[str, float]:
        return {door: replica.counted("viq_requests_total", method="encode", door=door) for door in ("http", "grpc")}

    def both(count: int) -> None:
        load.more("http", count, until)
        load.more("grpc", count, until)
        load.more("stream", 1, until)

    before = [done(one) for one in replicas]
    with load.going_on():
        both(20)
        for before_one, replica in zip(before, replicas, strict=True):
            until(lambda old=before_one, one=replica: all(done(one)[door] > old[door] for door in old))  # type: ignore[misc]
        began = time.monotonic()
        for one in replicas:  # each as soon as the other is ready again
            assert one.end(signal.SIGTERM) == 0
            one.start()
        both(20)
    terms = Counter(load.failed), Counter(load.answered), time.monotonic() - began
    with load.going_on():
        both(5)
        replicas[0].end(signal.SIGKILL)
        both(20)
        replicas[0].start()
        until(lambda: all(count > 0 for count in done(replicas[0]).values()))  # it is given work again
    with capsys.disabled():
        stopped, killed = sum(terms[1].values()), sum((load.answered - terms[1]).values())
        print(f"\n{proxy}: SIGTERM of both: {stopped} answered in {terms[2]:.0f} s, told {dict(terms[0])};", end=" ")
        print(f"SIGKILL: {killed} answered, told {dict(load.failed - terms[0])}")

    assert load.given_up == []
    assert set(terms[0]) <= {"stream UNAVAILABLE"}
