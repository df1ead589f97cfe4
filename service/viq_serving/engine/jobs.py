"""Who waits for which entries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from viq_serving.engine.work import Entry
from viq_serving.engine.worker import Answer

Answers = Sequence[tuple[Entry, Answer]]


@dataclass(eq=False)
class Job:
    """The entries of one request in one flow, and the future that is done when all are answered."""

    entries: list[Entry]
    done: asyncio.Future[None]
    answers: dict[Entry, Answer] = field(default_factory=dict)


class Jobs:
    """The jobs that wait, by their entries that are not answered yet. To be used under the engine's lock."""

    def __init__(self) -> None:
        self._of: dict[Entry, Job] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, entries: list[Entry]) -> Job:
        """Make `entries` known as one job."""
        job = Job(entries, asyncio.get_running_loop().create_future())
        for entry in entries:
            self._of[entry] = job
        return job

    def answer(self, answers: Answers) -> list[Job]:
        """Entries that are done with; the jobs that are now answered whole."""
        ready: list[Job] = []
        for entry, answer in answers:
            entry.alive = False
            entry.work = entry.make = None
            job = self._of.pop(entry, None)
            if job is None:
                continue
            job.answers[entry] = answer
            if len(job.answers) == len(job.entries):
                ready.append(job)
        return ready

    def leave(self, job: Job) -> list[Entry]:
        """Nobody waits for `job` any more; its entries that were not answered."""
        left = [entry for entry in job.entries if self._of.pop(entry, None) is not None]
        for entry in left:
            entry.work = entry.make = None
        return left

    def waiting(self, among: Iterable[Entry] | None = None) -> list[Entry]:
        """The entries that are not answered yet, of those `among` or of all."""
        return list(self._of) if among is None else [entry for entry in among if entry in self._of]
