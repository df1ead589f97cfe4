"""Items of streams wait for room; and lanes, keys and the cache, as the tokenizer has them."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import pytest

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.allowance import Allowance
from viq_serving.engine.engine import EngineLimits
from viq_serving.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded, TooLarge
from viq_serving.images import ImageHeader, ImageLimits, decode, encode_picture, probe
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Caller, ImageFile, Results, Terms

T = TypeVar("T")

BULK = Terms(priority="bulk", patient=True)


class Held:
    """The real model, whose encode waits for a gate; sizes of batches are noted."""

    def __init__(self, model: ViQ) -> None:
        self._model = model
        self.batches: list[int] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        self.batches.append(len(images))
        self.entered.set()
        assert self.gate.wait(60)
        return self._model.launch_encode(images)


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def nano() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def ask(nano: ViQ) -> Ask:
    """Run a coroutine over a ready tokenizer and the model behind it, with these limits of the engine."""

    def run(question: Callable[[Tokenizer, Held], Awaitable[T]], **limits: Any) -> T:
        async def live() -> T:
            held = Held(nano)
            tokenizer = Tokenizer(ImageLimits(), 64, Metrics("test"), EngineLimits(**limits))
            await tokenizer.load(lambda: [held])  # type: ignore[list-item]
            held.batches.clear()
            try:
                return await question(tokenizer, held)
            finally:
                held.gate.set()
                tokenizer.close()

        return asyncio.run(live())

    return run


def image(side: int = 32, shade: int = 99) -> ImageFile:
    return ImageFile(encode_picture(np.full((side, side, 3), shade, np.uint8), "png"))


def encode(tokenizer: Tokenizer, terms: Terms, file: ImageFile | None = None) -> asyncio.Task[Results[Codes]]:
    return asyncio.create_task(tokenizer.encode([file or image()], tokenizer.model(), terms))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # a gauge tells nobody that it changed
            await asyncio.sleep(0.001)


def value(tokenizer: Tokenizer, series: str) -> float:
    lines = tokenizer._metrics.text().decode().splitlines()
    return float(next(line for line in lines if line.startswith(series + " ")).split()[-1])


async def busy(tokenizer: Tokenizer, held: Held, terms: Terms = Terms()) -> asyncio.Task[Results[Codes]]:
    """The device computes one image, and goes on with it until the gate opens."""
    held.gate.clear()
    held.entered.clear()
    task = encode(tokenizer, terms)
    assert await asyncio.to_thread(held.entered.wait, 60)
    return task


def test_more_than_there_is_room_for_waits_and_all_of_it_is_answered(ask: Ask, nano: ViQ) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        first = await busy(tokenizer, held)
        files = [image(shade=shade) for shade in range(100)]
        items = [encode(tokenizer, BULK, file) for file in files]
        await until(lambda: value(tokenizer, 'viq_lane_line_requests{lane="bulk"}') == 100 - 30 // 4)
        assert value(tokenizer, 'viq_lane_requests{lane="bulk"}') <= 30 // 4
        with pytest.raises(Overloaded):
            await encode(tokenizer, Terms(priority="bulk"))
        person = encode(tokenizer, Terms())  # finds room
        await until(lambda: value(tokenizer, 'viq_lane_requests{lane="interactive"}') == 1)
        held.gate.set()
        results = await asyncio.gather(first, person, *items)
        for file, result in zip(files, results[2:], strict=True):
            assert result.items == [(await encode(tokenizer, Terms(), file)).items[0]]
        assert tokenizer._engine.admission.patches == 0

    ask(question, max_patches=40)


def test_a_patient_item_still_ends_at_its_deadline_and_when_it_is_cancelled(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        await busy(tokenizer, held)
        fills = [encode(tokenizer, BULK) for _ in range(7)]
        late, gone = encode(tokenizer, replace(BULK, deadline=monotonic() + 0.2)), encode(tokenizer, BULK)
        with pytest.raises(DeadlineExceeded):
            await late
        gone.cancel()
        await asyncio.wait([gone])
        for task in fills:
            task.cancel()
        await asyncio.wait(fills)
        assert tokenizer._engine.admission.held["bulk"] == 0
        assert value(tokenizer, 'viq_lane_line_requests{lane="bulk"}') == 0

    ask(question, max_patches=40)


def test_a_patient_item_that_can_never_fit_is_too_large(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        with pytest.raises(TooLarge, match="bulk may hold at most 30"):
            await encode(tokenizer, BULK, image(96))
        own = Caller("key", patches=Allowance(10, "patches of this key"))
        with pytest.raises(TooLarge, match="the key may have 10"):
            await encode(tokenizer, replace(BULK, caller=own), image(64))

    ask(question, max_patches=40)


def test_who_waits_for_room_hears_of_it_when_the_service_ends(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        first = await busy(tokenizer, held)
        items = [encode(tokenizer, BULK) for _ in range(20)]
        await until(lambda: value(tokenizer, 'viq_lane_line_requests{lane="bulk"}') > 0)
        held.gate.set()
        tokenizer.close()
        results = await asyncio.gather(first, *items, return_exceptions=True)
        assert all(isinstance(result, (Results, NotReady)) for result in results), results

    ask(question, max_patches=40)


def test_interactive_and_bulk_of_one_kind_are_computed_together(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        first = await busy(tokenizer, held, BULK)
        items = [encode(tokenizer, BULK, image(shade=shade)) for shade in range(10)]
        people = [encode(tokenizer, Terms(), image(shade=100 + shade)) for shade in range(3)]
        await until(lambda: value(tokenizer, "viq_queue_requests") == 13)
        held.gate.set()
        await asyncio.gather(first, *items, *people)
        assert held.batches == [1, 6, 7]  # people with as much bulk, then what is left
        for lane in ("interactive", "bulk"):
            assert value(tokenizer, f'viq_lane_device_seconds_total{{lane="{lane}"}}') > 0

    ask(question)


def test_the_patches_of_a_key_are_held_while_it_is_answered(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        own = Caller("key", patches=Allowance(10, "patches of this key"))
        first = await busy(tokenizer, held)
        mine = encode(tokenizer, Terms(caller=own), image(48))
        await until(lambda: value(tokenizer, "viq_queue_requests") == 1)
        with pytest.raises(Overloaded, match="9 patches of this key are held and 4 more asked for, the limit is 10"):
            await encode(tokenizer, Terms(caller=own))
        waits, other = encode(tokenizer, Terms(patient=True, caller=own)), encode(tokenizer, Terms())
        held.gate.set()
        await asyncio.gather(first, mine, waits, other)
        assert own.patches is not None
        assert own.patches.held_now == 0

    ask(question)


def test_patches_are_told_from_the_first_bytes_and_zero_where_they_do_not_tell(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        jpeg = ImageFile(encode_picture(np.zeros((40, 70, 3), np.uint8), "jpeg"))
        webp = ImageFile(encode_picture(np.zeros((40, 70, 3), np.uint8), "webp"))
        (codes,) = (await encode(tokenizer, Terms(), jpeg)).items
        assert isinstance(codes, Codes)
        huge = ImageFile(jpeg.data.replace(b"\x00\x28\x00\x46", b"\xff\xff\xff\xff"))
        known: list[ImageFile | Codes] = [image(40), jpeg, codes]
        assert [tokenizer.patches_of(item) for item in known] == [9, 15, 15]
        unknown = [webp, ImageFile(b""), ImageFile(b"\xff\xd8\xff"), huge]
        assert [tokenizer.patches_of(item) for item in unknown] == [0, 0, 0, 0]

    ask(question)


def test_a_cache_is_asked_after_what_refuses_a_whole_request(ask: Ask) -> None:
    class Cache:
        def __init__(self) -> None:
            self.asked = 0

        async def through(self, images: Any, model: Any, terms: Any, compute: Any) -> Any:
            self.asked += 1
            return await compute(images, model, terms)

    async def question(tokenizer: Tokenizer, held: Held) -> None:
        cache: Any = Cache()
        tokenizer.cache = cache
        assert isinstance((await encode(tokenizer, Terms())).items[0], Codes)
        assert cache.asked == 1
        with pytest.raises(InvalidInput, match="no image"):
            await tokenizer.encode([], tokenizer.model())
        await tokenizer.embed([image()], tokenizer.model())
        assert cache.asked == 1

    ask(question)


def test_headers_of_bulk_that_take_long_to_read_keep_no_interactive_request_waiting(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (ImageFile(encode_picture(np.zeros((32, side, 3), np.uint8), "webp")) for side in (48, 16))
    entered, gate = threading.Event(), threading.Event()

    def read(data: bytes, *arguments: Any, **options: Any) -> ImageHeader:
        if data == slow.data:
            entered.set()
            assert gate.wait(60)
        return probe(data, *arguments, **options)

    monkeypatch.setattr("viq_serving.patch_count.probe", read)

    async def question(tokenizer: Tokenizer, held: Held) -> None:
        bulk = encode(tokenizer, BULK, slow)
        try:
            assert await asyncio.to_thread(entered.wait, 60)
            await asyncio.wait_for(encode(tokenizer, Terms(), quick), 30)
            assert not bulk.done()
        finally:
            gate.set()
        await bulk

    ask(question)


def test_who_is_on_the_way_when_all_ends_is_told_so_before_a_header_is_read(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, held: Held) -> None:
        webp, model = ImageFile(encode_picture(np.zeros((32, 32, 3), np.uint8), "webp")), tokenizer.model()
        tokenizer.close()
        with pytest.raises(NotReady):
            await tokenizer._encode([webp], model, Terms())

    ask(question)


def test_only_a_small_file_is_decoded_on_the_thread_of_the_device(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[str]()

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return decode(*arguments, **options)

    monkeypatch.setattr("viq_serving.passage.decode", noted)
    head = image().data[:33]  # up to the end of IHDR
    chunk = b"aaAa" + bytes(120_000)
    padded = ImageFile(head + (120_000).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + image().data[33:])

    async def question(tokenizer: Tokenizer, held: Held) -> None:
        small, large = [(await encode(tokenizer, Terms(), file)).items for file in (image(), padded)]
        assert small == large

    ask(question)
    assert [name.partition("_")[0] for name in threads] == ["viq-device", "viq-images"]
