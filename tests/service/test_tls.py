"""Certificates as files: what is taken from them when, and what a TLS listener does with its clients."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trustme
import uvloop
from starlette.types import Receive, Scope, Send

import viq_serving.sockets
from viq_serving.errors import SettingsError
from viq_serving.rest.server import Server, server_of
from viq_serving.sockets import listen, name_of
from viq_serving.tls import Certificates

LARGE = 16 * 2**20  # more than the buffers of two sockets hold
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(scope="module")
def root() -> trustme.CA:
    return trustme.CA()


class Files:
    """A certificate, its key and roots in a folder, and a clock that a test moves."""

    def __init__(self, folder: Path, root: trustme.CA) -> None:
        self.cert, self.key, self.roots = folder / "cert.pem", folder / "key.pem", folder / "roots.pem"
        self.now, self._root = 0.0, root
        self.put()
        root.cert_pem.write_to_path(self.roots)

    def put(self, key: trustme.LeafCert | None = None) -> trustme.LeafCert:
        """Write a new certificate and its key, or another's key."""
        one = self._root.issue_cert("localhost")
        self.cert.write_bytes(b"".join(part.bytes() for part in one.cert_chain_pems))
        (key or one).private_key_pem.write_to_path(self.key)
        return one

    def certificates(self) -> Certificates:
        return Certificates(str(self.cert), str(self.key), str(self.roots), lambda: self.now)


@pytest.fixture
def files(tmp_path: Path, root: trustme.CA) -> Files:
    return Files(tmp_path, root)


def test_files_that_change_are_taken_within_a_second(files: Files) -> None:
    certificates = files.certificates()
    first = certificates.current()
    files.put()
    files.now = 0.9
    assert certificates.current() is first
    files.now = 1.0
    second = certificates.current()
    assert second is not first
    assert (second.cert, second.key) == (files.cert.read_bytes(), files.key.read_bytes())
    files.now = 2.0
    assert certificates.current() is second


def test_roots_alone_may_change(files: Files) -> None:
    certificates = files.certificates()
    files.roots.write_bytes(files.roots.read_bytes() + trustme.CA().cert_pem.bytes())
    files.now = 1.0
    assert len(certificates.current().context.get_ca_certs()) == 2


BROKEN: dict[str, Callable[[Files], object]] = {
    "the key is not that of the certificate": lambda files: files.put(trustme.CA().issue_cert("localhost")),
    "in no PEM form": lambda files: files.key.write_bytes(b"nonsense"),
    "cert.pem": lambda files: files.cert.write_bytes(b""),
    "no certificate in it": lambda files: files.roots.write_bytes(b""),
    "key.pem: No such file": lambda files: files.key.unlink(),
    "needs a passphrase": lambda files: files.key.write_bytes(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"),
    "more than 1048576 bytes": lambda files: files.roots.write_bytes(bytes(2**20 + 1)),
}


@pytest.mark.parametrize("words", BROKEN)
def test_files_that_cannot_be_used_leave_what_was_and_the_log_says_so_once(
    files: Files, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "viq.tls")
    certificates = files.certificates()
    first = certificates.current()
    BROKEN[words](files)
    for _ in range(3):
        files.now += 1
        assert certificates.current() is first
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert words in record.getMessage()
    assert "stays as it was" in record.getMessage()
    files.put()
    files.roots.write_bytes(first.client_ca or b"")
    files.now += 1
    assert certificates.current() is not first
    assert caplog.records[-1].levelname == "INFO"


@pytest.mark.parametrize("words", BROKEN)
def test_to_begin_with_such_files_are_an_error_that_shows_nothing_of_them(files: Files, words: str) -> None:
    BROKEN[words](files)
    with pytest.raises(SettingsError, match=f"TLS cannot be used: .*{words}") as caught:
        files.certificates()
    assert "nonsense" not in str(caught.value)


def test_files_that_change_while_they_are_read_are_neither_taken_nor_an_error(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificates, load = files.certificates(), ssl.SSLContext.load_cert_chain
    first = certificates.current()

    def late(context: ssl.SSLContext, cert: str, key: str) -> None:
        files.put()  # a pair that fits, but not the one that was read
        load(context, cert, key)

    files.put()
    with monkeypatch.context() as patched:
        patched.setattr(ssl.SSLContext, "load_cert_chain", late)
        files.now = 1.0
        assert certificates.current() is first
    assert not caplog.records
    files.now = 2.0
    assert certificates.current().cert == files.cert.read_bytes()


def test_what_is_known_of_a_certificate_is_not_shown(files: Files) -> None:
    assert "PRIVATE" not in repr(files.certificates().current())


@contextmanager
def serving(
    context: ssl.SSLContext, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> Iterator[tuple[Server, str]]:
    """A server whose every reply is a large one, and where it listens."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
        await send({"type": "http.response.body", "body": bytes(LARGE)})

    ready: queue.Queue[tuple[Server, str]] = queue.Queue()

    async def live() -> None:
        server, listener = server_of(app, 64, 60.0, context), listen("127.0.0.1", 0, encrypted=True)
        ready.put((server, name_of(listener)))
        await server.serve([listener])

    def run() -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(live())

    thread = threading.Thread(target=run, name="server")
    thread.start()
    server, address = ready.get(timeout=60)
    try:
        yield server, address
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def called(address: str, root: trustme.CA) -> Iterator[ssl.SSLSocket]:
    """A connection that has asked."""
    context = ssl.create_default_context()
    root.configure_trust(context)
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wire,
    ):
        wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        yield wire


@pytest.mark.parametrize("make_loop", LOOPS)
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system does not watch unread data")
def test_a_client_that_does_not_read_its_reply_is_hung_up_on(
    files: Files, root: trustme.CA, make_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viq_serving.sockets, "_UNREAD_MS", 300)
    context = Certificates(str(files.cert), str(files.key)).context(2)
    with serving(context, make_loop) as (server, address), called(address, root) as wire:
        assert wire.recv(15) == b"HTTP/1.1 200 OK"
        while server.server_state.connections:
            threading.Event().wait(0.01)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_a_whole_large_reply_comes_through(
    files: Files, root: trustme.CA, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    context = Certificates(str(files.cert), str(files.key)).context(2)
    with serving(context, make_loop) as (server, address), called(address, root) as wire:
        server.should_exit = True  # also while the server ends, and the connection with it
        reply = b"".join(iter(lambda: wire.recv(2**20), b""))
    assert len(reply.partition(b"\r\n\r\n")[2]) == LARGE


@pytest.mark.parametrize("make_loop", LOOPS)
def test_over_the_limit_of_handshakes_connections_are_hung_up_on_until_others_are_done(
    files: Files, root: trustme.CA, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    context = Certificates(str(files.cert), str(files.key)).context(2)
    with serving(context, make_loop) as (_, address):
        host, port = address.split(":")
        with ExitStack() as silent:
            for _ in range(2):
                silent.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with socket.create_connection((host, int(port)), timeout=60) as surplus, suppress(ConnectionResetError):
                assert surplus.recv(1) == b""
        for _ in range(5):  # more than the limit, one after the other
            while True:
                with suppress(ssl.SSLError, ConnectionResetError), called(address, root) as wire:
                    assert wire.recv(15) == b"HTTP/1.1 200 OK"
                    break


@pytest.mark.parametrize("make_loop", LOOPS)
def test_a_client_that_is_refused_hears_why_and_is_hung_up_on_if_it_goes_on(
    files: Files, root: trustme.CA, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with serving(files.certificates().context(2), make_loop) as (_, address):
        for _ in range(5):  # more than the limit of handshakes, one after the other
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"), called(address, root) as wire:
                wire.recv(1)
        for _ in range(5):
            with greeting(address) as wire:
                wire.sendall(b"\x16\x03\x01\x00\x04junk")  # a handshake that begins with no hello
                assert wire.recv(1) == b"\x15"  # an alert
                wire.sendall(b"more")
                with suppress(ConnectionResetError):
                    while wire.recv(65536):
                        pass


def greeting(address: str) -> socket.socket:
    """A connection on which nothing is said yet."""
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)
