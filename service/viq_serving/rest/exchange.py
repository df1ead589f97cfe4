"""The exchange of a request, where the envelope has put it, and what its path says of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from viq_serving.exchange import Exchange
from viq_serving.rest.claim import Claim
from viq_serving.types import Caller, Door, Results

T = TypeVar("T")

_NATIVE = {f"/v1/{method}": method for method in ("encode", "decode", "embed", "reconstruct", "plan", "models")}
_INFER = re.compile(r"/v2/models/(?:viq-(encode|embed|decode)|[^/]*)(?:/versions/[^/]*)?/infer")


def exchange_of(request: Request) -> Exchange:
    """The exchange that the envelope opened for `request`."""
    exchange: Exchange = request.state.exchange
    return exchange


def claim_of(request: Request) -> Claim:
    """The bytes that `request` holds, which the envelope gives back."""
    claim: Claim = request.state.claim
    return claim


def caller_of(request: Request) -> Caller:
    """Who asks, as the envelope found out."""
    caller: Caller = request.state.caller
    return caller


async def noted(request: Request, items: int, work: Awaitable[Results[T]]) -> Results[T]:
    """The results of `work` on `items` things; how many, and where the time went, is noted on the exchange."""
    exchange = exchange_of(request)
    exchange.items = items
    results = await work
    exchange.timings = results.timings
    return results


def door_of(path: str) -> Door:
    """Whose protocol a request for `path` speaks, which decides the shape of errors, too."""
    return "oip_http" if path == "/v2" or path.startswith("/v2/") else "http"


def method_of(path: str) -> str:
    """What a request for `path` counts as, also if it is refused before any handler: empty if it is no work."""
    if path.startswith("/v1/"):
        return _NATIVE.get(path, "unknown")
    found = _INFER.fullmatch(path)
    return "" if found is None else found[1] or "unknown"
