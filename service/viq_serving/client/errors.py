"""A server's error replies as the exceptions that the same mistake raises in-process."""

from __future__ import annotations

from collections.abc import Mapping

from viq.errors import FingerprintMismatch, InvalidInput, TooLarge, UnknownModel, ViQError

UNREACHABLE = "unreachable"
"""Code of a `ServerError` that no server sent: there was no answer, or not one of this service."""

_TYPES: dict[str, type[ViQError]] = {
    error.code: error for error in (FingerprintMismatch, InvalidInput, TooLarge, UnknownModel)
}


class ServerError(ViQError):
    """A refusal that has no counterpart in-process; `code` is the server's word for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str]]:
        """A worker of a data loader hands it to another process."""
        return ServerError, (self.code, str(self))


def error_of(body: object, status: int) -> ViQError:
    """The exception for an error reply, `{"error": {"code", "message", "request_id"}}`."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping) or not isinstance(error.get("code"), str):
        return ServerError(UNREACHABLE, f"the answer, status {status}, is none of a ViQ service")
    return error_named(error["code"], str(error.get("message", "")), str(error.get("request_id") or ""))


def error_named(code: str, message: str, request_id: str = "") -> ViQError:
    """The exception for an error of that public name."""
    if code in _TYPES:
        return _TYPES[code](message)
    return ServerError(code, f"{code}: {message}" + (f" (request {request_id})" if request_id else ""))
