"""The engine beside the same model without it, mixed sizes, one run, one set of weights, one process.

    OMP_WAIT_POLICY=passive python bench/engine.py --images 32 --rounds 3 --out bench/results/engine.json

(a) engine: requests admitted, decoded on the pool, packed by cost; (b) one at a time: each request decodes and
encodes by itself, one after another; (c) padded: what waits, up to a number of images, padded to the largest of
them and computed together. Callers are closed loops of tasks that ask for the next picture of a shuffled list.
Runs alternate; images a second and latencies are of all runs together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from full_size import machine
from serving import jpeg, percentile, picture

from viq import Codes, ViQ
from viq_serving.engine.engine import EngineLimits
from viq_serving.images import ImageLimits, decode
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile

SIDES = (64, 128, 192, 256, 384, 512, 640, 768)
LIMITS = ImageLimits()
Encode = Callable[[bytes], Awaitable[Codes]]


class OneAtATime:
    """Decode on a pool, then the model, one request after another."""

    def __init__(self, model: ViQ) -> None:
        self._model, self._turn = model, asyncio.Lock()
        self._pool, self._device = ThreadPoolExecutor(2), ThreadPoolExecutor(1)

    async def encode(self, data: bytes) -> Codes:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._pool, decode, data, LIMITS)
        async with self._turn:
            return (await loop.run_in_executor(self._device, self._model.encode_pixels, [pixels]))[0]


class Padded:
    """What waits, at most `most` images, padded to the height and width of the largest. Codes are cut back."""

    def __init__(self, model: ViQ, most: int) -> None:
        self._model, self._most = model, most
        self._waiting: list[tuple[Any, asyncio.Future[Codes]]] = []
        self._busy = False
        self._pool, self._device = ThreadPoolExecutor(2), ThreadPoolExecutor(1)

    async def encode(self, data: bytes) -> Codes:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._pool, decode, data, LIMITS)
        done: asyncio.Future[Codes] = loop.create_future()
        self._waiting.append((pixels, done))
        if not self._busy:
            self._busy = True
            self._task = asyncio.create_task(self._work())
        return await done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            codes = await loop.run_in_executor(self._device, self._compute, [pixels for pixels, _ in batch])
            for (_, done), one in zip(batch, codes, strict=True):
                done.set_result(one)
        self._busy = False

    def _compute(self, batch: Sequence[Any]) -> list[Codes]:
        height, width = (max(pixels.shape[axis] for pixels in batch) for axis in (0, 1))
        padded = np.zeros((len(batch), height, width, 3), np.uint8)
        for there, pixels in zip(padded, batch, strict=True):
            there[: pixels.shape[0], : pixels.shape[1]] = pixels
        made, results = self._model.encode_pixels(list(padded)), []
        for codes, pixels in zip(made, batch, strict=True):
            h, w = -(-pixels.shape[0] // 16), -(-pixels.shape[1] // 16)
            results.append(Codes(codes.array[:h, :w], pixels.shape[:2], codes.size, codes.fingerprint))
        return results


async def load(encode: Encode, files: Mapping[bytes, Codes], callers: int) -> tuple[float, list[float], int]:
    """Seconds for all `files` by so many callers, each request's seconds, and how many codes were not as expected."""
    rest, taken, different = iter(files.items()), list[float](), list[bytes]()

    async def call() -> None:
        for data, expected in rest:
            begun = perf_counter()
            codes = await encode(data)
            taken.append(perf_counter() - begun)
            if codes != expected:
                different.append(data)

    begun = perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return perf_counter() - begun, taken, len(different)


async def measured(model: ViQ, files: Sequence[bytes], callers: int, rounds: int, padded_images: int) -> dict[str, Any]:
    metrics = Metrics("bench")
    tokenizer = Tokenizer(LIMITS, 64, metrics, EngineLimits(max_age_s=600.0))
    await tokenizer.load(lambda: [model])

    async def engine(data: bytes) -> Codes:
        (codes,) = (await tokenizer.encode([ImageFile(data)], tokenizer.model())).items
        assert isinstance(codes, Codes)
        return codes

    ways: dict[str, Encode] = {
        "engine": engine,
        "one_at_a_time": OneAtATime(model).encode,
        "padded": Padded(model, padded_images).encode,
    }
    alone = {data: model.encode_pixels([decode(data, LIMITS)])[0] for data in files}
    rows: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    different = dict.fromkeys(ways, 0)
    for _ in range(rounds):
        for name, encode in ways.items():
            seconds, taken, wrong = await load(encode, alone, callers)
            rows[name][0].append(seconds)
            rows[name][1].extend(taken)
            different[name] += wrong
    tokenizer.close()
    return {
        name: {
            "images_per_s": round(len(files) * rounds / sum(seconds), 2),
            "images_per_s_over_one_at_a_time": round(
                statistics.median(b / a for a, b in zip(seconds, rows["one_at_a_time"][0], strict=True)), 3
            ),
            "p50_ms": round(1000 * percentile(taken, 0.5), 1),
            "p99_ms": round(1000 * percentile(taken, 0.99), 1),
            "images_whose_codes_differ_from_alone": f"{different[name]} of {len(files) * rounds}",
        }
        for name, (seconds, taken) in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--padded-images", type=int, default=8, help="most images of a padded batch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, rng = ViQ.from_pretrained(), np.random.default_rng(0)
    model.script_small_packs()  # as the service does
    mixes = {"mixed_64_to_768": SIDES, "thumbnails_64_to_256": SIDES[:4], "photos_512_to_768": SIDES[5:]}
    result: dict[str, Any] = {"machine": machine(), "size": model.size, "callers": args.callers, "mixes": {}}
    for name, sides in mixes.items():
        count = args.images if name != "photos_512_to_768" else args.images // 4
        shapes = [(int(rng.choice(sides)), int(rng.choice(sides))) for _ in range(count)]
        files = [jpeg(picture(height, width, seed)) for seed, (height, width) in enumerate(shapes)]
        result["mixes"][name] = asyncio.run(measured(model, files, args.callers, args.rounds, args.padded_images))
        print(name, json.dumps(result["mixes"][name], indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
