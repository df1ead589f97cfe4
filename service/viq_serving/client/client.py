"""The client for everybody else: the same as `AsyncClient`, on an event loop of its own in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import InvalidInput, ViQError
from viq_serving.client.asynchronous import AsyncClient
from viq_serving.client.calls import Ask, Given, GivenImage, weight_of
from viq_serving.client.errors import UNREACHABLE, ServerError
from viq_serving.client.http import Picture
from viq_serving.client.options import Options

K = TypeVar("K")
T = TypeVar("T")

_PARTING_S = 1.0


class Client:
    """A ViQ service at `host:port` (gRPC streams) or `http://host:port`; see `AsyncClient` for what all means.

        with Client("viq.example:8001") as client:
            (codes,) = client.encode(["cat.png"])
            for key, result in client.encode_each((path, path) for path in paths):
                ...  # Codes, or the ViQError of that one image

    Its methods may be called from any thread. It does not survive a fork: make one in each process.
    """

    def __init__(self, server: str | Sequence[str], **options: Unpack[Options]) -> None:
        """Nothing is asked of the server yet. What may be given by name: `viq_serving.client.options`.

        Raises `InvalidInput` for an address that is none.
        """
        self._client = AsyncClient(server, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="viq-client", daemon=True)
        self._thread.start()

    def encode(
        self, images: Iterable[Picture], *, size: str | None = None, exif: bool = True, alpha: str = "white"
    ) -> list[Codes]:
        """Codes of each image. `exif` and `alpha` are those of `viq.pixels.to_rgb`. Raises the first item's error."""
        return _all(self.encode_each(enumerate(images), size=size, exif=exif, alpha=alpha))

    def embed(
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
        return _all(each)

    def decode(self, codes: Iterable[Codes], *, any_fingerprint: bool = False) -> list[npt.NDArray[np.uint8]]:
        """Pictures, uint8 `(H, W, 3)`, of each of `codes`."""
        return _all(self.decode_each(enumerate(codes), any_fingerprint=any_fingerprint))

    def encode_each(
        self,
        images: Iterable[tuple[K, GivenImage]],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
    ) -> Iterator[tuple[K, Codes | ViQError]]:
        """Codes, or what was wrong, of each of any number of images, by the key that came with it, in their order.

        Images are taken as there is room for them on the way, so there may be millions.
        """
        return self._each(Ask("encode", size, exif, alpha), images)

    def embed_each(
        self,
        inputs: Iterable[tuple[K, Given]],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
        dtype: str = "float32",
        any_fingerprint: bool = False,
    ) -> Iterator[tuple[K, npt.NDArray[Any] | ViQError]]:
        """Features as `embed` has them; otherwise as `encode_each`."""
        return self._each(Ask("embed", size, exif, alpha, dtype, any_fingerprint), inputs)

    def decode_each(
        self, codes: Iterable[tuple[K, Codes]], *, any_fingerprint: bool = False
    ) -> Iterator[tuple[K, npt.NDArray[np.uint8] | ViQError]]:
        """Pictures as `decode` has them; otherwise as `encode_each`."""
        return self._each(Ask("decode", any_fingerprint=any_fingerprint), codes)

    def models(self) -> list[dict[str, Any]]:
        """The loaded sizes as `GET /v1/models` describes them, one dict each, the default first."""
        return self._submit(self._client.models()).result()

    def plan(self, sizes: Sequence[tuple[int, int]], *, size: str | None = None) -> list[dict[str, Any]]:
        """What images of `(width, height)` pixels would take, one dict each; nothing is computed."""
        return self._submit(self._client.plan(sizes, size=size)).result()

    def close(self) -> None:
        """Close all connections and end the thread."""
        if self._loop.is_closed():
            return
        self._submit(self._closed()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, ask: Ask, pairs: Iterable[tuple[K, Any]]) -> Iterator[tuple[K, Any]]:
        window, waiting = self._client.window(ask), deque[tuple[K, int, Future[Any]]]()

        def next_() -> tuple[K, Any]:
            key, weight, future = waiting.popleft()
            window.give(weight)
            return key, _or_error(future)

        try:
            for key, given in pairs:
                weight = weight_of(given, ask)
                while waiting and (not window.room(weight) or waiting[0][2].done()):
                    yield next_()
                window.take(weight)
                waiting.append((key, weight, self._submit(self._client.one(ask, given))))
            while waiting:
                yield next_()
        finally:
            for _, _, future in waiting:
                future.cancel()

    async def _closed(self) -> None:
        """Close, and let what the transport still has to do on this loop be done."""
        await self._client.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=_PARTING_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # there is no loop any more
            work.close()
            raise ServerError(UNREACHABLE, "the client is closed") from None


def _all(each: Iterator[tuple[Any, Any]]) -> list[Any]:
    results = []
    for _, result in each:
        if isinstance(result, ViQError):
            raise result
        results.append(result)
    return results


def _or_error(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ViQError as error:
        return error.bare()
    except OSError as error:  # a path that cannot be read
        return InvalidInput(f"cannot be read: {error}")
