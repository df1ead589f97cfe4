"""BentoML: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

A batchable method takes lists from its callers, so, as that page draws it for single requests, one service takes the
image and another, which it depends on, batches and computes. Workers:
https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html.
"""

from __future__ import annotations

import bentoml
from network import BATCH, WORKERS, Network
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@bentoml.service(workers=WORKERS, traffic={"timeout": 600, "max_concurrency": 4096})
class Batches:
    """Computes batches; each worker's own batcher learns how long they take."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=60_000)  # the default; beyond it 503
    def encode(self, images: list[bytes]) -> list[bytes]:
        """One batch."""
        return self.network.codes([self.network.pixels(data) for data in images])


async def _encode(request: Request) -> Response:
    door = bentoml.get_current_service()
    (codes,) = await door.batches.to_async.encode([await request.body()])
    return Response(codes, media_type="application/octet-stream")


app = Starlette(routes=[Route("/encode", _encode, methods=["POST"])])


@bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 4096})
@bentoml.asgi_app(app, path="/")
class Door:
    """Image file in, flat codes out."""

    batches = bentoml.depends(Batches)
