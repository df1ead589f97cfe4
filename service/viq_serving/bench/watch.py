"""What a server's processes take while it is measured: processor time and memory, read from /proc."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_EVERY_S = 1.0  # to add up a large process's memory takes the system some milliseconds
_PROC = Path("/proc")


class Watch:
    """Watches a process and all that came from it, while in its `with` block. Elsewhere than on Linux it sees 0."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_memory_bytes = pid, 0
        self._cpu: dict[int, tuple[float, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    @property
    def cpu_seconds(self) -> float:
        """What all of them took so far; of those that ended, up to the last look."""
        return sum(last - first for first, last in self._cpu.values())

    def look(self) -> None:
        """Look once."""
        memory = 0
        for pid in family(self.pid):
            memory += memory_bytes(pid)
            spent = cpu_seconds(pid)
            first, last = self._cpu.get(pid, (spent if pid in self._known else 0.0, 0.0))
            self._cpu[pid] = (first, max(spent, last, first))
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)

    def __enter__(self) -> Watch:
        self._known = set(family(self.pid))
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _look_on(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.look()


def family(pid: int) -> Iterator[int]:
    """`pid` and all processes that came from it, those whose parents ended not among them."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, [])


def memory_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others counted in parts; where that may not be read, all of it."""
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = (_PROC / str(pid) / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def cpu_seconds(pid: int) -> float:
    """Seconds of processors that a process took since it began."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command_of(pid: int) -> list[str]:
    """The command line of a process; empty if it cannot be read."""
    try:
        return [
            part.decode(errors="replace") for part in (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0") if part
        ]
    except OSError:
        return []
