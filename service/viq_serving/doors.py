"""The doors of a service on their ports: HTTP, gRPC and, if asked for, metrics by themselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

import grpc

from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.metrics_app import create_metrics_server
from viq_serving.rest.server import Server
from viq_serving.rest.server import create_server as create_http_server
from viq_serving.rpc.server import create_server as create_grpc_server
from viq_serving.settings import Settings
from viq_serving.sockets import CannotListen, UnixPath, listen, name_at, name_of, refuse_connections, reserve
from viq_serving.tls import Certificates, Identity
from viq_serving.tokenizer import Tokenizer


@dataclass(frozen=True)
class Addresses:
    """Where a service listens: ports as `host:port`, empty if there is only a Unix socket, and paths of sockets."""

    http: str
    grpc: str
    metrics: str | None = None
    http_uds: str | None = None
    grpc_uds: str | None = None
    tls: bool = False

    def lines(self) -> Iterator[str]:
        """What to tell whoever has started the service: HTTP, gRPC, then what else there is."""
        web, secured = ("https", " with TLS") if self.tls else ("http", "")
        ports = [f"{web}://{self.http}"] if self.http else []
        yield from (f"viq serves at {place}" for place in ports or _unix(self.http_uds))
        ports = [self.grpc] if self.grpc else []
        yield from (f"viq serves gRPC{secured} at {place}" for place in ports)
        yield from (f"viq serves gRPC at {place}" for place in _unix(None if ports else self.grpc_uds))
        if self.metrics is not None:
            yield f"viq serves metrics at http://{self.metrics}/metrics"
        yield from (f"viq serves also at {place}" for place in _unix(self.http_uds if self.http else None))
        yield from (f"viq serves gRPC also at {place}" for place in _unix(self.grpc_uds if self.grpc else None))


class Doors:
    """All servers of a process, on one event loop. With `certificates` the ports for HTTP and gRPC speak TLS only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        metrics: Metrics,
        settings: Settings,
        keys: Keys,
        certificates: Certificates | None = None,
    ) -> None:
        self._settings, self._certificates = settings, certificates
        app = create_app(tokenizer, metrics, settings, keys)
        self._http = create_http_server(
            app, None if certificates is None else certificates.context(settings.max_connections)
        )
        self._http_unix = create_http_server(app)  # whose rights are those of its path: plaintext
        self._grpc = create_grpc_server(tokenizer, metrics, settings, keys)
        self._metrics = create_metrics_server(metrics)
        self._serving: dict[Server, asyncio.Task[None]] = {}
        self._paths: list[UnixPath] = []
        self._grpc_port: int | None = settings.grpc_port
        self._reserved: socket.socket | None = None

    async def open(self) -> Addresses:
        """Listen on every port and at every path, but for gRPC if that is for later; raises `CannotListen`."""
        settings, encrypted = self._settings, self._certificates is not None
        with self._all_or_none() as listening:
            http = self._listen(listening, self._http, settings.http_port, encrypted=encrypted)
            metrics = self._listen(listening, self._metrics, settings.metrics_port)
            if settings.http_uds is not None:
                path = self._path(settings.http_uds)
                listening[self._http_unix] = path.listen()
            grpc_host = settings.host if http is None else http.getsockname()[0]
            if not settings.grpc_when_loaded:
                await self._listen_for_grpc()
            elif settings.grpc_port is not None:
                self._reserved = reserve(settings.host, settings.grpc_port)
                self._grpc_port = int(self._reserved.getsockname()[1])
            self._serving = {one: asyncio.create_task(one.serve([at])) for one, at in listening.items()}
        return Addresses(
            "" if http is None else name_of(http),
            "" if self._grpc_port is None else name_at(grpc_host, self._grpc_port),
            None if metrics is None else name_of(metrics),
            settings.http_uds,
            settings.grpc_uds,
            encrypted,
        )

    async def loaded(self) -> None:
        """Listen for gRPC, if that was for now; raises `CannotListen`."""
        if self._settings.grpc_when_loaded:
            await self._listen_for_grpc()

    def refuse_grpc(self) -> None:
        """Refuse new connections for gRPC, while calls on those that are open are answered as before.

        A proxy that opens one for each call then loses none: what it cannot connect for it asks another server.
        HTTP needs no such thing, as every reply says that its connection ends.
        """
        if self._grpc_port is not None:
            refuse_connections(self._grpc_port)

    async def close(self, grace_s: float) -> None:
        """Take no new requests, let those under way finish for at most `grace_s` seconds, and stop listening."""
        await asyncio.gather(self._grpc.stop(grace_s), *(self._finish(server, grace_s) for server in self._serving))
        if self._reserved is not None:
            self._reserved.close()
        for path in self._paths:
            path.remove()

    async def _finish(self, server: Server, grace_s: float) -> None:
        server.should_exit = True
        _, late = await asyncio.wait([self._serving[server]], timeout=grace_s)
        if late:
            server.force_exit = True
            await asyncio.wait(late)

    @contextmanager
    def _all_or_none(self) -> Iterator[dict[Server, socket.socket]]:
        listening: dict[Server, socket.socket] = {}
        with ExitStack() as undo:
            undo.callback(_close, listening)
            yield listening
            undo.pop_all()

    def _listen(
        self, listening: dict[Server, socket.socket], server: Server, port: int | None, *, encrypted: bool = False
    ) -> socket.socket | None:
        if port is None:
            return None
        listening[server] = listen(self._settings.host, port, encrypted=encrypted)
        return listening[server]

    def _path(self, path: str) -> UnixPath:
        self._paths.append(UnixPath(path, self._settings.uds_mode))
        return self._paths[-1]

    async def _listen_for_grpc(self) -> None:
        settings = self._settings
        if self._grpc_port is not None:
            self._grpc_port = self._add_grpc_port(settings.host, self._grpc_port)
        if settings.grpc_uds is not None:
            with self._path(settings.grpc_uds).taken():
                self._grpc.add_insecure_port(f"unix:{quote(settings.grpc_uds)}")
        await self._grpc.start()

    def _add_grpc_port(self, host: str, port: int) -> int:
        try:
            if self._certificates is None:
                return self._grpc.add_insecure_port(name_at(host, port))
            return self._grpc.add_secure_port(name_at(host, port), _credentials(self._certificates))
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None


def _close(listening: Mapping[Server, socket.socket]) -> None:
    for listener in listening.values():
        listener.close()


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials that change with `certificates`; gRPC asks before each handshake, on a thread of its own."""
    served = certificates.current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        now = certificates.current()
        if now is served:
            return None
        served = now
        return _configuration(now)

    made, mutual = _configuration(served), certificates.mutual
    return grpc.dynamic_ssl_server_credentials(made, renewed, mutual)  # type: ignore[arg-type]  # None: no change


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.cert)], identity.client_ca)


def _unix(path: str | None) -> list[str]:
    return [] if path is None else [f"unix:{path}"]
