"""What can go wrong in serving, in the domain's words. Front ends own the table from `code` to their status."""

from __future__ import annotations

from viq.errors import FingerprintMismatch, InvalidInput, TooLarge, UnknownModel, ViQError, WeightsError

__all__ = [
    "DeadlineExceeded",
    "FingerprintMismatch",
    "Forbidden",
    "Internal",
    "InvalidInput",
    "Malformed",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "Overloaded",
    "SettingsError",
    "TooLarge",
    "Unauthenticated",
    "UnknownModel",
    "UnsupportedMediaType",
    "ViQError",
    "WeightsError",
]


class Malformed(ViQError):
    """The request cannot be parsed at all: broken JSON, multipart or message."""

    code = "malformed"


class UnsupportedMediaType(ViQError):
    """A body of a type that no method takes."""

    code = "unsupported_media_type"


class NotAcceptable(ViQError):
    """The caller accepts none of the forms this reply has."""

    code = "not_acceptable"


class NotFound(ViQError):
    """Nothing lives at that address."""

    code = "not_found"


class MethodNotAllowed(ViQError):
    """The address exists, but not for that verb."""

    code = "method_not_allowed"


class NotReady(ViQError):
    """The service is loading or stopping; the same request will do later or elsewhere."""

    code = "not_ready"


class Overloaded(ViQError):
    """No room for this request now; `retry_after_s` is when there should be, by what waits."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthenticated(ViQError):
    """No key came with the request, or one that is not known."""

    code = "unauthenticated"


class Forbidden(ViQError):
    """The key is known but lacks the right."""

    code = "forbidden"


class Internal(ViQError):
    """Something nobody foresaw; what it was is in the log, never in the message."""

    code = "internal"

    def __init__(self) -> None:
        super().__init__("internal error")


class DeadlineExceeded(ViQError):
    """Time ran out before the request was answered or had arrived, or was seen to be too short."""

    code = "deadline_exceeded"


class SettingsError(ViQError):
    """A flag or environment variable that is unknown or has an impossible value; the message names it."""

    code = "invalid_settings"
