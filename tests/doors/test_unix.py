"""Unix sockets in place of ports, and beside them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.doors.serving import Server, grpc_channel, web_client

MakePng = Callable[..., bytes]
Start = Callable[..., Server]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")


def flags(folder: Path) -> list[str]:
    return ["--http-uds", str(folder / "http.sock"), "--grpc-uds", str(folder / "grpc.sock"), "--drain-delay", "0"]


def modes(folder: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in sorted(folder.glob("*.sock"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sockets")


@pytest.fixture(scope="module")
def local(start: Start, folder: Path) -> Server:
    """A server that has no ports."""
    return start(*flags(folder), ports=False).ready()


@pytest.mark.parametrize("door", DOORS)
def test_every_door_answers_at_its_path(local: Server, folder: Path, door: str, make_png: MakePng) -> None:
    assert (local.url, local.grpc) == (f"unix:{folder / 'http.sock'}", f"unix:{folder / 'grpc.sock'}")
    codes = local.ask(door, "encode", [make_png(200, 300)])
    assert codes.good
    assert local.ask(door, "decode", codes.items).good


def test_only_the_owner_and_the_group_may_connect(local: Server, folder: Path) -> None:
    assert local.process.poll() is None
    assert modes(folder) == [0o660, 0o660]


def test_a_path_where_somebody_listens_is_refused_and_stays_theirs(local: Server, start: Start, folder: Path) -> None:
    second = start(*flags(folder), ports=False)
    assert second.process.wait(60) == 3
    assert f"cannot listen on {folder / 'http.sock'}: somebody listens there" in second.log()
    assert local.http.get("/livez").status_code == 200
    assert modes(folder) == [0o660, 0o660]


def test_beside_ports_both_answer_and_at_the_end_the_paths_are_gone(start: Start, tmp_path: Path) -> None:
    server = start(*flags(tmp_path), "--uds-mode", "600").ready()
    assert server.url.startswith("http://")
    assert modes(tmp_path) == [0o600, 0o600]
    with web_client(f"unix:{tmp_path / 'http.sock'}") as client, grpc_channel(f"unix:{tmp_path / 'grpc.sock'}") as wire:
        assert client.get("/readyz").status_code == server.http.get("/readyz").status_code == 200
        for channel in (wire, server.channel):
            assert HealthStub(channel).Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
    assert server.end() == 0
    assert list(tmp_path.iterdir()) == []
