"""A real gRPC server in a thread, on a port that the system chooses, and channels to it."""

from __future__ import annotations

import asyncio
import io
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.waiting import until

from viq import ViQ
from viq_serving.images import ImageLimits
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub
from viq_serving.rpc.server import create_server
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Terms

MakeImage = Callable[..., bytes]
Change = Callable[[Tokenizer], Any]


@dataclass
class Door:
    """A server as its callers see it, and what is behind it."""

    port: int
    loop: asyncio.AbstractEventLoop
    tokenizer: Tokenizer
    metrics: Metrics
    channel: Any
    settings: Settings
    server: Any

    @property
    def viq(self) -> Any:
        """The stub of the native service."""
        return ViQStub(self.channel)

    def dial(self, **options: int) -> grpc.Channel:
        """A connection of its own."""
        named = [(f"grpc.{name}", value) for name, value in {"use_local_subchannel_pool": 1, **options}.items()]
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=named)

    def dial_small(self) -> grpc.Channel:
        """A connection of its own whose client takes little more than it reads."""
        return self.dial(**{"http2.bdp_probe": 0, "http2.lookahead_bytes": 65_536})

    def inside(self, work: Callable[..., Any], *arguments: object) -> Any:
        """What `work` returns on the server's event loop."""

        async def run() -> Any:
            return work(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait for what happens here after a reply, or instead of one."""
        until(condition, "what was waited for", timeout_s)

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value, 0 if there is none, when the loop has done what it had put off."""
        value: float | None = self.inside(self.metrics.registry.get_sample_value, name, labels)
        return value or 0.0


Open = Callable[..., AbstractContextManager[Door]]


class Talk:
    """A stream of items led by hand: what is sent is taken when the transport takes it, what comes is read when asked.

    `taken` counts the messages that the transport has taken.
    """

    def __init__(self, door: Door, method: str, *, channel: Any = None, **options: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._kind = getattr(pb, f"{method}StreamRequest")
        self.taken = 0
        self.call = getattr(ViQStub(channel or door.channel), f"{method}Stream")(self._all(), **options)
        self.messages: list[Any] = []

    def send(self, *items: pb.Item, **fields: Any) -> Talk:
        """Send one message."""
        self._requests.put(self._kind(items=items, **fields))
        return self

    def end(self) -> Talk:
        """Half-close."""
        self._requests.put(None)
        return self

    def read(self) -> list[pb.Result]:
        """The results in the next message."""
        self.messages.append(next(self.call))
        return list(self.messages[-1].results)

    def rest(self) -> list[pb.Result]:
        """All results that are still to come, and the end of the stream, which must be a good one."""
        results = [result for message in self._kept() for result in message.results]
        assert self.call.code() is grpc.StatusCode.OK
        return results

    def last(self) -> tuple[list[pb.Result], grpc.StatusCode]:
        """All results that are still to come, and how the stream ends."""
        results: list[pb.Result] = []
        try:
            for message in self._kept():
                results += message.results
        except grpc.RpcError:
            pass
        return results, self.call.code()

    def trailers(self) -> dict[str, str]:
        """What came with the end."""
        return dict(self.call.trailing_metadata())

    def _kept(self) -> Iterator[Any]:
        for message in self.call:
            self.messages.append(message)
            yield message

    def _all(self) -> Iterator[Any]:
        while (message := self._requests.get()) is not None:
            yield message
            self.taken += 1


class Stuck:
    """A tokenizer's encode that begins and then waits to be let go; notes who gave up, and what was asked how."""

    def __init__(self) -> None:
        self.begun, self.cancelled, self.let_go = 0, 0, asyncio.Event()
        self.terms: list[Terms] = []

    def into(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        tokenizer.encode = self._wait  # type: ignore[assignment,method-assign]

    async def _wait(self, images: Any, model: Any, terms: Terms) -> Any:
        self.begun += 1
        self.terms.append(terms)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self._encode(images, model, terms)


@pytest.fixture
def stuck() -> Stuck:
    """An encode that is held up until it is let go."""
    return Stuck()


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    """Begin a stream; what is not ended is when the test is over."""
    begun: list[Talk] = []

    def begin(*arguments: Any, **options: Any) -> Talk:
        begun.append(Talk(*arguments, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.end().call.cancel()


@pytest.fixture(scope="session")
def model() -> ViQ:
    """The packaged nano, in-process."""
    return ViQ.from_pretrained()


@pytest.fixture(scope="session")
def open_door(model: ViQ) -> Open:
    """Start a server with these flags. `load=False` leaves it loading; `change` is done to the tokenizer before."""

    @contextmanager
    def opened(*, load: bool = True, change: Change | None = None, **flags: object) -> Iterator[Door]:
        settings = Settings.load(flags)
        doors: queue.Queue[Any] = queue.Queue()

        async def live() -> None:
            metrics, ended = Metrics("test"), asyncio.Event()
            limits = ImageLimits(settings.max_body_bytes, settings.max_pixels, settings.max_patches)
            tokenizer = Tokenizer(limits, settings.max_images, metrics)
            if load:
                await tokenizer.load(lambda: [model])
            if change is not None:
                change(tokenizer)
            server = create_server(tokenizer, metrics, settings, Keys(settings))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            doors.put((port, asyncio.get_running_loop(), tokenizer, metrics, server, ended))
            await ended.wait()
            await server.stop(5)
            tokenizer.close()

        thread = threading.Thread(target=asyncio.run, args=(live(),), name="server")
        thread.start()
        port, loop, tokenizer, metrics, server, ended = doors.get(timeout=60)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                yield Door(port, loop, tokenizer, metrics, channel, settings, server)
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(60)

    return opened


@pytest.fixture(scope="module")
def door(open_door: Open) -> Iterator[Door]:
    """A server with the default settings."""
    with open_door() as door:
        yield door


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
def one(make_image: MakeImage) -> pb.EncodeRequest:
    """A request to encode one good image."""
    return pb.EncodeRequest(items=[pb.Item(key="one", image=make_image())])
