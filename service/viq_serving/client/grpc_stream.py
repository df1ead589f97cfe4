"""One stream to a replica: items out, results in, until it ends."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc

from viq.codes import Codes
from viq.errors import TooLarge, ViQError
from viq_serving.client.calls import Again, Ask
from viq_serving.client.errors import ServerError
from viq_serving.client.grpc_messages import REQUESTS, Replica, failure_of, item_of, opened, options_of
from viq_serving.pb import viq_pb2 as pb

_MESSAGE_BYTES, _AROUND = 2**20, 1024  # small items travel together up to here; what a message has beside its item
_PARTING_S = 1.0


class _Waiting:
    """Who waits for an item, and the chunks of its features so far."""

    def __init__(self) -> None:
        self.done: asyncio.Future[pb.Result] = asyncio.get_running_loop().create_future()
        self.chunks: list[bytes] = []


class Stream:
    """Items out, results in, in no order, until the server ends it; who still waits then is told so."""

    def __init__(self, lane: Replica, ask: Ask) -> None:
        self.over = False
        self._lane, self._ask = lane, ask
        self._numbers = itertools.count()
        self._waiting: dict[str, _Waiting] = {}
        self._queue: asyncio.Queue[pb.Item | None] = asyncio.Queue()  # None: there will be no more
        self._task = asyncio.create_task(self._live())

    async def ask(self, given: bytes | Codes) -> tuple[pb.Result, list[bytes]]:
        """Send an item and wait for its answer."""
        item = item_of(str(next(self._numbers)), given, self._ask)
        most = self._lane.limits.get("max_message_bytes")
        if most is not None and item.ByteSize() + _AROUND > most:
            raise TooLarge(f"item of {item.ByteSize()} bytes, the server's limit (max_message_bytes) is {most:.0f}")
        waiting = self._waiting[item.key] = _Waiting()
        self._queue.put_nowait(item)
        try:
            return await waiting.done, waiting.chunks
        finally:
            self._waiting.pop(item.key, None)

    async def close(self) -> None:
        """End it: by a word to the server if nobody waits for anything, so that it counts as one that went well."""
        if not self._waiting:
            self._queue.put_nowait(None)
            await asyncio.wait([self._task], timeout=_PARTING_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        ended: Exception = Again(ServerError("not_ready", f"{self._lane.address} ended the stream"))
        sender: asyncio.Task[None] | None = None
        try:
            if not self._lane.limits:
                await self._lane.models()
            call = opened(self._lane, self._ask)
            sender = asyncio.create_task(self._send(call))
            # A stream on which nothing is sent any more must end, or who waits on it would wait for ever.
            sender.add_done_callback(lambda task: task.cancelled() or task.exception() is None or call.cancel())
            async for response in call:
                for result in response.results:
                    self._take(result)
        except grpc.aio.AioRpcError as error:
            ended = failure_of(error, self._lane.address)
        except (Again, ViQError) as error:
            ended = error
        finally:
            self.over = True
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            for waiting in self._waiting.values():
                if not waiting.done.done():
                    waiting.done.set_exception(ended)

    async def _send(self, call: Any) -> None:
        """Items as they come, small ones together; the transport says when there is room.

        Those that nobody waits for any more, because they were given up or took too long, are left out.
        """
        message_of, options = REQUESTS[self._ask.method], options_of(self._ask)
        most = int(self._lane.limits.get("max_images", 1))
        while True:
            first = await self._queue.get()
            if first is None:
                await call.done_writing()
                return
            if first.key not in self._waiting:
                continue
            items, size = [first], first.ByteSize()
            while len(items) < most and size < _MESSAGE_BYTES and not self._queue.empty():
                more = self._queue.get_nowait()
                if more is None:
                    self._queue.put_nowait(None)
                    break
                if more.key not in self._waiting:
                    continue
                items.append(more)
                size += items[-1].ByteSize()
                if size > _MESSAGE_BYTES:  # it goes by itself
                    await call.write(message_of(options=options, items=items[:-1]))
                    items, options, size = items[-1:], None, items[-1].ByteSize()
            await call.write(message_of(options=options, items=items))
            options = None

    def _take(self, result: pb.Result) -> None:
        waiting = self._waiting.get(result.key)
        if waiting is None or waiting.done.done():
            return
        if result.WhichOneof("content") == "features":
            waiting.chunks.append(result.features.data)
            if not result.features.last:
                return
        waiting.done.set_result(result)
