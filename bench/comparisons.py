"""Codes through the service under concurrent load, compared bit for bit with the same images encoded alone.

    python bench/comparisons.py --count 10000 --out bench/results/comparisons.json

Pictures of mixed sizes are encoded alone in this process first. Then many callers ask a server, by gRPC and by
REST, for shuffled ones of them until so many answers were compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio
import httpx
import numpy as np
from full_size import machine
from serving import Running, jpeg, picture, server

from viq import Codes, ViQ
from viq_serving.images import ImageLimits, decode
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

SIDES = (16, 40, 64, 64, 96, 128, 128, 192, 256)


async def compare(running: Running, expected: dict[bytes, Codes], count: int, callers: int) -> dict[str, int]:
    """How many answers were compared, and how many were different."""
    files, seen = list(expected), {"compared": 0, "different": 0, "by_grpc": 0, "by_rest": 0}
    raw = {"Accept": "application/octet-stream", "Content-Type": "image/jpeg"}
    begun = 0

    async def call(number: int, stub: Any, client: httpx.AsyncClient) -> None:
        nonlocal begun
        rng = random.Random(number)
        while begun < count:
            begun += 1
            data = rng.choice(files)
            if rng.random() < 0.7:
                reply = await stub.Encode(pb.EncodeRequest(items=[pb.Item(image=data)]))
                flat, fingerprint = reply.results[0].codes.data, reply.results[0].codes.fingerprint
                seen["by_grpc"] += 1
            else:
                answer = await client.post("/v1/encode", content=data, headers=raw)
                flat, fingerprint = answer.raise_for_status().content, answer.headers["ViQ-Fingerprint"]
                seen["by_rest"] += 1
            codes = expected[data]
            seen["compared"] += 1
            seen["different"] += flat != codes.to_bytes() or fingerprint != codes.fingerprint

    async with (
        grpc.aio.insecure_channel(running.grpc) as channel,
        httpx.AsyncClient(base_url=f"http://{running.http}", trust_env=False, timeout=600) as client,
    ):
        stub = ViQStub(channel)
        await asyncio.gather(*(call(number, stub, client) for number in range(callers)))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, rng = ViQ.from_pretrained(), np.random.default_rng(0)
    files = [jpeg(picture(int(rng.choice(SIDES)), int(rng.choice(SIDES)), seed)) for seed in range(args.images)]
    expected = {data: model.encode_pixels([decode(data, ImageLimits())])[0] for data in files}
    with server("--max-queue-age-s", "600") as running:
        begun = perf_counter()
        seen = asyncio.run(compare(running, expected, args.count, args.callers))
        seconds = perf_counter() - begun
        mean = running.metric("viq_batch_images_sum") / running.metric("viq_batch_images_count")
    result = {"machine": machine(), "size": model.size, "fingerprint": model.fingerprint, **seen}
    result |= {"mean_images_a_batch": round(mean, 2), "callers": args.callers, "seconds": round(seconds, 1)}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if seen["different"] or mean <= 1.5:
        raise SystemExit("the promise does not hold")


if __name__ == "__main__":
    main()
