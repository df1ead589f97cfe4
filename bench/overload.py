"""Ten times more requests than a server can answer: what the refused and the admitted ones see.

    python bench/overload.py --out bench/results/overload.json

One picture a request, by gRPC, asked for at random times (Poisson) whatever the answers do, so nothing waits for a
slow server. Latency counts from when a request was meant to be sent; how late the generator itself was is told too.
The capacity is measured first, with callers that wait for their answers; the unloaded latency with one caller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from full_size import machine
from serving import jpeg, percentile, picture, server

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub


async def closed(stub: Any, request: pb.EncodeRequest, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Answers a second and each one's seconds, with callers that wait for their answers."""
    end, taken = perf_counter() + seconds, list[float]()

    async def call() -> None:
        while perf_counter() < end:
            begun = perf_counter()
            await stub.Encode(request)
            taken.append(perf_counter() - begun)

    begun = perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return len(taken) / (perf_counter() - begun), taken


async def overload(stub: Any, request: pb.EncodeRequest, rate: float, seconds: float) -> dict[str, Any]:
    """What `rate` requests a second, sent whatever happens, see for so many seconds."""
    taken: dict[str, list[float]] = {}
    lag, hints = list[float](), list[float]()

    async def call(due: float) -> None:
        try:
            await stub.Encode(request)
            outcome = "ok"
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name.lower()
            trailer = dict(error.trailing_metadata() or ())
            if "grpc-retry-pushback-ms" in trailer:
                hints.append(float(trailer["grpc-retry-pushback-ms"]))
        taken.setdefault(outcome, []).append(perf_counter() - due)

    rng, calls, begun = random.Random(0), set[asyncio.Task[None]](), perf_counter()
    due = begun
    while due < begun + seconds:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        lag.append(perf_counter() - due)
        task = asyncio.create_task(call(due))
        calls.add(task)
        task.add_done_callback(calls.discard)
    await asyncio.gather(*calls)
    rows = {
        outcome: {
            "requests": len(times),
            "p50_ms": round(1000 * percentile(times, 0.5), 2),
            "p99_ms": round(1000 * percentile(times, 0.99), 2),
        }
        for outcome, times in sorted(taken.items())
    }
    return {
        "offered_per_s": round(rate, 1),
        "seconds": seconds,
        "outcomes": rows,
        "refused_without_hint": len(taken.get("resource_exhausted", [])) - len(hints),
        "generator_late_p50_ms": round(1000 * percentile(lag, 0.5), 2),
        "generator_late_p99_ms": round(1000 * percentile(lag, 0.99), 2),
    }


async def measured(address: str, data: bytes, factor: float, seconds: float) -> dict[str, Any]:
    request = pb.EncodeRequest(items=[pb.Item(image=data)])
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ViQStub(channel)
        await closed(stub, request, 4, 2.0)
        _, unloaded = await closed(stub, request, 1, 5.0)
        capacity, _ = await closed(stub, request, 8, 5.0)
        row = {"capacity_per_s": round(capacity, 1), "unloaded_p99_ms": round(1000 * percentile(unloaded, 0.99), 1)}
        return row | await overload(stub, request, factor * capacity, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-queue-age-s", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = jpeg(picture(args.side, args.side, 0))
    with server("--max-queue-age-s", str(args.max_queue_age_s)) as running:
        row = asyncio.run(measured(running.grpc, data, args.factor, args.seconds))
    result = {"machine": machine(), "side": args.side, "max_queue_age_s": args.max_queue_age_s, **row}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
