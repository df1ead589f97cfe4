"""The one door inward: encode, embed and decode on domain types, whatever front end asks.

A request is admitted by what its headers say it costs, its images become patches on a small pool of threads, the
engine computes them together with those of others, and features and pictures are finished on the pool again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from viq.codes import Codes
from viq.config import CODES_PER_PATCH, grid_of
from viq.cost import encode_cost
from viq_serving.allowance import Allowance
from viq_serving.cache import CodesCache
from viq_serving.catalogue import Catalogue, check_family
from viq_serving.deadline import within
from viq_serving.engine.engine import Engine, EngineLimits
from viq_serving.engine.jobs import Answers
from viq_serving.errors import InvalidInput, NotReady, TooLarge, ViQError
from viq_serving.images import ImageLimits, over_limit
from viq_serving.life import Life, State
from viq_serving.metrics import Metrics
from viq_serving.passage import Passage, Works
from viq_serving.patch_count import PatchCount
from viq_serving.products import features_of, or_error, paired, picture_of
from viq_serving.types import (
    FeatureDtype,
    Features,
    ImageFile,
    ModelInfo,
    Picture,
    PictureFormat,
    Plan,
    Results,
    Terms,
)

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

__all__ = ["TERMS", "State", "Tokenizer"]

log = logging.getLogger("viq.tokenizer")

TERMS = Terms()

A = TypeVar("A")
B = TypeVar("B")


class Tokenizer:
    """Encode, embed and decode over the loaded sizes. Nothing is loaded until `load` has run."""

    def __init__(
        self,
        limits: ImageLimits,
        max_images: int,
        metrics: Metrics,
        engine_limits: EngineLimits = EngineLimits(),
        max_bytes_in_flight: int = 512 * 2**20,
        cache: CodesCache | None = None,
    ) -> None:
        self.limits, self.max_images, self._metrics = limits, max_images, metrics
        self.bodies = Allowance(max_bytes_in_flight, "bytes of request bodies")
        self.cache = cache
        self._engine = Engine(metrics, engine_limits)
        self._life, self._catalogue = Life(metrics), Catalogue()
        self._refuses: str | None = None
        self._works, self._count = Works(self._engine, limits, metrics), PatchCount(limits)

    @property
    def state(self) -> State:
        """Where in its life the service is; requests are answered while "ready" and "draining"."""
        return self._life.state

    async def load(
        self, load: Callable[[], Sequence[Model]], then: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Run `load`, warm-up forwards and `then`, and be ready. A size that comes again begins another replica."""
        replicas = await self._engine.load(load, self._lose)
        for model in self._catalogue.fill(replicas):
            self._metrics.loaded(model)
        if then is not None:
            await then()
        if self._life.state == "loading":
            self._life.become("ready")

    def drain(self) -> None:
        """Stop being ready, while requests are still answered."""
        self._life.become("draining")

    def stop(self) -> None:
        """Say that the doors close. What they have let in is still answered, also if its body is still on its way."""
        self._life.become("stopping")

    async def finish(self) -> None:
        """Wait until what is under way is computed, or the device is lost."""
        await self._engine.finish()

    def close(self) -> None:
        """Let what waits be computed and the threads end; who asks now, or is not done yet, is told so."""
        self._refuses = self._refuses or "the service is stopping"
        self._engine.close()
        for threads in (self._works.pool, self._count):
            threads.shutdown(wait=self._life.state != "lost")

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything to be computed."""
        return self._engine.idle

    @property
    def hung(self) -> bool:
        """Whether a device that is lost has left a thread that nothing but the end of the process ends."""
        return self._engine.hung

    def watch(self, trace: Callable[[], object], on_answers: Callable[[Answers, int], None]) -> None:
        """Let each request of the engine carry what `trace` gives in its task, and show `on_answers` what was answered.

        That is once a batch, before anybody is woken, with the most cost that is computed together.
        """
        self._works.trace, self._engine.on_answers = trace, on_answers

    def models(self) -> list[ModelInfo]:
        """The loaded sizes, the default first."""
        return self._catalogue.models()

    def model(self, size: str | None = None, expect: str | None = None) -> ModelInfo:
        """The loaded size of that name, the default for none; `expect` is a family or a whole fingerprint.

        Raises `NotReady`, `UnknownModel`, or `FingerprintMismatch` if the expectation does not hold.
        """
        return self._catalogue.model(size, expect)

    async def encode(
        self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms = TERMS
    ) -> Results[Codes]:
        """Codes of image files, one item each."""
        self._check(images, model)
        if self.cache is not None:
            return await self.cache.through(images, model, terms, self._encode)
        return await self._encode(images, model, terms)

    async def _encode(self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms) -> Results[Codes]:
        async with within(terms):
            way, patches = Passage(self._works, model, terms), await self._count.of(images, model, terms.priority)
            async with way.admitted({"encode": patches}):
                return way.results("encode", await way.encoded(images, patches))

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
        async with within(terms):
            way, patches = Passage(self._works, model, terms), await self._count.of(inputs, model, terms.priority)
            images = [n for n, one in zip(patches, inputs, strict=True) if isinstance(one, ImageFile)]
            async with way.admitted({"encode": images, "embed": patches}):
                codes = await way.encoded(inputs, patches)
                tensors = await way.computed("embed", codes, patches)
                features = await way.finished(partial(features_of, dtype), paired(tensors, codes))
                return way.results("embed", features)

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
        async with within(terms):
            way, patches = Passage(self._works, model, terms), await self._count.of(inputs, model, terms.priority)
            async with way.admitted({"decode": patches}):
                pixels = await way.computed("decode", inputs, patches)
                return way.results("decode", await way.finished(partial(picture_of, format), pixels))

    async def beside(self, work: Callable[[A], B], items: Sequence[A | ViQError], terms: Terms) -> list[B | ViQError]:
        """`work` on every item, on the threads for images; an item's own error takes its place."""
        async with within(terms):
            lane, pool = terms.priority, self._works.pool
            return await asyncio.gather(*(pool.run(lane, partial(or_error, work, item)) for item in items))

    def patches_of(self, item: ImageFile | Codes) -> int:
        """Patches of `item` as its first bytes or its grid tell at once; 0 if that is not easily known."""
        return self._count.claimed(item)

    def plan(self, height: int, width: int) -> Plan:
        """What an image of `height` x `width` pixels would take; runs nothing."""
        grid, over = grid_of(height, width), over_limit(height, width, self.limits)
        patches, limit = grid[0] * grid[1], None if over is None else over.partition(":")[0]
        return Plan(grid, (height, width), patches, CODES_PER_PATCH * patches, encode_cost(patches), limit)

    def listen(self, listener: Callable[[State], None]) -> None:
        """Tell `listener` the state, now and whenever it changes."""
        self._life.listen(listener)

    def _lose(self, reason: str) -> None:
        log.critical("the device is lost: %s", reason)
        self._refuses = f"the device is lost: {reason}"
        self._life.become("lost")

    def _check(self, inputs: Sequence[object], model: ModelInfo, any_fingerprint: bool = False) -> None:
        """Refuse a whole request: too many items, none, or codes of other weights, which all came from one reply."""
        if self._refuses is not None:
            raise NotReady(self._refuses)
        if not inputs:
            raise InvalidInput("the request holds no image and no codes")
        if len(inputs) > self.max_images:
            raise TooLarge(f"{len(inputs)} images in one request, the limit is {self.max_images}")
        if not any_fingerprint:
            check_family(inputs, model)
