"""What an otherwise idle server adds to one 64x64 image, by gRPC and by REST, over the same call in-process.

    OMP_WAIT_POLICY=passive python bench/overhead.py --out bench/results/overhead.json

One of each in turn, with a pause before it, as an idle server sees it: decode and encode in this process, gRPC, REST
on a kept connection (by http.client: richer clients take half a millisecond themselves), and calls that compute
nothing, for what a call costs at all here: Info, /livez, and the only method of an empty gRPC server of the same
library (bench/empty_grpc.py), left alone for as long as an encode takes. This process computes with one thread that
sleeps when idle, as the service does with so small an image; with torch's own setting its threads would spin on and
take the cores from the server in the next call.
Milliseconds; medians over the rounds, and of the differences within a round.
"""

from __future__ import annotations

import argparse
import json
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

from viq import ViQ
from viq_serving.images import ImageLimits, decode
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

NOTHING: Mapping[str, str] = {}
_IGNORED, _PAUSE_S = 20, 0.003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = ViQ.from_pretrained(), jpeg(picture(args.side, args.side, 0))
    raw = {"Accept": "application/octet-stream", "Content-Type": "image/jpeg"}
    with (
        server() as running,
        empty() as bare,
        grpc.insecure_channel(running.grpc) as channel,
        closing(HTTPConnection(running.http)) as connection,
    ):
        stub, request = ViQStub(channel), pb.EncodeRequest(items=[pb.Item(image=data)])
        calls: dict[str, Callable[[], object]] = {
            "in_process": lambda: model.encode_pixels([decode(data, ImageLimits())]),
            "grpc": lambda: stub.Encode(request),
            "grpc_info": lambda: stub.Info(pb.InfoRequest()),
            "grpc_empty": lambda: bare(b""),
            "rest_livez": lambda: asked(connection, "GET", "/livez"),
            "rest": lambda: asked(connection, "POST", "/v1/encode", data, raw),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(_IGNORED + args.rounds):
            for name, call in calls.items():
                sleep(_PAUSE_S + (seconds["in_process"][-1] if name == "grpc_empty" and turn > _IGNORED else 0))
                begun = perf_counter()
                call()
                if turn >= _IGNORED:
                    seconds[name].append(perf_counter() - begun)
    plain = seconds["in_process"]
    rows = {
        name: {
            "p50_ms": round(1000 * statistics.median(taken), 3),
            "p99_ms": round(1000 * percentile(taken, 0.99), 3),
            "p50_over_in_process_ms": round(
                1000 * statistics.median(through - alone for through, alone in zip(taken, plain, strict=True)), 3
            ),
        }
        for name, taken in seconds.items()
    }
    result = {"machine": machine(), "side": args.side, "rounds": args.rounds, "calls": rows}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def empty() -> Iterator[grpc.UnaryUnaryMultiCallable[bytes, bytes]]:
    """The method of a gRPC server that does nothing."""
    script = [sys.executable, str(Path(__file__).with_name("empty_grpc.py"))]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
            yield channel.unary_unary("/empty.Empty/Call")
        process.stdin.close()


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
