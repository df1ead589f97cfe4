"""HTTP/1.1 as far as a load generator needs it: one answer a connection at a time, kept connections, no redirects.

Richer clients take a millisecond of a core and more for each request (loadtest/generator.py), which on a small machine
is taken from the server that is measured.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from viq.errors import InvalidInput
from viq_serving.client.targets import Tls

_MAX_HEAD, _MAX_BODY, _MAX_CHUNK_LINE = 64 * 2**10, 2**30, 1024
_GOODBYE_S = 1.0  # for a server to hear that its connections end
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;.*)?", re.DOTALL)


class Reply(NamedTuple):
    """Status, headers by their names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BrokenReply(Exception):
    """What came is not HTTP, or ended before it was whole."""


class _Connection(asyncio.Protocol):
    """One connection, among `there` as long as it is. `used` is whether an answer came over it before."""

    def __init__(self, there: set[_Connection]) -> None:
        self._there = there
        self.used = self.lost = False
        self.silent = True  # nothing came yet of the answer that is waited for
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._buffer = bytearray()
        self._status, self._headers = 0, dict[str, str]()
        self._in_body, self._chunks = False, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop are no subclass of it
        self._there.add(self)

    def ask(self, message: bytes) -> asyncio.Future[Reply]:
        if self._transport is None:
            raise RuntimeError("not connected")
        self.silent, self._in_body = True, False
        self._buffer.clear()
        self._chunks.clear()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self.silent = False
        self._buffer += data
        try:
            reply = self._parse(ended=False)
        except (BrokenReply, ValueError) as error:
            self._fail(BrokenReply(str(error)))
            self.close()
            return
        if reply is not None:
            self._done(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._there.discard(self)
        if self._waiter is None or self._waiter.done():
            return
        try:
            reply = self._parse(ended=True)
        except (BrokenReply, ValueError):
            reply = None
        if reply is not None:
            self._done(reply)
        else:
            self._fail(ConnectionResetError("the server closed the connection"))

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _parse(self, *, ended: bool) -> Reply | None:
        """The answer once all of it is there; `ended`: no more will come."""
        while not self._in_body:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD:
                    raise BrokenReply(f"the head of an answer is over {_MAX_HEAD} bytes")
                return None
            self._status, self._headers = _head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._in_body = self._status >= 200  # else it is an interim answer, and another follows
        if len(self._buffer) > _MAX_BODY:
            raise BrokenReply(f"an answer is over {_MAX_BODY} bytes")
        body = self._body(ended)
        return None if body is None else Reply(self._status, self._headers, body)

    def _body(self, ended: bool) -> bytes | None:
        if self._status in (204, 304):
            return b""
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            return bytes(self._chunks) if self._unchunked() else None
        length = self._headers.get("content-length")
        if length is None:
            return bytes(self._buffer) if ended else None
        if not length.isdecimal():
            raise BrokenReply(f"an answer has content-length {length[:40]!r}")
        if len(self._buffer) < int(length):
            return None
        body = bytes(self._buffer[: int(length)])
        del self._buffer[: int(length)]
        return body

    def _unchunked(self) -> bool:
        """Move whole chunks out of the buffer; true once the last one is there."""
        while (end := self._buffer.find(b"\r\n", 0, _MAX_CHUNK_LINE)) >= 0:
            told = _CHUNK.fullmatch(self._buffer, 0, end)
            if told is None:
                raise BrokenReply(f"a chunk of an answer begins with {bytes(self._buffer[: min(end, 40)])!r}")
            size = int(told[1], 16)
            if len(self._chunks) + size > _MAX_BODY:
                raise BrokenReply(f"an answer is over {_MAX_BODY} bytes")
            if len(self._buffer) < end + 2 + size + 2:
                return False
            if size == 0:
                return True
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
        if len(self._buffer) >= _MAX_CHUNK_LINE:
            raise BrokenReply(f"a chunk of an answer has no length within {_MAX_CHUNK_LINE} bytes")
        return False

    def _done(self, reply: Reply) -> None:
        self.used = True
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class Http:
    """Connections to one server, at most so many, each with one request at a time."""

    def __init__(self, url: str, connections: int, tls: Tls | None = None) -> None:
        """`tls` says whom an https address is believed. Raises `InvalidInput` for what is no address."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"server {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"server {url!r}, expected http://host:port")
        self.host, self.path = parts.netloc, parts.path + (f"?{parts.query}" if parts.query else "")
        self._where = (parts.hostname, port or (443 if parts.scheme == "https" else 80))
        self._tls = (tls or Tls()).context() if parts.scheme == "https" else None
        self._idle = deque[_Connection]()
        self._open: set[_Connection] = set()
        self._there: set[_Connection] = set()
        self._room = asyncio.Semaphore(connections)

    def message(self, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """A POST ready to be sent; raises `InvalidInput` for headers that cannot be."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise InvalidInput("an address or a header holds a line break")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def ask(self, message: bytes) -> Reply:
        """Send a message and wait for its answer.

        Raises `OSError` if the server cannot be reached or goes away, `BrokenReply` if its answer is none. A kept
        connection that the server closed meanwhile is no failure: the message goes over another one.
        """
        async with self._room:
            while True:
                connection = await self._connection()
                again = connection.used
                try:
                    reply = await connection.ask(message)
                except ConnectionResetError:
                    self._open.discard(connection)
                    if again and connection.silent:
                        continue
                    raise
                except BaseException:
                    self._open.discard(connection)
                    connection.close()
                    raise
                if connection.lost:
                    self._open.discard(connection)
                else:
                    self._idle.append(connection)
                return reply

    async def close(self) -> None:
        """Close all connections; one with TLS says goodbye first, which the event loop must live to see."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                while self._there:  # noqa: ASYNC110  # none tells
                    await asyncio.sleep(_GOODBYE_S / 1000)
        for connection in list(self._there):
            connection.abort()
        await asyncio.sleep(0)

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                return connection
            self._open.discard(connection)
        _, made = await asyncio.get_running_loop().create_connection(
            partial(_Connection, self._there), *self._where, ssl=self._tls
        )
        self._open.add(made)
        return made


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise BrokenReply(f"the answer begins with {first[:80]!r}, which is not HTTP/1.1")
    pairs = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}
