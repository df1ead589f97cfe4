"""TLS and mutual TLS on both ports: who is let in, who is not, and certificates that change while all this goes on."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.doors.identities import Authority, Mounted, greeted, over_grpc, over_http
from tests.doors.serving import Server, Shown

MakePng = Callable[..., bytes]
Start = Callable[..., Server]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
WAITS_FOR_GOODBYE_S = 30  # asyncio's and uvloop's TLS, left to itself


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("root"), "ours")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "theirs")


@pytest.fixture(scope="module")
def secured(start: Start, root: Authority, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that speaks TLS with anybody."""
    mounted = Mounted(tmp_path_factory.mktemp("mounts") / "tls")
    mounted.put(root.server())
    flags = (*mounted.flags, "--metrics-port", "0", "--drain-delay", "0")
    return start(*flags, shows=Shown(root.roots)).ready()


@pytest.fixture(scope="module")
def mutual(start: Start, root: Authority, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that wants a certificate of its clients."""
    mounted = Mounted(tmp_path_factory.mktemp("mounts") / "tls")
    mounted.put(root.server(), roots=root.roots.read_bytes())
    return start(*mounted.mutual_flags, "--drain-delay", "0", shows=root.client("known")).ready()


@pytest.mark.parametrize("door", DOORS)
def test_every_door_answers_over_tls(secured: Server, door: str, make_png: MakePng) -> None:
    assert secured.url.startswith("https://")
    codes = secured.ask(door, "encode", [make_png()])
    assert codes.good
    assert secured.ask(door, "decode", codes.items).good


@pytest.mark.parametrize("door", DOORS)
def test_every_door_answers_clients_that_are_known(mutual: Server, door: str, make_png: MakePng) -> None:
    assert mutual.ask(door, "encode", [make_png()]).good


def test_the_ports_agree_on_the_protocol_that_they_speak(secured: Server, root: Authority) -> None:
    for address, spoken in zip(secured.addresses, ("http/1.1", "h2"), strict=True):
        with greeted(address, Shown(root.roots), "h2", "http/1.1") as wire:
            assert wire.selected_alpn_protocol() == spoken


@pytest.mark.parametrize("highest", [V1_2, V1_3])
def test_versions_from_1_2_on_are_spoken(secured: Server, root: Authority, highest: ssl.TLSVersion) -> None:
    for address in secured.addresses:
        with greeted(address, Shown(root.roots), "h2", "http/1.1", highest=highest) as wire:
            assert wire.version() == highest.name.replace("_", ".")


def test_older_versions_are_not(secured: Server, root: Authority) -> None:
    for address, why in zip(secured.addresses, ("ALERT_PROTOCOL_VERSION", "ALERT_PROTOCOL_VERSION|EOF"), strict=True):
        with pytest.raises(ssl.SSLError, match=why):
            greeted(address, Shown(root.roots), "h2", "http/1.1", highest=V1_1)


def test_plaintext_gets_no_reply_from_ports_that_speak_tls(secured: Server) -> None:
    plain = secured.url.replace("https", "http")
    assert "disconnected" in str(over_http(plain, None)).lower()
    assert over_grpc(secured.grpc, None).startswith("UNAVAILABLE")
    assert "TLS handshake refused: http request" in secured.log()
    assert httpx.get(secured.metrics, trust_env=False).status_code == 200  # which is plaintext on purpose


def test_tls_gets_no_reply_from_ports_that_speak_plaintext(server: Server, root: Authority) -> None:
    assert "SSL" in str(over_http(server.url.replace("http", "https"), Shown(root.roots)))
    assert over_grpc(server.grpc, Shown(root.roots)).startswith("UNAVAILABLE")


def test_a_client_that_believes_in_other_roots_goes_away(secured: Server, other: Authority) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in str(over_http(secured.url, Shown(other.roots)))
    assert "CERTIFICATE_VERIFY_FAILED" in over_grpc(secured.grpc, Shown(other.roots))


def test_a_client_is_told_what_it_lacks(mutual: Server, root: Authority, other: Authority) -> None:
    for shows, why in (
        (Shown(root.roots), "CERTIFICATE_REQUIRED"),
        (root.client("late", expired=True), "CERTIFICATE_EXPIRED"),
        (replace(other.client("stranger"), roots=root.roots), "UNKNOWN_CA"),
    ):
        with greeted(mutual.url, shows) as wire, pytest.raises(ssl.SSLError, match=why):
            wire.recv(1)


@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "plain"])
def test_who_shows_no_good_certificate_is_refused_in_the_handshake(
    mutual: Server, root: Authority, other: Authority, who: str
) -> None:
    shows = {
        "nobody": Shown(root.roots),
        "stranger": replace(other.client("stranger"), roots=root.roots),
        "expired": root.client("late", expired=True),
        "plain": None,
    }[who]
    known = root.client("known")
    asked = len(mutual.records())
    url = mutual.url if shows is not None else mutual.url.replace("https", "http")
    assert over_http(url, shows) != 200
    assert over_grpc(mutual.grpc, shows).startswith("UNAVAILABLE")
    assert (over_http(mutual.url, known), over_grpc(mutual.grpc, known)) == (200, "SERVING")
    why = {"stranger": "certificate verify failed", "expired": "certificate verify failed", "plain": "http request"}
    assert f"TLS handshake refused: {why.get(who, 'peer did not return a certificate')}" in mutual.log()
    assert len(mutual.records()) == asked


def test_keys_on_ports_that_speak_tls_need_no_warning(start: Start, root: Authority, tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "tls")
    mounted.put(root.server())
    flags = (*mounted.flags, "--host", "0.0.0.0")  # noqa: S104
    server = start(*flags, environment={"VIQ_API_KEYS": "good"}, shows=Shown(root.roots)).open()
    assert server.end() == 0
    assert "loopback" not in server.log()


def test_files_that_cannot_be_used_end_the_server_with_a_clear_sentence(
    start: Start, root: Authority, tmp_path: Path
) -> None:
    mounted = Mounted(tmp_path / "tls")
    mounted.put(root.server(), root.server())
    server = start(*mounted.flags)
    assert server.process.wait(60) == 3
    assert "TLS cannot be used: " in server.log()
    assert "the key is not that of the certificate" in server.log()
    assert "Traceback" not in server.log()


def test_an_idle_client_that_does_not_say_goodbye_does_not_hold_up_the_end(
    start: Start, root: Authority, tmp_path: Path
) -> None:
    mounted = Mounted(tmp_path / "tls")
    mounted.put(root.server())
    server = start(*mounted.flags, "--drain-delay", "0", shows=Shown(root.roots)).ready()
    with greeted(server.url, Shown(root.roots), "http/1.1") as idle, suppress(OSError):
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAITS_FOR_GOODBYE_S - 5) == 0
        idle.settimeout(60)
        while idle.recv(65536):
            pass
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port_of(server.url))):
        pass


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
