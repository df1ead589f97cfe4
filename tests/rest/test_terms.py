"""Deadlines, priorities, and callers that leave before they are answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from tests.rest.wires import said
from tests.waiting import until

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.engine.engine import EngineLimits
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.envelope import Envelope
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

MakeImage = Callable[..., bytes]
MakeApp = Callable[[Tokenizer, Metrics], Awaitable[Envelope]]
ServeApp = Callable[..., AbstractContextManager[httpx.Client]]


class Held:
    """The real model, which computes nothing while a test holds it."""

    def __init__(self) -> None:
        self._model = ViQ.from_pretrained()
        self.entered, self._free = threading.Event(), threading.Event()
        self._free.set()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        self.batches.append(len(images))
        self.entered.set()
        assert self._free.wait(60)
        return self._model.launch_encode(images)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let nothing through inside the `with` block."""
        self.entered.clear()
        self.batches.clear()
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


Server = tuple[httpx.Client, Held, Tokenizer]


@pytest.fixture(scope="module")
def held(serve_app: ServeApp) -> Iterator[Server]:
    """A server of such a model, that admits 100 patches."""
    model, tokenizers = Held(), list[Tokenizer]()

    async def app(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [model])  # type: ignore[list-item]
        tokenizers.append(tokenizer)
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    with serve_app(app, EngineLimits(max_patches=100)) as client:
        yield client, model, tokenizers[0]


def sample(client: httpx.Client, series: str) -> float:
    """The value of the series that starts so, 0 if there is none."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def dial(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)


def rest(wire: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: wire.recv(65536), b""))


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "", "soon", "+5", "1_000", "9" * 13, "٣"])
@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode", "/v1/embed", "/v1/reconstruct", "/v1/plan", "/v1/models"])
def test_a_timeout_that_is_no_positive_whole_number_is_422(client: httpx.Client, path: str, value: str) -> None:
    verb = "GET" if path == "/v1/models" else "POST"
    reply = client.request(verb, path, headers={b"ViQ-Timeout-Ms": value.encode()})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")
    assert "ViQ-Timeout-Ms" in reply.json()["error"]["message"]


@pytest.mark.parametrize("value", ["", "high", "interactive,bulk", "0"])
def test_a_priority_that_there_is_not_is_422(client: httpx.Client, make_image: MakeImage, value: str) -> None:
    reply = client.post("/v1/encode", content=make_image(), headers={"ViQ-Priority": value})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")
    assert "interactive and bulk" in reply.json()["error"]["message"]


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_a_priority_is_counted_and_a_long_deadline_changes_nothing(
    client: httpx.Client, make_image: MakeImage, priority: str
) -> None:
    series = f'viq_requests_total{{door="http",method="encode",outcome="ok",priority="{priority}"'
    before = sample(client, series)
    headers = {"ViQ-Priority": priority, "ViQ-Timeout-Ms": "60000"}
    assert client.post("/v1/encode", content=make_image(), headers=headers).status_code == 200
    assert sample(client, series) == before + 1


def test_the_time_a_body_takes_to_come_counts(client: httpx.Client, make_image: MakeImage) -> None:
    begun = time.monotonic()
    with dial(client) as wire:
        wire.sendall(post("/v1/encode", make_image(), "ViQ-Timeout-Ms: 200", "Connection: close")[:-5])
        reply = said(wire)
    assert reply.startswith(b"HTTP/1.1 504 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "deadline_exceeded"
    assert 0.15 < time.monotonic() - begun < 10


def test_a_deadline_that_passes_while_the_request_waits_is_504(held: Server, make_image: MakeImage) -> None:
    client, model, _ = held
    with dial(client) as first:
        with model.holding():
            first.sendall(post("/v1/encode", make_image(), "Connection: close"))
            assert model.entered.wait(20)
            reply = client.post("/v1/encode", content=make_image(), headers={"ViQ-Timeout-Ms": "300"})
        assert rest(first).startswith(b"HTTP/1.1 200 ")
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/embed", "/v2/models/viq-encode/infer"])
def test_a_caller_who_leaves_is_counted_and_its_work_withdrawn(
    held: Server, make_image: MakeImage, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    client, model, tokenizer = held
    method, door = path.split("/")[2].replace("models", "encode"), "oip_http" if path.startswith("/v2") else "http"
    series = f'viq_requests_total{{door="{door}",method="{method}",outcome="cancelled"'
    before, lines = sample(client, series), ("Inference-Header-Content-Length: 0",) if door == "oip_http" else ()
    caplog.set_level("INFO")
    with dial(client) as first:
        with model.holding():
            first.sendall(post("/v1/encode", make_image(seed=1), "Connection: close"))
            assert model.entered.wait(20)
            with dial(client) as leaving:
                leaving.sendall(post(path, make_image(seed=2), *lines))
                until(lambda: sample(client, "viq_queue_requests") >= 1, "it waits")
            until(lambda: sample(client, series) != before, "it is counted")
            assert sample(client, "viq_queue_requests") == 0
            assert tokenizer.bodies.held_now == len(make_image(seed=1))
        assert rest(first).startswith(b"HTTP/1.1 200 ")
    assert model.batches == [1]
    assert tokenizer.bodies.held_now == 0
    assert sample(client, series) == before + 1
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]
    (line,) = [record for record in caplog.records if "cancelled" in record.getMessage()]
    assert line.name == "viq.access"


def test_a_caller_who_leaves_mid_batch_does_not_disturb_its_neighbours(held: Server, make_image: MakeImage) -> None:
    client, model, _ = held
    series = 'viq_requests_total{door="http",method="encode",outcome="cancelled"'
    before = sample(client, series)
    with dial(client) as staying, dial(client) as leaving:
        with model.holding():
            leaving.sendall(post("/v1/encode", make_image(seed=1)))
            assert model.entered.wait(20)
            staying.sendall(post("/v1/encode", make_image(seed=2), "Connection: close"))
            until(lambda: sample(client, "viq_queue_requests") >= 1, "one waits")
            leaving.close()
            until(lambda: sample(client, series) != before, "it is counted")
        assert rest(staying).startswith(b"HTTP/1.1 200 ")


def test_a_caller_who_leaves_behind_pipelined_requests_is_noticed(held: Server, make_image: MakeImage) -> None:
    """The server library tells only the last of them."""
    client, model, tokenizer = held
    series = 'viq_requests_total{door="http",method="encode",outcome="cancelled"'
    before = sample(client, series)
    with model.holding():
        with dial(client) as leaving:
            leaving.sendall(post("/v1/encode", make_image()) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
            assert model.entered.wait(20)
        until(lambda: sample(client, series) != before, "it is counted")
    assert tokenizer.bodies.held_now == 0


def test_a_full_queue_is_429_with_hints_while_probes_stay_well(held: Server, make_image: MakeImage) -> None:
    client, model, _ = held
    with dial(client) as first:
        with model.holding():
            first.sendall(post("/v1/encode", make_image(160, 144), "Connection: close"))
            assert model.entered.wait(20)
            for path in ("/v1/encode", "/v1/embed"):
                reply = client.post(path, content=make_image(160, 144))
                assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
                seconds, milliseconds = int(reply.headers["Retry-After"]), int(reply.headers["Retry-After-Ms"])
                assert seconds >= 1
                assert 1 <= milliseconds <= 1000 * seconds
            infer = {"Inference-Header-Content-Length": "0"}
            reply = client.post("/v2/models/viq-encode/infer", content=make_image(160, 144), headers=infer)
            assert (reply.status_code, list(reply.json())) == (429, ["error"])
            assert reply.headers["Retry-After"]
            assert [client.get(path).status_code for path in ("/livez", "/readyz", "/startupz")] == [200, 200, 200]
        assert rest(first).startswith(b"HTTP/1.1 200 ")
    assert client.post("/v1/encode", content=make_image(16, 16)).status_code == 200


def test_images_that_all_waited_too_long_are_one_refusal_without_results(
    serve_app: ServeApp, make_image: MakeImage
) -> None:
    model = Held()

    async def app(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [model])  # type: ignore[list-item]
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + make_image(seed=seed) + b"\r\n"
        for seed in (1, 2)
    )
    kind = "Content-Type: multipart/form-data; boundary=x"
    with serve_app(app, EngineLimits(max_age_s=1.0)) as client, dial(client) as first, dial(client) as second:
        with model.holding():
            first.sendall(post("/v1/encode", make_image(), "Connection: close"))
            assert model.entered.wait(20)
            second.sendall(post("/v1/encode", body + b"--x--\r\n", kind, "Connection: close"))
            until(lambda: sample(client, "viq_queue_oldest_seconds") > 1.1, "it waits for too long")
        head, _, content = rest(second).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after-ms: " in head.lower()
    assert list(json.loads(content)) == ["error"]


def test_a_lost_device_is_neither_ready_nor_alive(serve_app: ServeApp, make_image: MakeImage) -> None:
    class Dies(Held):
        dead = False

        def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
            if self.dead:
                raise RuntimeError("no device any more")
            return super().launch_encode(images)

    model = Dies()

    async def app(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [model])  # type: ignore[list-item]
        model.dead = True
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    with serve_app(app) as client:
        client.post("/v1/encode", content=make_image())
        until(lambda: client.get("/readyz").status_code != 200, "the device is lost")
        for path in ("/livez", "/readyz"):
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
            assert "lost" in reply.json()["error"]["message"]
        assert client.get("/startupz").status_code == 200
        assert client.post("/v1/encode", content=make_image()).status_code == 503
