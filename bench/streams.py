"""Many small items through streams: none lost or doubled, memory over time, images a second over the bare model's.

    python bench/streams.py --out bench/results/streams.json
    python bench/streams.py --items 1000000 --sides --out bench/results/streams_million.json

Sixteen client processes, a stream each, send their share of the items, check every answer (its key once, its codes
those of that picture), and send what is unanswered again when a stream ends by its age. Then, for each of `--sides`,
the same clients take turns with the bare model: `ViQ.encode_pixels` on pixels already decoded, in a process of its own
with torch's own defaults, both one picture at a time and as many as the service computes together; the ratio is to the
better of the two. The clients and the decoding of JPEG files have to live on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from serving import Running, jpeg, picture, server

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

PICTURES = 32
BATCH_PATCHES = 1024  # what the service computes together on a CPU

_ENDED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
"""How a stream ends by its age; the second is what gRPC's client makes of it where it was sending just then."""

BARE = """
import json, sys
from time import perf_counter
from viq import ViQ
from viq_serving.images import ImageLimits, decode
model, limits, seconds, together = ViQ.from_pretrained(), ImageLimits(), float(sys.argv[1]), int(sys.argv[2])
pixels = decode(sys.stdin.buffer.read(), limits)
model.encode_pixels([pixels] * together)
begun, count = perf_counter(), 0
while perf_counter() - begun < seconds:
    model.encode_pixels([pixels] * together)
    count += together
print(count / (perf_counter() - begun))
"""


def bare(data: bytes, seconds: float, together: int) -> float:
    """Images a second of the model alone."""
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", BARE, str(seconds), str(together)]
    done = subprocess.run(command, input=data, env=plain, capture_output=True, check=True)
    return float(done.stdout.split()[-1])


class Client:
    """One process's share of the items: keys `0` to `count - 1`, whose pictures take turns."""

    def __init__(self, side: int, count: int, together: int) -> None:
        self.files = [jpeg(picture(side, side, seed)) for seed in range(min(PICTURES, count))]
        self.unanswered = dict.fromkeys(range(count))
        self.together, self.streams, self.doubled, self.failed, self.wrong = together, 0, 0, 0, 0
        self._codes: dict[int, bytes] = {}

    async def run(self, stub: Any) -> None:
        """Send and receive until every key is answered."""
        while self.unanswered:
            self.streams += 1
            call = stub.EncodeStream()
            sending = asyncio.create_task(self._send(call, list(self.unanswered)))
            try:
                async for message in call:
                    for result in message.results:
                        self._check(result)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ENDED:
                    raise
            finally:
                sending.cancel()

    async def _send(self, call: Any, keys: list[int]) -> None:
        try:
            for begin in range(0, len(keys), self.together):
                some = keys[begin : begin + self.together]
                items = [pb.Item(key=str(key), image=self.files[key % len(self.files)]) for key in some]
                await call.write(pb.EncodeStreamRequest(items=items))
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the one who reads hears of it

    def _check(self, result: pb.Result) -> None:
        key = int(result.key)
        if key not in self.unanswered:
            self.doubled += 1
            return
        del self.unanswered[key]
        if result.status.code:
            self.failed += 1
        elif self._codes.setdefault(key % len(self.files), result.codes.data) != result.codes.data:
            self.wrong += 1


async def child(address: str, side: int, count: int, together: int) -> None:
    """A client process: says when it is ready, begins when told, and tells what it saw."""
    client = Client(side, count, together)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ViQStub(channel)
        await stub.Info(pb.InfoRequest())
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        begun = perf_counter()
        await client.run(stub)
        ended = perf_counter()
    told = {name: getattr(client, name) for name in ("streams", "doubled", "failed", "wrong")}
    print(json.dumps({"answered": count, "begun": begun, "ended": ended, **told}))


def streamed(address: str, side: int, count: int, clients: int, together: int) -> dict[str, Any]:
    """What `clients` processes saw who sent `count` items in all."""
    command = [sys.executable, __file__, "--client", address, str(side), str(count // clients), str(together)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rows = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    begun = min(row["begun"] for row in rows)  # one clock for all processes of the machine
    took = [row["ended"] - begun for row in rows]
    sums = {name: sum(row[name] for row in rows) for name in ("answered", "streams", "doubled", "failed", "wrong")}
    return {
        **sums,
        "seconds": round(max(took), 2),
        "images_per_s": round(sums["answered"] / max(took), 2),
        "first_client_done_s": round(min(took), 2),
    }


class Memory:
    """The anonymous memory of a process over time, in MiB."""

    def __init__(self, pid: int, every_s: float) -> None:
        self.samples: list[float] = []
        self._status, self._every_s, self._ended = Path(f"/proc/{pid}/status"), every_s, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
            self.samples.append(round(int(fields["RssAnon"].split()[0]) / 1024, 1))
            if self._ended.wait(self._every_s):
                return

    def summary(self) -> dict[str, Any]:
        """First, last and largest of the time after the first tenth, and about 50 samples of all."""
        settled = self.samples[len(self.samples) // 10 :]
        step = max(1, len(self.samples) // 50)
        return {
            "settled_mib": settled[0],
            "end_mib": settled[-1],
            "most_mib": max(self.samples),
            "every_s": self._every_s * step,
            "samples_mib": self.samples[::step],
        }


def endurance(running: Running, args: argparse.Namespace) -> dict[str, Any]:
    """All items through one server, and its memory meanwhile."""
    streamed(running.grpc, args.side, 50 * args.clients, args.clients, args.together)  # warm
    with Memory(running.pid, 1.0) as memory:
        seen = streamed(running.grpc, args.side, args.items, args.clients, args.together)
    return {"items": args.items, "side": args.side, "together": args.together, **seen, "memory": memory.summary()}


def compared(running: Running, side: int, args: argparse.Namespace) -> dict[str, Any]:
    """Images a second at one size, the service and the model alone by turns."""
    data, fits = jpeg(picture(side, side, 0)), max(1, BATCH_PATCHES // (side // 16) ** 2)
    rates: dict[str, list[float]] = {"one": [], "together": [], "service": []}
    count = 0
    for _ in range(args.rounds):
        rates["one"].append(bare(data, args.seconds, 1))
        rates["together"].append(bare(data, args.seconds, fits))
        count = count or args.clients * max(2, round(args.seconds * max(rates["together"]) / args.clients))
        rates["service"].append(streamed(running.grpc, side, count, args.clients, 1)["images_per_s"])
    ratios = [s / max(a, b) for a, b, s in zip(*rates.values(), strict=True)]
    return {
        "side": side,
        "bare_one_images_per_s": round(statistics.median(rates["one"]), 2),
        "bare_together": fits,
        "bare_together_images_per_s": round(statistics.median(rates["together"]), 2),
        "streams_images_per_s": round(statistics.median(rates["service"]), 2),
        "streams_over_bare": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        side, count, together = map(int, sys.argv[3:])
        asyncio.run(child(sys.argv[2], side, count, together))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64, help="of the small items")
    parser.add_argument("--together", type=int, default=16, help="small items in a message")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement, about")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from full_size import machine  # it imports torch, which the client processes do without

    result: dict[str, Any] = {"machine": machine(), "clients": args.clients}
    with server() as running:
        if args.items:
            result["endurance"] = endurance(running, args)
            print(json.dumps(result["endurance"]), flush=True)
        result["encode"] = []
        for side in args.sides:
            result["encode"].append(compared(running, side, args))
            print(json.dumps(result["encode"][-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
