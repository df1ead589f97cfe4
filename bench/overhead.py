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
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
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
    model, data = ViQ.from_pretrained(), jpeg(picture(args.side, args.side, 0))
    raw = {"Accept": "application/octet-stream", "Content-Type": "image/jpeg"}
    request = pb.EncodeRequest(items=[pb.Item(image=data)])

    def in_process() -> bytes:
        return model.encode_pixels([decode(data, ImageLimits())])[0].to_bytes()

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
        stub, message = ViQStub(channel), request.SerializeToString()
        encodes: dict[str, Callable[[], bytes]] = {
            "in_process": in_process,
            "grpc": lambda: _codes(pb.EncodeResponse.FromString(wire(message))),
            "grpc_from_grpcio": lambda: _codes(stub.Encode(request)),
            "grpc_least": lambda: least_encode(data),
            "rest": lambda: asked(connection, "POST", "/v1/encode", data, raw),
        }
        idle: dict[str, Callable[[], bytes]] = {
            "grpc_least_nothing": lambda: nothing(b"x"),
            "grpc_info": lambda: info(b""),
            "rest_livez": lambda: asked(connection, "GET", "/livez"),
        }
        codes = in_process()
        seconds: dict[str, list[float]] = {name: [] for name in (*encodes, *idle)}
        rng, names = random.Random(0), list(seconds)
        for turn in range(_IGNORED + args.rounds):
            rng.shuffle(names)
            for name in names:
                sleep(_PAUSE_S + (_ENCODE_S if name in idle else 0))
                begun = perf_counter()
                reply = idle[name]() if name in idle else encodes[name]()
                taken = perf_counter() - begun
                assert name in idle or reply == codes, f"codes by {name} are others"
                if turn >= _IGNORED:
                    seconds[name].append(taken)
    plain, rows = seconds["in_process"], dict[str, dict[str, float]]()
    for name, times in seconds.items():
        rows[name] = {
            "p50_ms": round(1000 * statistics.median(times), 3),
            "p99_ms": round(1000 * percentile(times, 0.99), 3),
        }
        if name in encodes:
            over = (through - alone for through, alone in zip(times, plain, strict=True))
            rows[name]["p50_over_in_process_ms"] = round(1000 * statistics.median(over), 3)
    result = {"machine": machine(), "side": args.side, "rounds": args.rounds, "calls": rows}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


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
