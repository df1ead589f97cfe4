"""One HTTP/1.1 connection: uvicorn's, with errors of our shape and with an end to clients that waste it."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from viq_serving.errors import Malformed, TooLarge, ViQError
from viq_serving.exchange import Exchange
from viq_serving.rest.envelope import SURPLUS, Envelope
from viq_serving.rest.errors import error_body, status_of
from viq_serving.rest.exchange import door_of

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

_MAX_HEAD_BYTES = 64 * 2**10
_HEAD_TIMEOUT_S = 30.0  # for request line and headers to arrive
_READ_TIMEOUT_S = 30.0  # without the client having read a byte of a reply that waits for it
_MAX_PIPELINED = 16  # requests sent before the replies to those before them
_RESERVE = 64  # connections over the limit that are still told so, and may be those of probes
_SURPLUS_TIMEOUT_S = 2.0  # for their head to arrive


class _Enough(Exception):
    """Nothing more is taken from this connection."""


class Connection(HttpToolsProtocol):
    """Requests of one client. uvicorn itself waits for ever, takes heads of any length and any number of requests."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None
    _last: RequestResponseCycle | None = None
    _surplus = _deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has come."""
        # uvicorn's own limit counts pipelined requests too and answers plain text, to probes as well
        limit, self.limit_concurrency = self.config.limit_concurrency, None
        surplus = 0 if limit is None else len(self.connections) + 1 - limit
        super().connection_made(transport)
        if surplus > _RESERVE:
            transport.abort()
            return
        if surplus > 0:
            self._surplus, self.app_state = True, {**self.app_state, SURPLUS: True}
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone. uvicorn itself tells only the request that came last."""
        self._cancel_timers()
        waiting = [self._answered, *(cycle for cycle, _ in self.pipeline)]
        super().connection_lost(exc)
        for cycle in waiting:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        if self._in_head:
            self._head_bytes += len(data)
            self._expect_head()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            if not self._deaf:
                self.send_400_response("Invalid HTTP request received.")
        else:
            if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(TooLarge(f"request line and headers of more than {_MAX_HEAD_BYTES} bytes, the limit"))

    def on_message_begin(self) -> None:
        """Take the beginning of a request, unless so many wait that the one before it was made the last."""
        if self._deaf:
            raise _Enough
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what follows a chunked body is none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start on a request, unless the parser took it for one of another protocol."""
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_bytes = False, 0
        self._cancel_timers(reading=False)
        super().on_headers_complete()
        if len(self.pipeline) == _MAX_PIPELINED:
            self._last, self.cycle.keep_alive = self.cycle, False

    def on_message_complete(self) -> None:
        """The body is here whole; a head comes next, if one may."""
        if self.parser.should_upgrade():
            return
        self._in_head = True
        super().on_message_complete()
        self._deaf = self.cycle is self._last

    def pause_writing(self) -> None:
        """A reply waits for the client to read."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """The client has read nearly all of it."""
        self._cancel_timers(head=False)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP and end the connection."""
        self._refuse(Malformed(msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        if self._surplus:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: ViQError) -> None:
        """Answer what never became a request. A reply under way ends with the connection, whole or not."""
        exchange, envelope = Exchange.begin(door_of(self._path())), self.config.app
        status, body = HTTPStatus(status_of(error)), json.dumps(error_body(error, exchange)).encode()
        headers = {
            **(envelope.headers(exchange) if isinstance(envelope, Envelope) else {}),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + body)
        self.transport.close()

    def _path(self) -> str:
        """The path of the request that is being read, as far as it is known."""
        return getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")

    def _decline(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 although the client offered another protocol, as Java's client does with every request.

        The parser takes all after such a head for the other protocol, so it gets the head again without the offer.
        """
        if self.parser.get_method() == b"CONNECT":
            self.send_400_response("This is no proxy.")
            return
        line = b" ".join((self.parser.get_method(), self.url, b"HTTP/" + self.parser.get_http_version().encode()))
        headers = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser, self._head_bytes = httptools.HttpRequestParser(self), 0
        self.data_received(b"\r\n".join((line, *headers, b"", rest)))

    def _expect_head(self) -> None:
        if self._head_timer is None:
            timeout_s = _SURPLUS_TIMEOUT_S if self._surplus else _HEAD_TIMEOUT_S
            self._head_timer = self.loop.call_later(timeout_s, self._no_head)

    def _no_head(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # a request before it is still being answered
            self._expect_head()

    def _expect_reading(self) -> None:
        if self.scheme == "https":  # what the client has not read is below TLS, out of sight: the listener sees to it
            return
        left = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(_READ_TIMEOUT_S, self._no_reading, left)

    def _no_reading(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left:
            self._expect_reading()
        else:
            self.transport.abort()

    def _cancel_timers(self, *, head: bool = True, reading: bool = True) -> None:
        if head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if reading and self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
