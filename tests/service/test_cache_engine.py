"""The cache before the real engine: what the device is spared, and that nobody's answer depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from viq import ViQ
from viq_serving.cache import CodesCache
from viq_serving.errors import InvalidInput, NotReady, TooLarge
from viq_serving.images import ImageLimits, encode_picture
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import TERMS, Tokenizer
from viq_serving.types import Caller, ImageFile

Story = Callable[[Tokenizer, Metrics], Awaitable[None]]


def image(shade: int, height: int = 32, width: int = 48) -> ImageFile:
    return ImageFile(encode_picture(np.full((height, width, 3), shade, np.uint8), "png"))


@pytest.fixture(scope="module")
def model() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def live(model: ViQ) -> Callable[[Story], None]:
    """Run a coroutine over a ready tokenizer with a cache."""

    def run(story: Story) -> None:
        async def whole() -> None:
            metrics = Metrics("test")
            tokenizer = Tokenizer(ImageLimits(), 64, metrics, cache=CodesCache(2**20, metrics))
            await tokenizer.load(lambda: [model])
            try:
                await story(tokenizer, metrics)
            finally:
                tokenizer.close()

        asyncio.run(whole())

    return run


Live = Callable[[Story], None]


async def computed(metrics: Metrics) -> float:
    """Requests that the cache did not answer."""
    await asyncio.sleep(0)  # they are counted after they are answered
    labels = {"method": "encode", "stage": "compute"}
    return metrics.registry.get_sample_value("viq_stage_duration_seconds_count", labels) or 0.0


def counted(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("viq_cache_total", {"result": result}) or 0.0


def test_duplicates_in_flight_are_computed_once_and_are_the_model_s_own_codes(live: Live, model: ViQ) -> None:
    async def story(tokenizer: Tokenizer, metrics: Metrics) -> None:
        before, asked = await computed(metrics), [image(shade) for shade in (10, 20, 10, 10, 20, 30, 10)]
        replies = await asyncio.gather(*(tokenizer.encode([one], tokenizer.model()) for one in asked))
        pixels = [np.full((32, 48, 3), shade, np.uint8) for shade in (10, 20, 10, 10, 20, 30, 10)]
        assert [reply.items[0] for reply in replies] == model.encode_pixels(pixels)
        assert await computed(metrics) == before + 3
        assert (counted(metrics, "miss"), counted(metrics, "shared"), counted(metrics, "hit")) == (3, 4, 0)

    live(story)


def test_two_callers_in_flight_never_share(live: Live) -> None:
    async def story(tokenizer: Tokenizer, metrics: Metrics) -> None:
        before, terms = (
            await computed(metrics),
            [replace(TERMS, caller=Caller(name)) for name in ("one", "other", "one")],
        )
        replies = await asyncio.gather(*(tokenizer.encode([image(1)], tokenizer.model(), t) for t in terms))
        assert len({reply.items[0] for reply in replies}) == 1
        assert await computed(metrics) == before + 2

    live(story)


def test_a_follower_of_a_departed_leader_is_answered(live: Live) -> None:
    async def story(tokenizer: Tokenizer, metrics: Metrics) -> None:
        requests = [asyncio.ensure_future(tokenizer.encode([image(1)], tokenizer.model())) for _ in range(3)]
        await asyncio.sleep(0)
        requests[0].cancel()
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert [one.items[0] for one in answers[1:]] == [answers[2].items[0]] * 2  # type: ignore[union-attr]

    live(story)


def test_requests_that_can_never_be_done_are_refused_as_without_a_cache(live: Live) -> None:
    async def story(tokenizer: Tokenizer, metrics: Metrics) -> None:
        good = image(1)
        await tokenizer.encode([good], tokenizer.model())
        with pytest.raises(InvalidInput, match="no image"):
            await tokenizer.encode([], tokenizer.model())
        with pytest.raises(TooLarge, match="65 images"):
            await tokenizer.encode([good] * 65, tokenizer.model())
        tokenizer.close()
        with pytest.raises(NotReady):
            await tokenizer.encode([good], tokenizer.model())

    live(story)
