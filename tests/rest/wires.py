"""What a server says on a bare socket."""

from __future__ import annotations

import re
import socket
from contextlib import suppress


def said(wire: socket.socket) -> bytes:
    """All that comes until the server closes.

    After a reply to a request whose body it has not read, a server goes on reading for a while, for the sake of
    clients that still send. Here the client says that it does not, once the reply has come whole.
    """
    reply = b""
    while piece := wire.recv(65536):
        reply += piece
        head, ended, body = reply.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        if ended and length is not None and len(body) >= int(length[1]):
            with suppress(OSError):  # it may have closed by now
                wire.shutdown(socket.SHUT_WR)
    return reply
