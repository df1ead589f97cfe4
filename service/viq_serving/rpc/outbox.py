"""The answers of one stream on their way out: as they come, several in a message, none larger than need be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from grpc.aio import InternalError

from viq_serving.errors import NotReady
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc import heavy
from viq_serving.rpc.call import Context
from viq_serving.rpc.pieces import PIECE_BYTES, Piece

_GONE_S = 5.0

Responses = type[pb.EncodeStreamResponse] | type[pb.EmbedStreamResponse] | type[pb.DecodeStreamResponse]


class Unread(NotReady):
    """A stream was to end, and its client did not read what was left."""


class Outbox:
    """What is put in while the transport takes one message travels together in the next: no timer, no waiting.

    The first message also says which model answers.
    """

    def __init__(self, context: Context, kind: Responses, model: pb.Model) -> None:
        self._context, self._kind = context, kind
        self._model: pb.Model | None = model
        self._ready: deque[tuple[Piece, Callable[[], None] | None]] = deque()
        self._put = asyncio.Event()
        self._closed = False
        self._patience_s: float | None = None
        self._writing: asyncio.Timeout | None = None

    def put(self, pieces: Sequence[Piece], sent: Callable[[], None]) -> None:
        """Let `pieces` of one answer go out in order; `sent` is told when the transport has them all."""
        self._ready.extend((piece, None) for piece in pieces[:-1])
        self._ready.append((pieces[-1], sent))
        self._put.set()

    def close(self) -> None:
        """Say that nothing more will be put."""
        self._closed = True
        self._put.set()

    def hurry(self, seconds: float) -> None:
        """Give up on a client that does not take a message within `seconds`, from now on."""
        self._patience_s = seconds
        if self._writing is not None:
            self._writing.reschedule(asyncio.get_running_loop().time() + seconds)

    async def deliver(self) -> None:
        """Hand everything to the transport, until closed and empty; raises `Unread` if a hurry is in vain."""
        while True:
            while not self._ready:
                if self._closed:
                    return
                self._put.clear()
                await self._put.wait()
            pieces, told, size = self._next()
            await self._write(await heavy.run(size, self._message, pieces))
            for sent in told:
                sent()

    def _next(self) -> tuple[list[Piece], list[Callable[[], None]], int]:
        """As many pieces as one message takes, at least one; whom to tell when they are sent; and their bytes."""
        pieces, told, size = list[Piece](), list[Callable[[], None]](), 0
        while self._ready and (not pieces or size + self._ready[0][0].size <= PIECE_BYTES):
            piece, sent = self._ready.popleft()
            pieces.append(piece)
            size += piece.size
            if sent is not None:
                told.append(sent)
        return pieces, told, size

    def _message(self, pieces: Sequence[Piece]) -> bytes:
        model, self._model = self._model, None
        return self._kind(model=model, results=[piece.make() for piece in pieces]).SerializeToString()

    async def _write(self, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience_s) as self._writing:
                await self._context.write(message)
        except TimeoutError:
            raise Unread(f"the stream was to end, and nothing was read from it for {self._patience_s:g} s") from None
        except InternalError:
            await asyncio.sleep(_GONE_S)  # the client has left: the transport cancels the call in a moment
            raise
        finally:
            self._writing = None
