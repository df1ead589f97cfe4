"""A gRPC service of the same library with next to nothing in it: what bench/overhead.py holds ours against.

`/least.Least/Nothing` does nothing; `/least.Least/Encode` decodes and encodes the image that is the whole message, on
one thread, with no limits, queue, batches or provenance, and replies with its codes. It prints its port, and ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch
import uvloop

from viq import ViQ
from viq_serving.images import ImageLimits, decode


async def main() -> None:
    torch.set_num_threads(1)
    gc.disable()
    model, device = ViQ.from_pretrained(), ThreadPoolExecutor(1)
    model.script_small_packs()

    def encoded(data: bytes) -> bytes:
        return model.encode_pixels([decode(data, ImageLimits())])[0].to_bytes()

    async def nothing(request: bytes, context: object) -> bytes:
        return request

    async def encode(request: bytes, context: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(device, encoded, request)

    server = grpc.aio.server()
    methods = {"Nothing": nothing, "Encode": encode}
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("least.Least", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
