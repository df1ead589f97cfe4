"""The door inward by itself: what its results say, whatever front end asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
import pytest

from viq import Codes, ViQ
from viq_serving.errors import InvalidInput, NotReady, TooLarge
from viq_serving.images import ImageLimits, encode_picture
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Features, ImageFile

T = TypeVar("T")


def image(height: int, width: int) -> ImageFile:
    return ImageFile(encode_picture(np.full((height, width, 3), 77, np.uint8), "png"))


@pytest.fixture(scope="module")
def model() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def ask(model: ViQ) -> Callable[[Callable[[Tokenizer], Awaitable[T]]], T]:
    """Run a coroutine over a ready tokenizer that takes three images of 8 patches a request."""

    def run(question: Callable[[Tokenizer], Awaitable[T]]) -> T:
        async def live() -> T:
            tokenizer = Tokenizer(ImageLimits(max_patches=8), 3, Metrics("test"))
            await tokenizer.load(lambda: [model])
            try:
                return await question(tokenizer)
            finally:
                tokenizer.close()

        return asyncio.run(live())

    return run


Ask = Callable[[Callable[[Tokenizer], Awaitable[object]]], object]


def test_images_and_codes_may_be_mixed_and_keep_their_places(ask: Ask, model: ViQ) -> None:
    codes = model.encode_pixels([np.full((16, 33, 3), 5, np.uint8)])[0]
    wrong = InvalidInput("was wrong before")

    async def question(tokenizer: Tokenizer) -> None:
        results = await tokenizer.embed([codes, wrong, image(32, 16)], tokenizer.model())
        first, second, third = results.items
        assert isinstance(first, Features)
        assert isinstance(third, Features)
        assert (first.grid, third.grid, second) == ((1, 3), (2, 1), wrong)
        assert np.array_equal(first.array, model.embed([codes])[0].numpy())

    ask(question)


def test_results_carry_their_timings(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer) -> None:
        timings = (await tokenizer.encode([image(16, 16)], tokenizer.model())).timings
        assert timings.compute > 0
        assert timings.preprocess > 0
        assert timings.queue >= 0

    ask(question)


def test_one_item_over_a_limit_fails_alone(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer) -> None:
        results = await tokenizer.encode([image(16, 160), image(16, 16)], tokenizer.model())
        assert isinstance(results.items[0], TooLarge)
        assert isinstance(results.items[1], Codes)

    ask(question)


def test_nothing_and_too_much_are_refused_whole(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer) -> None:
        with pytest.raises(InvalidInput, match="no image"):
            await tokenizer.encode([], tokenizer.model())
        with pytest.raises(TooLarge, match="4 images in one request, the limit is 3"):
            await tokenizer.encode([ImageFile(b"")] * 4, tokenizer.model())

    ask(question)


def test_a_tokenizer_without_models_is_not_ready() -> None:
    async def question() -> None:
        tokenizer = Tokenizer(ImageLimits(), 64, Metrics("test"))
        assert tokenizer.state == "loading"
        with pytest.raises(NotReady):
            tokenizer.model()
        tokenizer.close()

    asyncio.run(question())


def test_a_departed_caller_gives_its_turn_to_the_next(ask: Ask) -> None:
    """More requests than turns are cancelled while they wait or run; the one after them is answered."""

    async def question(tokenizer: Tokenizer) -> None:
        requests = [asyncio.ensure_future(tokenizer.encode([image(32, 64)], tokenizer.model())) for _ in range(5)]
        await asyncio.sleep(0)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        results = await tokenizer.encode([image(16, 16)], tokenizer.model())
        assert isinstance(results.items[0], Codes)

    ask(question)
