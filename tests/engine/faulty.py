"""The real model with faults that a test throws into it, and requests that meet them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.images import ImageLimits, decode, encode_picture
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, Results

GREY = 128  # of the picture that the engine tries a device with
Ask = Callable[..., Any]


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
