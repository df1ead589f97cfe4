"""uvicorn, without its own ideas about signals and error pages."""

from __future__ import annotations

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


def create_server(app: Envelope) -> Server:
    """A server for `app`; give it a bound socket to serve on. Ends when its `should_exit` is set."""
    return server_of(app, app.settings.max_connections, app.settings.keep_alive_s)


def server_of(app: ASGIApp, max_connections: int, keep_alive_s: float) -> Server:
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
    return Server(config)
