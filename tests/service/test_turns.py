"""Which threads wait for their turn on a processor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.doors.serving import Server

from viq_serving.images import encode_picture
from viq_serving.turns import wait_for_turns

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such scheduling policy")

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

    before = os.sched_getscheduler(0)
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_OTHER)
    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    assert not wait_for_turns()
    monkeypatch.undo()
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("flags", [(), ("--replica-processes",)], ids=["threads", "processes"])
def test_what_computes_or_decodes_for_a_server_waits_for_its_turn_and_the_event_loop_does_not(
    flags: Sequence[str], tmp_path: Path
) -> None:
    server = Server(tmp_path / "server", "--replicas", "2", "--drain-delay", "0", *flags)
    try:
        server.ready()
        files = [("image", encode_picture(np.full((64, 64, 3), level, np.uint8), "png")) for level in range(8)]
        assert server.http.post("/v1/encode", files=files).status_code == 200
        main = server.process.pid
        assert os.sched_getscheduler(main) == os.SCHED_OTHER
        waiting = [task for task in threads(main) if os.sched_getscheduler(task) == os.SCHED_BATCH]
        assert 2 + 1 <= len(waiting) <= 2 + max(2, os.cpu_count() or 1)  # one a replica, and those that decoded
        found = children(main)
        assert len(found) == (2 if flags else 0)
        assert {os.sched_getscheduler(task) for child in found for task in threads(child)} <= {os.SCHED_BATCH}
    finally:
        assert server.end() == 0


def threads(process: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{process}/task").iterdir()]


def children(process: int) -> list[int]:
    """Processes that `process` started and that run."""
    listed = [Path(f"/proc/{process}/task/{task}/children") for task in threads(process)]
    return [int(pid) for children in listed for pid in children.read_text().split()]
