"""The generators of one run: one in this process, or several, each in a process of its own, that begin together."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from viq_serving.bench.arrivals import Closed
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.handover import read_results, write_payload
from viq_serving.bench.load import Load
from viq_serving.bench.part import READY, Job, at_once, work
from viq_serving.bench.seen import Seen
from viq_serving.errors import ViQError
from viq_serving.event_loop import new_loop

_COMMAND = (sys.executable, "-c", "from viq_serving.bench.part import main; main()")
_TOGETHER_S = 0.1  # for all of them to hear when to begin


class GeneratorFailed(ViQError):
    """A generator's process ended without results."""

    code = "generator_failed"


def run(job: Job, payload: Payload, processes: int) -> tuple[list[Load], Seen]:
    """Do `job` with so many processes, which share its load. Raises `InvalidInput` or `GeneratorFailed`."""
    if processes == 1:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            load, seen = runner.run(work(job, payload, at_once))
        return [load], seen
    with TemporaryDirectory(prefix="viq-bench-") as name:
        folder = Path(name)
        write_payload(folder, payload)
        jobs = [_share(job, part, processes) for part in range(processes)]
        _run_all(folder, jobs)
        seen = Seen(wanted=True)
        return [read_results(folder, part, seen) for part in range(processes)], seen


def _run_all(folder: Path, jobs: Sequence[Job]) -> None:
    with ExitStack() as stack:
        running = list[subprocess.Popen[str]]()
        for job in jobs:
            process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
            _say(process, f"{folder}\n{job.to_json()}\n")
        for process in running:
            if process.stdout is None or process.stdout.readline().strip() != READY:
                raise GeneratorFailed(f"a generator's process ended with code {process.wait()} before it began")
        moment = monotonic() + _TOGETHER_S
        for process in running:
            _say(process, f"{moment!r}\n")
        for process in running:
            if process.wait() != 0:
                raise GeneratorFailed(f"a generator's process ended with code {process.returncode}")


def _say(process: subprocess.Popen[str], text: str) -> None:
    try:
        if process.stdin is not None:
            process.stdin.write(text)
            process.stdin.flush()
    except BrokenPipeError:
        raise GeneratorFailed("a generator's process ended before it began") from None


def _share(job: Job, part: int, parts: int) -> Job:
    """Callers and their requests are shared out; of an open loop each generator knows which requests are its own."""
    if isinstance(job.arrivals, Closed):
        callers = Closed(_cut(job.arrivals.in_flight, part, parts))
        requests = None if job.span.requests is None else _cut(job.span.requests, part, parts)
        job = replace(job, arrivals=callers, span=replace(job.span, requests=requests))
    return replace(job, part=part, parts=parts)


def _cut(count: int, part: int, parts: int) -> int:
    return count // parts + (part < count % parts)
