"""Files through the model, several at a time, each failure named and the rest done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from viq.errors import ViQError
from viq_serving.cli.failures import DONE, SOME_FAILED, Unusable
from viq_serving.cli.files import Job, write
from viq_serving.cli.progress import Progress

T = TypeVar("T")
R = TypeVar("R")

BATCH_PATCHES = 4096
"""Patches computed together: one 1024x1024 image, or many small ones."""

_SERVER_GONE = frozenset({"unreachable", "not_ready", "unauthenticated", "forbidden"})


class Batches(Generic[T, R]):
    """The work of a command: `read` an input, `compute` several together, `form` each result into a file.

    `read` gives what is computed on and its patches. An input whose reading, computing or writing fails
    with an error of ours or of the file system is named on stderr, and the others go on.
    """

    def __init__(
        self,
        doing: str,
        read: Callable[[Job], tuple[T, int]],
        compute: Callable[[list[T]], Sequence[R | ViQError]],
        form: Callable[[R], bytes],
    ) -> None:
        self._doing, self._read, self._compute, self._form = doing, read, compute, form
        self._failed = 0

    def run(self, jobs: Sequence[Job]) -> int:
        """Do all of `jobs`; returns the exit code. Raises `Unusable` if the server cannot be used any more."""
        with Progress(self._doing, len(jobs)) as progress:
            for batch in self._batches(jobs, progress):
                for job, result in self._results(batch):
                    self._finish(job, result, progress)
            if self._failed:
                progress.print(f"{self._failed} of {len(jobs)} inputs failed")
        return SOME_FAILED if self._failed else DONE

    def _batches(self, jobs: Sequence[Job], progress: Progress) -> Iterator[list[tuple[Job, T]]]:
        batch: list[tuple[Job, T]] = []
        held = 0
        for job in jobs:
            try:
                item, patches = self._read(job)
            except (ViQError, OSError) as error:
                self._fail(job, error, progress)
                continue
            if batch and held + patches > BATCH_PATCHES:
                yield batch
                batch, held = [], 0
            batch.append((job, item))
            held += patches
        if batch:
            yield batch

    def _results(self, batch: list[tuple[Job, T]]) -> Iterator[tuple[Job, R | ViQError]]:
        """The result of each; if the batch fails, each is tried by itself, so that only the guilty fail."""
        jobs, items = [job for job, _ in batch], [item for _, item in batch]
        try:
            yield from zip(jobs, self._compute(items), strict=True)
        except ViQError as error:
            if len(batch) == 1:
                yield jobs[0], error
                return
            for one in batch:
                yield from self._results([one])

    def _finish(self, job: Job, result: R | ViQError, progress: Progress) -> None:
        if isinstance(result, ViQError):
            self._fail(job, result, progress)
            return
        try:
            write(job.target, self._form(result))
        except (ViQError, OSError) as error:
            self._fail(job, error, progress)
            return
        progress.advance()

    def _fail(self, job: Job, error: ViQError | OSError, progress: Progress) -> None:
        if isinstance(error, ViQError) and error.code in _SERVER_GONE:
            raise Unusable(str(error)) from None
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        progress.print(f"{job.source}: {reason}")
        self._failed += 1
        progress.advance()
