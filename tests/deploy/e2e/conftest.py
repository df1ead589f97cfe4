"""Real servers, as a deployment has them: processes of `viq serve` on ports of this machine; and the image."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest
from PIL import Image

_ROOT = Path(__file__).parents[3]
_PATIENCE_S = 120.0  # on a busy machine

_BASE, _IMAGE = "localhost/viq-test-base", "localhost/viq-serving:test"

# As in Python's own images, the base of most who build this one.
_OWN_PIP = (
    "RUN mkdir -p /usr/local/lib/python3.11/site-packages/pip /usr/local/lib/python3.11/ensurepip"
    " && ln -sf /bin/true /usr/local/bin/pip && ln -sf /bin/true /usr/local/bin/pip3.11"
)

_CONTAINERS = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

# Of its own, in build/: nothing that this machine runs otherwise is in the way, or in danger.
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/running"
"""


class Replica:
    """One server, which can be stopped and started again on the same ports."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.http, self.grpc, self.metrics = free_ports(3)
        self._log, self._flags = log, flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where HTTP is spoken."""
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        """Start the process; returns once it is ready."""
        ports = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}
        command = [str(_ROOT / ".venv/bin/viq"), "serve", "--device", "cpu", *self._flags]
        command += [word for flag, port in ports.items() for word in (flag, str(port))]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=_clean())
        wait_for(self.ready)

    def ready(self) -> bool:
        """Whether it says so."""
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def counted(self, name: str, **labels: str) -> float:
        """The sum of a counter's series that have these labels."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=30).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(_PATIENCE_S)

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all different, as they are held until the last is found."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [holder.getsockname()[1] for holder in holders]
    finally:
        for holder in holders:
            holder.close()


def wait_for(happened: Callable[[], bool], patience_s: float = _PATIENCE_S) -> None:
    """Return once `happened` is true; fails when it does not become so."""
    ends = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < ends, f"not within {patience_s} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def ports() -> Callable[[int], list[int]]:
    """That many free ports."""
    return free_ports


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition."""
    return wait_for


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A small image's file."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    """Two servers of nano, ready."""
    folder = tmp_path_factory.mktemp("replicas")
    flags = ("--size", "nano", "--log-level", "warning", "--grpc-when-loaded")
    both = [Replica(folder / f"{number}.log", *flags) for number in (1, 2)]
    try:
        for one in both:
            one.start()
        yield both
    finally:
        for one in both:
            one.close()


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program that ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, log: IO[bytes], cwd: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=cwd))
        return started[-1]

    yield run
    for one in started:
        one.terminate()
        with suppress(subprocess.TimeoutExpired):
            one.wait(20)
        one.kill()
        one.wait()


class Machine:
    """buildah and podman, set up for a machine without systemd."""

    def __init__(self, config: Path, storage: Path) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        (config / "containers.conf").write_text(_CONTAINERS)
        (config / "storage.conf").write_text(_STORAGE.format(folder=storage))
        files = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
        self._env = os.environ | {name: str(config / file) for name, file in files.items()}

    def __call__(self, *words: str, fine: tuple[int, ...] = (0,), cwd: Path | None = None) -> str:
        done = subprocess.run(words, env=self._env, cwd=cwd, capture_output=True, text=True, timeout=1500)
        assert done.returncode in fine, f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="session")
def machine(tool: Callable[[str], str], root: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This machine, if it can."""
    for name in ("buildah", "podman", "runc", "catatonit"):
        tool(name)
    if os.geteuid() != 0:
        pytest.skip("only root may build and run containers here")
    return Machine(tmp_path_factory.mktemp("containers"), root / "build" / "deploy" / "containers")


@pytest.fixture(scope="session")
def base(machine: Machine, tool: Callable[[str], str], root: Path) -> str:
    """An image of Debian with Python, in which pip finds its packages as it does here."""
    tar = root / "build" / "deploy" / "base" / "base.tar"
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        folder = tar.parent / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        machine(tool("debootstrap"), "--variant=minbase", packages, "bookworm", str(folder))
        machine("tar", "-C", str(folder), "-cf", f"{tar}.new", ".")
        machine("rm", "-rf", str(folder))
        Path(f"{tar}.new").rename(tar)
    settings = {name: value for name, value in os.environ.items() if name in ("PIP_INDEX_URL", "PIP_FIND_LINKS")}
    lines = [
        "FROM scratch",
        "ADD base.tar /",
        _OWN_PIP,
        "ENV PIP_CERT=/etc/ssl/host/ca-certificates.crt PIP_DEFAULT_TIMEOUT=180",
    ]
    lines += [f"ENV {name}={value}" for name, value in settings.items()]
    (tar.parent / "Containerfile").write_text("\n".join([*lines, ""]))
    machine("buildah", "bud", "--isolation", "chroot", "--layers", "-t", _BASE, str(tar.parent))
    return _BASE


@pytest.fixture(scope="session")
def image(machine: Machine, base: str, root: Path) -> dict[str, Any]:
    """The image of the Dockerfile, as `podman inspect` describes it; its first tag is its name."""
    mounts = ["-v", "/etc/ssl/certs:/etc/ssl/host:ro"]
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    if Path(wheels).is_dir():
        mounts += ["-v", f"{wheels}:{wheels}:ro"]
    arguments = [word for one in (f"BASE_IMAGE={base}", "TORCH_INDEX=") for word in ("--build-arg", one)]
    command = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", *mounts, *arguments]
    before = machine("podman", "images", "--quiet", "--no-trunc", "--filter", f"reference={_IMAGE}").split()
    machine(*command, "-t", _IMAGE, ".", cwd=root)
    now = machine("podman", "images", "--quiet", "--no-trunc", "--filter", f"reference={_IMAGE}").split()
    for old in set(before) - set(now):  # a gigabyte each
        machine("podman", "rmi", old, fine=(0, 1, 2))
    return dict(json.loads(machine("podman", "image", "inspect", _IMAGE))[0])
