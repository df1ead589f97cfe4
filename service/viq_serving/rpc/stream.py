"""One stream of items: read as far as its credit goes, answered as its answers come, ended so that none is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from viq.codes import Codes
from viq_serving.allowance import Allowance
from viq_serving.errors import Internal, Malformed, NotReady, TooLarge, ViQError
from viq_serving.images import ImageLimits, probe
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc import heavy
from viq_serving.rpc.call import Call
from viq_serving.rpc.convert import counted
from viq_serving.rpc.credit import Credit, Weight
from viq_serving.rpc.messages import Messages, Parse
from viq_serving.rpc.outbox import Outbox, Responses
from viq_serving.rpc.pieces import pieces_of
from viq_serving.rpc.replies import Done, model_of
from viq_serving.rpc.tally import Item, Tally
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, Results

log = logging.getLogger("viq.rpc")

Content = ImageFile | Codes

_PARTING_S = 5.0  # for a client to read a message, once its stream is to end
_JITTER = 0.1  # part of the age by which streams that began together end apart


@dataclass(frozen=True)
class Work:
    """What a method does with each item: `content` of its message, `compute` on that; answers are of `kind`.

    `patch_bytes` is what an answer takes for each patch of its image, at most.
    """

    kind: Responses
    content: Callable[[pb.Item], Content | ViQError]
    compute: Callable[[Any], Awaitable[Results[Any]]]
    patch_bytes: int


class Stream:
    """One stream under way: a method looks at its `first` message and then lets it `run`."""

    def __init__(
        self,
        call: Call,
        messages: Messages,
        parse: Parse,
        tokenizer: Tokenizer,
        settings: Settings,
        tally: Tally,
        headers: Executor,
        share: Allowance,
    ) -> None:
        """`share` is what all streams together may hold of the bytes of all requests."""
        self.call, self._messages, self._parse = call, messages, parse
        self._tokenizer, self._settings, self._tally, self._headers = tokenizer, settings, tally, headers
        self._share = share
        limits = settings.stream_max_bytes, settings.stream_max_patches, settings.stream_max_items
        self._credit = Credit(Weight(*limits))
        self._parting: str | None = None
        self._reading: asyncio.Timeout | None = None
        self._outbox: Outbox | None = None
        self._opening: Any = None
        age_s = settings.stream_max_age_s * (1 - _JITTER * random.random())  # noqa: S311  # no secret
        self._aged = asyncio.get_running_loop().call_later(age_s, self.part, f"the stream is {age_s:.0f} s old")

    async def first(self) -> Any:
        """The first message, which may hold options; an empty one if there is none. Raises `NotReady` while loading."""
        self._tokenizer.model()
        self._opening = await self._next()
        return self._messages.parsed(b"", self._parse) if self._opening is None else self._opening

    async def run(self, work: Work) -> None:
        """Answer every item that is read, until the client has no more or the stream is to end.

        Raises `NotReady` if more might have come, and whatever ends a stream at once.
        """
        model = self.call.exchange.model
        assert model is not None, "picked by the method"  # noqa: S101
        outbox = self._outbox = Outbox(self.call.context, work.kind, model_of(model))
        if self._parting is not None:
            outbox.hurry(_PARTING_S)
        ended = False
        # By itself: with a first message that is never taken, no status could be sent any more.
        await self.call.context.send_initial_metadata(())
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(outbox.deliver())
                async with asyncio.TaskGroup() as items:
                    ended = await self._read(work, outbox, items)
                outbox.close()
        except BaseExceptionGroup as group:
            raise _first_of(group) from None
        if not ended:
            raise NotReady(f"{self._parting}: what was read of it is answered, send the rest again")

    def part(self, why: str) -> None:
        """Read no more; what was read is answered, and the stream then ends."""
        if self._parting is not None:
            return
        self._parting = why
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())
        if self._outbox is not None:
            self._outbox.hurry(_PARTING_S)

    def close(self) -> None:
        """Let go of the clock."""
        self._aged.cancel()

    async def _read(self, work: Work, outbox: Outbox, items: asyncio.TaskGroup) -> bool:
        """Begin on every item that comes; whether the client has ended, rather than we."""
        message, self._opening = self._opening, None
        while message is not None:
            for one in message.items:
                await self._begin(one, work, outbox, items)
            one = message = None  # it may be large, and the next one may take its time
            message = await self._next()
            if message is not None and message.HasField("options"):
                raise Malformed("options after the first message of the stream")
        return self._parting is None

    async def _next(self) -> Any:
        """The next message; None if there is none or no more is to be read."""
        if self._parting is not None:
            return None
        try:
            async with asyncio.timeout(None) as self._reading:
                await self._credit.room()
                data = await self._messages.next(self.call.context)
        except TimeoutError:
            return None
        finally:
            self._reading = None
        if data is None:
            return None
        message: Any = await heavy.run(len(data), self._messages.parsed, data, self._parse)
        counted(message.items, self._tokenizer.max_images)
        return message

    async def _begin(self, one: pb.Item, work: Work, outbox: Outbox, items: asyncio.TaskGroup) -> None:
        """Begin on an item when there is credit for it, and room for its bytes among those of everybody."""
        content, size = work.content(one), one.ByteSize()
        patches = await self._patches(content)
        item = self._tally.begun(one.key, Weight(max(size, patches * work.patch_bytes), patches))
        await self._credit.take(item.weight)
        if isinstance(content, ViQError):
            self._answer(item, content, outbox)
            return
        await self._hold(size)
        task = items.create_task(self._compute(item, content, work, outbox))
        task.add_done_callback(lambda _: self._let_go(size))  # also of one that is cancelled before it begins

    async def _hold(self, size: int) -> None:
        """Hold so many bytes once there is room for them, first among those of streams."""
        await self._share.wait(size)
        try:
            await self._tokenizer.bodies.wait(size)
        except asyncio.CancelledError:
            self._share.give(size)
            raise

    def _let_go(self, size: int) -> None:
        self._tokenizer.bodies.give(size)
        self._share.give(size)

    async def _compute(self, item: Item, content: Content, work: Work, outbox: Outbox) -> None:
        try:
            (result,) = (await work.compute(content)).items
        except ViQError as error:
            result = error.bare()
        except Exception:
            log.exception("an item failed", extra={"fields": {"request_id": self.call.exchange.request_id}})
            result = Internal()
        self._answer(item, result, outbox)

    def _answer(self, item: Item, result: Done | ViQError, outbox: Outbox) -> None:
        try:
            pieces = pieces_of(item.key, result, self._settings.max_message_bytes)
        except TooLarge as error:
            result = error
            pieces = pieces_of(item.key, result, self._settings.max_message_bytes)
        outbox.put(pieces, partial(self._sent, item, result if isinstance(result, ViQError) else None))

    def _sent(self, item: Item, error: ViQError | None) -> None:
        self._credit.give(item.weight)
        self._tally.answered(item, error)

    async def _patches(self, content: Content | ViQError) -> int:
        """Patches of an item; 0 of what cannot be read, which will fail soon."""
        if isinstance(content, ViQError):
            return 0
        patches = self._tokenizer.patches_of(content)
        if patches or not isinstance(content, ImageFile):
            return patches
        return await asyncio.get_running_loop().run_in_executor(
            self._headers, _patches_in_header, content, self._tokenizer.limits
        )


def _patches_in_header(image: ImageFile, limits: ImageLimits) -> int:
    try:
        return probe(image.data, limits, exif=False).patches
    except Exception:  # noqa: BLE001  # the item meets it again, and says so alone
        return 0


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
