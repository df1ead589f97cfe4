"""What waits is computed together, in time, in the room there is, and every waiter hears back."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic

import pytest
from tests.engine.faulty import (
    Ask,
    Faulty,
    Gate,
    alone,
    behind_a_gate,
    codes_of,
    image,
    until,
    waiting,
)

from viq import ViQ
from viq_serving.engine.work import Entry, Flow, Request
from viq_serving.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, Terms


def test_what_waits_while_the_device_works_is_computed_together(ask: Ask, nano: ViQ) -> None:
    files = [image(16 * side, width=16, shade=side) for side in range(1, 9)]

    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        results = await behind_a_gate(tokenizer, faulty, files, lambda images: None)
        assert faulty.batches == [1, 8]
        assert [codes_of(result) for result in results] == [alone(nano, file) for file in files]

    ask(question)


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


def test_who_departs_while_a_batch_is_put_together_does_not_fail_it(
    ask: Ask, nano: ViQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def question(tokenizer: Tokenizer, faulty: Faulty) -> None:
        gate = faulty.fault = Gate()
        first = asyncio.create_task(tokenizer.encode([image()], tokenizer.model()))
        await asyncio.to_thread(gate.entered.wait, 60)
        files = [image(16, shade=shade) for shade in range(3)]
        requests = [asyncio.create_task(tokenizer.encode([file], tokenizer.model())) for file in files]
        await until(lambda: waiting(tokenizer) == 3)
        engine, begun, go_on = tokenizer._engine, threading.Event(), threading.Event()
        company = engine.company

        def asked_late() -> int:  # by the device's thread, which has seen that all three are wanted
            begun.set()
            assert go_on.wait(60)
            return company()

        monkeypatch.setattr(engine, "company", asked_late)
        gate.open()
        await asyncio.to_thread(begun.wait, 60)
        requests[1].cancel()
        await until(requests[1].done)
        go_on.set()
        _, *results = await asyncio.gather(first, *requests, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert [codes_of(one) for one in results[::2]] == [alone(nano, file) for file in files[::2]]
        assert faulty.batches == [1, 3]
        assert "failed" not in caplog.text
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
        assert 0.2 <= monotonic() - begun < 30
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
