"""Whatever happens to a batch, every waiter hears back, and only the one to blame hears of an error."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.engine.engine import EngineLimits
from viq_serving.engine.work import Entry, Flow, Request
from viq_serving.errors import DeadlineExceeded, Internal, InvalidInput, NotReady, Overloaded, ViQError
from viq_serving.images import ImageLimits, decode, encode_picture
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, Results, Terms

T = TypeVar("T")


GREY = 128  # of the picture that the engine tries a device with


class Faulty:
    """The real model, with a fault that the test throws into its encode; what was computed together is noted."""

    def __init__(self, model: ViQ) -> None:
        self._model = model
        self.batches: list[int] = []
        self.fault: Callable[[Sequence[Patches]], None] = lambda images: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        self.batches.append(len(images))
        self.fault(images)
        return self._model.launch_encode(images)


class Gate:
    """Keeps the device busy from the moment it is entered until it is opened."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

    def __call__(self, images: Sequence[Patches]) -> None:
        self.entered.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def nano() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def ask(nano: ViQ) -> Ask:
    """Run a coroutine over a ready tokenizer and the model behind it, with these limits of the engine."""

    def run(question: Callable[[Tokenizer, Faulty], Awaitable[T]], **limits: Any) -> T:
        async def live() -> T:
            faulty, metrics = Faulty(nano), Metrics("test")
            tokenizer = Tokenizer(ImageLimits(), 64, metrics, EngineLimits(**limits))
            await tokenizer.load(lambda: [faulty])  # type: ignore[list-item]
            faulty.batches.clear()
            try:
                return await question(tokenizer, faulty)
            finally:
                if tokenizer.state != "lost":
                    tokenizer.close()

        return asyncio.run(live())

    return run


def image(side: int = 32, shade: int = 99, width: int | None = None) -> ImageFile:
    """A plain picture of its own shade, so that a fault can know it."""
    return ImageFile(encode_picture(np.full((side, width or side, 3), shade, np.uint8), "png"))


def shade_of(patches: Patches) -> int:
    return int(patches.rows[0, 0])


def fails_on(shade: int, error: Exception) -> Callable[[Sequence[Patches]], None]:
    def fault(images: Sequence[Patches]) -> None:
        if any(shade_of(one) == shade for one in images):
            raise error

    return fault


def memory_for(most: int) -> Callable[[Sequence[Patches]], None]:
    def fault(images: Sequence[Patches]) -> None:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    return fault


def alone(nano: ViQ, file: ImageFile) -> Codes:
    return nano.encode_pixels([decode(file.data, ImageLimits())])[0]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # a gauge tells nobody that it changed
            await asyncio.sleep(0.001)


async def behind_a_gate(
    tokenizer: Tokenizer, faulty: Faulty, files: Sequence[ImageFile], then: Callable[[Sequence[Patches]], None]
) -> list[Results[Codes] | BaseException]:
    """Encode `files`, each its own request, in one batch: all wait while the device is held busy by another."""
    gate = faulty.fault = Gate()
    first = asyncio.create_task(tokenizer.encode([image()], tokenizer.model()))
    await asyncio.to_thread(gate.entered.wait, 60)
    requests = [asyncio.create_task(tokenizer.encode([file], tokenizer.model())) for file in files]
    await until(lambda: waiting(tokenizer) == len(files))
    faulty.fault = then
    gate.open()
    await first
    return list(await asyncio.gather(*requests, return_exceptions=True))


def waiting(tokenizer: Tokenizer) -> int:
    gauges = tokenizer._metrics.text().decode().splitlines()
    return round(float(next(line for line in gauges if line.startswith("viq_queue_requests ")).split()[1]))


def codes_of(result: Results[Codes] | BaseException) -> Codes:
    assert isinstance(result, Results), result
    (codes,) = result.items
    assert isinstance(codes, Codes), codes
    return codes


def test_what_waits_while_the_device_works_is_computed_together(ask: Ask, nano: ViQ) -> None:
    files = [image(16 * side, width=16, shade=side) for side in range(1, 9)]

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        results = await behind_a_gate(tokenizer, faulty, files, lambda images: None)
        assert faulty.batches == [1, 8]
        assert [codes_of(result) for result in results] == [alone(nano, file) for file in files]

    ask(question)


def test_one_exploding_image_among_63_good_ones_fails_alone(
    ask: Ask, nano: ViQ, caplog: pytest.LogCaptureFixture
) -> None:
    files = [image(16, shade=shade) for shade in range(64)]

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        results = await behind_a_gate(tokenizer, faulty, files, fails_on(17, RuntimeError("a secret of the device")))
        assert faulty.batches[:2] == [1, 64]
        for shade, result in enumerate(results):
            if shade != 17:
                assert codes_of(result) == alone(nano, files[shade])
        assert isinstance(results[17], Results)
        assert isinstance(results[17].items[0], Internal)
        assert str(results[17].items[0]) == "internal error"
        assert tokenizer.state == "ready"

    ask(question)
    assert "a secret of the device" in caplog.text


def test_an_error_in_domain_words_is_told_as_it_is(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        faulty.fault = fails_on(5, ViQError("values that are no numbers"))
        (item,) = (await tokenizer.encode([image(shade=5)], tokenizer.model())).items
        assert str(item) == "values that are no numbers"

    ask(question)


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(ask: Ask, nano: ViQ) -> None:
    files = [image(16, shade=shade) for shade in range(20)]

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        results = await behind_a_gate(tokenizer, faulty, files, memory_for(5))
        assert faulty.batches == [1, 20, 10, 5, 5, 10, 5, 5]
        assert [codes_of(result) for result in results] == [alone(nano, file) for file in files]

    ask(question)


def test_what_ran_out_of_memory_is_let_go_before_the_next_try(ask: Ask) -> None:
    class Activations:
        """As large as they like: only whether they are still held is looked at."""

    held = weakref.WeakSet[Activations]()
    left: list[int] = []

    def full(images: Sequence[Patches]) -> None:
        left.append(len(held))
        activations = Activations()
        held.add(activations)
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        for result in await behind_a_gate(tokenizer, faulty, [image(16)] * 16, full):
            codes_of(result)
        assert len(left) > 8
        assert set(left) == {0}

    ask(question)


def test_a_slow_recovery_is_progress_as_long_as_its_parts_are(ask: Ask) -> None:
    def slow(images: Sequence[Patches]) -> None:
        if len(images) > 1:
            raise RuntimeError("only one by one")
        threading.Event().wait(0.2)

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        for result in await behind_a_gate(tokenizer, faulty, [image(16)] * 8, slow):
            codes_of(result)
        assert tokenizer.state == "ready"

    ask(question, stall_timeout_s=1.0)


def test_one_image_that_does_not_fit_into_memory_fails_and_the_next_works(ask: Ask) -> None:
    # The grey picture that the engine then tries the device with does fit.
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        full = memory_for(0)
        faulty.fault = lambda images: None if shade_of(images[0]) == GREY else full(images)
        (item,) = (await tokenizer.encode([image()], tokenizer.model())).items
        assert isinstance(item, Internal)
        codes_of(await tokenizer.encode([image(shade=GREY)], tokenizer.model()))
        assert tokenizer.state == "ready"

    ask(question)


def test_a_device_that_fails_with_everything_is_lost_and_all_who_wait_hear_so(ask: Ask) -> None:
    def broken(images: Sequence[Patches]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        states: list[str] = []
        tokenizer.listen(states.append)
        results = await behind_a_gate(tokenizer, faulty, [image(16, shade=shade) for shade in range(8)], broken)
        await until(lambda: tokenizer.state == "lost")
        assert states == ["ready", "lost"]
        assert len(results) == 8
        for result in results:
            item = result.items[0] if isinstance(result, Results) else result
            assert isinstance(item, (Internal, NotReady)), result
        with pytest.raises(NotReady, match="lost"):
            await tokenizer.encode([image()], tokenizer.model())

    ask(question)


def test_a_stalled_device_is_noticed_and_its_waiters_are_told(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        requests = [asyncio.create_task(tokenizer.encode([image()], tokenizer.model())) for _ in range(3)]
        for result in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(result, NotReady)
            assert "no progress" in str(result)
        assert tokenizer.state == "lost"
        gate.open()

    ask(question, stall_timeout_s=0.3)


def test_a_thread_that_dies_takes_no_waiter_with_it(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    def dies(images: Sequence[Patches]) -> None:
        raise SystemExit(1)

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        faulty.fault = dies
        with pytest.raises(NotReady, match="lost"):
            await tokenizer.encode([image()], tokenizer.model())
        assert tokenizer.state == "lost"

    ask(question)
    assert "the device thread ended" in caplog.text


def test_a_departed_caller_leaves_no_hole_and_its_waiting_work_is_not_done(ask: Ask, nano: ViQ) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        first = asyncio.create_task(tokenizer.encode([image()], tokenizer.model()))
        await asyncio.to_thread(gate.entered.wait, 60)
        files = [image(16, shade=shade) for shade in range(6)]
        requests = [asyncio.create_task(tokenizer.encode([file], tokenizer.model())) for file in files]
        await until(lambda: waiting(tokenizer) == 6)
        for request in requests[1::2]:
            request.cancel()
        await until(lambda: waiting(tokenizer) == 3)
        first.cancel()  # this one is being computed
        gate.open()
        results = await asyncio.gather(first, *requests, return_exceptions=True)
        assert [type(result) for result in results[::2]] == [asyncio.CancelledError] * 4
        assert [codes_of(one) for one in results[1::2]] == [alone(nano, file) for file in files[::2]]
        assert faulty.batches == [1, 3]
        assert tokenizer._engine.admission.patches == 0

    ask(question)


def test_a_deadline_ends_the_wait_and_what_is_late_is_not_computed(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        first = asyncio.create_task(tokenizer.encode([image()], tokenizer.model()))
        await asyncio.to_thread(gate.entered.wait, 60)
        begun = monotonic()
        with pytest.raises(DeadlineExceeded):
            await tokenizer.encode([image()], tokenizer.model(), Terms(begun + 0.2))
        assert 0.2 <= monotonic() - begun < 5
        gate.open()
        await first
        with pytest.raises(DeadlineExceeded, match="passed already"):
            await tokenizer.encode([image()], tokenizer.model(), Terms(monotonic() - 1))
        codes_of(await tokenizer.encode([image()], tokenizer.model(), Terms(monotonic() + 60)))
        assert faulty.batches == [1, 1]

    ask(question)


def test_a_full_queue_refuses_at_once_before_decoding_and_counts_what_it_holds(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        held = asyncio.create_task(tokenizer.encode([image(64)], tokenizer.model()))
        await asyncio.to_thread(gate.entered.wait, 60)
        undecodable = ImageFile(image(64).data[:60])  # a sound header with nothing behind it
        for files in ([undecodable], [image(32)] * 5):
            with pytest.raises(Overloaded) as full:
                await tokenizer.encode(files, tokenizer.model())
            assert full.value.retry_after_s > 0
        fits = asyncio.create_task(tokenizer.encode([image(32)], tokenizer.model()))
        gate.open()
        codes_of(await held)
        codes_of(await fits)
        (item,) = (await tokenizer.encode([undecodable], tokenizer.model())).items
        assert isinstance(item, InvalidInput)
        assert tokenizer._engine.admission.patches == 0

    ask(question, max_patches=30)


def test_an_image_larger_than_a_batch_is_computed_alone_between_the_others(ask: Ask, nano: ViQ) -> None:
    files = [image(16, shade=1), image(96, shade=2), image(16, shade=3)]

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        results = await behind_a_gate(tokenizer, faulty, files, lambda images: None)
        assert faulty.batches == [1, 2, 1]
        assert [codes_of(result) for result in results] == [alone(nano, file) for file in files]

    ask(question, batch_patches=8)


def test_work_asked_for_before_the_end_is_answered(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        requests = [asyncio.create_task(tokenizer.encode([image()], tokenizer.model())) for _ in range(5)]
        await until(lambda: len(faulty.batches) > 0)
        tokenizer.stop()
        requests.append(asyncio.create_task(tokenizer.encode([image()], tokenizer.model())))  # its body came late
        for result in await asyncio.gather(*requests):
            codes_of(result)
        tokenizer.close()
        with pytest.raises(NotReady, match="stopping"):
            await tokenizer.encode([image()], tokenizer.model())

    ask(question)


def test_who_is_not_answered_when_all_ends_is_told_so(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        requests = [asyncio.create_task(tokenizer.encode([image()], tokenizer.model())) for _ in range(2)]
        await asyncio.to_thread(gate.entered.wait, 60)
        unprepared = tokenizer._engine.job([Entry(Flow("encode", "nano"), 4, Request(monotonic()))])
        answers = asyncio.create_task(tokenizer._engine.answers(unprepared))
        gate.open()
        tokenizer.close()
        for result in await asyncio.gather(*requests):
            codes_of(result)
        assert isinstance((await answers)[0].result, NotReady)

    ask(question)
