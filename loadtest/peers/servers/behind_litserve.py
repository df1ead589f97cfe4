"""LitServe: https://lightning.ai/docs/litserve/features/batching.

Its annotations are evaluated by the framework, so they are not postponed here: that of `request` is what FastAPI
takes as the body.
"""

from typing import Annotated

import litserve
from fastapi import Body, Response
from network import BATCH, PORT, WAIT_MS, WORKERS, Network, Pixels


class Encode(litserve.LitAPI):
    """Image file in, flat codes out."""

    def setup(self, device: str) -> None:
        """Once in every worker process."""
        self.network = Network()

    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        """The body to pixels, in the worker."""
        return self.network.pixels(request)

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """Images of different sizes cannot be stacked, and need not be."""
        return inputs

    def predict(self, x: list[Pixels]) -> list[bytes]:
        """One batch."""
        return self.network.codes(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Already a list."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Flat codes."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Encode(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000, api_path="/encode")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=False, fast_queue=True)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)  # as many doors as workers
