"""The exchange of a request, where the envelope has put it."""

from __future__ import annotations

from starlette.requests import Request

from viq_serving.exchange import Exchange


def exchange_of(request: Request) -> Exchange:
    """The exchange that the envelope opened for `request`."""
    exchange: Exchange = request.state.exchange
    return exchange
