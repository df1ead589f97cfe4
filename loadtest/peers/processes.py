"""A server in a process group of its own, all of whose processes end with it; their memory."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOP_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Have processes whose parent ends become this one's children, so that none is lost sight of (Linux)."""
    if _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def tree(pid: int) -> set[int]:
    """`pid` and all that descend from it now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = set[int](), [pid]
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting += children.get(one, [])
    return found


def resident_bytes(pids: set[int]) -> int:
    """Resident memory of these processes, summed; pages that several share are counted for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            continue  # it has ended
    return total


class Memory(threading.Thread):
    """The largest sum of resident memory of a process tree, looked at twice a second until closed."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended, self._peak = pid, threading.Event(), 0
        self.start()

    def run(self) -> None:
        """Look until `close`."""
        while not self._ended.wait(0.5):
            self._peak = max(self._peak, resident_bytes(tree(self._pid)))

    def peak(self) -> int:
        """The largest sum in bytes since the last call."""
        peak, self._peak = max(self._peak, resident_bytes(tree(self._pid))), 0
        return peak

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


@contextmanager
def group(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` as the leader of a session of its own; on leaving, it and all it started are ended.

    Some servers leave workers behind on SIGTERM, and Ray's daemons lead groups of their own; what descended from the
    leader, or became this process's child meanwhile, is killed if it does not end in time.
    """
    before = tree(os.getpid())
    with log.open("wb") as out:
        leader = subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            yield leader
        finally:
            _stop(leader, before)


def _end_with_parent() -> None:
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def _stop(leader: subprocess.Popen[bytes], before: set[int]) -> None:
    _signal_group(leader.pid, signal.SIGTERM)
    end = monotonic() + _STOP_S
    while leader.poll() is None and monotonic() < end:
        sleep(0.05)
    end = monotonic() + _STOP_S
    while left := tree(os.getpid()) - before - _reaped():
        if monotonic() > end:
            raise RuntimeError(f"processes {sorted(left)} of {leader.args} do not end, {_STOP_S:g} s after SIGKILL")
        for pid in left:
            _kill(pid)
        sleep(0.05)
        leader.poll()


def _reaped() -> set[int]:
    """Adopted children that have ended, now waited for; another's are left to it."""
    gone = set[int]()
    for pid in tree(os.getpid()):
        if _parent(pid) == os.getpid() and _state(pid) == "Z":
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            gone.add(pid)
    return gone


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else "Z"


def _stat(pid: int) -> list[str]:
    """What `/proc` says of a process after its name: state, parent, …; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
