"""uvicorn, without its own ideas about signals and error pages."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from viq_serving.rest.connection import Connection
from viq_serving.rest.envelope import Envelope


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone: uvicorn raises them again after serving, so no drain survives."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def create_server(app: Envelope, context: ssl.SSLContext | None = None) -> Server:
    """A server for `app`; give it a bound socket to serve on. Ends when its `should_exit` is set.

    With a `context` it speaks TLS.
    """
    return server_of(app, app.settings.max_connections, app.settings.keep_alive_s, context)


def server_of(app: ASGIApp, max_connections: int, keep_alive_s: float, context: ssl.SSLContext | None = None) -> Server:
    """A server for any app; connections that are idle for `keep_alive_s` seconds are closed."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]  # parts of a second do as well
    )
    config.load()
    config.ssl = context  # uvicorn itself takes files, and none of them twice
    return Server(config)
