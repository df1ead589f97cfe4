"""What a server listens on: ports, and Unix sockets at a path."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BACKLOG = 2048
_UNREAD_MS = 30_000


class CannotListen(Exception):
    """A port or path cannot be had; the message names it."""


def listen(host: str, port: int, *, encrypted: bool = False) -> socket.socket:
    """A socket that listens; connections wait in it until the server takes them. Raises `CannotListen`.

    With `encrypted` the system ends connections whose client reads nothing for 30 s. On others the server sees to
    that itself, but a TLS transport hands all of a reply on at once, and knows nothing more of it.
    """
    listener = reserve(host, port)
    try:
        if encrypted and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None
    listener.setblocking(False)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds a port, which refuses connections until somebody listens there. Raises `CannotListen`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)  # asyncio sends at once only where it is told: TCP
    except (OSError, UnicodeError) as error:  # the latter for what can be no host name
        raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host} port {port}: {error}") from None
    return listener


def refuse_connections(port: int) -> None:
    """Let whatever of this process listens on TCP `port` refuse connections from now on; those it has go on.

    For gRPC, whose servers close their port only together with their connections. Does nothing but on Linux.
    """
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        with suppress(OSError):  # one of them is gone by now
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                _refuse_on(descriptor, port)


def _refuse_on(descriptor: int, port: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as one:  # the same socket: closing this one is not closing that one
        listens = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
        if listens and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and one.getsockname()[1] == port:
            one.shutdown(socket.SHUT_RDWR)


def name_of(listener: socket.socket) -> str:
    """Where `listener` listens, as `host:port`."""
    host, port = listener.getsockname()[:2]
    return name_at(host, port)


def name_at(host: str, port: int) -> str:
    """`host:port`, of an IPv6 address too."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class UnixPath:
    """A path at which one server listens, with permissions of `mode`, as in "0660"."""

    def __init__(self, path: str, mode: str) -> None:
        self._path, self._mode = Path(path), int(mode, 8)
        self._ours: tuple[int, int, int] | None = None

    def listen(self) -> socket.socket:
        """A socket that listens there; raises `CannotListen`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self.taken():
                listener.bind(str(self._path))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the path free for the body of the `with` statement, which makes a socket there.

        Nobody without the right to can connect at any moment. Raises `CannotListen`, also for an error of the body.
        """
        before = None
        try:
            self._clear()
            before = os.umask(0o777 & ~self._mode)
            yield
            self._path.chmod(self._mode)
            about = self._path.lstat()
        except (OSError, RuntimeError) as error:  # the latter is gRPC's
            raise CannotListen(f"cannot listen on {self._path}: {_told(error)}") from None
        finally:
            if before is not None:
                os.umask(before)
        self._ours = _identity(about)

    def remove(self) -> None:
        """Take the socket away, unless another server has put its own there by now."""
        with suppress(OSError):
            about = self._path.lstat()
            if self._ours == _identity(about):
                self._path.unlink()

    def _clear(self) -> None:
        """Remove what a server left behind that ended without its farewell; raises `OSError` for anything else."""
        try:
            about = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(about.st_mode):
            raise OSError("there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)  # with a full backlog somebody listens, too
            try:
                caller.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except BlockingIOError:
                pass
        raise OSError("somebody listens there")


def _identity(about: os.stat_result) -> tuple[int, int, int]:
    """What tells sockets at one path apart; a number alone is soon used again."""
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _told(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
