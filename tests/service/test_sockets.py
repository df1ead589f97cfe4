"""Paths of Unix sockets: who may have one, and who takes it away."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from viq_serving.sockets import CannotListen, UnixPath, refuse_connections


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0o022)
    yield tmp_path / "viq.sock"
    os.umask(before)


def answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(place))
        except ConnectionRefusedError:
            return False
    return True


@pytest.mark.parametrize("mode", ["0660", "600", "777"])
def test_the_socket_has_the_mode_asked_for_whatever_the_umask(place: Path, mode: str) -> None:
    with closing(UnixPath(str(place), mode).listen()):
        assert stat.S_IMODE(place.stat().st_mode) == int(mode, 8)
        assert os.umask(0o022) == 0o022


def test_what_a_dead_server_left_behind_is_replaced(place: Path) -> None:
    UnixPath(str(place), "0660").listen().close()
    assert not answers(place)
    with closing(UnixPath(str(place), "0660").listen()):
        assert answers(place)


def test_a_path_where_somebody_listens_is_not_taken_even_if_all_its_queue_is_full(place: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as busy, closing(socket.socket(socket.AF_UNIX)) as caller:
        busy.bind(str(place))
        busy.listen(0)
        caller.connect(str(place))
        with pytest.raises(CannotListen, match=f"{place}: somebody listens there"):
            UnixPath(str(place), "0660").listen()
        assert place.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays(place: Path, kind: str) -> None:
    if kind == "file":
        place.write_text("precious")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("elsewhere")
    with pytest.raises(CannotListen, match="no socket"):
        UnixPath(str(place), "0660").listen()
    assert place.is_symlink() or place.exists()


@pytest.mark.parametrize("name", ["missing/viq.sock", "x" * 200])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotListen, match=name):
        UnixPath(str(tmp_path / name), "0660").listen()


def test_only_ones_own_socket_is_removed(place: Path) -> None:
    first, second = UnixPath(str(place), "0660"), UnixPath(str(place), "0660")
    first.listen().close()
    with closing(second.listen()):
        first.remove()
        assert answers(place)
        second.remove()
        assert not place.exists()
        second.remove()


def test_one_that_never_listened_removes_nothing(place: Path) -> None:
    place.write_text("precious")
    UnixPath(str(place), "0660").remove()
    assert place.read_text() == "precious"


class _Echo(grpc.GenericRpcHandler):
    def service(self, _details: object) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_grpc_port_that_refuses_connections_goes_on_with_those_it_has() -> None:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Echo()])
    ports = [server.add_insecure_port("127.0.0.1:0") for _ in range(2)]
    server.start()
    try:
        channels = [grpc.insecure_channel(f"127.0.0.1:{port}") for port in ports]
        calls: list[Any] = [channel.unary_unary("/any/call") for channel in channels]
        assert [call(b"before", wait_for_ready=True, timeout=60) for call in calls] == [b"before"] * 2
        refuse_connections(ports[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[0]), timeout=60)
        socket.create_connection(("127.0.0.1", ports[1]), timeout=60).close()  # which is another door
        assert [call(b"after", timeout=60) for call in calls] == [b"after"] * 2
        for channel in channels:
            channel.close()
    finally:
        assert server.stop(60).wait(60)
