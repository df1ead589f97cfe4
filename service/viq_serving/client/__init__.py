"""Clients of a ViQ service, and shards of codes. Needs numpy, Pillow, httpx and grpcio; no torch.

Codes of some images, features and pictures of codes:

    from viq_serving.client import Client

    with Client("viq.example:8001") as client:
        codes = client.encode(["cat.png", "dog.png"])
        features = client.embed(codes)
        pictures = client.decode(codes)

Any number of images, each with a key, many on their way at a time, one's error leaving the others alone:

    from pathlib import Path

    from viq.errors import ViQError
    from viq_serving.client import Client

    pairs = ((path.name, path) for path in sorted(Path("photos").iterdir()))
    with Client(["viq.example:8001"], timeout=60, priority="bulk") as client:
        for key, codes in client.encode_each(pairs):
            if isinstance(codes, ViQError):
                print(key, codes)
            else:
                codes.to_npz(f"{key}.npz")

The same on an event loop:

    import asyncio

    from viq_serving.client import AsyncClient

    async def main():
        async with AsyncClient("viq.example:8001") as client:
            return await client.encode(["cat.png"])

    codes = asyncio.run(main())

What `viq extract` wrote, by number; `viq_serving.client.loaders` has it for torch:

    from viq_serving.client import CodesFolder

    folder = CodesFolder("extracted")
    first = folder[0]
    print(first.key, first.codes.grid, first.codes.array, first.fields)
    folder.close()
"""

from viq_serving.client.asynchronous import AsyncClient
from viq_serving.client.client import Client
from viq_serving.client.codes_folder import CodesFolder
from viq_serving.client.errors import ServerError
from viq_serving.client.shards import Row
from viq_serving.client.targets import Tls

__all__ = ["AsyncClient", "Client", "CodesFolder", "Row", "ServerError", "Tls"]
