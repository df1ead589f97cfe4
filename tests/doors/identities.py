"""Certificates made for tests, and the folders that servers read theirs from."""

from __future__ import annotations

import socket
import ssl
import warnings
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.doors.serving import Shown, grpc_channel, web_client

SECONDS = 60.0


class Authority:
    """A root, and what it vouches for, as files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._made, self._folder, self._name = trustme.CA(organization_name=name), folder, name
        self.roots = self.write("roots.pem", self._made.cert_pem.bytes())

    def server(self) -> trustme.LeafCert:
        """A certificate for this machine."""
        return self._made.issue_cert("localhost", "127.0.0.1")

    def client(self, name: str, *, expired: bool = False) -> Shown:
        """What a client of that name goes by; `expired` on the first day of 2001."""
        until = datetime(2001, 1, 1, tzinfo=UTC) if expired else None
        one = self._made.issue_cert(f"{name}.test", not_after=until)
        key = self.write(f"{name}.key", one.private_key_pem.bytes())
        return Shown(self.roots, self.write(f"{name}.pem", chain(one)), key)

    def write(self, name: str, data: bytes) -> Path:
        path = self._folder / f"{self._name}-{name}"
        path.write_bytes(data)
        return path


class Mounted:
    """A folder as Kubernetes mounts a secret: files are links through `..data`, which moves to a new folder whole."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._turn = folder, 0
        folder.mkdir()
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (folder / name).symlink_to(Path("..data") / name)

    @property
    def flags(self) -> list[str]:
        """Those of a server that uses them."""
        return ["--tls-cert", str(self._folder / "tls.crt"), "--tls-key", str(self._folder / "tls.key")]

    @property
    def mutual_flags(self) -> list[str]:
        """Those of a server that wants certificates of its clients, too."""
        return [*self.flags, "--tls-client-ca", str(self._folder / "ca.crt")]

    def put(self, cert: trustme.LeafCert, key: trustme.LeafCert | None = None, roots: bytes = b"") -> None:
        """Mount these; another's `key` is a mistake."""
        self._turn += 1
        new = self._folder / f"..{self._turn}"
        new.mkdir()
        (new / "tls.crt").write_bytes(chain(cert))
        (new / "tls.key").write_bytes((key or cert).private_key_pem.bytes())
        (new / "ca.crt").write_bytes(roots)
        link = self._folder / "..data_tmp"
        link.symlink_to(new.name)
        link.replace(self._folder / "..data")


def chain(one: trustme.LeafCert) -> bytes:
    """The certificate, and those between it and its root, in PEM form."""
    return b"".join(part.bytes() for part in one.cert_chain_pems)


def number_of(cert: trustme.LeafCert) -> str:
    """The serial number, as `greeted` gives it."""
    return str(ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode()))


def greeted(address: str, shows: Shown, *protocols: str, highest: ssl.TLSVersion | None = None) -> ssl.SSLSocket:
    """A connection to `address` whose handshake is over; close it."""
    context = ssl.create_default_context(cafile=str(shows.roots))
    if highest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # old ones are meant
            context.maximum_version = highest
        context.set_ciphers("ALL:@SECLEVEL=0")
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if shows.cert is not None:
        context.load_cert_chain(shows.cert, shows.key)
    host, port = address.removeprefix("https://").split(":")
    wire = socket.create_connection((host, int(port)), timeout=SECONDS)
    try:
        return context.wrap_socket(wire, server_hostname="localhost")
    except BaseException:
        wire.close()
        raise


def over_http(url: str, shows: Shown | None) -> int | str:
    """The status of a reply on a connection of its own, or what went wrong."""
    with web_client(url, shows) as client:
        try:
            return client.get("/livez").status_code
        except httpx.TransportError as error:
            return str(error)


def over_grpc(target: str, shows: Shown | None) -> str:
    """The same for gRPC."""
    with grpc_channel(target, shows) as channel:
        try:
            status = HealthStub(channel).Check(HealthCheckRequest(), timeout=60).status
            return str(HealthCheckResponse.ServingStatus.Name(status))
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
