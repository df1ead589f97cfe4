"""What the benchmarks of the service share: a server of its own process, mixed pictures, percentiles."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

VIQ = Path(sys.executable).with_name("viq")


@dataclass(frozen=True)
class Running:
    """A server that is ready: its addresses as `host:port`."""

    http: str
    grpc: str
    pid: int

    def metric(self, name: str) -> float:
        """The sum of all series that begin with `name`."""
        lines = httpx.get(f"http://{self.http}/metrics", trust_env=False).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def server(*flags: str, checkout: Path | None = None) -> Iterator[Running]:
    """`viq serve` with these flags, on ports that the system chooses; of another checkout, if one is named."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    if checkout is not None:
        environment["PYTHONPATH"] = os.pathsep.join(str(checkout / folder) for folder in ("models", "service"))
    common = ["--http-port", "0", "--grpc-port", "0", "--drain-delay", "0", "--log-level", "warning"]
    command = [str(VIQ), "serve", *common, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            http, grpc = (process.stdout.readline().split()[-1].removeprefix("http://") for _ in range(2))
            while httpx.get(f"http://{http}/readyz", trust_env=False).status_code != 200:
                assert process.poll() is None, "the server ended"
            yield Running(http, grpc, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def picture(height: int, width: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Smooth colours with edges and some noise, `(H, W, 3)`: a photograph as far as JPEG and network are concerned."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64.0
    waves = [np.sin(x * a + b) * np.cos(y * c) for a, b, c in rng.uniform(0.2, 3.0, (3, 3))]
    smooth = 127 + 90 * np.stack(waves, -1)
    edges = 40 * (rng.uniform(size=(height // 32 + 1, width // 32 + 1, 3)) > 0.5).repeat(32, 0).repeat(32, 1)
    noisy = smooth + edges[:height, :width] + rng.normal(0, 6, (height, width, 3))
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = noisy.clip(0, 255).astype(np.uint8)
    return pixels


def jpeg(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """The file of `pixels`, quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie; of no values, not a number."""
    return float(np.percentile(np.asarray(values), 100 * share)) if len(values) else float("nan")
