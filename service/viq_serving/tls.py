"""Who the server says it is: its certificate and key, read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import cast
from weakref import WeakSet

from viq_serving.errors import SettingsError

log = logging.getLogger("viq.tls")

_LOOK_EVERY_S = 1.0
_MAX_FILE_BYTES = 2**20
_REASONS = {
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
}


@dataclass(frozen=True)
class Identity:
    """What was in the files at one time, all of which fits together; `context` is made of it, for HTTP."""

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    context: ssl.SSLContext = field(repr=False, compare=False)


class _Unusable(Exception):
    """Files that no server can speak TLS with; the message says why, and nothing of what they hold."""


class _Changing(Exception):
    """Files that are being written: they will be looked at again."""


class Certificates:
    """The certificate, its key and, if clients have to show certificates, the roots of those.

    Each new connection is made with what the files hold, at most a second late; connections that there are go on.
    Files that cannot be used leave what was. Raises `SettingsError` if they cannot be used to begin with.
    """

    def __init__(
        self, cert: str, key: str, client_ca: str | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._cert, self._key, self._client_ca, self._clock = cert, key, client_ca, clock
        self._lock, self._problem = threading.Lock(), ""
        self._next_look = clock() + _LOOK_EVERY_S
        try:
            self._identity = self._load(self._read())
        except (_Unusable, _Changing) as error:
            raise SettingsError(f"TLS cannot be used: {error}") from None

    @property
    def mutual(self) -> bool:
        """Whether clients have to show a certificate."""
        return self._client_ca is not None

    def current(self) -> Identity:
        """What new connections are made with; from any thread."""
        with self._lock:
            if self._clock() >= self._next_look:
                self._next_look = self._clock() + _LOOK_EVERY_S
                self._look()
            return self._identity

    def context(self, max_handshakes: int) -> ssl.SSLContext:
        """A context for a server that is given but one: every connection of it is made with what is current.

        While so many handshakes are under way further connections are hung up on.
        """
        return _Current(self, max_handshakes)

    def _look(self) -> None:
        """Take the files' new content; the last good one stays if it cannot be used."""
        try:
            files = self._read()
            now = self._identity
            if files != (now.cert, now.key, now.client_ca):
                self._identity = self._load(files)
                log.info("certificate read again from %s", self._cert)
            problem = ""
        except _Changing:
            return
        except _Unusable as error:
            problem = str(error)
        if problem and problem != self._problem:
            log.error("the certificate stays as it was, the new one cannot be used: %s", problem)
        self._problem = problem

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        client_ca = None if self._client_ca is None else _content(self._client_ca)
        return _content(self._cert), _content(self._key), client_ca

    def _load(self, files: tuple[bytes, bytes, bytes | None]) -> Identity:
        """What `files`, just read, come to; raises `_Changing` if that may be half an old pair and half a new one."""
        problem, context = None, None
        try:
            context = self._context(files[1])
        except _Unusable as error:
            problem = error
        if self._read() != files:
            raise _Changing("its files are being written")
        if problem is not None or context is None:
            raise problem or _Unusable("there is no context")
        return Identity(*files, context)

    def _context(self, key: bytes) -> ssl.SSLContext:
        if b"ENCRYPTED" in key:  # else OpenSSL asks for the passphrase on the terminal
            raise _Unusable(f"{self._key} needs a passphrase")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sslobject_class = _Side
        try:
            context.load_cert_chain(self._cert, self._key)
        except (ssl.SSLError, OSError) as error:
            raise _Unusable(f"{self._cert} with {self._key}: {_reason(error)}") from None
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                raise _Unusable(f"{self._client_ca}: {_reason(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Current(ssl.SSLContext):
    """Stands for the current context. A listener keeps the one it was opened with, so this hands connections on.

    The server counts connections from the end of their handshake on, so those before it are counted here.
    """

    def __new__(cls, certificates: Certificates, max_handshakes: int) -> _Current:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificates: Certificates, max_handshakes: int) -> None:
        self._certificates, self._max_handshakes = certificates, max_handshakes
        self._handshakes: WeakSet[_Side] = WeakSet()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """The server's side of a new connection."""
        context = self._certificates.current().context
        side = cast(_Side, context.wrap_bio(incoming, outgoing, server_side, server_hostname, session))
        side.outgoing, side.handshakes = outgoing, self._handshakes
        side.surplus = len(self._handshakes) >= self._max_handshakes
        if not side.surplus:
            self._handshakes.add(side)
        return side


class _Side(ssl.SSLObject):
    """The server's side of one connection: one of `handshakes` until its own is over, unless that is one too many."""

    outgoing: ssl.MemoryBIO
    handshakes: WeakSet[_Side]
    surplus: bool
    failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Say why a handshake fails, in the log and to the client.

        The transport would hang up before the alert is sent. So it is told to wait for more from the client first,
        who then leaves, or is hung up on for whatever else it sends.
        """
        if self.surplus:
            raise ssl.SSLError("too many handshakes are under way")
        if self.failure is not None:
            self.handshakes.discard(self)
            raise self.failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.info("TLS handshake refused: %s", _reason(error))
            if not self.outgoing.pending:
                self.handshakes.discard(self)
                raise
            self.failure = error.with_traceback(None)
            raise ssl.SSLWantReadError("the alert goes first") from None
        self.handshakes.discard(self)

    def unwrap(self) -> None:
        """Say goodbye, and do not wait for the client to: one that is idle would hold up the server's end for 30 s.

        RFC 8446, 6.1, lets either side close without having heard it.
        """
        with suppress(ssl.SSLWantReadError):
            super().unwrap()


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _Unusable(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise _Unusable(f"{path} has more than {_MAX_FILE_BYTES} bytes")
    return data


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or type(error).__name__
    if error.reason is None:  # OpenSSL's "PEM lib"
        return "one of them is in no PEM form"
    return _REASONS.get(error.reason, error.reason.replace("_", " ").lower())
