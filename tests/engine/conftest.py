"""The packaged nano, and a tokenizer before it that a test asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from tests.engine.faulty import Ask, Faulty

from viq import ViQ
from viq_serving.engine.engine import EngineLimits
from viq_serving.images import ImageLimits
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer

T = TypeVar("T")


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
