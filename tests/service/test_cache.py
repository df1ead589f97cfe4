"""The cache: what is kept, for whom, for how long, and what that takes."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from tests.service.caching import BULK, ENTRY, INTERACTIVE, NANO, TOOK, A, B, C, Cached, begun, codes_of, live

from viq import Codes
from viq_serving.cache import CodesCache
from viq_serving.errors import InvalidInput, ViQError
from viq_serving.metrics import Metrics
from viq_serving.types import Caller, ImageFile, ModelInfo, PixelOptions, Results, Terms, Timings


def test_an_image_that_comes_again_is_not_computed_again() -> None:
    async def story(cached: Cached) -> None:
        first, again = await cached.ask(A), await cached.ask(A)
        assert cached.asked == [[A]]
        assert list(first.items) == list(again.items) == [codes_of(A)]
        assert (first.timings, again.timings, again.model) == (TOOK, Timings(), NANO)
        assert (cached.count("miss"), cached.count("hit"), cached.count("shared")) == (1, 1, 0)

    live(story)


def test_only_what_is_new_of_a_request_is_computed_and_everything_keeps_its_place() -> None:
    async def story(cached: Cached) -> None:
        wrong = InvalidInput("was wrong before")
        await cached.ask(A)
        results = await cached.ask(B, wrong, A, B, C, A)
        assert cached.asked == [[A], [B, C]]
        expected = [codes_of(B), wrong, codes_of(A), codes_of(B), codes_of(C), codes_of(A)]
        assert list(results.items) == expected
        assert (cached.count("miss"), cached.count("hit"), cached.count("shared")) == (3, 2, 1)

    live(story)


def test_answered_images_are_counted_whoever_computed_them() -> None:
    async def story(cached: Cached) -> None:
        for _ in range(3):
            await cached.ask(A, A)
        await asyncio.sleep(0)
        count = cached.metrics.registry.get_sample_value
        assert count("viq_images_total", {"method": "encode", "size": "nano"}) == 5  # the first is the computation's
        assert (count("viq_patches_total", {"method": "encode"}), count("viq_pixels_total")) == (5, 5 * 256)

    live(story)


def test_a_request_of_nothing_good_is_left_to_the_computation() -> None:
    async def story(cached: Cached) -> None:
        wrong = InvalidInput("was wrong before")
        assert list((await cached.ask(wrong)).items) == [wrong]
        assert cached.asked == [[]]

    live(story)


@pytest.mark.parametrize("shared", [False, True])
def test_callers_are_answered_from_one_another_s_images_only_where_they_share(shared: bool) -> None:
    async def story(cached: Cached) -> None:
        one, other = (replace(INTERACTIVE, caller=Caller(name)) for name in ("one", "other"))
        cached.hold()
        requests = [cached.ask(A, terms=one), cached.ask(A, terms=other)]
        await begun(*requests)
        assert len(cached.asked) == (1 if shared else 2)
        cached.free()
        await asyncio.gather(*requests)
        for terms in (one, other):
            await cached.ask(A, terms=terms)
        assert len(cached.asked) == (1 if shared else 2)
        await cached.ask(A, terms=replace(INTERACTIVE, caller=Caller("third")))
        assert len(cached.asked) == (1 if shared else 3)

    live(story, shared=shared)


def test_every_option_and_every_weight_counts() -> None:
    async def story(cached: Cached) -> None:
        turned, dropped = PixelOptions(exif=False), PixelOptions(alpha="drop")
        for image in (A, replace(A, options=turned), replace(A, options=dropped), A):
            await cached.ask(image)
        await cached.ask(A, model=replace(NANO, fingerprint="family.other"))
        await cached.ask(A, model=replace(NANO, size="16k"))
        assert (len(cached.asked), cached.count("hit")) == (5, 1)

    live(story)


def test_a_long_file_is_told_apart_by_its_last_byte() -> None:
    async def story(cached: Cached) -> None:
        long = b"a" * 2**21
        for data in (long, long[:-1] + b"b", long):
            await cached.ask(ImageFile(data))
        assert (len(cached.asked), cached.count("hit")) == (2, 1)

    live(story)


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    async def story(cached: Cached) -> None:
        for image in (A, B, A, C):
            await cached.ask(image)
        assert cached.cache.bytes == 2 * ENTRY
        assert cached.metrics.registry.get_sample_value("viq_cache_bytes") == 2 * ENTRY
        cached.asked.clear()
        await cached.ask(A)
        await cached.ask(C)
        assert cached.asked == []
        await cached.ask(B)
        assert cached.asked == [[B]]

    live(story, max_bytes=3 * ENTRY - 1)


def test_codes_larger_than_the_cache_are_answered_and_not_kept() -> None:
    async def story(cached: Cached) -> None:
        for _ in range(2):
            assert list((await cached.ask(A)).items) == [codes_of(A)]
        assert (cached.cache.bytes, cached.asked) == (0, [[A], [A]])

    live(story, max_bytes=ENTRY - 1)


def test_two_computations_of_one_image_are_kept_once() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        requests = [cached.ask(A, terms=BULK), cached.ask(A)]
        await begun(*requests)
        cached.free()
        await asyncio.gather(*requests)
        assert cached.cache.bytes == ENTRY

    live(story)


@pytest.mark.parametrize("patches", [1, 64])
def test_entries_take_no_more_memory_than_they_are_counted(patches: int) -> None:
    count = 500

    async def compute(images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms) -> Results[Codes]:
        return Results(model, [codes_of(one, patches) for one in images if isinstance(one, ImageFile)], Timings())

    async def run() -> None:
        cache = CodesCache(2**30, Metrics("test"))

        async def fill(numbers: Iterable[int]) -> None:
            for number in numbers:
                await cache.through([ImageFile(b"%d" % number)], NANO, INTERACTIVE, compute)
                await asyncio.sleep(0)
            gc.collect()

        await fill(range(count, count + 50))
        before = cache.bytes
        tracemalloc.start()
        try:
            await fill(range(count))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        counted = cache.bytes - before
        assert counted / 2 < held < counted

    asyncio.run(run())
