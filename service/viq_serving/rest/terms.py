"""What a caller asks in headers of how it is answered."""

from __future__ import annotations

import math
from time import monotonic
from typing import cast, get_args

from starlette.requests import Request

from viq_serving.errors import InvalidInput
from viq_serving.rest.exchange import caller_of, exchange_of
from viq_serving.types import Priority, Terms

TIMEOUT, PRIORITY, EXPECT = "ViQ-Timeout-Ms", "ViQ-Priority", "ViQ-Expect-Fingerprint"

_MAX_DIGITS = 12


def terms_of(request: Request) -> Terms:
    """The terms of `request`, noted on its exchange; time counts from its arrival, that of its body included.

    Raises `InvalidInput` for headers that say nothing sensible, `Forbidden` for a lane that is not the caller's.
    """
    known: Terms | None = getattr(request.state, "terms", None)
    if known is not None:
        return known
    exchange, caller = exchange_of(request), caller_of(request)
    asked = _priority(request.headers.get(PRIORITY))
    exchange.priority = asked or exchange.priority  # what was asked is counted also where it is refused
    exchange.priority = caller.lane(asked)
    left_s = _timeout_s(request.headers.get(TIMEOUT)) - exchange.seconds()
    terms = Terms(monotonic() + left_s, exchange.priority, exchange.request_id, caller=caller)
    request.state.terms = terms
    return terms


def _timeout_s(header: str | None) -> float:
    if header is None:
        return math.inf
    if not (header.isascii() and header.isdigit() and len(header) <= _MAX_DIGITS and int(header) > 0):
        raise InvalidInput(f"{TIMEOUT} is {header!r}, expected a whole number of milliseconds from 1 on")
    return int(header) / 1000


def _priority(header: str | None) -> Priority | None:
    if header is None:
        return None
    name = header.strip().lower()
    if name not in get_args(Priority):
        raise InvalidInput(f"{PRIORITY} is {header!r}; there are {' and '.join(get_args(Priority))}")
    return cast(Priority, name)
