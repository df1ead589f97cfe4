"""A server that is none of ours, on sockets alone: every byte of its answers is known."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

HANG_UP = b""
Answers = Callable[[int], Sequence[bytes]]
"""For the number of a request, from 0, the pieces of its answer; `HANG_UP` closes the connection there."""


@dataclass(frozen=True)
class Foreign:
    """A server that answers what it was told to."""

    url: str
    requests: list[bytes]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    answers: Answers
    requests: list[bytes]
    lock: threading.Lock
    tls: ssl.SSLContext | None

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection, on which the handshake is still to come."""
        connection, address = super().get_request()
        if self.tls is None:
            return connection, address
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not believe us has gone."""
        if self.tls is None:
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                head += line
            length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line)
            body = self.rfile.read(length)
            with self.server.lock:
                number = len(self.server.requests)
                self.server.requests.append(body)
            for piece in self.server.answers(number):
                if piece is HANG_UP:
                    return
                self.wfile.write(piece)


@contextmanager
def foreign(answers: Answers, tls: ssl.SSLContext | None = None) -> Iterator[Foreign]:
    """The server, while in the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.answers, server.requests, server.lock, server.tls = answers, [], threading.Lock(), tls
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            scheme = "https" if tls else "http"
            yield Foreign(f"{scheme}://127.0.0.1:{server.server_address[1]}/encode", server.requests)
        finally:
            server.shutdown()
            thread.join()


def plain(status: str, body: bytes, *headers: str) -> list[bytes]:
    """An answer in one piece, with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return ["\r\n".join(lines).encode() + body]
