"""What the load generator itself costs: its doors at servers that do nothing, beside richer clients.

    python loadtest/generator.py --out loadtest/results/generator.json

Two servers in a process of their own, HTTP (a few lines on asyncio) and gRPC (one method without a message type),
answer every request with 2 KiB at once. Each client sends 16 KiB a request, first with one request in flight, then
with 16, then at 200 a second at random times; they take turns. `cpu_ms` is what the client's process takes of a core
for one request, which on a machine shared with the server is taken from that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx

from viq_serving.bench.arrivals import Arrivals, Closed, Poisson, cycle
from viq_serving.bench.doors.door import Answer, Door, Target
from viq_serving.bench.doors.native import GrpcDoor
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.doors.plain import PlainDoor
from viq_serving.bench.figures import figures_of
from viq_serving.bench.load import Span, closed, opened
from viq_serving.bench.part import at_once, new_loop
from viq_serving.bench.pictures import PictureFile
from viq_serving.bench.result import begun, save
from viq_serving.bench.seen import Seen
from viq_serving.pb import viq_pb2 as pb

SENT, RECEIVED = 16 * 1024, 2048
LOADS: Mapping[str, Arrivals] = {"1 in flight": Closed(1), "16 in flight": Closed(16), "200/s": Poisson(200.0)}


class HttpxDoor(PlainDoor):
    """The same requests by httpx, with its own pool of connections."""

    async def open(self) -> None:
        self._client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=None), timeout=60.0)
        self._body = bytes(SENT)

    async def ask(self, index: int) -> Answer:
        reply = await self._client.post(
            self._target.url or "", content=self._body, headers={"Content-Type": "image/jpeg"}
        )
        return Answer("" if reply.status_code == 200 else str(reply.status_code), len(reply.content))

    async def close(self) -> None:
        await self._client.aclose()


class MessagesDoor(GrpcDoor):
    """gRPC as generated code does it: messages put together and taken apart for each request."""

    async def open(self) -> None:
        await super().open()
        self._call = self._channel.unary_unary(
            "/viq.v1.ViQ/Encode",
            request_serializer=pb.EncodeRequest.SerializeToString,
            response_deserializer=pb.EncodeResponse.FromString,
        )

    async def ask(self, index: int) -> Answer:
        reply = await self._call(pb.EncodeRequest(items=[pb.Item(image=bytes(SENT))]), timeout=60.0)
        return Answer("", len(reply.results[0].codes.data))


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % RECEIVED
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            writer.write(reply + bytes(RECEIVED))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve() -> None:
    """Both servers until stdin ends; their ports on the first line of stdout."""
    http = await asyncio.start_server(answer_http, "127.0.0.1", 0)
    codes = pb.Codes(data=bytes(RECEIVED), h=16, w=16)
    reply = pb.EncodeResponse(results=[pb.Result(codes=codes)]).SerializeToString()

    async def encode(request: bytes, context: object) -> bytes:
        return reply

    server = grpc.aio.server()
    handlers = {"Encode": grpc.unary_unary_rpc_method_handler(encode)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("viq.v1.ViQ", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(http.sockets[0].getsockname()[1], port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


@contextmanager
def echo() -> Iterator[tuple[str, str]]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        http, port = process.stdout.readline().split()
        yield f"http://127.0.0.1:{http}/encode", f"127.0.0.1:{port}"
        process.stdin.close()


async def measured(door: Door, arrivals: Arrivals, span: Span, files: list[PictureFile]) -> dict[str, Any]:
    await door.open()
    order, seen = cycle(1, 0), Seen(wanted=False)
    if isinstance(arrivals, Closed):
        load = await closed(door, arrivals, order, span, await at_once(), seen)
    else:
        load = await opened(door, arrivals, order, span, await at_once(), seen, 0)
    await door.close()
    found = figures_of([load], files, closed=isinstance(arrivals, Closed), counted=False)
    assert not found["errors"], found["errors"]
    return {
        "requests_per_s": found["achieved"]["images_per_s"],
        "cpu_ms": found["generator"]["cpu_ms_per_request"],
        "p50_ms": found["latency_ms"]["p50"],
        "p99_ms": found["latency_ms"]["p99"],
        "late_p50_ms": found["generator"]["lag_ms"]["p50"],
        "late_p99_ms": found["generator"]["lag_ms"]["p99"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(serve())
        return
    files = [PictureFile(0, 256, 256, bytes(SENT))]
    payload, span = Payload(files, "jpeg"), Span(0.5, args.seconds)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with echo() as (url, address):
        target = Target(url, address)
        for _ in range(args.rounds):
            for load, arrivals in LOADS.items():
                doors: dict[str, Door] = {
                    "http": PlainDoor(target, payload),
                    "httpx": HttpxDoor(target, payload),
                    "grpc": GrpcDoor(target, payload, "encode"),
                    "grpc with messages": MessagesDoor(target, payload, "encode"),
                }
                for name, door in doors.items():
                    with asyncio.Runner(loop_factory=new_loop) as runner:
                        row = runner.run(measured(door, arrivals, span, files))
                    rows.setdefault(name, {}).setdefault(load, []).append(row)
    medians = {
        name: {
            load: {what: statistics.median(run[what] for run in runs) for what in runs[0]}
            for load, runs in loads.items()
        }
        for name, loads in rows.items()
    }
    for name, loads in medians.items():
        for load, row in loads.items():
            print(f"{name:<20} {load:<13} {json.dumps(row)}")
    if args.out:
        made = begun("generator", {})["made"]
        how = f"python loadtest/generator.py --rounds {args.rounds} --seconds {args.seconds:g}"
        save(
            args.out,
            {"made": made | {"command": how}, "sent_bytes": SENT, "received_bytes": RECEIVED, "clients": medians},
        )


if __name__ == "__main__":
    main()
