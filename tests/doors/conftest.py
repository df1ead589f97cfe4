"""What tests of several doors share: servers that run for all of them, and images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.doors.forms import Reply
from tests.doors.serving import Server

from viq import ViQ

__all__ = ["Reply", "Server"]

MakePng = Callable[..., bytes]
Start = Callable[..., Server]


@pytest.fixture(scope="session")
def model() -> ViQ:
    """The packaged nano, in-process."""
    return ViQ.from_pretrained()


@pytest.fixture(scope="session")
def make_png() -> MakePng:
    """The file of an image of noise, of `height` x `width` pixels."""

    def make(height: int = 24, width: int = 40, seed: int = 0) -> bytes:
        pixels = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@contextmanager
def _starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Server] = []

    def run(*flags: str, **options: Any) -> Server:
        started.append(Server(tmp_path_factory.mktemp("server"), *flags, **options))
        return started[-1]

    yield run
    for server in started:
        server.gate.open()
        server.end()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server with these flags; it ends with the module's tests, unless they end it themselves."""
    with _starting(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of nano with small limits and a gate before its device."""
    limits = {"max-queue-patches": 600, "max-batch-patches": 128, "max-patches": 512, "max-pixels": 200_000}
    limits |= {"max-images": 8, "max-body-bytes": 600_000, "max-message-bytes": 600_000, "drain-delay": 0}
    with _starting(tmp_path_factory) as start:
        yield start(*(word for name, value in limits.items() for word in (f"--{name}", str(value))), gated=True)


@pytest.fixture
def server(gated: Server) -> Iterator[Server]:
    """That server, ready, with its gate open and nothing under way before and after the test."""
    gated.ready()
    yield gated
    gated.gate.open()
    gated.waits(0)
