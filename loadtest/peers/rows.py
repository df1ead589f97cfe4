"""What is measured: each row a way to have the network's codes, how it is started and how it is asked."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from environments import CHECKOUT, HERE, folder, python

BATCH = 8


@dataclass(frozen=True)
class Row:
    """A row: which program, with how many processes of how many torch threads, asked through which door.

    `kind` is `loop` (no server; `way` says which), `ours`, or a peer's name; ours takes its own defaults where
    `workers` is 0. `door` is one of `viq bench`. `scripted`: a peer's processes call `script_small_packs`, as
    ours do anyway. `batch` is of images, where a peer has such a setting.
    """

    name: str
    kind: str
    door: str = "http"
    way: str = ""
    workers: int = 2
    threads: int = 1
    flags: tuple[str, ...] = ()
    scripted: bool = False
    batch: int = BATCH

    @property
    def is_peer(self) -> bool:
        """Whether it is another project's server."""
        return self.kind not in ("loop", "ours")


_ROWS = (
    Row("bare model", "loop", way="bare", workers=1, threads=2),
    Row("per-image loop", "loop", way="image", workers=1, threads=2),
    Row("per-image loops, 2 processes", "loop", way="image"),
    Row("padded batches", "loop", way="padded", workers=1, threads=2),
    Row("padded batches, 2 processes", "loop", way="padded"),
    Row("viq serve, REST", "ours", door="rest", workers=0, threads=0),
    Row("viq serve, gRPC", "ours", door="grpc", workers=0, threads=0),
    Row("viq serve, REST, processes", "ours", door="rest", workers=0, threads=0, flags=("--replica-processes",)),
    Row("viq serve, gRPC, processes", "ours", door="grpc", workers=0, threads=0, flags=("--replica-processes",)),
    Row("viq serve, OIP gRPC", "ours", door="oip-grpc", workers=0, threads=0),
    Row("LitServe", "litserve"),
    Row("Ray Serve", "ray"),
    Row("BentoML", "bentoml"),
    Row("mosec", "mosec"),
    Row("Triton", "triton", door="oip-grpc"),
)
ROWS = {row.name: row for row in _ROWS}
"""What `make peers` measures, in this order in every round."""

VARIANTS = {
    "viq serve, OIP gRPC, processes": replace(
        ROWS["viq serve, OIP gRPC"], name="viq serve, OIP gRPC, processes", flags=("--replica-processes",)
    ),
    **{
        f"{row.name}, 1 of 2 threads": replace(row, name=f"{row.name}, 1 of 2 threads", workers=1, threads=2)
        for row in _ROWS
        if row.is_peer
    },
    **{
        f"{row.name}, batches of {batch}": replace(row, name=f"{row.name}, batches of {batch}", batch=batch)
        for row in _ROWS
        if row.is_peer and row.kind != "ray"  # whose batches are of patches
        for batch in (1, 2, 4)
    },
    **{
        f"{row.name}, scripted": replace(row, name=f"{row.name}, scripted", scripted=True)
        for row in _ROWS
        if row.is_peer
    },
    **{
        f"{row.name}, {count} of {2 // count} threads": replace(
            row,
            name=f"{row.name}, {count} of {2 // count} threads",
            workers=count,
            threads=2 // count,
            flags=(*row.flags, "--replicas", str(count)),
        )
        for row in _ROWS
        if row.kind == "ours"
        for count in (1, 2)
    },
}
"""Other ways to serve and to spend two threads: measured only when named."""


@dataclass(frozen=True)
class Ports:
    """Where the server at a `place` listens: the peers' command lines want them named beforehand."""

    place: int = 0

    @property
    def http(self) -> int:
        """Of HTTP."""
        return 18_400 + 10 * self.place

    @property
    def grpc(self) -> int:
        """Of gRPC."""
        return self.http + 1

    @property
    def metrics(self) -> int:
        """Of Triton's metrics."""
        return self.http + 2


@dataclass(frozen=True)
class Start:
    """How to start a server, and where it answers."""

    command: list[str]
    env: Mapping[str, str]
    cwd: Path
    ready: str
    asked: list[str]


def start(row: Row, weights: str, size: str, scratch: Path, place: int = 0) -> Start:
    """The command of a server, and the arguments that point `viq bench` at it; one `place` each for servers at once."""
    ports = Ports(place)
    env = _environment(row, weights, size, ports)
    http, grpc = f"http://127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}"
    if row.kind == "ours":
        flags = ["--weights-root", weights] if weights else []
        flags += ["--size", size] if size else []
        # The others wait for ever: nothing is to be refused for its age here.
        flags += ["--drain-delay", "0", "--max-queue-age-s", "600", "--log-level", "warning", *row.flags]
        viq = str(Path(sys.executable).with_name("viq"))
        bound = ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
        asked = ["--model", "viq-encode"] if row.door.startswith("oip") else []
        return Start(
            [viq, "serve", *bound, *flags], env, CHECKOUT, f"{http}/readyz", ["--url", http, "--grpc", grpc, *asked]
        )
    if row.kind == "triton":
        command = _triton(row, scratch, ports)
        asked = ["--grpc", grpc, "--url", http, "--model", "viq-encode", "--oip-shape", "1,1"]
        return Start(command, _triton_environment(env), scratch, f"{http}/v2/health/ready", asked)
    asked = ["--url", f"{http}/encode", "--reply", "octet"]
    server = HERE / "servers" / f"behind_{row.kind}.py"
    command = [str(python(row.kind)), str(server)]
    if row.kind == "bentoml":
        bind = ["--host", "127.0.0.1", "--port", str(ports.http), "--working-dir", str(server.parent)]
        command = [str(folder(row.kind) / "bin" / "bentoml"), "serve", f"{server.stem}:Door", *bind]
    return Start(command, env, scratch, f"{http}/encode", asked)


def _environment(row: Row, weights: str, size: str, ports: Ports) -> dict[str, str]:
    """The variables of a server's processes; nobody reports to anybody, and all temporary files are the run's own."""
    dropped = ("VIQ_", "PEER_", "OMP_", "GOMP_", "MKL_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    if row.kind == "ours":
        return env
    env |= {
        "PEER_WORKERS": str(row.workers), "PEER_THREADS": str(row.threads), "PEER_BATCH": str(row.batch),
        "PEER_PORT": str(ports.http), "PEER_WEIGHTS": weights, "PEER_SIZE": size,
        "PEER_SCRIPTED": str(int(row.scripted)),
        "OMP_NUM_THREADS": str(row.threads),
        "PYTHONPATH": os.pathsep.join(str(CHECKOUT / part) for part in ("models", "service", "loadtest/peers")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    if row.is_peer:
        env |= {
            "PATH": f"{folder(row.kind) / 'bin'}{os.pathsep}{env.get('PATH', '')}", "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
        }  # fmt: skip
    return env


def _triton(row: Row, scratch: Path, ports: Ports) -> list[str]:
    """The raw `tritonserver` of the wheel on a model repository written to `scratch`."""
    wheel = next((folder("triton") / "lib").glob("python3*/site-packages/pytriton/tritonserver"))
    repository, backends = scratch / "repository", scratch / "backends"
    for made in (repository, backends):
        shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(HERE / "triton", repository)
    config = repository / "viq-encode" / "config.pbtxt"
    filled = config.read_text().replace("@BATCH@", str(row.batch)).replace("@WORKERS@", str(row.workers))
    config.write_text(filled)
    shutil.copytree(wheel / "backends" / "python", backends / "python")
    stubs = sorted(wheel.glob("python_backend_stubs/3.11/triton_python_backend_stub"))
    if stubs:
        shutil.copy2(stubs[0], backends / "python")
    return [
        str(wheel / "bin" / "tritonserver"), "--exit-timeout-secs", "5",
        "--model-repository", str(repository), "--backend-directory", str(backends),
        "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1", "--metrics-address", "127.0.0.1",
        "--http-port", str(ports.http), "--grpc-port", str(ports.grpc), "--metrics-port", str(ports.metrics),
    ]  # fmt: skip


def _triton_environment(env: Mapping[str, str]) -> dict[str, str]:
    site = next((folder("triton") / "lib").glob("python3*/site-packages"))
    return {**env, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"), "PEER_PATH": env["PYTHONPATH"]}
