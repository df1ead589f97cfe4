"""Memory that is freed is used again, in every process that computes; what the operator has set stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.doors.serving import Server

from viq_serving.images import encode_picture

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# Blocks that are written to and freed again and again: the system gives their pages each time, or once.
AGAIN = """
import ctypes, resource, sys, threading
from viq_serving.heap import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
size, held, thread = 2**20 * int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "thread"
def rounds():
    global before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [c.malloc(ctypes.c_size_t(size)) for _ in range(held)]
        for block in blocks:
            ctypes.memset(ctypes.c_void_p(block), 1, size)
        for block in blocks:
            c.free(ctypes.c_void_p(block))
worker = threading.Thread(target=rounds) if thread else None
(worker.start(), worker.join()) if worker else rounds()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
BLOCKS, MIB = 2, 8
PAGES_OF_ONE_ROUND = BLOCKS * MIB * 256


def again(
    what: str, blocks: int = BLOCKS, mib: int = MIB, where: str = "main", environment: Mapping[str, str] | None = None
) -> tuple[bool, int]:
    """What `keep_freed_memory` said in a process of its own, and how many page faults followed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, what, str(mib), str(blocks), where],
        env={**plain, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said == "True", int(faults)


@glibc
def test_freed_memory_is_used_again_instead_of_fetched_anew() -> None:
    assert again("keep")[0]
    assert again("keep")[1] < 3 * PAGES_OF_ONE_ROUND


@glibc
def test_so_is_that_of_a_thread_whose_memory_lies_in_more_than_one_mapping() -> None:
    """Three blocks of 24 MiB do not fit into one mapping of an arena, of 64: the second comes empty each round."""
    pages = 3 * 24 * 256
    assert again("keep", 3, 24, "thread")[1] < 2 * pages
    assert again("leave", 3, 24, "thread")[1] > 5 * pages


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
    said, faults = again("keep", environment=setting)
    assert not said
    assert faults > 10 * PAGES_OF_ONE_ROUND


@glibc
def test_another_tunable_is_no_setting_of_the_heap() -> None:
    assert again("keep", environment={"GLIBC_TUNABLES": "glibc.pthread.rseq=1"})[0]


@glibc
@pytest.mark.parametrize("flags", [(), ("--replica-processes",)], ids=["threads", "processes"])
def test_the_processes_of_a_server_that_compute_keep_their_memory(tmp_path: Path, flags: tuple[str, ...]) -> None:
    picture = encode_picture(np.full((512, 512, 3), 99, np.uint8), "png")
    server = Server(tmp_path, "--replicas", "1", "--drain-delay", "0", *flags).ready()
    try:
        faults = []
        for _ in range(25):
            before = faults_of(server.process.pid)
            assert server.http.post("/v1/encode", content=picture).status_code == 200
            faults.append(faults_of(server.process.pid) - before)
        # Without, it is 5,000 an image. The first ones, and each thread's first, fetch what is kept afterwards.
        assert np.median(faults) < 500, faults
    finally:
        server.end()


def faults_of(pid: int) -> int:
    """Page faults so far of a process and its children."""
    own = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(faults_of(int(child)) for one in children for child in one.read_text().split())
