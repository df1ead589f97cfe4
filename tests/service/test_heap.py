"""Memory that is freed is used again, in every process that computes; what the operator has set stays."""

from __future__ import annotations

import os
import platform
import resource
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
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no huge pages, which would be one fault each
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
PAGES_OF_A_MIB = 2**20 // resource.getpagesize()
PAGES_OF_ONE_ROUND = BLOCKS * MIB * PAGES_OF_A_MIB

# A thread ends that had 1,200 MiB in blocks of 20, then the collector finds that nobody waits.
BACK = """
import asyncio, ctypes, sys, threading, time
from viq_serving import garbage
from viq_serving.engine.memory import free_memory, memory_of
from viq_serving.heap import keep_freed_memory
keep_freed_memory()
resident = memory_of("cpu")["resident"]
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
def rounds():
    blocks = [c.malloc(ctypes.c_size_t(20 * 2**20)) for _ in range(60)]
    for block in blocks:
        ctypes.memset(ctypes.c_void_p(block), 1, 20 * 2**20)
    for block in blocks:
        c.free(ctypes.c_void_p(block))
thread, before = threading.Thread(target=rounds), resident()
thread.start()
thread.join()
held = resident()
async def until_given_back():
    garbage._LOOK_EVERY_S, garbage._BUSY_EVERY_S = 0.01, 0.0
    task, end = asyncio.create_task(garbage.collect(lambda: False)), time.monotonic() + 60
    while resident() > before + 2**28 and time.monotonic() < end:
        await asyncio.sleep(0.01)
    task.cancel()
free_memory() if sys.argv[1] == "short of memory" else asyncio.run(until_given_back())
print(held - before, resident() - before)
"""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap as it is where nobody has set anything."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


def again(
    what: str, blocks: int = BLOCKS, mib: int = MIB, where: str = "main", environment: Mapping[str, str] | None = None
) -> tuple[bool, int]:
    """What `keep_freed_memory` said in a process of its own, and how many page faults followed."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, what, str(mib), str(blocks), where],
        env={**os.environ, **(environment or {})},
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
    pages = 3 * 24 * PAGES_OF_A_MIB
    assert again("keep", 3, 24, "thread")[1] < 2 * pages


@glibc
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_no_address_space_is_asked_for_ahead_where_it_is_limited(limit: str) -> None:
    """Under a limit that 16 mappings of 64 MiB would exceed, as many threads get their memory."""
    program = f"""
import ctypes, resource, threading
from viq_serving.heap import keep_freed_memory
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.{limit}, (base + 2**30 + 2**28,) * 2)
assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
ready, end = threading.Barrier(9), threading.Barrier(9)
held = []
def hold():
    held.append(c.malloc(ctypes.c_size_t(64)))
    ready.wait()
    end.wait()
for _ in range(8):
    threading.Thread(target=hold).start()
ready.wait()
data = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
end.wait()
print(all(held), int(data.split()[1]) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    got, data_mib = done.stdout.split()
    assert got == "True"
    assert int(data_mib) < 256  # of it 8 a thread for its stack


@glibc
@pytest.mark.parametrize("when", ["nobody waits or long busy", "short of memory"])
def test_what_is_kept_is_given_back(when: str) -> None:
    done = subprocess.run([sys.executable, "-c", BACK, when], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 2**30
    assert left < 2**28


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
@pytest.mark.parametrize(
    "setting", [{"GLIBC_TUNABLES": "glibc.pthread.rseq=1:glibc.malloc.arena_max=2"}, {"MALLOC_ARENA_MAX": "2"}]
)
def test_what_else_is_set_is_no_reason_against_it(setting: dict[str, str]) -> None:
    assert again("keep", environment=setting)[0]


@glibc
@pytest.mark.parametrize("flags", [(), ("--replica-processes",)], ids=["threads", "processes"])
def test_the_processes_of_a_server_that_compute_keep_their_memory(tmp_path: Path, flags: tuple[str, ...]) -> None:
    picture = encode_picture(np.full((512, 512, 3), 99, np.uint8), "png")
    server = Server(tmp_path, "--replicas", "1", "--drain-delay", "0", *flags).ready()
    try:
        assert len(children_of(server.process.pid)) >= len(flags)
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
    return own + sum(map(faults_of, children_of(pid)))


def children_of(pid: int) -> list[int]:
    return [int(child) for one in Path(f"/proc/{pid}/task").glob("*/children") for child in one.read_text().split()]
