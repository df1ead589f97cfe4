"""What FastAPI takes of the event loop for a request: the handlers called by it, and by `viq_serving.rest.shortcut`.

    python bench/shortcut.py --out bench/results/shortcut.json

In one process, without sockets, in turns: an encode whose codes the caller has already, so that all of its way is
taken but the device's. Microseconds of CPU time a request, medians of the rounds. In a server that computes, whose
caches hold other things, both take about twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import statistics
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from full_size import machine
from PIL import Image

from viq import ViQ
from viq_serving.images import ImageLimits
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest import routes
from viq_serving.rest.app import create_api
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.shortcut import Shortcut
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

Message = MutableMapping[str, Any]


async def ask(app: Envelope, body: bytes, tag: bytes = b"") -> Message:
    """The head of the reply to one encode."""
    replies, left = list[Message](), [{"type": "http.request", "body": body, "more_body": False}]
    for_ever = asyncio.Event()

    async def receive() -> Message:
        if not left:
            await for_ever.wait()
        return left.pop()

    async def send(message: Message) -> None:
        replies.append(message)

    headers = [(b"content-type", b"application/octet-stream"), (b"if-none-match", tag)]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/encode", "query_string": b"", "headers": headers, "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return replies[0]


async def measured(rounds: int, requests: int) -> dict[str, list[float]]:
    """Microseconds a request, by way and round."""
    settings, metrics = Settings(), Metrics("bench")
    tokenizer = Tokenizer(ImageLimits(), 1, metrics)
    await tokenizer.load(lambda: [ViQ.from_pretrained(device="cpu")])
    api, keys, buffer = create_api(tokenizer, metrics, settings), Keys(settings), io.BytesIO()
    Image.effect_noise((160, 160), 40).convert("RGB").save(buffer, "JPEG")
    apps = {
        "fastapi": Envelope(api, tokenizer, metrics, settings, keys),
        "shortcut": Envelope(Shortcut(api, routes.router), tokenizer, metrics, settings, keys),
    }
    taken: dict[str, list[float]] = {way: [] for way in apps}
    try:
        tag = dict((await ask(apps["fastapi"], buffer.getvalue()))["headers"])[b"etag"]
        gc.disable()  # as in the server, which collects while nobody waits
        for _ in range(rounds):
            for way, app in apps.items():
                gc.collect()
                begun = time.thread_time()
                for _ in range(requests):
                    head = await ask(app, buffer.getvalue(), tag)
                taken[way].append(1e6 * (time.thread_time() - begun) / requests)
                assert head["status"] == 304, head
    finally:
        tokenizer.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    taken = asyncio.run(measured(args.rounds, args.requests))
    row = {f"{way}_us": round(statistics.median(each), 1) for way, each in taken.items()}
    print(json.dumps(row))
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "request": row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
