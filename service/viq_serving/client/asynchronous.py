"""The client for programs that have an event loop: many images in flight, over one replica or many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import InvalidInput, ViQError
from viq_serving.client.calls import Ask, Given, GivenImage, Lane, is_read, sent_as, weight_of
from viq_serving.client.http import Picture
from viq_serving.client.http_lane import HttpLane
from viq_serving.client.options import IN_FLIGHT, IN_FLIGHT_EMBED, READING, Options, settled
from viq_serving.client.replicas import Replicas
from viq_serving.client.targets import Target, targets_of, tls_of
from viq_serving.client.upcoming import Upcoming
from viq_serving.client.window import Room, Window

K = TypeVar("K")


class AsyncClient:
    """A ViQ service at `host:port` (gRPC streams) or `http://host:port`; use it in an `async with` block.

    `server` may be several addresses, or a name with many behind it (a headless service): replicas are asked in turn,
    what one of them did not answer is sent to another, and new ones are found. An item is sent again, up to `retries`
    times with growing random pauses, if nobody answered or the replica was not ready, and if it was full only where
    it says when to come back. `timeout` is in seconds for each item with all its tries.

    Items raise, or are, what the same mistake raises in-process (`InvalidInput`, `TooLarge`, `UnknownModel`,
    `FingerprintMismatch`), else `ServerError` with the server's code, `unreachable` if nothing answered.
    """

    def __init__(self, server: str | Sequence[str], **options: Unpack[Options]) -> None:
        """What may be given by name, and what it is otherwise: `viq_serving.client.options`."""
        given = settled(options)
        named = {
            "authorization": f"Bearer {given['api_key']}" if given["api_key"] else None,
            "viq-priority": given["priority"],
            "viq-expect-fingerprint": given["expect_fingerprint"],
        }
        self._headers = {name: value for name, value in named.items() if value}
        self._tls, self._timeout_s = tls_of(given["tls"]), given["timeout"]
        self._in_flight, self._in_flight_bytes = given["in_flight"], given["in_flight_bytes"]
        self._reading, self._room = asyncio.Semaphore(READING), Room(given["in_flight_bytes"])
        self._replicas = Replicas(targets_of(server), self._lane, given["retries"])

    async def encode(
        self, images: Iterable[Picture], *, size: str | None = None, exif: bool = True, alpha: str = "white"
    ) -> list[Codes]:
        """Codes of each image. `exif` and `alpha` are those of `viq.pixels.to_rgb`. Raises the first item's error."""
        return await _all(self.encode_each(enumerate(images), size=size, exif=exif, alpha=alpha))

    async def embed(
        self,
        inputs: Iterable[Codes | Picture],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
        dtype: str = "float32",
        any_fingerprint: bool = False,
    ) -> list[npt.NDArray[Any]]:
        """Features `(h*w, C)` of each of codes or images; of bfloat16, which numpy lacks, the bits as uint16."""
        each = self.embed_each(
            enumerate(inputs), size=size, exif=exif, alpha=alpha, dtype=dtype, any_fingerprint=any_fingerprint
        )
        return await _all(each)

    async def decode(self, codes: Iterable[Codes], *, any_fingerprint: bool = False) -> list[npt.NDArray[np.uint8]]:
        """Pictures, uint8 `(H, W, 3)`, of each of `codes`."""
        return await _all(self.decode_each(enumerate(codes), any_fingerprint=any_fingerprint))

    def encode_each(
        self,
        images: Iterable[tuple[K, GivenImage]] | AsyncIterable[tuple[K, GivenImage]],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
    ) -> AsyncIterator[tuple[K, Codes | ViQError]]:
        """Codes, or what was wrong, of each of any number of images, by the key that came with it, in their order."""
        return self._each(Ask("encode", size, exif, alpha), images)

    def embed_each(
        self,
        inputs: Iterable[tuple[K, Given]] | AsyncIterable[tuple[K, Given]],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
        dtype: str = "float32",
        any_fingerprint: bool = False,
    ) -> AsyncIterator[tuple[K, npt.NDArray[Any] | ViQError]]:
        """Features as `embed` has them; otherwise as `encode_each`."""
        return self._each(Ask("embed", size, exif, alpha, dtype, any_fingerprint), inputs)

    def decode_each(
        self, codes: Iterable[tuple[K, Codes]] | AsyncIterable[tuple[K, Codes]], *, any_fingerprint: bool = False
    ) -> AsyncIterator[tuple[K, npt.NDArray[np.uint8] | ViQError]]:
        """Pictures as `decode` has them; otherwise as `encode_each`."""
        return self._each(Ask("decode", any_fingerprint=any_fingerprint), codes)

    async def models(self) -> list[dict[str, Any]]:
        """The loaded sizes as `GET /v1/models` describes them, one dict each, the default first."""
        return await self._replicas.query(lambda lane: lane.models(), self._timeout_s)

    async def plan(self, sizes: Sequence[tuple[int, int]], *, size: str | None = None) -> list[dict[str, Any]]:
        """What images of `(width, height)` pixels would take, one dict each; nothing is computed."""
        return await self._replicas.query(lambda lane: lane.plan(sizes, size), self._timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._replicas.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def one(self, ask: Ask, given: Given) -> Any:
        """The answer for one item; raises its error."""
        if not is_read(given):
            return await self._replicas.ask(ask, await sent_as(given, ask), self._timeout_s)
        async with self._reading:  # what is read and has no room yet is a few files at most
            sent = await sent_as(given, ask)
            await self._room.take(weight_of(sent, ask))
        try:
            return await self._replicas.ask(ask, sent, self._timeout_s)
        finally:
            self._room.give(weight_of(sent, ask))

    def window(self, ask: Ask) -> Window:
        """How much of such items may be on its way."""
        most = self._in_flight or (IN_FLIGHT_EMBED if ask.method == "embed" else IN_FLIGHT)
        return Window(most, self._in_flight_bytes)

    async def _each(
        self, ask: Ask, pairs: Iterable[tuple[K, Any]] | AsyncIterable[tuple[K, Any]]
    ) -> AsyncIterator[tuple[K, Any]]:
        window, waiting = self.window(ask), deque[tuple[K, int, asyncio.Task[Any]]]()

        async def next_() -> tuple[K, Any]:
            key, weight, task = waiting.popleft()
            window.give(weight)
            return key, await _or_error(task)

        source = Upcoming(pairs)
        try:
            while True:
                while waiting and not await source.sooner_than(waiting[0][2]):
                    yield await next_()
                pair = await source.next()
                if pair is None:
                    break
                key, given = pair
                weight = weight_of(given, ask)
                while waiting and not window.room(weight):
                    yield await next_()
                window.take(weight)
                waiting.append((key, weight, asyncio.create_task(self.one(ask, given))))
                await asyncio.sleep(0)  # so that it is on its way before the next one is read
            while waiting:
                yield await next_()
        finally:
            for _, _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in waiting), source.close(), return_exceptions=True)

    def _lane(self, target: Target, address: str) -> Lane:
        if target.kind == "http":
            host = "" if address == target.text else target.authority
            return HttpLane(address, self._tls, self._headers, self._in_flight or IN_FLIGHT, host)
        from viq_serving.client.grpc_lane import GrpcLane

        return GrpcLane(address, target.text if target.host else "", self._tls, list(self._headers.items()))


async def _all(each: AsyncIterator[tuple[Any, Any]]) -> list[Any]:
    results = []
    async for _, result in each:
        if isinstance(result, ViQError):
            raise result
        results.append(result)
    return results


async def _or_error(task: asyncio.Task[Any]) -> Any:
    try:
        return await task
    except ViQError as error:
        return error.bare()
    except OSError as error:  # a path that cannot be read
        return InvalidInput(f"cannot be read: {error}")
