"""The one door inward: encode, embed and decode on domain types, whatever front end asks.

A request is admitted by what its headers say it costs, its images become patches on a small pool of threads, the
engine computes them together with those of others, and features and pictures are finished on the pool again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.config import CODES_PER_PATCH, VARIANTS, grid_of
from viq.cost import encode_cost
from viq_serving.allowance import Allowance
from viq_serving.engine.engine import Engine, EngineLimits
from viq_serving.engine.scheduler import Entry, Flow, Request, cost_of
from viq_serving.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    Internal,
    InvalidInput,
    NotReady,
    Overloaded,
    TooLarge,
    UnknownModel,
    ViQError,
)
from viq_serving.images import ImageLimits, claimed_patches, decode, encode_picture, over_limit, probe
from viq_serving.metrics import Metrics
from viq_serving.stopwatch import Stopwatch
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
    from viq.patches import Patches

log = logging.getLogger("viq.tokenizer")

TERMS = Terms()

_SMALL_PATCHES = 1024

_OF_ALL = (Overloaded, NotReady, DeadlineExceeded)

State = Literal["loading", "ready", "draining", "stopping", "lost"]

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", Codes, Features, Picture)


class Tokenizer:
    """Encode, embed and decode over the loaded sizes. Nothing is loaded until `load` has run."""

    def __init__(
        self,
        limits: ImageLimits,
        max_images: int,
        metrics: Metrics,
        engine_limits: EngineLimits = EngineLimits(),
        max_bytes_in_flight: int = 512 * 2**20,
    ) -> None:
        self.limits, self.max_images, self._metrics = limits, max_images, metrics
        self.bodies = Allowance(max_bytes_in_flight, "bytes of request bodies")
        self._engine = Engine(metrics, engine_limits)
        self._state: State = "loading"
        self._listeners: list[Callable[[State], None]] = []
        self._models: dict[str, ModelInfo] = {}
        self._refuses: str | None = None
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="viq-images")
        self._headers = ThreadPoolExecutor(1, thread_name_prefix="viq-headers")

    @property
    def state(self) -> State:
        """Where in its life the service is; requests are answered while "ready" and "draining"."""
        return self._state

    async def load(self, load: Callable[[], Sequence[ViQ]]) -> None:
        """Run `load` and warm-up forwards, then be ready."""
        for model in await self._engine.load(load, self._lose):
            info = self._models[model.size] = _describe(model)
            self._metrics.loaded(info)
        if self._state == "loading":
            self._become("ready")

    def drain(self) -> None:
        """Stop being ready, while requests are still answered."""
        if self._state != "lost":
            self._become("draining")

    def stop(self) -> None:
        """Say that the doors close. What they have let in is still answered, also if its body is still on its way."""
        if self._state != "lost":
            self._become("stopping")

    async def finish(self) -> None:
        """Wait until what is under way is computed, or the device is lost."""
        await self._engine.finish()

    def close(self) -> None:
        """Let what waits be computed and the threads end; who asks now, or is not done yet, is told so."""
        self._refuses = self._refuses or "the service is stopping"
        self._engine.close()
        for pool in (self._pool, self._headers):
            pool.shutdown(wait=self._state != "lost", cancel_futures=True)

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
        self._check(images, model)
        async with _within(terms):
            watch = Stopwatch()
            patches = await self._counted(images, model)
            with self._admitted({"encode": patches}, model, terms) as request:
                codes = await self._encoded(watch, model, images, patches, request)
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
        self._check(inputs, model, any_fingerprint)
        async with _within(terms):
            watch = Stopwatch()
            patches = await self._counted(inputs, model)
            images = [n for n, one in zip(patches, inputs, strict=True) if isinstance(one, ImageFile)]
            with self._admitted({"encode": images, "embed": patches}, model, terms) as request:
                codes = await self._encoded(watch, model, inputs, patches, request)
                tensors = await self._computed("embed", watch, model, codes, patches, request)
                features = await self._finished(watch, partial(_features, dtype), _paired(tensors, codes))
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
        self._check(inputs, model, any_fingerprint)
        async with _within(terms):
            watch = Stopwatch()
            patches = await self._counted(inputs, model)
            with self._admitted({"decode": patches}, model, terms) as request:
                pixels = await self._computed("decode", watch, model, inputs, patches, request)
                pictures = await self._finished(watch, partial(_picture, format), pixels)
                return self._results("decode", model, pictures, watch)

    def plan(self, height: int, width: int) -> Plan:
        """What an image of `height` x `width` pixels would take; runs nothing."""
        grid, over = grid_of(height, width), over_limit(height, width, self.limits)
        patches, limit = grid[0] * grid[1], None if over is None else over.partition(":")[0]
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

    def _lose(self, reason: str) -> None:
        log.critical("the device is lost: %s", reason)
        self._refuses = f"the device is lost: {reason}"
        self._become("lost")

    def _check(self, inputs: Sequence[object], model: ModelInfo, any_fingerprint: bool = False) -> None:
        """Refuse a whole request: too many items, none, or codes of other weights, which all came from one reply."""
        if self._refuses is not None:
            raise NotReady(self._refuses)
        if not inputs:
            raise InvalidInput("the request holds no image and no codes")
        if len(inputs) > self.max_images:
            raise TooLarge(f"{len(inputs)} images in one request, the limit is {self.max_images}")
        foreign = {one.family for one in inputs if isinstance(one, Codes)} - {"", model.family}
        if foreign and not any_fingerprint:
            raise FingerprintMismatch(
                f"codes are of family {', '.join(sorted(foreign))}, size {model.label} here is {model.family}"
            )

    async def _counted(self, inputs: Sequence[ImageFile | Codes | ViQError], model: ModelInfo) -> list[int | ViQError]:
        """Patches of each input by its header or grid, or what is wrong with it. No pixel is decoded."""

        def count(one: ImageFile | Codes) -> int | None:
            if isinstance(one, ImageFile):
                return claimed_patches(one.data, self.limits)
            self._check_codes(one, model)
            return one.grid[0] * one.grid[1]

        counted: list[int | ViQError | None] = []
        for one in inputs:
            try:
                counted.append(one if isinstance(one, ViQError) else count(one))
            except ViQError as error:
                counted.append(error.with_traceback(None))
        unsure = {i: one for i, one in enumerate(inputs) if counted[i] is None and isinstance(one, ImageFile)}
        if unsure:
            # Beside the pool: to be refused must not wait behind what is decoded there.
            opened = await asyncio.get_running_loop().run_in_executor(
                self._headers, lambda: [_or_error(self._probed, one) for one in unsure.values()]
            )
            for index, patches in zip(unsure, opened, strict=True):
                counted[index] = patches
        return [Internal() if patches is None else patches for patches in counted]

    def _probed(self, image: ImageFile) -> int:
        return probe(image.data, self.limits, exif=False).patches

    def _check_codes(self, codes: Codes, model: ModelInfo) -> None:
        if codes.size != model.size:
            raise InvalidInput(f"codes are of size {codes.size}, the size asked is {model.label}")
        over = over_limit(*codes.image_size, self.limits)
        if over is not None:
            raise TooLarge(f"image of the codes is over {over}")

    @contextmanager
    def _admitted(
        self, work: Mapping[Method, Sequence[int | ViQError]], model: ModelInfo, terms: Terms
    ) -> Iterator[Request]:
        """Hold room for a request; `work` is what each method will be given, in patches."""
        counts = {method: [n for n in patches if isinstance(n, int)] for method, patches in work.items()}
        costs: dict[Flow, float] = {
            (method, model.size): float(sum(cost_of(method, n) for n in patches))
            for method, patches in counts.items()
            if patches
        }
        most = max((sum(patches) for patches in counts.values()), default=0)
        with self._engine.admission.admitted(most, costs, terms.deadline - monotonic()) as held:
            yield Request(monotonic(), terms.deadline, terms.request_id, held)

    async def _encoded(
        self,
        watch: Stopwatch,
        model: ModelInfo,
        inputs: Sequence[ImageFile | Codes | ViQError],
        patches: Sequence[int | ViQError],
        request: Request,
    ) -> list[Codes | ViQError]:
        """Codes of every input: image files are encoded; codes, and inputs with something wrong, are as they came."""
        images = [(i, one) for i, one in enumerate(inputs) if isinstance(one, ImageFile)]
        made = await self._computed(
            "encode", watch, model, [one for _, one in images], [patches[i] for i, _ in images], request, self._patches
        )
        codes: list[Any] = [
            wrong if isinstance(wrong, ViQError) else one for wrong, one in zip(patches, inputs, strict=True)
        ]
        for (index, _), one in zip(images, made, strict=True):
            codes[index] = one
            if isinstance(one, Codes):
                asyncio.get_running_loop().call_soon(self._metrics.used, model.size, one.array)
        return codes

    async def _computed(
        self,
        method: Method,
        watch: Stopwatch,
        model: ModelInfo,
        items: Sequence[Any],
        patches: Sequence[int | ViQError],
        request: Request,
        prepare: Callable[[Any, Entry], object] | None = None,
    ) -> list[Any]:
        """What the engine makes of `items`; errors, among items or patches, keep their place."""
        results: list[Any] = [n if isinstance(n, ViQError) else item for n, item in zip(patches, items, strict=True)]
        counts = {i: n for i, n in enumerate(patches) if isinstance(n, int) and not isinstance(items[i], ViQError)}
        if not counts:
            return results
        entries = [Entry((method, model.size), n, request) for n in counts.values()]
        # To wake a second thread takes longer than to decode a small image on the device's own, while that is free.
        here = self._engine.idle and len(entries) == 1 and entries[0].patches <= _SMALL_PATCHES
        job, asked = self._engine.job(entries), monotonic()
        for entry, index in zip(entries, counts, strict=True):
            if prepare is None:
                entry.work = items[index]
                self._engine.queue(entry)
            elif here:
                entry.make = partial(prepare, items[index], entry)
                self._engine.queue(entry)
            else:
                self._pool.submit(self._engine.prepare, entry, partial(prepare, items[index], entry))
        answers = await self._engine.answers(job)
        watch.engine(asked, entries, answers)
        for index, answer in zip(counts, answers, strict=True):
            if isinstance(answer.result, _OF_ALL):  # of the request, whichever of its images it met
                raise answer.result
            results[index] = answer.result
        return results

    def _patches(self, image: ImageFile, entry: Entry) -> Patches:
        from viq.patches import Patches

        patches = Patches.of(decode(image.data, self.limits, exif=image.options.exif, alpha=image.options.alpha))
        if len(patches.rows) > entry.patches:
            raise InvalidInput(f"image has {len(patches.rows)} patches, its header claims {entry.patches}")
        return patches

    async def _finished(
        self, watch: Stopwatch, work: Callable[[A], B], items: Sequence[A | ViQError]
    ) -> list[B | ViQError]:
        """`work` on every item, on the pool; an item's own error takes its place."""
        with watch.stage("postprocess"):
            return await self._pooled(work, items)

    async def _pooled(self, work: Callable[[A], B], items: Sequence[A | ViQError]) -> list[B | ViQError]:
        loop, guarded = asyncio.get_running_loop(), partial(_or_error, work)
        return await asyncio.gather(*(loop.run_in_executor(self._pool, guarded, item) for item in items))

    def _results(self, method: Method, model: ModelInfo, items: Sequence[R | ViQError], watch: Stopwatch) -> Results[R]:
        timings = watch.timings()
        sizes = [item.image_size for item in items if not isinstance(item, ViQError)]
        # Counted when the reply is on its way: nobody can ask for the count before that.
        asyncio.get_running_loop().call_soon(self._metrics.served, method, model.size, sizes, timings)
        return Results(model, items, timings)


@asynccontextmanager
async def _within(terms: Terms) -> AsyncIterator[None]:
    """A scope that ends at the caller's deadline, as `DeadlineExceeded`."""
    left_s = terms.deadline - monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline has passed already")
    scope = asyncio.timeout(None if math.isinf(left_s) else left_s)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded("the deadline passed before the request was answered") from None


def _or_error(work: Callable[[A], B], item: A | ViQError) -> B | ViQError:
    if isinstance(item, ViQError):
        return item
    try:
        return work(item)
    except ViQError as error:
        return error.with_traceback(None)
    except Exception:
        log.exception("an image of a request could not be worked on")
        return Internal()


def _paired(left: Sequence[A | ViQError], right: Sequence[B | ViQError]) -> list[tuple[A, B] | ViQError]:
    pairs: list[tuple[A, B] | ViQError] = []
    for a, b in zip(left, right, strict=True):
        pairs.append(a if isinstance(a, ViQError) else b if isinstance(b, ViQError) else (a, b))
    return pairs


def _picture(format: PictureFormat, pixels: npt.NDArray[np.uint8]) -> Picture:
    return Picture(encode_picture(pixels, format), format, (pixels.shape[0], pixels.shape[1]))


def _features(dtype: FeatureDtype, pair: tuple[torch.Tensor, Codes]) -> Features:
    import torch

    tensor, codes = pair[0].to(getattr(torch, dtype), copy=True), pair[1]  # not the whole pack's memory with it
    if dtype == "bfloat16":  # numpy has no such type: its bits travel as uint16
        return Features(tensor.view(torch.int16).numpy().view(np.uint16), dtype, codes.grid, codes.image_size)
    return Features(tensor.numpy(), dtype, codes.grid, codes.image_size)


def _describe(model: ViQ) -> ModelInfo:
    return ModelInfo(
        size=model.size,
        fingerprint=model.fingerprint,
        family=model.family,
        levels=tuple(model.levels),
        codebook_size=model.codebook_size,
        width=model.width,
        dtype=model.dtype,
        device=model.device,
        untrained=model.untrained,
    )
