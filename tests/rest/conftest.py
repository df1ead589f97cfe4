"""A real server in a thread, on a port that the system chooses."""

from __future__ import annotations

import asyncio
import io
import queue
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import numpy as np
import pytest
import uvloop
from PIL import Image
from tests.waiting import until

from viq import Codes
from viq_serving.app import Service
from viq_serving.doors import Addresses
from viq_serving.engine.engine import EngineLimits
from viq_serving.images import ImageLimits
from viq_serving.metrics import Metrics
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.server import create_server
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

Serve = Callable[..., AbstractContextManager[httpx.Client]]
MakeApp = Callable[[Tokenizer, Metrics], Awaitable[Envelope]]
ServeApp = Callable[..., AbstractContextManager[httpx.Client]]
MakeImage = Callable[..., bytes]


@contextmanager
def _serving(**flags: object) -> Iterator[httpx.Client]:
    service = Service(Settings.load({"http_port": 0, "grpc_port": 0, "drain_delay": 0.0, **flags}))
    addresses: queue.Queue[Addresses] = queue.Queue()
    codes: queue.Queue[int] = queue.Queue()

    def live() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            codes.put(runner.run(service.serve(addresses.put, own_signals=False)))

    thread = threading.Thread(target=live, name="server")
    thread.start()
    try:
        with httpx.Client(base_url=f"http://{addresses.get(timeout=60).http}", timeout=60) as client:
            until(lambda: client.get("/readyz").status_code == 200, "readiness")
            yield client
    finally:
        service.stop()
        thread.join(60)
    assert codes.get_nowait() == 0


@pytest.fixture(scope="session", autouse=True)
def _parting_at_once() -> Iterator[None]:
    """These servers end without the time that callers elsewhere are given to hear of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_ARRIVING_S", "_REFUSING_S"):
            patch.setattr(f"viq_serving.app.{name}", 0.0)
        yield


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Start a server with these flags; the client that comes back talks to it."""
    return _serving


@contextmanager
def _serving_app(make_app: MakeApp, limits: EngineLimits = EngineLimits()) -> Iterator[httpx.Client]:
    addresses: queue.Queue[str] = queue.Queue()
    stops: queue.Queue[Callable[[], None]] = queue.Queue()

    async def live() -> None:
        metrics = Metrics("test")
        tokenizer = Tokenizer(ImageLimits(), 64, metrics, limits)
        server = create_server(await make_app(tokenizer, metrics))
        listener = socket.create_server(("127.0.0.1", 0))
        stops.put(lambda: setattr(server, "should_exit", True))
        addresses.put(f"http://127.0.0.1:{listener.getsockname()[1]}")
        await server.serve([listener])
        tokenizer.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        with httpx.Client(base_url=addresses.get(timeout=60), timeout=60) as client:
            yield client
    finally:
        stops.get(timeout=60)()
        thread.join(60)


@pytest.fixture(scope="session")
def serve_app() -> ServeApp:
    """Start the real server around an app that the test puts together."""
    return _serving_app


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx.Client]:
    """A server with the default settings, serving the packaged nano."""
    with serve() as client:
        yield client


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """The file of an image of noise."""

    def make(width: int = 40, height: int = 24, format: str = "PNG", seed: int = 0, mode: str = "RGB") -> bytes:
        channels = {"RGB": 3, "RGBA": 4}[mode]
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise, mode).save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture
def codes(client: httpx.Client, make_image: MakeImage) -> Codes:
    """Codes of one image, made by the server."""
    reply = client.post("/v1/encode", content=make_image(), headers={"Accept": "application/x-npz"})
    return Codes.from_npz(reply.content)
