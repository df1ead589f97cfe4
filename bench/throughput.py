"""Images a second through the whole service, by gRPC, over the bare model's on the same images.

    python bench/throughput.py --out bench/results/throughput.json

Bare is `ViQ.encode_pixels` on pixels already decoded, one image after another, in a process of its own with
torch's own defaults. The service decodes JPEG files and is asked by so many callers at once. They take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio
from full_size import machine
from serving import jpeg, picture, server

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

BARE = """
import sys
from time import perf_counter
from viq import ViQ
from viq_serving.images import ImageLimits, decode
model, limits, count = ViQ.from_pretrained(), ImageLimits(), int(sys.argv[1])
pixels = decode(sys.stdin.buffer.read(), limits)
model.encode_pixels([pixels])
print("ready", flush=True)
begun = perf_counter()
for _ in range(count):
    model.encode_pixels([pixels])
print(perf_counter() - begun)
"""


def bare(data: bytes, count: int) -> float:
    """Images a second of the model alone."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    command = [sys.executable, "-c", BARE, str(count)]
    done = subprocess.run(command, input=data, env=environment, capture_output=True, check=True)
    return count / float(done.stdout.split()[-1])


async def served(address: str, data: bytes, count: int, callers: int) -> float:
    """Images a second of the service."""
    request, rest = pb.EncodeRequest(items=[pb.Item(image=data)]), iter(range(count))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ViQStub(channel)
        await stub.Encode(request)

        async def call() -> None:
            for _ in rest:
                await stub.Encode(request)

        begun = perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        return count / (perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 512, 768, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement, about")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with server("--max-queue-age-s", "600") as running:
        for side in args.sides:
            data = jpeg(picture(side, side, side))
            count = max(4, int(args.seconds * bare(data, 3)))
            pairs = []
            for _ in range(args.rounds):
                alone = bare(data, count)
                pairs.append((alone, asyncio.run(served(running.grpc, data, count, args.callers))))
            row = {
                "side": side,
                "bare_images_per_s": round(statistics.median(alone for alone, _ in pairs), 2),
                "service_images_per_s": round(statistics.median(through for _, through in pairs), 2),
                "service_over_bare": round(statistics.median(through / alone for alone, through in pairs), 3),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "encode": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
