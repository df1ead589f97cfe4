"""The outermost layer of the HTTP door: request ids, headers of every reply, the last resort, the count."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viq_serving.exchange import Exchange
from viq_serving.metrics import Metrics
from viq_serving.rest.errors import error_response
from viq_serving.tokenizer import Tokenizer

log = logging.getLogger("viq.rest")

_LINGER_S = 2.0
_COUNTED = {f"/v1/{method}": method for method in ("encode", "decode", "embed", "plan", "models")}


class Envelope:
    """Wraps the app so that every reply, also one that the framework or a bug made, has our headers and shape."""

    def __init__(self, app: ASGIApp, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self._app, self._tokenizer, self._metrics = app, tokenizer, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (the ASGI entry)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.begin("http", Headers(scope=scope).get("x-request-id"))
        if scope["path"].startswith("/v1/"):
            exchange.method = _COUNTED.get(scope["path"], "unknown")
        scope.setdefault("state", {})["exchange"] = exchange
        wire = _Wire(scope, receive, send, exchange, self)
        # The server sends no body in answer to HEAD; for the app it is a GET.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(asked, wire.receive, wire.send)
        except Exception as error:
            log.exception("request %s failed", exchange.request_id)
            exchange.outcome = "internal"
            if not wire.started:
                await error_response(error, exchange)(scope, wire.receive, wire.send)
        finally:
            exchange.close(self._metrics)

    def headers(self, exchange: Exchange) -> dict[str, str]:
        """What every reply carries: request id, fingerprint once a model is loaded, and that its type is meant."""
        loaded = self._tokenizer.models()
        model = exchange.model or (loaded[0] if loaded else None)
        fingerprint = {} if model is None else {"ViQ-Fingerprint": model.fingerprint}
        return {"X-Request-ID": exchange.request_id, "X-Content-Type-Options": "nosniff", **fingerprint}


class _Wire:
    """The two directions of one request. A reply before the whole body has come ends the connection gently.

    Closing at once would make the kernel send a reset, and the client, still sending, would lose the reply.
    So the reply goes out whole, what still comes is thrown away for a moment, then the connection ends.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, envelope: Envelope) -> None:
        self._receive, self._send, self._exchange, self._envelope = receive, send, exchange, envelope
        headers = Headers(scope=scope)
        self._body_left = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in self._envelope.headers(self._exchange).items():
                headers.setdefault(name, value)
            if self._body_left:
                headers["Connection"] = "close"
        elif self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            self._body_left = False
