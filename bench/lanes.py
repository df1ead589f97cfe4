"""What a person waits while a flood of bulk items is in flight, beside what they wait on an idle server.

    python bench/lanes.py --out bench/results/lanes.json

Streams of bulk items from a client process of its own, always as many unanswered as a stream may have; beside them
interactive requests by unary gRPC at random times (Poisson), whatever the answers do. Both see one server, whose
metrics tell of lanes and batches. The aim: p99 beside the flood under twice p99 on the idle server plus the time of one
batch, which is the mean of the flood's own batches while nobody else asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from full_size import machine
from serving import Running, jpeg, percentile, picture, server

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

IN_FLIGHT = 1024  # unanswered items a stream, the server's own limit
PICTURES = 16
_YIELDING = 15
"""Niceness of the flood: other machines send it in earnest, here it would take a core from the server it floods."""

LANES = ("interactive", "bulk")


async def flood(address: str, side: int, streams: int) -> None:
    """Send bulk items through so many streams until killed."""
    os.nice(_YIELDING)
    files = [jpeg(picture(side, side, seed)) for seed in range(PICTURES)]

    async def one(stub: Any, number: int) -> None:
        call, room = stub.EncodeStream(), asyncio.Semaphore(IN_FLIGHT)

        async def send() -> None:
            for key in range(2**31):
                await room.acquire()
                await call.write(pb.EncodeStreamRequest(items=[pb.Item(key=str(key), image=files[key % PICTURES])]))

        sending = asyncio.create_task(send())
        async for message in call:
            for result in message.results:
                assert not result.HasField("status"), result
                room.release()
        await sending

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(one(ViQStub(channel), number) for number in range(streams)))


@contextmanager
def flooded(running: Running, side: int, streams: int) -> Iterator[None]:
    """Run with the flood at its full height."""
    with subprocess.Popen([sys.executable, __file__, "--flood", running.grpc, str(side), str(streams)]) as process:
        try:
            while in_flight(running) < 0.95 * IN_FLIGHT * streams:
                assert process.poll() is None, "the flood ended"
            yield
            assert process.poll() is None, "the flood ended"
        finally:
            process.terminate()


def in_flight(running: Running) -> float:
    """Bulk items that wait, for the device or for room."""
    return sum(running.metric(f'viq_lane_{what}{{lane="bulk"}}') for what in ("requests", "line_requests"))


def spent(running: Running, what: Callable[[], object]) -> dict[str, float]:
    """Seconds of the device by lane, batches, and seconds on the clock, while `what` runs."""

    def now() -> dict[str, float]:
        lanes = {lane: running.metric(f'viq_lane_device_seconds_total{{lane="{lane}"}}') for lane in LANES}
        return {**lanes, "batches": running.metric("viq_batch_images_count"), "seconds": perf_counter()}

    before = now()
    what()
    return {name: value - before[name] for name, value in now().items()}


async def people(address: str, side: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Seconds from when each of `rate` requests a second was to be sent to its answer; and how many were refused."""
    request, rng = pb.EncodeRequest(items=[pb.Item(image=jpeg(picture(side, side, 99)))]), random.Random(0)
    taken, refused = list[float](), list[str]()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = ViQStub(channel)
        await stub.Encode(request)

        async def ask(due: float) -> None:
            try:
                await stub.Encode(request)
            except grpc.aio.AioRpcError as error:
                refused.append(str(error.details()))
            else:
                taken.append(perf_counter() - due)

        asked, begun = list[asyncio.Task[None]](), perf_counter()
        due = begun
        while due < begun + seconds:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            asked.append(asyncio.create_task(ask(due)))
        await asyncio.gather(*asked)
    return taken, len(refused)


def told(taken: list[float], refused: int) -> dict[str, Any]:
    at = {f"p{round(100 * share)}_ms": round(1000 * percentile(taken, share), 1) for share in (0.5, 0.95, 0.99)}
    return {"requests": len(taken), "refused": refused, **at}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    def asked(running: Running) -> dict[str, Any]:
        return told(*asyncio.run(people(running.grpc, args.side, args.rate, args.seconds)))

    with server() as running:
        idle = asked(running)
        with flooded(running, args.side, args.streams):
            alone = spent(running, lambda: time.sleep(args.seconds / 4))
            height = in_flight(running)
            beside: dict[str, Any] = {}
            together = spent(running, lambda: beside.update(asked(running)))
    batch_ms = 1000 * alone["bulk"] / alone["batches"]
    aim_ms = 2 * idle["p99_ms"] + batch_ms
    return {
        "side": args.side,
        "bulk_waiting": height,
        "idle": idle,
        "beside_the_flood": beside,
        "device_used_by_interactive": round(together["interactive"] / together["seconds"], 3),
        "device_used_by_bulk": round(together["bulk"] / together["seconds"], 3),
        "batch_of_the_flood_alone_ms": round(batch_ms, 1),
        "aim_p99_ms": round(aim_ms, 1),
        "p99_over_aim": round(beside["p99_ms"] / aim_ms, 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--flood"]:
        asyncio.run(flood(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--streams", type=int, default=10, help="of 1,024 unanswered items each")
    parser.add_argument("--rate", type=float, default=5.0, help="interactive requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = {"machine": machine(), **measured(args)}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
