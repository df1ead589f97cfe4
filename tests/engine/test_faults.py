"""Whatever happens to a batch, every waiter hears back, and only the one to blame hears of an error."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence

import pytest
import torch
from tests.engine.faulty import (
    GREY,
    Ask,
    Faulty,
    Gate,
    alone,
    behind_a_gate,
    codes_of,
    fails_on,
    image,
    memory_for,
    shade_of,
    until,
)

from viq import ViQ
from viq.patches import Patches
from viq_serving.errors import Internal, NotReady, ViQError
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Results


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
