"""The way to one replica over HTTP: a request an item, several at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from viq.codes import Codes
from viq.errors import ViQError
from viq.pixels import to_rgb
from viq_serving.client.calls import Again, Ask
from viq_serving.client.errors import UNREACHABLE, ServerError, error_of
from viq_serving.client.http import array_of, json_of, opened_png, query_of
from viq_serving.client.targets import Tls

_NPZ, _NPY, _PNG, _BYTES = "application/x-npz", "application/x-npy", "image/png", "application/octet-stream"
_OF_A_PROXY = (502, 504)  # where they are not the service's own: what it stands before did not answer
_QUESTION_S = 30.0
_CONNECT_S = 10.0  # where packets are lost the system itself tries for minutes

T = TypeVar("T")


class HttpLane:
    """One server at a URL; where that has an address in place of a name, `host` is the name and port."""

    def __init__(self, url: str, tls: Tls | None, headers: Mapping[str, str], connections: int, host: str = "") -> None:
        self.url = url
        self._named: dict[str, Any] = {}
        if host:
            headers = {**headers, "host": host}
            self._named = {"extensions": {"sni_hostname": urlsplit(f"//{host}").hostname}}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            verify = tls.context() if tls is not None else True
            self._http = httpx.AsyncClient(base_url=url, headers=dict(headers), limits=limits, verify=verify)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ServerError(UNREACHABLE, f"the proxy that the environment names cannot be used: {error}") from None

    async def ask(self, ask: Ask, given: bytes | Codes, timeout_s: float) -> Any:
        """The answer for one item."""
        coded = isinstance(given, Codes)
        body, kind = (given.npz_bytes(), _NPZ) if isinstance(given, Codes) else (given, _BYTES)
        query = query_of(
            size=ask.size,
            exif=ask.exif or coded,
            alpha="white" if coded else ask.alpha,
            any_fingerprint=ask.any_fingerprint and coded,
        )
        if ask.method == "decode":
            query.pop("size", None)  # codes name theirs
        if ask.dtype != "float32":
            query["dtype"] = ask.dtype
        accept = {"encode": _NPZ, "embed": _NPY, "decode": _PNG}[ask.method]
        headers = {"content-type": kind, "accept": accept, "viq-timeout-ms": str(max(1, int(1000 * timeout_s)))}
        reply = await self._send("POST", f"/v1/{ask.method}", timeout_s, content=body, headers=headers, params=query)
        if ask.method == "encode":
            return self._read(Codes.from_npz, reply)
        if ask.method == "embed":
            return self._read(array_of, reply)
        return self._read(lambda data: to_rgb(opened_png(data)), reply)

    async def models(self) -> list[dict[str, Any]]:
        """As `GET /v1/models` describes them."""
        return self._rows(await self._send("GET", "/v1/models", _QUESTION_S), "models")

    async def plan(self, sizes: Sequence[tuple[int, int]], size: str | None) -> list[dict[str, Any]]:
        """As `POST /v1/plan` answers."""
        request = {"images": [{"width": w, "height": h} for w, h in sizes], **({"size": size} if size else {})}
        return self._rows(await self._send("POST", "/v1/plan", _QUESTION_S, json=request), "results")

    @staticmethod
    def _rows(reply: httpx.Response, key: str) -> list[dict[str, Any]]:
        body = json_of(reply)
        rows = body.get(key) if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise error_of(body, reply.status_code)
        return rows

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    def _read(self, form: Callable[[bytes], T], reply: httpx.Response) -> T:
        try:
            return form(reply.content)
        except (ViQError, OSError) as error:  # no fault of the item's
            raise ServerError(UNREACHABLE, f"the answer of {self.url} is none of a ViQ service: {error}") from None

    async def _send(self, method: str, path: str, timeout_s: float, **request: Any) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
        try:
            reply = await self._http.request(method, path, timeout=timeout, **self._named, **request)
        except (httpx.RequestError, httpx.InvalidURL, OSError) as error:  # an OSError: TLS that ends while we read
            reason = str(error) or type(error).__name__
            raise Again(ServerError(UNREACHABLE, f"no answer from {self.url}: {reason}")) from None
        if reply.status_code == 200:
            return reply
        error_ = error_of(json_of(reply), reply.status_code)
        if reply.status_code == 503 or (reply.status_code in _OF_A_PROXY and error_.code == UNREACHABLE):
            raise Again(error_)
        hint_s = _hint_s(reply.headers)
        if reply.status_code == 429 and hint_s is not None:
            raise Again(error_, hint_s)
        raise error_


def _hint_s(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if headers.get(name, "").isdigit():
            return int(headers[name]) * unit
    return None
