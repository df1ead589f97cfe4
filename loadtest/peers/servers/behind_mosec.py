"""mosec: https://mosecorg.github.io/mosec/reference/interface.html, performance tuning of its README.

The body is decoded in the worker's `deserialize`, so that pixels cross no process border.
"""

from __future__ import annotations

import sys

from mosec import Server, Worker
from network import BATCH, PORT, THREADS, WAIT_MS, WORKERS, Network, Pixels


class Encode(Worker):
    """Image file in, flat codes out."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def deserialize(self, data: bytes) -> Pixels:
        """The body to pixels."""
        return self.network.pixels(data)

    def forward(self, data: list[Pixels]) -> list[bytes]:
        """One batch."""
        return self.network.codes(data)

    def serialize(self, data: bytes) -> bytes:
        """Flat codes."""
        return data


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--timeout", "600000", "--capacity", "4096"]
    server = Server()
    threads = [{"OMP_NUM_THREADS": str(THREADS)} for _ in range(WORKERS)]
    server.append_worker(
        Encode, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS, env=threads, timeout=600, route="/encode"
    )
    server.run()
