"""Which threads wait for their turn on a processor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.doors.serving import Server
from tests.waiting import until

from viq_serving.images import encode_picture
from viq_serving.processors import processors
from viq_serving.turns import wait_for_turns

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="this system has no such scheduling policy, or these tests run under another one",
)

# Says what came of it, then the policies of this thread and of one that it starts.
ASKED = """
import os, sys, threading
from viq_serving.turns import wait_for_turns
if len(sys.argv) > 1:
    os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(0))
done, seen = wait_for_turns(), [os.sched_getscheduler(0)]
other = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
other.start()
other.join()
print(int(done), *seen)
"""


def asked(*chosen: int) -> list[int]:
    """What a process of its own says, whose policy was `chosen` before."""
    command = [sys.executable, "-c", ASKED, *map(str, chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_thread_and_those_it_starts_wait_for_their_turn() -> None:
    assert asked(os.SCHED_OTHER) == [1, os.SCHED_BATCH, os.SCHED_BATCH]


def test_a_policy_that_somebody_chose_stays() -> None:
    assert asked(os.SCHED_IDLE) == [0, os.SCHED_IDLE, os.SCHED_IDLE]
    assert asked(os.SCHED_BATCH) == [0, os.SCHED_BATCH, os.SCHED_BATCH]


def test_where_it_is_forbidden_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    assert not wait_for_turns()


@pytest.mark.parametrize("flags", [(), ("--replica-processes",)], ids=["threads", "processes"])
def test_what_computes_or_decodes_for_a_server_waits_for_its_turn_and_the_event_loop_does_not(
    flags: Sequence[str], tmp_path: Path
) -> None:
    server = Server(tmp_path / "server", "--replicas", "2", "--drain-delay", "0", *flags)
    try:
        server.ready()
        main = server.process.pid
        assert policies(main)[main] == os.SCHED_OTHER
        until(lambda: waiting(main) == 2, "a thread of each replica, and none that has decoded")
        files = [("image", encode_picture(np.full((64, 64, 3), level, np.uint8), "png")) for level in range(8)]
        assert server.http.post("/v1/encode", files=files).status_code == 200
        assert 2 < waiting(main) <= 2 + max(2, processors())
        found = children(main)
        assert len(found) == (2 if flags else 0)
        assert all(set(policies(child).values()) == {os.SCHED_BATCH} for child in found)
    finally:
        assert server.end() == 0


def policies(process: int) -> dict[int, int]:
    """The policy of each thread, by its number."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            found[int(task.name)] = os.sched_getscheduler(int(task.name))
    return found


def waiting(process: int) -> int:
    """How many of its threads wait for their turn."""
    return sum(policy == os.SCHED_BATCH for policy in policies(process).values())


def children(process: int) -> list[int]:
    """Processes that `process` started and that run."""
    found = list[int]()
    for task in policies(process):
        with suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
    return found
