"""The table from domain errors to HTTP, and the one shape every error reply has."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from viq_serving.errors import InvalidInput, Malformed, MethodNotAllowed, NotFound, Overloaded, ViQError
from viq_serving.exchange import Exchange
from viq_serving.rest.exchange import exchange_of
from viq_serving.rest.schemas import problems

log = logging.getLogger("viq.rest")

STATUS = {
    "malformed": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "fingerprint_mismatch": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_input": 422,
    "overloaded": 429,
    "not_ready": 503,
    "deadline_exceeded": 504,
}
"""HTTP status of each error code; any other error is 500 `internal`."""

_HEADERS = {"not_ready": {"Retry-After": "1"}, "unauthenticated": {"WWW-Authenticate": "Bearer"}}
_MAX_RETRY_S = 3600.0
_MAX_MESSAGE = 1000  # characters: messages quote what the caller sent, which may be megabytes


def status_of(error: Exception) -> int:
    """HTTP status of a domain error, 500 for anything unknown."""
    return STATUS.get(error.code, 500) if isinstance(error, ViQError) else 500


def error_fields(error: Exception) -> dict[str, str]:
    """`code` and `message` as the outside may see them: nothing of an unknown error gets out."""
    if isinstance(error, ViQError) and error.code in STATUS:
        return {"code": error.code, "message": _cut(str(error))}
    return {"code": "internal", "message": "internal error"}


def error_body(error: Exception, exchange: Exchange) -> dict[str, object]:
    """The body of an error reply, and the mark on the exchange that it ended so."""
    fields = error_fields(error)
    exchange.outcome = fields["code"]
    if exchange.door == "oip_http":  # the Open Inference Protocol has a shape of its own
        return {"error": fields["message"]}
    return {"error": {**fields, "request_id": exchange.request_id}}


def error_headers(error: Exception) -> dict[str, str]:
    """What a caller is told in headers beside the error: when to come again, what to show."""
    if isinstance(error, Overloaded):
        wait = min(max(error.retry_after_s, 0.001), _MAX_RETRY_S)
        return {"Retry-After": str(math.ceil(wait)), "Retry-After-Ms": str(math.ceil(1000 * wait))}
    return dict(_HEADERS.get(error_fields(error)["code"], {}))


def log_fields(exchange: Exchange) -> dict[str, dict[str, str]]:
    """The `extra` of a log line about `exchange`."""
    return {"fields": {"request_id": exchange.request_id, "door": exchange.door, "method": exchange.method}}


def error_response(error: Exception, exchange: Exchange, headers: Mapping[str, str] | None = None) -> Response:
    """The reply for `error`, which is bare from here on unless nobody expected it."""
    body, status = error_body(error, exchange), status_of(error)
    # Probes ask many times a second while a service loads or drains.
    level = logging.ERROR if status == 500 else logging.DEBUG if exchange.outcome == "not_ready" else logging.INFO
    detail = _cut(str(error)) if status != 500 else type(error).__name__
    log.log(
        level,
        "request %s: %d %s: %r",
        exchange.request_id,
        status,
        exchange.outcome,
        detail,
        exc_info=error.__cause__ if status == 500 else None,
        extra=log_fields(exchange),
    )
    if isinstance(error, ViQError) and status != 500:
        error.bare()
    return Response(json.dumps(body), status, {**(headers or {}), **error_headers(error)}, "application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """Exception handler for domain errors and for what nobody expected."""
    return error_response(error, exchange_of(request))


async def on_framework_error(request: Request, error: Exception) -> Response:
    """Exception handler that puts the framework's own refusals into our words."""
    headers = error.headers if isinstance(error, HTTPException) else None
    return error_response(_translated(request, error), exchange_of(request), headers)


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"


def _translated(request: Request, error: Exception) -> Exception:
    if isinstance(error, RequestValidationError):
        return InvalidInput(problems({**detail, "loc": detail["loc"][1:]} for detail in error.errors()))
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return NotFound(f"no such path: {request.scope['path']}")
    if status == 405:
        return MethodNotAllowed(f"{request.method} is not for {request.scope['path']}")
    return Malformed("bad request") if 400 <= status < 500 else error
