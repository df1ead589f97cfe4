"""What travels beside every reply, and how an error becomes one."""

from __future__ import annotations

import logging
import math
from typing import TypeAlias

import grpc

from viq_serving.errors import Overloaded, ViQError
from viq_serving.exchange import Exchange
from viq_serving.rpc.errors import code_of, message_of, status_of
from viq_serving.tokenizer import Tokenizer

log = logging.getLogger("viq.rpc")

Trailers: TypeAlias = tuple[tuple[str, str], ...]
Refusal: TypeAlias = tuple[grpc.StatusCode, str, Trailers]

_MAX_RETRY_S = 3600.0


def trailers_of(exchange: Exchange, tokenizer: Tokenizer) -> Trailers:
    """What every reply carries: request id, and the fingerprint once a model is loaded."""
    loaded = tokenizer.models()
    model = exchange.model or (loaded[0] if loaded else None)
    identity = ("x-request-id", exchange.request_id)
    return (identity,) if model is None else (identity, ("viq-fingerprint", model.fingerprint))


def refusal_of(error: Exception, exchange: Exchange, tokenizer: Tokenizer) -> Refusal:
    """Status, message and trailers that answer `error`, and the mark on the exchange that it ended so.

    The error is bare from here on unless nobody expected it.
    """
    exchange.outcome, status, message = code_of(error), status_of(error), message_of(error)
    _log(error, exchange, status, message)
    trailers = (*trailers_of(exchange, tokenizer), ("viq-error-code", exchange.outcome))
    if isinstance(error, Overloaded):
        wait_s = min(max(error.retry_after_s, 0.001), _MAX_RETRY_S)
        trailers += (("grpc-retry-pushback-ms", str(math.ceil(1000 * wait_s))),)
    if isinstance(error, ViQError) and status is not grpc.StatusCode.INTERNAL:
        error.bare()
    return status, message, trailers


def _log(error: Exception, exchange: Exchange, status: grpc.StatusCode, message: str) -> None:
    """Say why a request was refused; of what nobody foresaw the whole story, which its caller does not get."""
    if status is grpc.StatusCode.INTERNAL:
        level, cause = logging.ERROR, error.__cause__ if isinstance(error, ViQError) else error
    else:  # clients ask again and again while a service loads or drains
        level, cause = logging.DEBUG if exchange.outcome == "not_ready" else logging.INFO, None
    fields = {"request_id": exchange.request_id, "door": exchange.door, "method": exchange.method}
    line = (exchange.request_id, status.name, exchange.outcome, message)
    log.log(level, "request %s: %s %s: %r", *line, exc_info=cause, extra={"fields": fields})
