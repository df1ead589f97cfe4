"""Streams through real proxies before two servers, one of which is restarted under them: every key is answered.

The proxies' configurations say why they are as they are. Each proxy that is installed takes part (`make
system-packages`; Envoy comes with the development packages), all at once, so that the servers start but once.
Streams live for two seconds here: they end by their age, by the server that stops, and are opened anew on either.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import socket
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.doors.serving import Server
from tests.proxies.sending import Sending
from tests.waiting import until

from viq import Codes, ViQ

if TYPE_CHECKING:
    from viq_serving.pb import viq_pb2 as pb

HERE = Path(__file__).parent
PROXIES = ("envoy", "haproxy", "nginx")
# How a stream ends that the server ends while its client might send more. HAProxy 2.6 resets such streams, mostly
# before it has passed on how they end.
EARLY = {name: {grpc.StatusCode.UNAVAILABLE} for name in PROXIES}
EARLY["haproxy"].add(grpc.StatusCode.CANCELLED)
SENDERS = 3  # of each proxy, a connection and a stream each
AT_ONCE = 8
PATIENCE_S = 240.0  # much more than it takes: the processes may have to share a core with others


def program(name: str) -> str | None:
    """The proxy's program, if it is installed; Debian puts some where only root looks."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port() -> int:
    """A port below those that the system gives to who asks for any: nobody gets it by chance before it is used."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(lowest // 2, lowest), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("of 100 ports none is free")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


class Proxy:
    """A proxy process before the gRPC ports of two servers."""

    def __init__(self, name: str, program: str, folder: Path, servers: tuple[int, int]) -> None:
        self.port, self._log = free_port(), folder / "log"
        (source,) = HERE.glob(f"{name}.*")
        folder.mkdir()
        folder.chmod(0o755)  # nginx as root works as somebody else
        configuration = folder / source.name
        known = {"front": self.port, "first": servers[0], "second": servers[1], "folder": folder}
        configuration.write_text(string.Template(source.read_text()).substitute(known))
        arguments = {
            "envoy": ["-c", str(configuration), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"],
            "haproxy": ["-db", "-f", str(configuration)],
            "nginx": ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)],
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen([program, *arguments[name]], stdout=log, stderr=log)

    def __enter__(self) -> Proxy:
        until(lambda: listens(self.port) or self.process.poll() is not None, "a proxy that listens")
        assert self.process.poll() is None, self._log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(folder: Path, port: int) -> Server:
    flags = ["--http-port", "0", "--grpc-port", str(port), "--drain-delay", "1", "--stream-max-age-s", "2"]
    return Server(folder, *flags, ports=False)


@dataclass
class Seen:
    """What came of it: what the senders of each proxy saw, and how the first server ended."""

    senders: dict[str, list[Sending]]
    exit_code: int
    streams_of_first: list[dict[str, Any]]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    files = []
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (16 + 8 * n, 32, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def expected(images: list[bytes]) -> list[Codes]:
    model = ViQ.from_pretrained()
    return [model.encode([np.asarray(Image.open(io.BytesIO(one)))])[0] for one in images]


@pytest.fixture(scope="module")
def seen(images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Streams through every proxy there is, from before the first server is restarted until it answers again."""
    installed = {name: path for name in PROXIES if (path := program(name)) is not None}
    if not installed:
        pytest.skip("no proxy is installed")
    root, ports, going = tmp_path_factory.mktemp("proxies"), (free_port(), free_port()), [True]
    root.chmod(0o755)
    with ExitStack() as ending:
        first, second = (serve(root / str(n), port) for n, port in enumerate(ports))
        ending.callback(second.end)
        for server in (first, second):
            server.ready()
        proxies = {
            name: ending.enter_context(Proxy(name, path, root / name, ports)) for name, path in installed.items()
        }
        ending.callback(going.clear)
        senders = {
            name: [
                Sending(f"127.0.0.1:{proxy.port}", lambda key: images[key % 6], lambda: bool(going), AT_ONCE)
                for _ in range(SENDERS)
            ]
            for name, proxy in proxies.items()
        }
        everybody = [one for some in senders.values() for one in some]

        def answered(more: int) -> None:
            """Wait until every sender has so many answers more."""
            enough = [len(one.answers) + more for one in everybody]
            until(
                lambda: all(len(one.answers) >= n or one.error for one, n in zip(everybody, enough, strict=True)),
                "answers",
                PATIENCE_S,
            )

        answered(20)
        first.process.send_signal(signal.SIGTERM)
        until(lambda: first.process.poll() is not None, "the end of the first server", PATIENCE_S)
        streams = [line for line in first.records() if line["method"] == "encode_stream"]
        exit_code = first.end()
        answered(20)  # by the other one alone
        anew = serve(root / "anew", ports[0]).ready()
        ending.callback(anew.end)
        until(lambda: anew.metric("viq_images_total") > 0, "images at the server that is back", PATIENCE_S)
        answered(20)
        going.clear()
        for one in everybody:
            one.finish(PATIENCE_S)
        yield Seen(senders, exit_code, streams)


def codes_of(result: pb.Result) -> Codes:
    one = result.codes
    return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)


@pytest.mark.parametrize("name", PROXIES)
def test_every_key_is_answered_right_through(name: str, seen: Seen, expected: list[Codes]) -> None:
    if name not in seen.senders:
        pytest.skip(f"{name} is not installed: make system-packages")
    for sender in seen.senders[name]:
        assert sorted(sender.answers) == list(range(sender.sent))
        assert sender.sent > 60
        assert all(codes_of(result) == expected[key % 6] for key, result in sender.answers.items())
        # Each stream was ended by a server or, the last one, by its client; the proxy broke none that had begun.
        *early, (last, _) = sender.ends
        assert last is grpc.StatusCode.OK
        assert early
        assert {status for status, _ in early} <= EARLY[name]


def test_the_server_that_stopped_answered_what_it_had_read(seen: Seen) -> None:
    assert seen.exit_code == 0
    assert {line["outcome"] for line in seen.streams_of_first} <= {"ok", "not_ready", "cancelled"}
    assert sum(line["items"] for line in seen.streams_of_first) > 0
    assert sum(line["unanswered"] for line in seen.streams_of_first) == 0
