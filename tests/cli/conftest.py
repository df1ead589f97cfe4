"""The command, run in this process or as one of its own, pictures for it, and a server to talk to."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.waiting import until

from viq_serving.cli.main import main

VIQ = Path(sys.executable).with_name("viq")


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def viq(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def shell() -> Callable[..., tuple[int, str, str]]:
    """Runs the installed command as a process of its own; gives its exit code, stdout and stderr."""

    def run(*arguments: object, cwd: Path | None = None) -> tuple[int, str, str]:
        command = [str(VIQ), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Makes a picture of noise, of `height` x `width` pixels."""

    def make(name: str = "cat.png", height: int = 20, width: int = 35) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A small file that says it is a picture of 30000 x 30000 pixels."""
    path = tmp_path / "huge.png"
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a running service that is ready."""
    command = [str(VIQ), "serve", "--http-port", "0", "--grpc-port", "0", "--drain-delay", "0", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().rpartition(" ")[2].strip()
            assert url.startswith("http://127.0.0.1:")
            until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200, "readiness")
            yield url
        finally:
            process.terminate()
        assert process.wait(30) == 0
