"""Plain HTTP, and the service's own: an image or codes are posted, the answer is bytes or JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from viq.errors import InvalidInput
from viq_serving.bench.doors.door import Answer, Method, Target
from viq_serving.bench.doors.failures import failure, refusal
from viq_serving.bench.doors.http1 import Http, Reply
from viq_serving.bench.doors.payload import Payload

_OCTET, _JSON = "application/octet-stream", "application/json"


class PlainDoor:
    """POST to one address. Anything that takes an image's bytes and answers 200 can be asked so."""

    def __init__(self, target: Target, payload: Payload) -> None:
        """Raises `InvalidInput` if the target has no address."""
        headers = {"Content-Type": payload.media_type, "Accept": _OCTET if target.reply == "octet" else _JSON}
        requests = [(headers, file.data) for file in payload.files]
        self._begin(target, requests, path=None)

    def _begin(self, target: Target, requests: Sequence[tuple[Mapping[str, str], bytes]], path: str | None) -> None:
        if target.url is None:
            raise InvalidInput("this door needs --url")
        self._target, self._http = target, Http(target.url, target.connections, target.tls)
        base = self._http.path.rstrip("/")
        whole = (self._http.path or "/") if path is None else base + path
        self._messages = [self._http.message(whole, {**target.headers, **headers}, body) for headers, body in requests]
        self._sizes = [len(body) for _, body in requests]

    async def open(self) -> None:
        """Nothing: connections are made as requests need them."""

    async def ask(self, index: int) -> Answer:
        """Post request `index`."""
        import asyncio

        try:
            async with asyncio.timeout(self._target.timeout_s):
                reply = await self._http.ask(self._messages[index])
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is counted by its kind
            return failure(error)
        return refusal(reply) if reply.status != 200 else Answer("", len(reply.body), content=reply)

    def codes_of(self, answer: Answer) -> bytes:
        """The body, or what its JSON holds as `codes` or `codes_b64`, at the top or in the first of `results`."""
        reply = answer.content
        if not isinstance(reply, Reply):
            raise ValueError("no answer")
        if "json" not in reply.headers.get("content-type", ""):
            return reply.body
        return _codes_of_json(json.loads(reply.body))

    def sent_bytes(self, index: int) -> int:
        """Bytes of the body of request `index`."""
        return self._sizes[index]

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()


class RestDoor(PlainDoor):
    """The service's own HTTP API."""

    def __init__(self, target: Target, payload: Payload, method: Method) -> None:
        """As `PlainDoor`; `url` is that of the server."""
        accept = {"encode": _OCTET, "embed": "application/x-npy", "decode": "image/png"}[method]
        if method == "encode":
            accept = _OCTET if target.reply == "octet" else _JSON
            headers = {"Content-Type": payload.media_type, "Accept": accept}
            requests = [(headers, file.data) for file in payload.files]
        else:
            requests = [
                (
                    {
                        "Content-Type": _OCTET,
                        "Accept": accept,
                        "ViQ-Grid": "{},{}".format(*one.grid),
                        "ViQ-Image-Size": "{},{}".format(*one.image_size),
                        "ViQ-Size": one.size,
                        "ViQ-Fingerprint": one.fingerprint,
                    },
                    one.to_bytes(),
                )
                for one in payload.codes
            ]
        query = f"?{urlencode({'size': target.size})}" if target.size else ""
        self._begin(target, requests, f"/v1/{method}{query}")


def _codes_of_json(body: Any) -> bytes:
    try:
        held = body if "codes" in body or "codes_b64" in body else body["results"][0]
        if "codes_b64" in held:
            return base64.b64decode(held["codes_b64"], validate=True)
        return np.asarray(held["codes"]).astype("<u2").tobytes()
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the JSON holds no codes: {error!r}") from None
