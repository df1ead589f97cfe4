"""A real process whose device hangs: who waits is told, readiness and liveness end, and so does the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tests.waiting import until

from viq_serving.images import encode_picture
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

SERVE = """
import sys, threading
from viq_serving.openmp import spin_briefly
spin_briefly()
from viq import ViQ
from viq_serving.app import run
from viq_serving.settings import Settings
compute = ViQ.launch_encode
def launch_encode(self, images):
    if any(image.image_size == (48, 48) for image in images):
        print("hangs", flush=True)
        threading.Event().wait()
    return compute(self, images)
ViQ.launch_encode = launch_encode
flags = {"http_port": 0, "grpc_port": 0, "drain_delay": float(sys.argv[2]), "stall_timeout_s": float(sys.argv[1])}
sys.exit(run(Settings.load({**flags, "replicas": int(sys.argv[3])})))
"""
HANGS, WAITS = (encode_picture(np.full((side, side, 3), 99, np.uint8), "png") for side in (48, 32))


@contextmanager
def hanging(
    stall_timeout_s: float, drain_delay: float = 0.0, replicas: int = 1
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A ready server that hangs at a picture of 48x48, and its addresses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    command = [sys.executable, "-c", SERVE, str(stall_timeout_s), str(drain_delay), str(replicas)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            http, rpc = (process.stdout.readline().split()[-1].removeprefix("http://") for _ in range(2))
            until(lambda: httpx.get(f"http://{http}/readyz", timeout=60).status_code == 200, "readiness")
            yield process, http, rpc
        finally:
            process.kill()


def test_a_device_that_hangs_ends_the_process_and_all_doors_say_so_first() -> None:
    with hanging(2.0) as (process, http, rpc), grpc.insecure_channel(rpc) as channel, ThreadPoolExecutor(3) as pool:
        url, stub = f"http://{http}", ViQStub(channel)
        hung = pool.submit(httpx.post, f"{url}/v1/encode", content=HANGS, timeout=60)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        queued = stub.Encode.future(pb.EncodeRequest(items=[pb.Item(image=WAITS)]), timeout=60)
        headers = {"Inference-Header-Content-Length": "0"}
        infer = pool.submit(httpx.post, f"{url}/v2/models/viq-encode/infer", content=WAITS, headers=headers, timeout=60)
        for reply in (hung.result(), infer.result()):
            assert reply.status_code == 503
            assert "no progress for 2 s" in reply.text
        error: Any = queued.exception()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "no progress for 2 s" in error.details()
        assert process.wait(60) == 3


def test_a_device_lost_while_stopping_is_no_clean_end() -> None:
    with hanging(2.0) as (process, http, _), ThreadPoolExecutor(1) as pool:
        hung = pool.submit(httpx.post, f"http://{http}/v1/encode", content=HANGS, timeout=60)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGTERM)
        assert hung.result().status_code == 503
        assert process.wait(60) == 3


def test_one_of_two_replicas_that_hangs_fails_what_it_has_and_the_other_goes_on_to_a_clean_end() -> None:
    with hanging(2.0, replicas=2) as (process, http, rpc), grpc.insecure_channel(rpc) as channel:
        url, stub = f"http://{http}", ViQStub(channel)
        (model,) = httpx.get(f"{url}/v1/models", timeout=60).json()["models"]
        assert (model["device"], model["replicas"]) == ("cpu", 2)
        hung = stub.Encode.future(pb.EncodeRequest(items=[pb.Item(image=HANGS)]), timeout=60)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        while not hung.done():
            assert httpx.post(f"{url}/v1/encode", content=WAITS, timeout=60).status_code == 200
        error: Any = hung.exception()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "no progress for 2 s" in error.details()
        for path in ("readyz", "livez"):
            assert httpx.get(f"{url}/{path}", timeout=60).status_code == 200
        metrics = httpx.get(f"{url}/metrics", timeout=60).text
        assert sum(line.startswith("viq_device_up{") and line.endswith(" 1.0") for line in metrics.splitlines()) == 1
        assert stub.Encode(pb.EncodeRequest(items=[pb.Item(image=WAITS)]), timeout=60).results[0].codes.data
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_also_a_process_whose_device_hangs(number: signal.Signals) -> None:
    with (
        hanging(3600.0, drain_delay=3600.0) as (process, http, _),
        httpx.Client(timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(client.post, f"http://{http}/v1/encode", content=HANGS)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(number)
        until(lambda: httpx.get(f"http://{http}/readyz", timeout=60).status_code != 200, "the first signal is heard")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == 128 + number
