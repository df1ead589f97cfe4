"""Messages as they come from the transport: read in time, within limits, and parsed only if that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message

from viq_serving.errors import DeadlineExceeded, Malformed, TooLarge
from viq_serving.rpc.call import Context
from viq_serving.rpc.fields import more_than
from viq_serving.settings import Settings

Parse = Callable[[bytes], Message]

_FIELDS = 10_000  # many more than any method has use for, few enough to parse
_ENDING_S = 0.1  # within which the transport ends a call whose message it refused


class Messages:
    """Reads and parses them by the limits of the service."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes, self._timeout_s = settings.max_message_bytes, settings.body_read_timeout_s
        self._most_fields = max(_FIELDS, 2 * settings.max_images)

    async def only(self, context: Context) -> bytes:
        """The one message of a unary request; raises for none, none in time, and too large a one."""
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await context.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no whole message after {self._timeout_s:g} s, which is the limit") from None
        if not isinstance(message, bytes):
            await self._explain_nothing()
            raise Malformed("the request ended without a message")
        self._check(message)
        return message

    async def next(self, context: Context) -> bytes | None:
        """The next message of a stream, however long it takes; None after the last. Raises for too large a one."""
        message = await context.read()
        if not isinstance(message, bytes):
            return None
        self._check(message)
        return message

    def _check(self, message: bytes) -> None:
        """Raise `TooLarge` for a message over the limit."""
        if len(message) > self._max_bytes:
            raise TooLarge(f"message of {len(message)} bytes, the limit (max_message_bytes) is {self._max_bytes}")

    def parsed(self, message: bytes, parse: Parse) -> Message:
        """What `parse` makes of `message`; raises `Malformed`, or `TooLarge` for more fields than is safe."""
        if len(message) > self._most_fields and more_than(message, self._most_fields):
            raise TooLarge(f"message of more than {self._most_fields} fields or items, the limit")
        try:
            return parse(message)
        except DecodeError as error:
            raise Malformed(f"message cannot be read: {error}") from None

    async def _explain_nothing(self) -> None:
        """Raise `TooLarge` if that is why no message came: the transport hides such a message and then ends the call.

        The client is told by the transport; this is for the count.
        """
        try:
            await asyncio.sleep(_ENDING_S)
        except asyncio.CancelledError:
            raise TooLarge("message of more than the transport takes") from None
