"""Unary gRPC calls from prepared HTTP/2 frames: a client that takes little time itself.

For timing a server: the client of grpcio takes half a millisecond itself, on threads that must wake. One call at a
time, on one connection, of a message that fits a frame; frames by RFC 9113, headers by RFC 7541 without compression,
messages by https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
A connection is good for a gigabyte of replies.
"""

from __future__ import annotations

import socket
import struct

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED = 0x4, 0x8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_POST_HTTP = b"\x83\x86"  # of the static table: ":method: POST", ":scheme: http"
_INITIAL_WINDOW, _WINDOW = 0x4, 2**30
_SLOWEST_S = 60.0
_MOST = 16_384 - 5  # of a message, so that it is one frame


class WireMethod:
    """One unary method of a server: call it with a message's bytes for the reply's."""

    def __init__(self, address: str, path: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=_SLOWEST_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = {":path": path, ":authority": address, "te": "trailers", "content-type": "application/grpc"}
        self._headers = _POST_HTTP + b"".join(map(_literal, names.items()))
        self._stream, self._unread = -1, b""
        window = struct.pack(">HI", _INITIAL_WINDOW, _WINDOW)
        self._socket.sendall(
            _PREFACE + _frame(_SETTINGS, 0, 0, window) + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW))
        )

    def __call__(self, message: bytes) -> bytes:
        """The reply to `message`. Raises `ValueError` for a longer one than a frame holds, `OSError` for no reply."""
        if len(message) > _MOST:
            raise ValueError(f"message of {len(message)} bytes, a frame holds {_MOST}")
        self._stream += 2
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._headers) + _frame(_DATA, _END_STREAM, self._stream, body)
        )
        reply = b""
        while True:
            kind, flags, stream, payload = self._read()
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind in (_RESET, _GOAWAY):
                raise OSError(f"the server ended the call: frame {kind}, {payload!r}")
            elif stream == self._stream and kind == _DATA:
                if flags & _PADDED:
                    raise OSError("the server pads its frames, which is not expected here")
                reply += payload
            if stream == self._stream and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                if len(reply) < 5 or reply[0] or len(reply) != 5 + int.from_bytes(reply[1:5]):
                    raise OSError(f"no whole message in the reply: {reply!r}, {payload!r}")
                return reply[5:]

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _read(self) -> tuple[int, int, int, bytes]:
        while len(self._unread) < 9 or len(self._unread) < (end := 9 + int.from_bytes(self._unread[:3])):
            more = self._socket.recv(65_536)
            if not more:
                raise OSError("the server closed the connection")
            self._unread += more
        head, payload, self._unread = self._unread[:9], self._unread[9:end], self._unread[end:]
        return head[3], head[4], int.from_bytes(head[5:9]), payload


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(header: tuple[str, str]) -> bytes:
    """A header without indexing, with a new name; name and value shorter than 127 bytes."""
    texts = [text.encode() for text in header]
    if max(map(len, texts)) >= 127:
        raise ValueError(f"header {header} is too long for a length of one byte")
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)
