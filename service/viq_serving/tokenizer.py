"""The one door inward: encode, embed and decode on domain types, whatever front end asks.

The models run on their own thread, one request at a time; image files, features and pictures are worked on by
a small pool of others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.config import CODES_PER_PATCH, VARIANTS, grid_of
from viq.cost import encode_cost
from viq_serving.device import Device
from viq_serving.errors import FingerprintMismatch, InvalidInput, NotReady, TooLarge, UnknownModel, ViQError
from viq_serving.images import ImageLimits, decode, encode_picture, over_limit
from viq_serving.metrics import Metrics
from viq_serving.stopwatch import Stage, Stopwatch
from viq_serving.types import (
    FeatureDtype,
    Features,
    ImageFile,
    Method,
    ModelInfo,
    Picture,
    PictureFormat,
    Plan,
    Results,
    Terms,
)

if TYPE_CHECKING:
    import torch

    from viq.model import ViQ

TERMS = Terms()

State = Literal["loading", "ready", "draining", "lost"]
Pixels = npt.NDArray[np.uint8]

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", Codes, Features, Picture)

# One request computes while the next one decodes its images; more would only hold pixels in memory.
_REQUESTS_AT_ONCE = 2


class Tokenizer:
    """Encode, embed and decode over the loaded sizes. Nothing is loaded until `load` has run."""

    def __init__(self, limits: ImageLimits, max_images: int, metrics: Metrics) -> None:
        self.limits, self.max_images, self._metrics = limits, max_images, metrics
        self._state: State = "loading"
        self._listeners: list[Callable[[State], None]] = []
        self._models: dict[str, ModelInfo] = {}
        self._device = Device()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="viq-images")
        self._turns = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    @property
    def state(self) -> State:
        """Where in its life the service is; requests are answered while "ready" and "draining"."""
        return self._state

    async def load(self, load: Callable[[], Sequence[ViQ]]) -> None:
        """Run `load` and warm-up forwards on the device thread, then be ready."""
        for info in await self._device.load(load):
            self._models[info.size] = info
            self._metrics.loaded(info)
        if self._state == "loading":
            self._become("ready")

    def drain(self) -> None:
        """Stop being ready, while requests are still answered."""
        self._become("draining")

    def close(self) -> None:
        """Let what is under way finish and the threads end."""
        self._device.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def models(self) -> list[ModelInfo]:
        """The loaded sizes, the default first."""
        return list(self._models.values())

    def model(self, size: str | None = None, expect: str | None = None) -> ModelInfo:
        """The loaded size of that name, the default for none; `expect` is a family or a whole fingerprint.

        Raises `NotReady`, `UnknownModel`, or `FingerprintMismatch` if the expectation does not hold.
        """
        if not self._models:
            raise NotReady("the service is still loading")
        if size and size not in self._models:
            known = "is not loaded" if size in VARIANTS else "does not exist"
            raise UnknownModel(f"size {size!r} {known}; loaded: {', '.join(one.label for one in self.models())}")
        info = self._models[size] if size else next(iter(self._models.values()))
        if expect is not None and expect not in (info.fingerprint, info.family):
            raise FingerprintMismatch(f"expected fingerprint {expect}, size {info.label} has {info.fingerprint}")
        return info

    async def encode(
        self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms = TERMS
    ) -> Results[Codes]:
        """Codes of image files, one item each."""
        self._admit(images, model)
        async with self._turn() as watch:
            codes = await self._encoded(watch, model, images)
            return self._results("encode", model, codes, watch)

    async def embed(
        self,
        inputs: Sequence[ImageFile | Codes | ViQError],
        model: ModelInfo,
        dtype: FeatureDtype = "float32",
        any_fingerprint: bool = False,
        terms: Terms = TERMS,
    ) -> Results[Features]:
        """Features of image files or codes, one item each."""
        self._admit(inputs, model, any_fingerprint)
        async with self._turn() as watch:
            codes = await self._encoded(watch, model, inputs)
            forward = partial(self._device.models[model.size].embed, any_fingerprint=any_fingerprint)
            tensors = await self._device.run(watch, forward, codes)
            features = await self._each(watch, "postprocess", partial(_features, dtype), _paired(tensors, codes))
            return self._results("embed", model, features, watch)

    async def decode(
        self,
        inputs: Sequence[Codes | ViQError],
        model: ModelInfo,
        format: PictureFormat = "png",
        any_fingerprint: bool = False,
        terms: Terms = TERMS,
    ) -> Results[Picture]:
        """Pictures of codes, one item each."""
        self._admit(inputs, model, any_fingerprint)
        async with self._turn() as watch:
            codes = await self._each(watch, "preprocess", partial(self._checked, model), inputs)
            forward = partial(self._device.models[model.size].decode, any_fingerprint=any_fingerprint)
            pixels = await self._device.run(watch, forward, codes)
            pictures = await self._each(watch, "postprocess", partial(_picture, format), pixels)
            return self._results("decode", model, pictures, watch)

    def plan(self, height: int, width: int) -> Plan:
        """What an image of `height` x `width` pixels would take; runs nothing."""
        grid = grid_of(height, width)
        patches, over = grid[0] * grid[1], over_limit(height, width, self.limits)
        limit = None if over is None else over.partition(":")[0]
        return Plan(grid, (height, width), patches, CODES_PER_PATCH * patches, encode_cost(patches), limit)

    def listen(self, listener: Callable[[State], None]) -> None:
        """Tell `listener` the state, now and whenever it changes."""
        self._listeners.append(listener)
        listener(self._state)

    def _become(self, state: State) -> None:
        self._state = state
        self._metrics.ready.set(state == "ready")
        for listener in self._listeners:
            listener(state)

    def _admit(self, inputs: Sequence[object], model: ModelInfo, any_fingerprint: bool = False) -> None:
        """Refuse a whole request: too many items, none, or codes of other weights, which all came from one reply."""
        if not inputs:
            raise InvalidInput("the request holds no image and no codes")
        if len(inputs) > self.max_images:
            raise TooLarge(f"{len(inputs)} images in one request, the limit is {self.max_images}")
        foreign = {one.family for one in inputs if isinstance(one, Codes)} - {"", model.family}
        if foreign and not any_fingerprint:
            raise FingerprintMismatch(
                f"codes are of family {', '.join(sorted(foreign))}, size {model.label} here is {model.family}"
            )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Stopwatch]:
        watch = Stopwatch()
        with watch.stage("queue"):
            await self._turns.acquire()
        try:
            yield watch
        finally:
            self._turns.release()

    def _results(self, method: Method, model: ModelInfo, items: Sequence[R | ViQError], watch: Stopwatch) -> Results[R]:
        timings = watch.timings()
        sizes = [item.image_size for item in items if not isinstance(item, ViQError)]
        self._metrics.served(method, model.size, sizes, timings)
        return Results(model, items, timings)

    async def _encoded(
        self, watch: Stopwatch, model: ModelInfo, inputs: Sequence[ImageFile | Codes | ViQError]
    ) -> list[Codes | ViQError]:
        """Codes of every input: image files are encoded, codes checked, errors kept."""

        def prepared(one: ImageFile | Codes) -> Pixels | Codes:
            if isinstance(one, Codes):
                return self._checked(model, one)
            return decode(one.data, self.limits, exif=one.options.exif, alpha=one.options.alpha)

        # mypy joins ImageFile and Codes to object here
        ready = await self._each(watch, "preprocess", prepared, inputs)  # type: ignore[arg-type]
        pixels = [one for one in ready if isinstance(one, np.ndarray)]
        forward = self._device.models[model.size].encode_pixels
        made = iter(await self._device.run(watch, forward, pixels))
        return [next(made) if isinstance(one, np.ndarray) else one for one in ready]

    async def _each(
        self, watch: Stopwatch, stage: Stage, work: Callable[[A], B], items: Sequence[A | ViQError]
    ) -> list[B | ViQError]:
        """`work` on every item, on the pool; an item's own error takes its place."""

        def guarded(item: A | ViQError) -> B | ViQError:
            if isinstance(item, ViQError):
                return item
            try:
                return work(item)
            except ViQError as error:
                return error.with_traceback(None)

        loop = asyncio.get_running_loop()
        with watch.stage(stage):
            return await asyncio.gather(*(loop.run_in_executor(self._pool, guarded, item) for item in items))

    def _checked(self, model: ModelInfo, codes: Codes) -> Codes:
        if codes.size != model.size:
            raise InvalidInput(f"codes are of size {codes.size}, the size asked is {model.label}")
        over = over_limit(*codes.image_size, self.limits)
        if over is not None:
            raise TooLarge(f"image of the codes is over {over}")
        return codes


def _paired(left: Sequence[A | ViQError], right: Sequence[B | ViQError]) -> list[tuple[A, B] | ViQError]:
    pairs: list[tuple[A, B] | ViQError] = []
    for a, b in zip(left, right, strict=True):
        pairs.append(a if isinstance(a, ViQError) else b if isinstance(b, ViQError) else (a, b))
    return pairs


def _picture(format: PictureFormat, pixels: Pixels) -> Picture:
    return Picture(encode_picture(pixels, format), format, (pixels.shape[0], pixels.shape[1]))


def _features(dtype: FeatureDtype, pair: tuple[torch.Tensor, Codes]) -> Features:
    import torch

    tensor, codes = pair[0].detach().to("cpu", getattr(torch, dtype)), pair[1]
    if dtype == "bfloat16":  # numpy has no such type: its bits travel as uint16
        return Features(tensor.view(torch.int16).numpy().view(np.uint16), dtype, codes.grid, codes.image_size)
    return Features(tensor.numpy(), dtype, codes.grid, codes.image_size)
