"""Two real services, and pictures for them."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from viq import ViQ

VIQ = Path(sys.executable).with_name("viq")


@dataclass
class Server:
    """A running `viq serve`."""

    process: subprocess.Popen[str]
    http: str
    grpc: str

    def images(self) -> float:
        """How many images it has encoded."""
        text = httpx.get(f"{self.http}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith('viq_images_total{method="encode"')]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    command = [str(VIQ), "serve", "--http-port", "0", "--grpc-port", "0", "--drain-delay", "0", "--log-level", "error"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            http, grpc = (process.stdout.readline().rpartition(" ")[2].strip() for _ in range(2))
            assert http.startswith("http"), "it did not start"
            yield Server(process, http, grpc)
        finally:
            process.terminate()


def wait(server: Server) -> Server:
    if server.http.startswith("https:"):  # it may want to know who asks: one that does is to wait by itself
        return server
    while httpx.get(f"{server.http}/readyz", trust_env=False).status_code != 200:
        assert server.process.poll() is None
        threading.Event().wait(0.05)
    return server


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def servers() -> Iterator[list[Server]]:
    """Two services that are ready; they start side by side."""
    with ExitStack() as stack:
        started = [stack.enter_context(serving()) for _ in range(2)]
        yield [wait(one) for one in started]


@pytest.fixture
def another() -> Iterator[Callable[..., Server]]:
    """Starts a service that a test may do with as it likes."""
    with ExitStack() as stack:
        yield lambda *arguments: wait(stack.enter_context(serving(*arguments)))


@pytest.fixture(scope="session")
def model() -> ViQ:
    from viq import ViQ

    return ViQ.from_pretrained()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Makes a picture of noise."""

    def make(seed: int, height: int = 20, width: int = 35) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make
