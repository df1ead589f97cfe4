"""Whether the server in this container is ready, for engines without probes of their own: exit code 0, else 1.

It reads the same environment as the server, and asks its Unix socket where there is one. With --tls-client-ca its port
does not let anybody in without a certificate: give it a socket, too (--http-uds), or switch the health check off.
"""

import http.client
import os
import socket
import ssl
import sys

TIMEOUT_S = 4.0
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address of this machine for "all of them"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the path in place of a port."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def connection() -> http.client.HTTPConnection:
    """The way to the server that this environment describes."""
    if path := os.environ.get("VIQ_HTTP_UDS"):
        return UnixConnection(path)
    host, port = os.environ.get("VIQ_HOST", ""), int(os.environ.get("VIQ_HTTP_PORT") or 8000)
    if not os.environ.get("VIQ_TLS_CERT"):
        return http.client.HTTPConnection(ANY.get(host, host), port, timeout=TIMEOUT_S)
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE  # the name in it is not this address
    return http.client.HTTPSConnection(ANY.get(host, host), port, timeout=TIMEOUT_S, context=unverified)


try:
    way = connection()
    way.request("GET", "/readyz")
    status = way.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(None if status == http.client.OK else f"/readyz answers {status}")
