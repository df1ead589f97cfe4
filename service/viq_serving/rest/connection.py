"""One HTTP/1.1 connection: uvicorn's, with errors of our shape and with an end to clients that waste it."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from viq_serving.errors import Malformed, TooLarge, ViQError
from viq_serving.exchange import Exchange
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.errors import error_body, status_of

_MAX_HEAD_BYTES = 64 * 2**10
_HEAD_TIMEOUT_S = 30.0  # for request line and headers to arrive
_READ_TIMEOUT_S = 30.0  # without the client having read a byte of a reply that waits for it


class Connection(HttpToolsProtocol):
    """Requests of one client. uvicorn itself waits for ever and takes heads of any length."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has come."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_bytes += len(data)
            self._expect_head()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(TooLarge(f"request line and headers of more than {_MAX_HEAD_BYTES} bytes, the limit"))

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

    def on_message_complete(self) -> None:
        """The body is here whole; a head comes next."""
        if self.parser.should_upgrade():
            return
        self._in_head = True
        super().on_message_complete()

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

    def _refuse(self, error: ViQError) -> None:
        exchange, envelope, status = Exchange.begin("http"), self.config.app, HTTPStatus(status_of(error))
        body = json.dumps(error_body(error, exchange)).encode()
        headers = {
            **(envelope.headers(exchange) if isinstance(envelope, Envelope) else {}),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + body)
        self.transport.close()

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
            self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._no_head)

    def _no_head(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # a request before it is still being answered
            self._expect_head()

    def _expect_reading(self) -> None:
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
