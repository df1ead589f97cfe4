"""A thread on which oneDNN was short of memory computes nothing new: another one does."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from viq_serving.engine.fresh_thread import SAID, FreshThread

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

# Address space ends while a product of another shape is asked for, and is there again afterwards.
SHORT = """
import resource, torch
from viq_serving.engine.fresh_thread import FreshThread
from viq_serving.heap import keep_freed_memory
keep_freed_memory()  # small blocks are had from what was asked for ahead
torch.set_num_threads(1)
weight, bias = torch.randn(256, 128), torch.randn(256)
def product(rows):
    return torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 128), weight, bias, "gelu", [], "none").shape[0]
def tried(work):
    try:
        return str(work())
    except RuntimeError as error:
        return str(error)
fresh, shapes = FreshThread(), iter(range(1, 10_000))
fresh.do(lambda: product(next(shapes)))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
none = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (held, none[1]))
while (said := tried(lambda: fresh.do(lambda: product(next(shapes))))).isdigit():
    pass
resource.setrlimit(resource.RLIMIT_AS, none)
print(said, tried(lambda: product(20_000)), tried(lambda: fresh.do(lambda: product(20_001))), sep="|")
"""


@onednn
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no limit of address space")
def test_what_one_thread_can_no_longer_compute_another_one_does() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=True)
    short, here, fresh = done.stdout.strip().split("|")
    assert short == here == SAID  # else it is no longer needed
    assert fresh == "20001"


def test_all_is_done_here_as_long_as_it_can_be() -> None:
    fresh = FreshThread()

    def fail(text: str) -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="something else"):
        fresh.do(lambda: fail("something else"))
    assert fresh.do(threading.get_ident) == threading.get_ident()


def test_each_such_error_takes_another_thread_until_it_is_closed() -> None:
    fresh, seen = FreshThread(), [threading.current_thread()]

    def fail() -> None:
        seen.append(threading.current_thread())
        raise RuntimeError(f"in a graph: {SAID}")

    for _ in range(3):
        with pytest.raises(RuntimeError, match=SAID):
            fresh.do(fail)
    last = fresh.do(threading.current_thread)
    assert len({*seen, last}) == 4
    assert fresh.do(threading.current_thread) is last
    fresh.close()
    for one in (*seen[2:], last):
        one.join(30)
        assert not one.is_alive()
