"""The one thread that owns the models: everything that touches them runs here, in the order it was asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from viq_serving.errors import ViQError
from viq_serving.stopwatch import Stopwatch
from viq_serving.types import ModelInfo

if TYPE_CHECKING:
    from viq.model import ViQ

log = logging.getLogger("viq")

A = TypeVar("A")
B = TypeVar("B")

_WARM_UP_SIDE = 32  # pixels


class Device:
    """The loaded models and their thread."""

    def __init__(self) -> None:
        self.models: dict[str, ViQ] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="viq-device")

    async def load(self, load: Callable[[], Sequence[ViQ]]) -> list[ModelInfo]:
        """Run `load`, warm what it gives with one forward of each method, and keep it."""
        models = await asyncio.get_running_loop().run_in_executor(self._thread, _loaded_and_warm, load)
        self.models = {model.size: model for model in models}
        return [_describe(model) for model in models]

    async def run(
        self,
        watch: Stopwatch,
        forward: Callable[[Sequence[A]], Sequence[B]],
        items: Sequence[A | ViQError],
    ) -> list[B | ViQError]:
        """`forward` over the items that are no errors; errors keep their place."""
        good = [item for item in items if not isinstance(item, ViQError)]
        if not good:
            return list(items)  # type: ignore[arg-type]  # all are errors
        work = _timed(watch, partial(forward, good))
        answers = iter(await asyncio.get_running_loop().run_in_executor(self._thread, work))
        return [item if isinstance(item, ViQError) else next(answers) for item in items]

    def close(self) -> None:
        """Let what runs finish and the thread end."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _timed(watch: Stopwatch, work: Callable[[], B]) -> Callable[[], B]:
    """`work`, counting the time until it begins as queue and its own as compute."""
    asked = perf_counter()

    def timed() -> B:
        watch.add("queue", perf_counter() - asked)
        with watch.stage("compute"):
            return work()

    return timed


def _loaded_and_warm(load: Callable[[], Sequence[ViQ]]) -> Sequence[ViQ]:
    models = load()
    for model in models:
        if model.untrained:
            log.warning("size %s is untrained: its codes mean nothing yet", model.size)
        grey = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), 128, np.uint8)
        codes = model.encode_pixels([grey])
        model.embed(codes)
        model.decode(codes)
    return models


def _describe(model: ViQ) -> ModelInfo:
    return ModelInfo(
        size=model.size,
        fingerprint=model.fingerprint,
        family=model.family,
        levels=tuple(model.levels),
        codebook_size=model.codebook_size,
        width=model.width,
        dtype=model.dtype,
        device=model.device,
        untrained=model.untrained,
    )
