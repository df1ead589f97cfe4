"""The outermost layer of the HTTP door: keys, request ids, headers of every reply, the last resort, the count."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from viq_serving.errors import NotReady, ViQError
from viq_serving.exchange import Exchange
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.claim import Claim
from viq_serving.rest.errors import error_response, log_fields
from viq_serving.rest.exchange import door_of, method_of
from viq_serving.rest.page import is_page
from viq_serving.rest.wire import Wire
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ANYBODY, Caller

log = logging.getLogger("viq.rest")

SURPLUS = "surplus"
"""In the state of a request whose connection is over the limit: only probes are answered on it."""

SAFE = {"X-Content-Type-Options": "nosniff"}
"""What every reply says to browsers: its type is meant."""

OPEN = ("/livez", "/readyz", "/startupz")
"""The paths that need no key, and those below `OIP_OPEN`."""

OIP_OPEN = "/v2/health/"

_ENDING = ("draining", "stopping", "lost")


class Envelope:
    """Wraps the app so that every reply, also one that the framework or a bug made, has our headers and shape."""

    def __init__(self, app: ASGIApp, tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> None:
        self._app, self._tokenizer, self._metrics, self._keys = app, tokenizer, metrics, keys
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (the ASGI entry)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        exchange, claim = Exchange.begin(door_of(path), headers.get("x-request-id")), Claim(self._tokenizer.bodies)
        exchange.method = method_of(path)
        exchange.trace(self._metrics, headers)
        state = scope.setdefault("state", {})
        state["exchange"], state["claim"] = exchange, claim
        wire = Wire(scope, receive, send, lambda reply: self._dress(reply, exchange))
        # The server sends no body in answer to HEAD; for the app it is a GET.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            caller = state["caller"] = self._admit(path, headers, surplus=SURPLUS in state)
            exchange.caller = caller.name
            with nullcontext() if caller.requests is None or not exchange.method else caller.requests.held(1):
                await self._app(asked, wire.receive, wire.send)
        except asyncio.CancelledError:
            exchange.outcome = "cancelled"
            if not wire.departed or wire.uncancelled() > 0:  # somebody else's cancellation goes on
                raise
        except Exception as error:
            exchange.outcome = "internal"
            if not isinstance(error, ViQError):
                log.exception("request %s failed", exchange.request_id, extra=log_fields(exchange))
            if not wire.started:
                await error_response(error, exchange)(asked, wire.receive, wire.send)
        finally:
            wire.close()
            claim.release()
            exchange.close(self._metrics)

    def headers(self, exchange: Exchange) -> dict[str, str]:
        """What every reply carries: request id, and the fingerprint once a model is loaded."""
        loaded = self._tokenizer.models()
        model = exchange.model or (loaded[0] if loaded else None)
        fingerprint = {} if model is None else {"ViQ-Fingerprint": model.fingerprint}
        return {"X-Request-ID": exchange.request_id, **SAFE, **fingerprint}

    def _dress(self, reply: MutableHeaders, exchange: Exchange) -> None:
        for name, value in self.headers(exchange).items():
            reply.setdefault(name, value)
        if self._tokenizer.state in _ENDING:  # so that the client's next request goes to another replica
            reply["Connection"] = "close"
        if "etag" not in reply:
            reply.setdefault("Cache-Control", "no-store")
        else:  # to be asked for again each time, and with keys on by its owner alone
            reply.setdefault("Cache-Control", "private, no-cache" if self._keys.on else "no-cache")

    def _admit(self, path: str, headers: Headers, *, surplus: bool) -> Caller:
        """Who asks; who may not is refused before a byte of the body is read. Probes may always."""
        if path in OPEN or path.startswith(OIP_OPEN):
            return ANYBODY
        if self._tokenizer.state == "stopping":
            raise NotReady("the service is stopping")
        if surplus:
            raise NotReady(f"{self.settings.max_connections} connections are open, which is the limit")
        if self.settings.page and is_page(path):
            return ANYBODY
        return self._keys.check(headers.get("authorization"))
