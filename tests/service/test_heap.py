"""Memory that is freed is used again, in every process that computes; what the operator has set stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.doors.serving import Server

from viq_serving.images import encode_picture

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# 8 MiB, written to and freed again and again: the system gives 2,048 pages each time, or once.
AGAIN = """
import ctypes, resource, sys
from viq_serving.heap import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
size, before = 8 * 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = []
for _ in range(20):
    a, b = (ctypes.c_void_p(c.malloc(ctypes.c_size_t(size))) for _ in range(2))
    for block in (a, b):
        ctypes.memset(block, 1, size)
        c.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES_OF_ONE_ROUND = 2 * 2048


def again(what: str, **environment: str) -> tuple[bool, int]:
    """What `keep_freed_memory` said in a process of its own, and how many page faults followed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, what], env=plain | environment, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    return said == "True", int(faults)


@glibc
def test_freed_memory_is_used_again_instead_of_fetched_anew() -> None:
    assert again("keep")[0]
    assert again("keep")[1] < 3 * PAGES_OF_ONE_ROUND


@glibc
@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_what_the_operator_has_set_stays(setting: dict[str, str]) -> None:
    said, faults = again("keep", **setting)
    assert not said
    assert faults > 10 * PAGES_OF_ONE_ROUND


@glibc
def test_another_tunable_is_no_setting_of_the_heap() -> None:
    assert again("keep", GLIBC_TUNABLES="glibc.pthread.rseq=1")[0]


@glibc
@pytest.mark.parametrize("flags", [(), ("--replica-processes",)], ids=["threads", "processes"])
def test_the_processes_of_a_server_that_compute_keep_their_memory(tmp_path: Path, flags: tuple[str, ...]) -> None:
    picture = encode_picture(np.full((512, 512, 3), 99, np.uint8), "png")
    server = Server(tmp_path, "--replicas", "1", "--drain-delay", "0", *flags).ready()
    try:
        for _ in range(3):
            assert server.http.post("/v1/encode", content=picture).status_code == 200
        before = faults_of(server.process.pid)
        for _ in range(5):
            assert server.http.post("/v1/encode", content=picture).status_code == 200
        # Without, it is 5,000 an image.
        assert (faults_of(server.process.pid) - before) / 5 < 2500
    finally:
        server.end()


def faults_of(pid: int) -> int:
    """Page faults so far of a process and its children."""
    own = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(faults_of(int(child)) for one in children for child in one.read_text().split())
