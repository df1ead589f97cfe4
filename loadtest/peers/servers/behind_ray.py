"""Ray Serve: https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html, custom batch size functions.

The batch's size is its patches. Blocking work goes to threads, as
https://docs.ray.io/en/latest/serve/advanced-guides/performance.html asks where its throughput flags are on.
"""

from __future__ import annotations

import asyncio
import signal
import threading

import ray
from network import BATCH_PATCHES, PORT, THREADS, WAIT_MS, WORKERS, Network, Pixels, patches
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


def size(images: list[Pixels]) -> int:
    """Size of a batch in patches; an image of more than a batch's counts as a full one, else it would be refused."""
    return (
        min(BATCH_PATCHES, sum(patches(image) for image in images)) if len(images) == 1 else sum(map(patches, images))
    )


@serve.deployment(
    num_replicas=WORKERS, max_ongoing_requests=1000, ray_actor_options={"num_cpus": THREADS}, health_check_timeout_s=120
)
class Encode:
    """Image file in, flat codes out."""

    def __init__(self) -> None:
        self.network = Network()

    @serve.batch(max_batch_size=BATCH_PATCHES, batch_wait_timeout_s=WAIT_MS / 1000, batch_size_fn=size)
    async def encode(self, images: list[Pixels]) -> list[bytes]:
        """One batch, in a thread."""
        return await asyncio.to_thread(self.network.codes, images)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        pixels = await asyncio.to_thread(self.network.pixels, await request.body())
        return Response(await self.encode(pixels), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=2 + WORKERS * THREADS, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Encode.bind(), route_prefix="/encode")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()
