"""The workers behind one queue: which of them work, and what each has begun."""

from __future__ import annotations

from collections.abc import Sequence

from viq_serving.engine.work import Batch
from viq_serving.engine.worker import Worker
from viq_serving.openmp import Company


class Crew:
    """Workers, those that are lost among them. To be used under the engine's lock."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self.idle = 0  # how many wait for a batch
        self._begun: dict[Worker, list[Batch]] = {worker: [] for worker in workers}
        self._company = Company()

    def working(self) -> list[Worker]:
        """Those that are not lost."""
        return list(self._begun)

    def works(self, worker: Worker) -> bool:
        """Whether `worker` is not lost."""
        return worker in self._begun

    def hung(self) -> bool:
        """Whether a thread is left over that nothing but the end of the process ends."""
        return any(worker.alive() for worker in self.workers if worker not in self._begun)

    def company(self, now: float) -> int:
        """How many compute, at the most that did at once lately."""
        return self._company.of(self._busy(), now)

    def begin(self, worker: Worker, batch: Batch) -> None:
        """`worker` has taken `batch`."""
        self._begun[worker].append(batch)

    def end(self, worker: Worker, batch: Batch, now: float) -> bool:
        """`worker` is done with `batch`; false if it was given up meanwhile."""
        if batch not in self._begun.get(worker, ()):
            return False
        self._company.note(self._busy(), now)
        self._begun[worker].remove(batch)
        return True

    def lose(self, worker: Worker) -> list[Batch]:
        """Give `worker` up; what it has begun comes back."""
        return self._begun.pop(worker, [])

    def _busy(self) -> int:
        return sum(map(bool, self._begun.values()))
