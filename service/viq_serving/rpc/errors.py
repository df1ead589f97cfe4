"""The table from domain errors to gRPC, and what the outside may see of an error."""

from __future__ import annotations

import grpc

from viq_serving.errors import ViQError

STATUS = {
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_input": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.UNIMPLEMENTED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "fingerprint_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
}
"""gRPC status of each error code; any other error is INTERNAL."""

_MAX_MESSAGE_BYTES = 1000  # messages quote what the caller sent; as a trailer each byte may take three, of 8 KiB in all


def status_of(error: BaseException) -> grpc.StatusCode:
    """gRPC status of a domain error, INTERNAL for anything unknown."""
    return STATUS.get(code_of(error), grpc.StatusCode.INTERNAL)


def code_of(error: BaseException) -> str:
    """The public name of a domain error, "internal" for anything unknown."""
    return error.code if isinstance(error, ViQError) and error.code in STATUS else "internal"


def message_of(error: BaseException) -> str:
    """What the outside may read: nothing of an unknown error gets out."""
    if code_of(error) == "internal":
        return "internal error"
    message = str(error).encode("utf-8", "replace")
    if len(message) <= _MAX_MESSAGE_BYTES:
        return message.decode()
    return message[:_MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "…"
