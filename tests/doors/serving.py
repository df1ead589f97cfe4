"""Real server processes, and a gate before their device."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families
from tests.doors.asking import SECONDS, Asker
from tests.waiting import until

# The service as it is, with a gate between its queue and its device, a brake on the device, and a count of what passed.
# An image of 5x1 patches makes every batch that holds it fail.
GATED = """
import sys, threading, time
from pathlib import Path
import viq_serving.passage
from viq.model import ViQ
from viq_serving.cli.main import main
from viq_serving.engine.engine import Engine

folder = Path(sys.argv.pop(1))
take, launch, decode = Engine.take, ViQ.launch_encode, viq_serving.passage.decode
counts, lock = {"taken": 0, "launched": 0, "decoded": 0}, threading.Lock()

def count(name):
    with lock:
        counts[name] += 1
        (folder / f".{name}").write_text(str(counts[name]))
        (folder / f".{name}").replace(folder / name)

def pause(name):
    count(name)
    limit = folder / f"{name}.most"
    while True:
        try:
            if counts[name] <= int(limit.read_text()):
                return
        except FileNotFoundError:
            return
        time.sleep(0.002)

def gated(self, worker, *, wait):
    batch = take(self, worker, wait=wait)
    if batch is not None:
        pause("taken")
    return batch

def braked(self, images):
    pause("launched")
    if any(image.grid == (5, 1) for image in images):
        raise RuntimeError("secret of the device")
    return launch(self, images)

def counted(*arguments, **options):
    count("decoded")
    return decode(*arguments, **options)

Engine.take, ViQ.launch_encode, viq_serving.passage.decode = gated, braked, counted
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Shown:
    """What a client goes by: the roots it believes in, and the certificate and key that it shows, if any."""

    roots: Path
    cert: Path | None = None
    key: Path | None = None


def web_client(url: str, shows: Shown | None = None) -> httpx.Client:
    """A client of the HTTP door at `url`, or of the one at `unix:PATH`."""
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix:"))
        return httpx.Client(base_url="http://localhost", transport=transport, timeout=SECONDS, trust_env=False)
    context = ssl.create_default_context(cafile=None if shows is None else str(shows.roots))
    if shows is not None and shows.cert is not None:
        context.load_cert_chain(shows.cert, shows.key)
    return httpx.Client(base_url=url, timeout=SECONDS, trust_env=False, verify=context)


def grpc_channel(target: str, shows: Shown | None = None) -> grpc.Channel:
    """A channel to the gRPC door at `target`, that it shares with no other."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    if shows is None:
        return grpc.insecure_channel(target, options=options)
    own = [None if path is None else path.read_bytes() for path in (shows.key, shows.cert)]
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(shows.roots.read_bytes(), *own), options=options)


@dataclass
class Gate:
    """Lets the device of a server through, or not."""

    folder: Path

    def count(self, name: str) -> int:
        """How many batches were `taken` from the queue or `launched` on the device, or images `decoded`."""
        try:
            return int((self.folder / name).read_text())
        except FileNotFoundError:
            return 0

    def close(self, more: int = 0, name: str = "taken") -> None:
        """Let so many more batches pass the gate, or the brake if `name` is "launched", and then none."""
        unfinished = self.folder / f".{name}.most"
        unfinished.write_text(str(self.count(name) + more))
        unfinished.replace(self.folder / f"{name}.most")

    def open(self, *names: str) -> None:
        for name in names or ("taken", "launched"):
            (self.folder / f"{name}.most").unlink(missing_ok=True)


class Server(Asker):
    """A server process, and the doors of it."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        gated: bool = False,
        environment: Mapping[str, str] = {},
        shows: Shown | None = None,
        ports: bool = True,
    ) -> None:
        """With TLS, `shows` is how its clients go about it; without `ports` it listens only where `flags` say."""
        folder.mkdir(exist_ok=True)
        self._shows = shows
        self.gate, self._log = Gate(folder), folder / "server.log"
        script = [sys.executable, "-c", GATED, str(folder)]
        command = script if gated else [str(Path(sys.executable).with_name("viq"))]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
        self._lines = 3 if "--metrics-port" in flags else 2
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "serve", *(("--http-port", "0", "--grpc-port", "0") if ports else ()), *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Beside other work on the same cores, threads of one product wait for each other.
                env={**plain, "OMP_NUM_THREADS": "1", **environment},
            )
        self._opened = False

    def open(self) -> Server:
        """Wait for the addresses, which are there before the models are loaded."""
        if not self._opened:
            assert self.process.stdout is not None
            lines = [self.process.stdout.readline().split() for _ in range(self._lines)]
            assert all(lines), self.log()
            self.url, self.grpc, self.metrics = (*(line[-1] for line in lines), "")[:3]
            self.http, self.channel = web_client(self.url, self._shows), grpc_channel(self.grpc, self._shows)
            self._opened = True
        return self

    def ready(self) -> Server:
        """Wait until it is ready."""
        self.open()
        until(lambda: self.http.get("/readyz").status_code == 200, f"readiness of {self.log()}")
        return self

    @property
    def addresses(self) -> tuple[str, str]:
        """Of the HTTP and of the gRPC port."""
        return self.url, self.grpc

    def log(self) -> str:
        return self._log.read_text()

    def access(self) -> dict[str, str]:
        """Outcome of every request in the log, by request id."""
        return {line["request_id"]: line["outcome"] for line in self.records()}

    def records(self) -> list[dict[str, Any]]:
        """The log's line of every request."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line["logger"] == "viq.access"]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of `name` that have these labels."""
        text = self.http.get("/metrics", headers={"Authorization": "Bearer good"}).text
        samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def waits(self, images: int) -> None:
        """Wait until so many images are queued."""
        until(lambda: self.metric("viq_queue_requests") == images, f"{images} images in the queue")

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        if self._opened:
            self.http.close()
            self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
