"""Addresses of servers: what a user writes, and the replicas behind a name."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from viq.errors import InvalidInput

_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_FORMS = "http://host:port, https://host:port or, for gRPC, host:port"


@dataclass(frozen=True)
class Tls:
    """How servers are known, and how they know us; all are paths of PEM files. Without `ca`: the system's roots."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """The same for HTTP."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context

    def files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Contents of `ca`, `key` and `cert`."""
        ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        return ca, key, cert


@dataclass(frozen=True)
class Target:
    """One address as it was given: `url` of an HTTP server, or `host` and `port` of a gRPC one."""

    kind: Literal["http", "grpc"]
    text: str
    host: str = ""
    port: int = 0

    @property
    def authority(self) -> str:
        """What the server is called by those who ask it."""
        return urlsplit(self.text).netloc if self.kind == "http" else self.text

    async def replicas(self) -> list[str] | None:
        """Addresses of all replicas behind the name, in order. Empty if there are none, None if nobody knows now.

        For HTTP that is the URL itself, unless there are several of one kind behind its name.
        """
        if not self.host or (self.kind == "http" and (_proxied(self.text, self.host) or "@" in self.authority)):
            return [self.text]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            return [] if error.errno in _NO_SUCH_NAME else None
        except (OSError, UnicodeError):
            return []
        hosts = {f"[{where[0]}]" if family == socket.AF_INET6 else str(where[0]): family for family, *_, where in found}
        if self.kind == "grpc":
            return [f"{'ipv6' if host.startswith('[') else 'ipv4'}:{host}:{self.port}" for host in sorted(hosts)]
        # One address of each kind is one server; httpx finds out which of the two it listens on.
        preferred = [host for host, family in hosts.items() if family == found[0][0]]
        parts = urlsplit(self.text)
        urls = [parts._replace(netloc=f"{host}:{self.port}").geturl() for host in sorted(preferred)]
        return urls if len(urls) > 1 else [self.text]


def targets_of(server: str | Sequence[str]) -> list[Target]:
    """What `server` names: one address, several with commas between, or a list. Raises `InvalidInput` for none."""
    texts = server.split(",") if isinstance(server, str) else list(server)
    targets = [_target(text.strip()) for text in texts]
    if not targets or len({target.kind for target in targets}) > 1:
        raise InvalidInput(f"servers {server!r}, expected addresses of one kind: {_FORMS}")
    return targets


def tls_of(tls: Tls | str | bool | None) -> Tls | None:
    """What a user says of TLS: nothing, yes, a file of certificate authorities, or all of it."""
    if isinstance(tls, str):
        return Tls(ca=tls)
    if isinstance(tls, Tls):
        return tls
    return Tls() if tls else None


def _target(text: str) -> Target:
    if text.startswith("unix:"):
        return Target("grpc", text)
    bare = "://" not in text
    try:
        parts = urlsplit(f"grpc://{text}" if bare else text)
        port = parts.port
    except ValueError:
        raise InvalidInput(f"server {text!r}, expected {_FORMS}") from None
    if parts.scheme in ("http", "https") and parts.hostname:
        return Target("http", text.rstrip("/"), parts.hostname, port or (443 if parts.scheme == "https" else 80))
    if parts.scheme in ("grpc", "dns") and (parts.hostname or parts.path) and not parts.username:
        host, port = (parts.hostname, port) if parts.hostname else _after_slash(parts.path)
        if host and port:
            return Target("grpc", f"{host}:{port}", host, port)
    raise InvalidInput(f"server {text!r}, expected {_FORMS}")


def _proxied(url: str, host: str) -> bool:
    """Whether the environment has a proxy for it, which is to be told the name."""
    proxies = getproxies()
    scheme = urlsplit(url).scheme
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)


def _after_slash(path: str) -> tuple[str, int]:
    """Of dns:///host:port."""
    host, _, port = path.lstrip("/").rpartition(":")
    return host, int(port) if port.isdigit() else 0
