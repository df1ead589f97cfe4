"""One engine with all threads beside one replica a thread, fed by the same callers, and the bare model.

    python bench/replicas.py --out bench/results/replicas.json

Images a second of `Tokenizer.encode` on JPEG files, one image a request, with so many callers that wait for their
answers; the ways take turns, medians are given. Bare is `ViQ.encode_pixels` on pixels already decoded, one image after
another, with all threads, eagerly. "Undivided" are replicas each of which takes all that waits, in place of its part.
All share one process and one way for idle threads to wait.
"""

from __future__ import annotations

from viq_serving.heap import keep_freed_memory
from viq_serving.openmp import spin_briefly

keep_freed_memory()
spin_briefly()

import argparse  # noqa: E402  # torch reads how its threads wait when it is imported
import asyncio  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from time import perf_counter  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from full_size import machine  # noqa: E402
from serving import jpeg, percentile, picture  # noqa: E402

from viq import Codes, ViQ  # noqa: E402
from viq_serving.engine.engine import EngineLimits  # noqa: E402
from viq_serving.engine.work import Kind  # noqa: E402
from viq_serving.images import ImageLimits, decode  # noqa: E402
from viq_serving.metrics import Metrics  # noqa: E402
from viq_serving.tokenizer import Tokenizer  # noqa: E402
from viq_serving.types import ImageFile  # noqa: E402


async def rate(tokenizer: Tokenizer, data: bytes, count: int, callers: int) -> tuple[float, list[float], set[bytes]]:
    """Images a second, seconds of each request, and the different codes that came of the one image."""
    rest, taken, seen = iter(range(count)), list[float](), set[bytes]()

    async def call() -> None:
        for _ in rest:
            begun = perf_counter()
            (codes,) = (await tokenizer.encode([ImageFile(data)], tokenizer.model())).items
            taken.append(perf_counter() - begun)
            assert isinstance(codes, Codes), codes
            seen.add(codes.array.tobytes())

    begun = perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return count / (perf_counter() - begun), taken, seen


def bare(model: ViQ, data: bytes, count: int, threads: int) -> float:
    """Images a second of the model alone."""
    torch.set_num_threads(threads)
    pixels = decode(data, ImageLimits())
    begun = perf_counter()
    for _ in range(count):
        model.encode_pixels([pixels])
    return count / (perf_counter() - begun)


def _all_that_waits(batch_cost: int, kind: Kind) -> int:
    return batch_cost


async def measured(served: ViQ, plain: ViQ, sides: Sequence[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    ways: dict[str, Tokenizer] = {}
    threads = torch.get_num_threads()
    for replicas, divided in [*((count, True) for count in args.replicas), (max(args.replicas), False)]:
        tokenizer = Tokenizer(ImageLimits(), 64, Metrics("bench"), EngineLimits(max_age_s=600.0))
        torch.set_num_threads(threads)
        await tokenizer.load(lambda count=replicas: [served] * count)  # type: ignore[misc]
        if divided:
            ways[f"replicas_{replicas}"] = tokenizer
        else:
            scheduler = tokenizer._engine._scheduler
            scheduler._fair_share = partial(_all_that_waits, scheduler.batch_cost)  # type: ignore[method-assign]
            ways[f"replicas_{replicas}_undivided"] = tokenizer
    rows = []
    for side in sides:
        data = jpeg(picture(side, side, side))
        count = max(2 * args.callers, int(args.seconds * await asyncio.to_thread(bare, plain, data, 3, threads)))
        alone, speeds = list[float](), {name: list[float]() for name in ways}
        taken, codes = {name: list[float]() for name in ways}, set[bytes]()
        for _ in range(args.rounds):
            alone.append(await asyncio.to_thread(bare, plain, data, count, threads))
            for name, tokenizer in ways.items():
                speed, seconds, seen = await rate(tokenizer, data, count, args.callers)
                speeds[name].append(speed)
                taken[name] += seconds
                codes |= seen
        row: dict[str, Any] = {"side": side, "bare_images_per_s": round(statistics.median(alone), 2)}
        for name, values in speeds.items():
            row[name] = {
                "images_per_s": round(statistics.median(values), 2),
                "over_bare": round(statistics.median(a / b for a, b in zip(values, alone, strict=True)), 3),
                "p50_ms": round(1000 * percentile(taken[name], 0.5), 1),
                "p99_ms": round(1000 * percentile(taken[name], 0.99), 1),
            }
        row["different_codes"] = len(codes) - 1
        rows.append(row)
        print(json.dumps(row), flush=True)
    for tokenizer in ways.values():
        tokenizer.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, about")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    served = ViQ.from_pretrained()
    served.script_small_packs()  # as the service does
    rows = asyncio.run(measured(served, ViQ.from_pretrained(), args.sides, args))
    if args.out:
        result = {"machine": machine(), "callers": args.callers, "encode": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
