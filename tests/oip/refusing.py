"""What stock clients raise, held against the table of errors, and inputs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.oip.conftest import Array, Stock


STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
KINDS = ("http", "http.aio", "grpc", "grpc.aio")
INFER = "/v2/models/viq-encode/infer"


def ints(*rows: list[int]) -> Array:
    return np.array(rows, np.int32).reshape(-1, 2)


def codes(count: int) -> Array:
    return np.zeros(count, np.uint16)


class Refused:
    """Asserts what a stock client raises."""

    def __init__(self, client: Stock, exception: Any) -> None:
        self._client, self._exception = client, exception

    def __call__(self, status: int, said: str, model: str, inputs: dict[str, Array], **asked: object) -> None:
        with pytest.raises(self._exception) as caught:
            self._client.infer(model, inputs, **asked)
        wanted = str(status) if self._client.is_http else f"StatusCode.{STATUS[status]}"
        assert (caught.value.status(), said in caught.value.message()) == (wanted, True), caught.value.message()
