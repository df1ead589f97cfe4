"""What a caller asks in headers of how it is answered."""

from __future__ import annotations

import math
from time import monotonic
from typing import cast, get_args

from starlette.requests import Request

from viq_serving.errors import InvalidInput
from viq_serving.rest.exchange import exchange_of
from viq_serving.types import Priority, Terms

TIMEOUT, PRIORITY, EXPECT = "ViQ-Timeout-Ms", "ViQ-Priority", "ViQ-Expect-Fingerprint"

_MAX_DIGITS = 12


def terms_of(request: Request) -> Terms:
    """The terms of `request`, noted on its exchange; time counts from its arrival, that of its body included.

    Raises `InvalidInput` for headers that say nothing sensible.
    """
    known: Terms | None = getattr(request.state, "terms", None)
    if known is not None:
        return known
    exchange = exchange_of(request)
    exchange.priority = _priority(request.headers.get(PRIORITY))
    left_s = _timeout_s(request.headers.get(TIMEOUT)) - exchange.seconds()
    terms = Terms(monotonic() + left_s, exchange.priority, exchange.request_id)
    request.state.terms = terms
    return terms


def _timeout_s(header: str | None) -> float:
    if header is None:
        return math.inf
    if not (header.isascii() and header.isdigit() and len(header) <= _MAX_DIGITS and int(header) > 0):
        raise InvalidInput(f"{TIMEOUT} is {header!r}, expected a whole number of milliseconds from 1 on")
    return int(header) / 1000


def _priority(header: str | None) -> Priority:
    name = "interactive" if header is None else header.strip().lower()
    if name not in get_args(Priority):
        raise InvalidInput(f"{PRIORITY} is {header!r}; there are {' and '.join(get_args(Priority))}")
    return cast(Priority, name)
