"""Record what one server's metrics do under a step of load: `python deploy/autoscaling/record.py > recorded.json`.

Callers offer half of what the server can do, then three times that, then half again. `/metrics` is read every second.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

SIDE, PATCHES = 256, 256
PHASES = ((20.0, 0.5), (30.0, 3.0), (30.0, 0.5))  # seconds, times what the server can do
WARM_S = 10.0


def picture() -> bytes:
    """The file of an image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


async def read(client: httpx.AsyncClient) -> dict[str, float]:
    """What the autoscaler's queries are made of, now."""
    text = (await client.get("/metrics")).text

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    return {
        "queue_patches": total("viq_queue_patches"),
        "patches": total("viq_patches_total"),
        "busy_seconds": total("viq_lane_device_seconds_total"),
        "refused": total("viq_rejected_total"),
    }


async def measured(url: str) -> dict[str, object]:
    """The server's metrics through all phases."""
    image, tasks = picture(), set[asyncio.Task[None]]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask() -> None:
            await client.post("/v1/encode", content=image, headers={"Content-Type": "image/jpeg"})

        async def offer(per_s: float, seconds: float) -> None:
            """Ask at that rate, whether answers come or not."""
            began = time.monotonic()
            for number in range(int(per_s * seconds)):
                await asyncio.sleep(began + number / per_s - time.monotonic())
                task = asyncio.create_task(ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def closed(ends: float) -> int:
            count = 0
            while time.monotonic() < ends:
                await ask()
                count += 1
            return count

        ends = time.monotonic() + WARM_S
        capacity = sum(await asyncio.gather(*(closed(ends) for _ in range(8)))) / WARM_S
        samples: list[dict[str, float]] = []
        began = time.monotonic()

        async def watch() -> None:
            while True:
                samples.append({"t": round(time.monotonic() - began, 2), **(await read(client))})
                await asyncio.sleep(1.0)

        watching = asyncio.create_task(watch())
        for seconds, times in PHASES:
            await offer(capacity * times, seconds)
        watching.cancel()
        await asyncio.gather(*tasks)
    offered = [{"seconds": s, "patches_per_s": round(capacity * times * PATCHES)} for s, times in PHASES]
    return {"side": SIDE, "capacity_patches_per_s": round(capacity * PATCHES), "offered": offered, "samples": samples}


def main() -> None:
    """Start a server, measure, print."""
    viq = Path(sys.executable).with_name("viq")
    command = [str(viq), "serve", "--size", "nano", "--http-port", "0", "--grpc-port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - this project's own
        try:
            assert server.stdout is not None  # noqa: S101
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None  # noqa: S101
            url = found[0]
            while httpx.get(f"{url}/readyz").status_code != 200:
                time.sleep(0.2)
            print(json.dumps(asyncio.run(measured(url)), indent=1))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
