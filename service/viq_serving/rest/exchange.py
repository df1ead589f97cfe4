"""What belongs to one request and its reply, whoever handles it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from time import perf_counter

from starlette.requests import Request

from viq_serving.types import ModelInfo

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass
class Exchange:
    """One request: its id, when it began, the model that answers once known, and "ok" or the error code."""

    request_id: str
    begun: float
    model: ModelInfo | None = None
    outcome: str = "ok"

    @classmethod
    def begin(cls, wanted_id: str | None = None) -> Exchange:
        """A new exchange; `wanted_id` is the caller's request id, replaced unless it is well-formed."""
        given = wanted_id is not None and _REQUEST_ID.fullmatch(wanted_id)
        return cls(wanted_id if wanted_id and given else uuid.uuid4().hex, perf_counter())

    def seconds(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self.begun


def exchange_of(request: Request) -> Exchange:
    """The exchange that the envelope opened for `request`."""
    exchange: Exchange = request.state.exchange
    return exchange
