"""Certificates and roots that change while callers come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import trustme
from tests.doors.identities import Authority, Mounted, greeted, number_of, over_grpc, over_http
from tests.doors.serving import Server, Shown
from tests.waiting import until

MakePng = Callable[..., bytes]
Start = Callable[..., Server]


class Visitors:
    """Callers who connect anew for every request, and some who keep their connection, until told to stop."""

    def __init__(self, server: Server, shows: Shown, image: bytes) -> None:
        self.failed, self.visits = list[str](), [0] * 4
        self._server, self._shows, self._image, self._enough = server, shows, image, threading.Event()
        kinds = (self._new_http, self._new_grpc, self._same("http"), self._same("grpc"))
        self._threads = [threading.Thread(target=self._visit, args=one) for one in enumerate(kinds)]
        for thread in self._threads:
            thread.start()

    def goes_on(self, rounds: int = 5) -> None:
        """Wait until each has been answered so many times more."""
        before = list(self.visits)
        until(
            lambda: self.failed or all(now >= then + rounds for now, then in zip(self.visits, before, strict=True)),
            "visits",
        )

    def end(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _visit(self, index: int, ask: Callable[[], None]) -> None:
        while not self._enough.is_set():
            try:
                ask()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is no answer
                self.failed.append(repr(error))
                return
            self.visits[index] += 1

    def _new_http(self) -> None:
        assert over_http(self._server.url, self._shows) == 200

    def _new_grpc(self) -> None:
        assert over_grpc(self._server.grpc, self._shows) == "SERVING"

    def _same(self, door: str) -> Callable[[], None]:
        def ask() -> None:
            assert self._server.ask(door, "encode", [self._image]).good

        return ask


def shown_by(server: Server, shows: Shown) -> set[str]:
    """The certificates that the two ports show now."""
    numbers = set()
    for address in server.addresses:
        with greeted(address, shows, "h2", "http/1.1") as wire:
            numbers.add(str(wire.getpeercert(binary_form=True)))
    return numbers


def test_a_certificate_is_changed_under_load_and_nobody_notices(
    start: Start, make_png: MakePng, tmp_path: Path
) -> None:
    """By a link that moves, as Kubernetes does it; a broken pair between two good ones leaves the one before."""
    root, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    shows, stranger = root.client("visitor"), replace(other.client("stranger"), roots=root.roots)
    first, second, third = (root.server() for _ in range(3))
    ours, both = root.roots.read_bytes(), root.roots.read_bytes() + other.roots.read_bytes()
    mounted = Mounted(tmp_path / "tls")
    mounted.put(first, roots=ours)
    server = start(*mounted.mutual_flags, "--drain-delay", "0", shows=shows).ready()
    visitors = Visitors(server, shows, make_png(16, 16))
    try:
        visitors.goes_on()
        assert shown_by(server, shows) == {number_of(first)}
        changes(mounted, server, shows, second, ours)
        visitors.goes_on()
        mounted.put(third, first, roots=ours)
        until(lambda: "the certificate stays as it was" in server.log(), "word of the broken pair")
        visitors.goes_on()
        assert shown_by(server, shows) == {number_of(second)}
        assert over_http(server.url, stranger) != 200
        changes(mounted, server, shows, third, both)
        assert (over_http(server.url, stranger), over_grpc(server.grpc, stranger)) == (200, "SERVING")
        visitors.goes_on()
        changes(mounted, server, shows, first, ours)
        assert over_http(server.url, stranger) != 200
        assert over_grpc(server.grpc, stranger).startswith("UNAVAILABLE")
        visitors.goes_on()
    finally:
        visitors.end()
    assert visitors.failed == []
    assert "PRIVATE" not in server.log()


def changes(mounted: Mounted, server: Server, shows: Shown, cert: trustme.LeafCert, roots: bytes) -> None:
    """Mount these, and wait until both ports use them."""
    mounted.put(cert, roots=roots)
    until(lambda: shown_by(server, shows) == {number_of(cert)}, "the new certificate on both ports")
