"""The life of the service as a process: start, readiness, signals, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.waiting import until

from viq_serving.images import encode_picture

SERVE = """
import json, sys
from viq_serving.app import run
from viq_serving.settings import Settings
sys.exit(run(Settings.load(json.loads(sys.argv[1]))))
"""
IMAGE = encode_picture(np.full((24, 40, 3), 99, np.uint8), "png")


@contextmanager
def process(flags: str = "{}", script: str = SERVE) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    command = [sys.executable, "-c", script, flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def server(drain_delay: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A ready server and a client of it."""
    with process(f'{{"http_port": 0, "grpc_port": 0, "drain_delay": {drain_delay}}}') as running:
        assert running.stdout is not None
        address = running.stdout.readline().split()[-1]
        with httpx.Client(base_url=address, timeout=60) as client:
            until(lambda: client.get("/readyz").status_code == 200, "readiness")
            yield running, client


def half_a_request(client: httpx.Client) -> socket.socket:
    """A connection on which an encode request has begun but its body has not ended."""
    wire = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60)
    head = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
    wire.sendall(head.encode() + IMAGE[:10])
    return wire


def rest_of_reply(wire: socket.socket) -> bytes:
    return b"".join(iter(lambda: wire.recv(65536), b""))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_request_lets_it_finish_and_exits_0(number: signal.Signals) -> None:
    with server() as (running, client), half_a_request(client) as wire:
        client.get("/livez")  # the server has taken the connection made before this one
        running.send_signal(number)
        with suppress(httpx.TransportError):  # it no longer listens: only our half request keeps it
            until(lambda: client.get("/livez").status_code != 200, "the port is closed")
        assert running.poll() is None
        wire.sendall(IMAGE[10:])
        assert rest_of_reply(wire).startswith(b"HTTP/1.1 200 ")
        assert running.wait(60) == 0


def test_draining_is_not_ready_but_alive_and_still_answers() -> None:
    with server(drain_delay=60) as (running, client):
        running.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code != 200, "it drains")
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
        assert reply.headers["Retry-After"]
        assert client.get("/livez").status_code == 200
        assert client.get("/startupz").status_code == 200
        assert client.post("/v1/encode", content=IMAGE).status_code == 200
        assert "viq_ready 0.0" in client.get("/metrics").text
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 128 + signal.SIGTERM


def test_a_signal_while_loading_exits_0() -> None:
    with process('{"http_port": 0, "grpc_port": 0, "drain_delay": 60}') as running:
        assert running.stdout is not None
        assert "http://127.0.0.1:" in running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def test_weights_that_cannot_be_loaded_exit_3_and_name_the_folder(tmp_path: Path) -> None:
    with process(f'{{"http_port": 0, "grpc_port": 0, "weights_root": "{tmp_path}", "size": ["16k"]}}') as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert str(tmp_path) in errors
    assert "Traceback" not in errors


UNLIKE = """
from viq import ViQ
make = ViQ._fingerprint
ViQ._fingerprint = lambda self: "0123456789abcdef.01234567" if self.device == "cpu:0" else make(self)
"""


def test_devices_that_would_make_different_codes_exit_3_and_are_both_named() -> None:
    with process('{"http_port": 0, "grpc_port": 0, "device": ["cpu", "cpu:0"]}', UNLIKE + SERVE) as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert "would not give the same codes: cpu has fingerprint" in errors
    assert "cpu:0 has 0123456789abcdef.01234567" in errors
    assert "Traceback" not in errors


def test_a_size_that_does_not_exist_exits_3() -> None:
    with process('{"http_port": 0, "grpc_port": 0, "size": ["17k"]}') as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert "17k" in errors


def test_a_port_that_is_taken_exits_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(f'{{"http_port": {port}, "grpc_port": 0}}') as running:
            _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert str(port) in errors


def test_what_can_be_no_host_name_exits_3() -> None:
    with process('{"http_port": 0, "grpc_port": 0, "host": "a..b"}') as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert "a..b" in errors
    assert "Traceback" not in errors


def test_untrained_weights_are_announced_in_the_log() -> None:
    with server() as (running, client):
        untrained = client.get("/v1/models").json()["models"][0].get("untrained", False)
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    assert ("nano is untrained" in errors) is untrained
