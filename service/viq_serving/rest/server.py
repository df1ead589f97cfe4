"""uvicorn, without its own ideas about signals and error pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from viq_serving.errors import Malformed
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.errors import error_body
from viq_serving.rest.exchange import Exchange


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone: uvicorn raises them again after serving, so no drain survives."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def create_server(app: Envelope) -> Server:
    """A server for `app`; give it a bound socket to serve on. Ends when its `should_exit` is set."""

    class Protocol(HttpToolsProtocol):
        """HTTP/1.1 whose answer to what is no HTTP has the shape of all our errors."""

        def send_400_response(self, msg: str) -> None:
            exchange = Exchange.begin()
            body = json.dumps(error_body(Malformed(msg), exchange)).encode()
            headers = {
                **app.headers(exchange),
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{lines}\r\n".encode("latin-1") + body)
            self.transport.close()

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return Server(config)
