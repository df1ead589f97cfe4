"""uvicorn, without its own ideas about signals and error pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

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
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return Server(config)
