"""What went wrong with a request, in few words: requests are counted by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc

from viq_serving.bench.doors.door import Answer
from viq_serving.bench.doors.http1 import BrokenReply, Reply

_PUSHBACK, _CODE = "grpc-retry-pushback-ms", "viq-error-code"
_LONGEST = 80


def failure(error: BaseException) -> Answer:
    """For what was raised and is no answer."""
    if isinstance(error, grpc.aio.AioRpcError):
        return _status(error)
    if isinstance(error, TimeoutError):
        return Answer("timeout")
    if isinstance(error, BrokenReply):
        return Answer(f"broken reply: {error}"[:_LONGEST])
    if isinstance(error, OSError):
        return Answer(f"{type(error).__name__}: {error.strerror or error}"[:_LONGEST])
    return Answer(f"{type(error).__name__}: {error}"[:_LONGEST])


def refusal(reply: Reply) -> Answer:
    """For an HTTP answer that is not 200; 429 is a reject."""
    kind, size = str(reply.status), len(reply.body)
    try:
        error = json.loads(reply.body)["error"]
        kind = f"{kind} {error['code'] if isinstance(error, Mapping) else error}"[:_LONGEST]
    except (ValueError, KeyError, TypeError):
        pass
    if reply.status != 429:
        return Answer(kind, size)
    return Answer(kind, size, reject=True, hint_s=_hint(reply.headers))


def _hint(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
    return None


def _status(error: grpc.aio.AioRpcError) -> Answer:
    """For a gRPC status that is not OK; RESOURCE_EXHAUSTED is a reject."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    code = trailers.get(_CODE)
    kind = f"{error.code().name} {code}" if code else error.code().name
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Answer(kind)
    try:
        hint_s = float(trailers[_PUSHBACK]) / 1000
    except (KeyError, ValueError):
        hint_s = None
    return Answer(kind, reject=True, hint_s=hint_s)
