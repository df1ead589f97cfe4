"""/metrics on a port of its own, which needs no key and serves nothing else."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from viq_serving.errors import MethodNotAllowed, NotFound
from viq_serving.exchange import Exchange
from viq_serving.metrics import CONTENT_TYPE, Metrics
from viq_serving.rest.envelope import SAFE
from viq_serving.rest.errors import error_response
from viq_serving.rest.server import Server, server_of
from viq_serving.rest.wire import Wire

_MAX_CONNECTIONS, _KEEP_ALIVE_S = 64, 120.0  # scrapers come once a minute or so and keep their connection


def create_metrics_server(metrics: Metrics) -> Server:
    """A server of `metrics` alone; give it a bound socket to serve on. Ends when its `should_exit` is set."""
    return server_of(_app(metrics), _MAX_CONNECTIONS, _KEEP_ALIVE_S)


def _app(metrics: Metrics) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.begin("http")

        def dress(headers: MutableHeaders) -> None:
            headers.update({"X-Request-ID": exchange.request_id, "Cache-Control": "no-store", **SAFE})

        wire = Wire(scope, receive, send, dress)
        await _reply(scope, exchange, metrics)(scope, wire.receive, wire.send)

    return app


def _reply(scope: Scope, exchange: Exchange, metrics: Metrics) -> Response:
    path, verb = scope["path"], scope["method"]
    if path != "/metrics":
        return error_response(NotFound(f"no such path: {path}; there is /metrics"), exchange)
    if verb not in ("GET", "HEAD"):
        return error_response(MethodNotAllowed(f"{verb} is not for {path}"), exchange, {"Allow": "GET, HEAD"})
    return Response(metrics.text(), media_type=CONTENT_TYPE)
