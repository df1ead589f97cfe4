"""The port that serves metrics alone."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from viq_serving.metrics import Metrics
from viq_serving.rest.metrics_app import create_metrics_server


@pytest.fixture(scope="module")
def scraper() -> Iterator[httpx.Client]:
    """A client of a running metrics server."""
    ready: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue()

    async def live() -> None:
        server = create_metrics_server(Metrics("1.2.3"))
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready.put((url, lambda: setattr(server, "should_exit", True)))
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(live()), name="server")
    thread.start()
    url, stop = ready.get(timeout=60)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        stop()
        thread.join(60)


def test_metrics_are_served_without_a_key(scraper: httpx.Client) -> None:
    reply = scraper.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'viq_build_info{python="3' in reply.text
    assert 'version="1.2.3"' in reply.text
    assert reply.headers["Cache-Control"] == "no-store"


def test_head_is_answered_without_the_body(scraper: httpx.Client) -> None:
    reply = scraper.head("/metrics")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "/livez", "/docs", "/v1/encode", "/v2/models/viq-encode", "/v1/models"]
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_nothing_else_is_served(scraper: httpx.Client, verb: str, path: str) -> None:
    reply = scraper.request(verb, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert reply.json()["error"]["request_id"] == reply.headers["X-Request-ID"]


@pytest.mark.parametrize("verb", ["POST", "DELETE", "OPTIONS"])
def test_metrics_are_only_read(scraper: httpx.Client, verb: str) -> None:
    reply = scraper.request(verb, "/metrics", content=b"x")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == "GET, HEAD"


def test_what_is_no_http_is_400(scraper: httpx.Client) -> None:
    with socket.create_connection((scraper.base_url.host, scraper.base_url.port or 0), timeout=20) as wire:
        wire.sendall(b"this is no http\r\n\r\n")
        assert b"".join(iter(lambda: wire.recv(65536), b"")).startswith(b"HTTP/1.1 400 ")
