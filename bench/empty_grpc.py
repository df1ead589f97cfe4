"""A gRPC server of the same library and event loop as the service with one method, `/empty.Empty/Call`, that does
nothing: what bench/overhead.py holds the service against. It prints its port, and ends with its standard input."""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop


async def call(request: bytes, context: object) -> bytes:
    return request


async def main() -> None:
    server = grpc.aio.server()
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("empty.Empty", {"Call": method}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
