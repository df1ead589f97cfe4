"""The two directions of one request, between the server and the app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

_LINGER_S = 2.0


class Wire:
    """Sees to headers, to clients that leave, and to replies before the whole body has come.

    A client that closes the connection after its body and before the reply cancels the task that answers it;
    `departed` tells that cancellation from others.

    Closing at once after an early reply would make the kernel send a reset, and the client, still sending, would
    lose the reply. So the reply goes out whole, what still comes is thrown away for a moment, then the connection ends.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, dress: Callable[[MutableHeaders], None]) -> None:
        """`dress` completes the headers of the reply."""
        self._receive, self._send, self._dress = receive, send, dress
        headers = Headers(scope=scope)
        self._body_left = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.started = self.departed = self._ended = False

    async def receive(self) -> Message:
        """The next piece of the body. From the last one on, the client is watched."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._body_left = False
        elif not message.get("more_body", False):
            self._body_left = False
            if self._watcher is None and not self.started:
                self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        """A piece of the reply."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            self._dress(headers)
            if self._body_left:
                headers["Connection"] = "close"
        elif not message.get("more_body", False):
            if self._body_left:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            self._ended = True  # from here on the server calls every request disconnected
        await self._send(message)

    def uncancelled(self) -> int:
        """Take the watcher's cancellation back; how many by others are left."""
        return self._task.uncancel() if self._task is not None else 0

    def close(self) -> None:
        """Watch no longer."""
        self._ended = True
        # The watcher's cancellation knows its frame, and that this: a cycle, which only a collection of garbage ends.
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended and self._task is not None:
            self.departed = True
            self._task.cancel()

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            self._body_left = False
