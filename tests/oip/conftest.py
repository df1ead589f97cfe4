"""A server process of its own, and the stock clients to ask it with."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import descriptor_pool
from PIL import Image
from tests.waiting import until

from viq import ViQ
from viq_serving.doors import Doors
from viq_serving.images import ImageLimits
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
KINDS = ("http", "http.aio", "grpc", "grpc.aio")
SIZES = ("16k", "64k")

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
MakePixels = Callable[..., Pixels]
MakePng = Callable[..., bytes]
Change = Callable[[Tokenizer], None]


def stock(name: str) -> Any:
    """A module of tritonclient.

    Its messages have the names of ours, which one pool of descriptors cannot hold twice; so it gets one of its own.
    """
    default = descriptor_pool.Default
    own = getattr(stock, "pool", None) or descriptor_pool.DescriptorPool()
    stock.pool = own  # type: ignore[attr-defined]
    descriptor_pool.Default = lambda: own
    try:
        return importlib.import_module(f"tritonclient.{name}")
    finally:
        descriptor_pool.Default = default


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    http: str
    grpc: str

    @property
    def url(self) -> str:
        return f"http://{self.http}"


class Stock:
    """A stock client of one kind. `call` is any of its methods; coroutines are run."""

    def __init__(self, kind: str, address: Address) -> None:
        self.kind, self.is_http = kind, kind.startswith("http")
        self._module, self._tensors = stock(kind), stock(kind.partition(".")[0])
        self._runner = asyncio.Runner()
        target = address.http if self.is_http else address.grpc
        self._client = self._run(lambda: self._module.InferenceServerClient(target))

    def call(self, method: str, *args: object, **kwargs: object) -> Any:
        return self._run(lambda: getattr(self._client, method)(*args, **kwargs))

    def tensor(self, name: str, array: Array, **form: object) -> Any:
        datatype = {"O": "BYTES", "H": "UINT16", "i": "INT32", "l": "INT64", "f": "FP32"}[array.dtype.char]
        tensor = self._tensors.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **form)
        return tensor

    def output(self, name: str, **form: object) -> Any:
        return self._tensors.InferRequestedOutput(name, **form)

    def infer(self, model: str, inputs: Mapping[str, Array], **asked: object) -> Any:
        """The stock result."""
        return self.call("infer", model, [self.tensor(name, array) for name, array in inputs.items()], **asked)

    def metadata(self, method: str, *args: object) -> Any:
        """What a metadata method answers, as JSON has it; numbers of 64 bits are strings on gRPC."""
        return self.call(method, *args) if self.is_http else self.call(method, *args, as_json=True)

    def reply(self, result: Any) -> dict[str, Any]:
        """The reply behind a result, as JSON has it; parameters by name."""
        reply: dict[str, Any] = result.get_response() if self.is_http else result.get_response(as_json=True)
        if not self.is_http:
            given = reply.get("parameters", {})
            reply["parameters"] = {name: next(iter(value.values())) for name, value in given.items()}
        return reply

    def close(self) -> None:
        self._run(lambda: self._client.close())
        self._runner.close()

    def _run(self, work: Callable[[], Any]) -> Any:
        if not self.kind.endswith("aio"):
            return work()

        async def run() -> Any:
            answer = work()
            return await answer if inspect.isawaitable(answer) else answer

        return self._runner.run(run())


Serve = Callable[..., AbstractContextManager[Address]]
OpenDoors = Callable[..., AbstractContextManager[Address]]
MakeStock = Callable[..., Stock]
ImportStock = Callable[[str], Any]


@contextmanager
def _serving(folder: Path, *flags: str, ready: bool = True) -> Iterator[Address]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    command = [str(Path(sys.executable).with_name("viq")), "serve", "--http-port", "0", "--grpc-port", "0"]
    log = folder / "server.log"
    with log.open("w") as errors:
        running = subprocess.Popen(
            [*command, "--drain-delay", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    try:
        assert running.stdout is not None
        lines = [running.stdout.readline().split() for _ in range(2)]
        assert all(lines), log.read_text()
        address = Address(lines[0][-1].removeprefix("http://"), lines[1][-1])
        with httpx.Client(base_url=address.url, timeout=60) as client:
            if ready:
                ended = running.poll
                until(lambda: ended() is not None or client.get("/v2/health/ready").status_code == 200, "readiness")
                assert ended() is None, log.read_text()
        yield address
        running.send_signal(signal.SIGTERM)
        if ready:
            assert running.wait(60) == 0, log.read_text()
            assert "Traceback" not in log.read_text()
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start a server with these flags, nano unless they say else."""
    return lambda *flags, **kwargs: _serving(tmp_path, *flags, **kwargs)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root with both golden models in the released layout."""
    import torch

    root = tmp_path_factory.mktemp("weights")
    for size in SIZES:
        folder = root / f"converted_{size}"
        folder.mkdir()
        (folder / "viq.json").write_text('{"num_heads": 4}\n')
        parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "embedder": {}, "drawer": {}}
        with np.load(GOLDEN / f"{size}_weights.npz") as archive:
            for key in archive.files:
                part, name = key.split("/", 1)
                parts[part][name] = torch.from_numpy(archive[key])
        parts["drawer"] |= parts["embedder"]
        for stem, part in ((f"model_viq_fsq_{size}", "encoder"), ("embedder", "embedder"), ("index_drawer", "drawer")):
            torch.save(parts[part], folder / f"{stem}.pth")
    return root


@pytest.fixture(scope="session")
def address(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server of both golden models, 16k first."""
    flags = ["--weights-root", str(weights), *(flag for size in SIZES for flag in ("--size", size))]
    with _serving(tmp_path_factory.mktemp("server"), *flags) as address:
        yield address


@pytest.fixture(scope="session")
def make_stock() -> Iterator[MakeStock]:
    """A stock client of a kind for an address."""
    with ExitStack() as opened:

        def make(kind: str, address: Address) -> Stock:
            client = Stock(kind, address)
            opened.callback(client.close)
            return client

        yield make


@pytest.fixture(scope="session", params=KINDS)
def client(request: pytest.FixtureRequest, address: Address, make_stock: MakeStock) -> Stock:
    """Each stock client in turn, on the server of both models."""
    return make_stock(request.param, address)


@pytest.fixture(scope="session")
def import_stock() -> ImportStock:
    """A module of tritonclient by name."""
    return stock


@pytest.fixture(scope="session")
def exception() -> Any:
    """What stock clients raise."""
    return stock("utils").InferenceServerException


@pytest.fixture(scope="session")
def make_pixels() -> MakePixels:
    """A random RGB image of that height and width."""

    def make(height: int = 24, width: int = 40, seed: int = 0) -> Pixels:
        return np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture(scope="session")
def make_png(make_pixels: MakePixels) -> MakePng:
    """The file of such an image."""

    def make(height: int = 24, width: int = 40, seed: int = 0) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(make_pixels(height, width, seed)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def image(make_png: MakePng) -> dict[str, Array]:
    """A sound input of viq-encode."""
    return {"image": np.array([make_png()], object)}


@pytest.fixture(scope="session")
def shapes() -> list[tuple[int, int]]:
    """Heights and widths of several images."""
    return [(24, 40), (64, 64), (1, 33), (50, 16)]


@pytest.fixture(scope="session")
def images(make_png: MakePng, shapes: list[tuple[int, int]]) -> Array:
    """Files of those shapes, as a tensor."""
    return np.array([make_png(*shape) for shape in shapes], object)


@pytest.fixture(scope="session")
def nano() -> ViQ:
    """The packaged nano, in-process."""
    return ViQ.from_pretrained()


@pytest.fixture
def open_doors(nano: ViQ) -> OpenDoors:
    """Both doors in this process. `load=False` leaves it loading; `change` is done to the tokenizer before."""

    @contextmanager
    def opened(*, load: bool = True, change: Change | None = None, **flags: object) -> Iterator[Address]:
        settings = Settings.load({"http_port": 0, "grpc_port": 0, **flags})
        found: queue.Queue[Any] = queue.Queue()

        async def live() -> None:
            metrics, ended = Metrics("test"), asyncio.Event()
            limits = ImageLimits(settings.max_body_bytes, settings.max_pixels, settings.max_patches)
            tokenizer = Tokenizer(limits, settings.max_images, metrics)
            doors = Doors(tokenizer, metrics, settings, Keys(settings))
            if load:
                await tokenizer.load(lambda: [nano])
            if change is not None:
                change(tokenizer)
            found.put((await doors.open(), asyncio.get_running_loop(), ended))
            await ended.wait()
            await doors.close(5)
            tokenizer.close()

        thread = threading.Thread(target=asyncio.run, args=(live(),), name="server")
        thread.start()
        addresses, loop, ended = found.get(timeout=60)
        try:
            yield Address(addresses.http, addresses.grpc)
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(60)

    return opened
