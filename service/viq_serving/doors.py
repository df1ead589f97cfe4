"""The doors of a service on their ports: HTTP, gRPC and, if asked for, metrics by themselves."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.metrics_app import create_metrics_server
from viq_serving.rest.server import Server
from viq_serving.rest.server import create_server as create_http_server
from viq_serving.rpc.server import create_server as create_grpc_server
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer


class CannotListen(Exception):
    """A port cannot be had; the message names it."""


@dataclass(frozen=True)
class Addresses:
    """Where a service listens, as `host:port`; `metrics` only if it has a port of its own."""

    http: str
    grpc: str
    metrics: str | None = None


class Doors:
    """All servers of a process, on one event loop."""

    def __init__(self, tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> None:
        self._settings = settings
        self._http = create_http_server(create_app(tokenizer, metrics, settings, keys))
        self._grpc = create_grpc_server(tokenizer, metrics, settings, keys)
        self._metrics = None if settings.metrics_port is None else create_metrics_server(metrics)
        self._serving: dict[Server, asyncio.Task[None]] = {}

    async def open(self) -> Addresses:
        """Listen on every port; raises `CannotListen`."""
        settings = self._settings
        with ExitStack() as listening:  # all or none
            http = listening.enter_context(_listen(settings.host, settings.http_port))
            metrics = None
            if self._metrics is not None and settings.metrics_port is not None:
                metrics = listening.enter_context(_listen(settings.host, settings.metrics_port))
            try:
                grpc_port = self._grpc.add_insecure_port(_at(settings.host, settings.grpc_port))
            except RuntimeError as error:
                raise CannotListen(f"cannot listen on {settings.host} port {settings.grpc_port}: {error}") from None
            await self._grpc.start()
            listening.pop_all()
        self._serving[self._http] = asyncio.create_task(self._http.serve([http]))
        if self._metrics is not None and metrics is not None:
            self._serving[self._metrics] = asyncio.create_task(self._metrics.serve([metrics]))
        name = http.getsockname()[0]
        return Addresses(_of(http), _at(name, grpc_port), None if metrics is None else _of(metrics))

    async def close(self, grace_s: float) -> None:
        """Take no new requests, let those under way finish for at most `grace_s` seconds, and stop listening."""
        await asyncio.gather(self._grpc.stop(grace_s), *(self._finish(server, grace_s) for server in self._serving))

    async def _finish(self, server: Server, grace_s: float) -> None:
        server.should_exit = True
        _, late = await asyncio.wait([self._serving[server]], timeout=grace_s)
        if late:
            server.force_exit = True
            await asyncio.wait(late)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; connections wait in it until the server takes them."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)  # asyncio sends at once only where it is told: TCP
    except (OSError, UnicodeError) as error:  # the latter for what can be no host name
        raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None
    listener.setblocking(False)
    return listener


def _of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return _at(host, port)


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
