"""What both clients take by name, in one list."""

from __future__ import annotations

from typing import TypedDict

from viq.errors import InvalidInput
from viq_serving.client.targets import Tls

IN_FLIGHT, IN_FLIGHT_EMBED, IN_FLIGHT_BYTES = 256, 16, 64 * 2**20
"""Items, items of `embed`, whose answers are large, and bytes that are sent and not answered yet."""

READING = 16
"""Files that are read, and pictures made into files, at a time."""


class Options(TypedDict, total=False):
    """Options of `Client` and `AsyncClient`; see `DEFAULTS`."""

    api_key: str | None
    tls: Tls | str | bool | None
    """True, a file of certificate authorities, or a `Tls`."""
    timeout: float
    """Seconds for each item with all its tries."""
    retries: int
    in_flight: int | None
    """Items on their way at most; None: 256, and 16 of `embed`."""
    in_flight_bytes: int
    """Bytes on their way at most: of image files that are sent, and of pictures that `decode` makes."""
    expect_fingerprint: str | None
    """A family, or all of a fingerprint."""
    priority: str | None
    """`interactive` or `bulk`."""


DEFAULTS: Options = {
    "api_key": None,
    "tls": None,
    "timeout": 600.0,
    "retries": 6,
    "in_flight": None,
    "in_flight_bytes": IN_FLIGHT_BYTES,
    "expect_fingerprint": None,
    "priority": None,
}


def settled(options: Options) -> Options:
    """`options` with the defaults of those not given.

    Raises `TypeError` for an option there is not, `InvalidInput` for a value that makes no sense.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise TypeError(f"a client has no option {', '.join(unknown)}; there are {', '.join(DEFAULTS)}")
    given: Options = {**DEFAULTS, **options}
    if given["priority"] not in (None, "interactive", "bulk"):
        raise InvalidInput(f"priority {given['priority']!r}; there are interactive and bulk")
    in_flight = given["in_flight"]
    if given["timeout"] <= 0 or given["retries"] < 0 or (in_flight is not None and in_flight < 1):
        raise InvalidInput("timeout and in_flight must be positive, retries not negative")
    if given["in_flight_bytes"] < 1:
        raise InvalidInput(f"in_flight_bytes is {given['in_flight_bytes']}, it must be positive")
    return given
