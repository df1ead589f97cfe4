"""Whether the server in this container is ready, for engines without probes of their own: exit code 0, else 1.

It reads the same environment as the server. With --tls-client-ca it is not let in: switch it off then.
"""

import os
import ssl
import sys
import urllib.request

secure = bool(os.environ.get("VIQ_TLS_CERT"))
port = os.environ.get("VIQ_HTTP_PORT") or "8000"
unverified = ssl.create_default_context()
unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE  # the name in it is not this address
try:
    url = f"{'https' if secure else 'http'}://127.0.0.1:{port}/readyz"
    with urllib.request.urlopen(url, timeout=4, context=unverified if secure else None):  # noqa: S310 - our own
        pass
except OSError as error:
    sys.exit(str(error))
