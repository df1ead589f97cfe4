"""What an otherwise idle server adds to one 64x64 image, by gRPC and by REST, over the same call in-process.

    OMP_WAIT_POLICY=passive python bench/overhead.py --out bench/results/overhead.json

One of each, in an order drawn anew each round, with a pause before it, as an idle server sees it: decode and encode in
this process; by gRPC and REST on kept connections, from lean clients, as it is the server that is measured
(bench/wire_grpc.py, http.client); by gRPC from grpcio's client, for what its users see; by a gRPC service of the same
library with next to nothing in it (bench/least_grpc.py); and calls that compute nothing, for what a call costs at all
here, which are left alone beforehand for as long as an encode takes. This process computes with one thread that
sleeps when idle, as the service does with so small an image; with torch's own setting its threads would spin on and
take the cores from the server in the next call.
Milliseconds; medians over the rounds, and of the differences within a round.
"""

from __future__ import annotations

import argparse
import gc
import json
import operator
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, sleep

import grpc
import torch
from full_size import machine
from serving import jpeg, percentile, picture, server
from wire_grpc import WireMethod

from viq import ViQ
from viq_serving.images import ImageLimits, decode
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

Calls = dict[str, Callable[[], bytes]]

NOTHING: Mapping[str, str] = {}
_IGNORED, _PAUSE_S, _ENCODE_S = 20, 0.003, 0.012


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--side", type=int, default=64, help="256 at most: a message must fit a frame")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()  # as the service has it
    with doors(jpeg(picture(args.side, args.side, 0))) as (encodes, idle):
        seconds = measured(encodes, idle, args.rounds)
    calls = {name: row(times, seconds["in_process"] if name in encodes else None) for name, times in seconds.items()}
    result = {"machine": machine(), "side": args.side, "rounds": args.rounds, "calls": calls}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def doors(data: bytes) -> Iterator[tuple[Calls, Calls]]:
    """The ways to the codes of an image file, and the calls that compute nothing."""
    model, request = ViQ.from_pretrained(), pb.EncodeRequest(items=[pb.Item(image=data)])
    model.script_small_packs()  # as the service does, and the least one
    message, raw = request.SerializeToString(), {"Accept": "application/octet-stream", "Content-Type": "image/jpeg"}
    with (
        server() as running,
        least() as address,
        grpc.insecure_channel(running.grpc) as channel,
        closing(WireMethod(running.grpc, "/viq.v1.ViQ/Encode")) as wire,
        closing(WireMethod(running.grpc, "/viq.v1.ViQ/Info")) as info,
        closing(WireMethod(address, "/least.Least/Encode")) as least_encode,
        closing(WireMethod(address, "/least.Least/Nothing")) as nothing,
        closing(HTTPConnection(running.http)) as connection,
    ):
        stub = ViQStub(channel)
        encodes: Calls = {
            "in_process": lambda: model.encode_pixels([decode(data, ImageLimits())])[0].to_bytes(),
            "grpc": lambda: _codes(pb.EncodeResponse.FromString(wire(message))),
            "grpc_from_grpcio": lambda: _codes(stub.Encode(request)),
            "grpc_least": lambda: least_encode(data),
            "rest": lambda: asked(connection, "POST", "/v1/encode", data, raw),
        }
        idle: Calls = {
            "grpc_least_nothing": lambda: nothing(b"x"),
            "grpc_info": lambda: info(b""),
            "rest_livez": lambda: asked(connection, "GET", "/livez"),
        }
        yield encodes, idle


def measured(encodes: Calls, idle: Calls, rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, round by round; all of `encodes` must give the same codes."""
    codes, rng, names = encodes["in_process"](), random.Random(0), [*encodes, *idle]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(_IGNORED + rounds):
        rng.shuffle(names)
        for name in names:
            sleep(_PAUSE_S + (_ENCODE_S if name in idle else 0))
            begun = perf_counter()
            reply = idle[name]() if name in idle else encodes[name]()
            taken = perf_counter() - begun
            assert name in idle or reply == codes, f"codes by {name} are others"
            if turn >= _IGNORED:
                seconds[name].append(taken)
    return seconds


def row(times: Sequence[float], plain: Sequence[float] | None) -> dict[str, float]:
    """Figures of one call in milliseconds, over those of the same rounds that are `plain` if there are any."""
    found = {"p50_ms": statistics.median(times), "p99_ms": percentile(times, 0.99)}
    if plain is not None:
        found["p50_over_in_process_ms"] = statistics.median(map(operator.sub, times, plain))
    return {name: round(1000 * seconds, 3) for name, seconds in found.items()}


@contextmanager
def least() -> Iterator[str]:
    """The address of the least service."""
    script = [sys.executable, str(Path(__file__).with_name("least_grpc.py"))]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def _codes(reply: pb.EncodeResponse) -> bytes:
    return reply.results[0].codes.data


def asked(
    connection: HTTPConnection, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = NOTHING
) -> bytes:
    """One request on a kept connection; the reply's body."""
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    content = reply.read()
    assert reply.status == 200, content
    return content


if __name__ == "__main__":
    main()
