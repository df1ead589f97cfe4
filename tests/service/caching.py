"""A cache before a computation that a test holds and frees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from viq import Codes
from viq_serving.cache import ENTRY_BYTES, CodesCache
from viq_serving.errors import ViQError
from viq_serving.metrics import Metrics
from viq_serving.types import ImageFile, ModelInfo, Results, Terms, Timings

NANO = ModelInfo("nano", "family.mode", "family", (8,), 512, 32, "float32", "cpu", untrained=True)
ENTRY = ENTRY_BYTES + 8  # of one patch
INTERACTIVE, BULK = Terms(), Terms(priority="bulk")
PATIENT = replace(BULK, patient=True)
TOOK = Timings(preprocess=1.0, queue=2.0, compute=3.0)

A, B, C = (ImageFile(name.encode()) for name in "abc")


def codes_of(image: ImageFile, patches: int = 1) -> Codes:
    """What every computation here makes of an image."""
    array = np.full((1, patches, 4), image.data[0], np.uint16)
    return Codes(array, (16, 16 * patches), NANO.size, NANO.fingerprint)


class Cached:
    """A cache before a computation that notes what it is asked for, and answers when a test lets it."""

    def __init__(self, max_bytes: int = 2**20, shared: bool = False) -> None:
        self.metrics = Metrics("test")
        self.cache = CodesCache(max_bytes, self.metrics, shared)
        self.asked: list[list[ImageFile]] = []
        self.error: ViQError | None = None
        self.wrong: dict[ImageFile, ViQError] = {}
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def free(self) -> None:
        self._free.set()

    def ask(self, *images: ImageFile | ViQError, terms: Terms = INTERACTIVE, model: ModelInfo = NANO) -> Ask:
        """A request under way."""
        return asyncio.ensure_future(self.cache.through(images, model, terms, self._compute))

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("viq_cache_total", {"result": result}) or 0.0

    async def _compute(self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms) -> Results[Codes]:
        files = [one for one in images if isinstance(one, ImageFile)]
        self.asked.append(files)
        error = self.error
        await self._free.wait()
        if error is not None:
            raise error
        items = [one if isinstance(one, ViQError) else self.wrong.get(one) or codes_of(one) for one in images]
        return Results(model, items, TOOK)


Ask = asyncio.Future[Results[Codes]]


def live(story: Callable[[Cached], Awaitable[None]], **options: bool | int) -> None:
    """Run `story` over a fresh cache; nothing is under way after it."""

    async def run() -> None:
        cached = Cached(**options)  # type: ignore[arg-type]
        await story(cached)
        assert not cached.cache._flights

    asyncio.run(run())


async def begun(*requests: Ask) -> None:
    """Let `requests` come as far as they can without an answer."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(request.done() for request in requests)
