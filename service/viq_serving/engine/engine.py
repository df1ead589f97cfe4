"""The engine's face to the event loop: admit, queue, wait, cancel, drain.

Work goes in from any thread, one entry an image; the worker takes batches out and leaves answers; the loop is woken
once a batch. The queue is shared by a lock that is never held while anything is computed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from viq_serving.engine.admission import Admission
from viq_serving.engine.scheduler import Batch, Entry, Flow, Scheduler
from viq_serving.engine.worker import Answer, Worker, memory_of
from viq_serving.errors import DeadlineExceeded, Internal, NotReady, Overloaded, ViQError
from viq_serving.metrics import Metrics

if TYPE_CHECKING:
    from viq.model import ViQ

T = TypeVar("T")

log = logging.getLogger("viq.engine")

CPU_BATCH, CUDA_BATCH = 1024, 16_384
"""Patches of a batch unless set. On a CPU more gain nothing: activations leave the cache, and others wait."""

_WATCH_EVERY_S, _LOOK_EVERY_S = 1.0, 0.02


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may hold: patches admitted, seconds of waiting, patches a batch (None: by the device)."""

    max_patches: int = 262_144
    max_age_s: float = 10.0
    batch_patches: int | None = None
    stall_timeout_s: float = 300.0


@dataclass(eq=False)
class Job:
    """The entries of one request in one flow, and the future that is done when all are answered."""

    entries: list[Entry]
    done: asyncio.Future[None]
    answers: dict[Entry, Answer] = field(default_factory=dict)


class Engine:
    """One device, its queue and its thread."""

    def __init__(self, metrics: Metrics, limits: EngineLimits) -> None:
        self._metrics, self._limits = metrics, limits
        self._scheduler = Scheduler(limits.batch_patches or CPU_BATCH, limits.max_age_s)
        self.admission = Admission(
            limits.max_patches, limits.max_age_s, self._expected_s, lambda: self._scheduler.batch_cost
        )
        self.worker = Worker(self)
        self.lost_because: str | None = None
        self._changed = threading.Condition()
        self._jobs: dict[Entry, Job] = {}
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None
        self._on_lost: Callable[[str], None] = lambda reason: None

    async def load(self, load: Callable[[], Sequence[ViQ]], on_lost: Callable[[str], None]) -> Sequence[ViQ]:
        """Run `load` beside the event loop, warm what it gives, and begin to work; `on_lost` hears if it dies."""
        self._loop, self._on_lost = asyncio.get_running_loop(), on_lost
        learned = await _beside(partial(self.worker.load, load))
        models = list(self.worker.models.values())
        if self._limits.batch_patches is None and any(model.device.startswith("cuda") for model in models):
            self._scheduler.batch_cost = CUDA_BATCH
        for flow, cost, seconds in learned:
            self._scheduler.learn(flow, cost, seconds)
        self._metrics.watch_queue(self._waiting)
        for device in {model.device for model in models}:
            self._metrics.watch_memory(device, memory_of(device))
        self.worker.start()
        self._watching = asyncio.create_task(self._watch())
        return models

    def job(self, entries: list[Entry]) -> Job:
        """Make `entries` known as one job; each is to be `queue`d or `fail`ed later. Raises `NotReady` once lost."""
        if self.lost_because is not None or self._closing:
            raise NotReady(self.lost_because or "the service is stopping")
        job = Job(entries, asyncio.get_running_loop().create_future())
        with self._changed:
            for entry in entries:
                self._jobs[entry] = job
        return job

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._jobs

    def prepare(self, entry: Entry, make: Callable[[], object]) -> None:
        """Give `entry` the work that `make` makes and let it wait for the device, from any thread."""
        if self._made(entry, make):
            self.queue(entry)

    def queue(self, entry: Entry) -> None:
        """Let `entry` wait for the device, from any thread; nothing happens if nobody wants it any more."""
        with self._changed:
            if entry.alive:
                self._scheduler.put(entry, monotonic())
                self._changed.notify()

    def fail(self, entry: Entry, error: ViQError) -> None:
        """Answer an entry that need not be computed, from any thread."""
        self.answer([(entry, Answer(error, monotonic(), 0.0, 0.0))])

    async def answers(self, job: Job) -> list[Answer]:
        """Wait for all entries of `job`; being cancelled withdraws them."""
        try:
            await job.done
        finally:
            self._withdraw(job)
        return [job.answers[entry] for entry in job.entries]

    async def finish(self) -> None:
        """Let what waits be computed and the thread end, or be given up as lost; take nothing new."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Joining would stop the loop, which signals and the watch over the device need.
        while self.worker.alive() and self.lost_because is None:  # noqa: ASYNC110  # a thread tells nobody of its end
            await asyncio.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """Let what waits be computed and the thread end; what is not in the queue yet never will be, and hears so."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._watching is not None:
            self._watching.cancel()
        if self.lost_because is None:
            self.worker.join()
        for entry in list(self._jobs):
            self.fail(entry, NotReady("the service has stopped"))

    # What the worker calls, from its own thread.

    def take(self, *, wait: bool) -> Batch | None:
        """The next batch; None if there is none, or, having waited, if there will never be one."""
        with self._changed:
            while True:
                batch = self._scheduler.next_batch(monotonic())
                if batch is not None:
                    break
                if not wait or self._closing or self.lost_because is not None:
                    return None
                self._changed.wait()
        self._refuse(batch)
        for entry in batch.entries:
            if entry.make is not None and self._made(entry, entry.make):
                entry.queued = monotonic()  # what came before was preprocessing
        return batch

    def answer(self, answers: Sequence[tuple[Entry, Answer]]) -> None:
        """Entries that are done with."""
        ready: list[Job] = []
        with self._changed:
            for entry, answer in answers:
                entry.alive = False
                entry.work = entry.make = None
                job = self._jobs.pop(entry, None)
                if job is None:
                    continue
                job.answers[entry] = answer
                if len(job.answers) == len(job.entries):
                    ready.append(job)
        self._call(self._settle, ready, [entry for entry, _ in answers])

    def computed(self, batch: Batch, seconds: float, *, learn: bool) -> None:
        """A batch is done with."""
        with self._changed:
            self._scheduler.computed(batch, seconds, learn=learn)
        if batch.entries:
            self._metrics.batch(len(batch.entries), batch.patches, batch.cost / self._scheduler.batch_cost)

    def lost(self, reason: str) -> None:
        """The device is of no more use: everybody who waits hears so."""
        self._call(self._lose, reason)

    def _settle(self, ready: Sequence[Job], answered: Sequence[Entry]) -> None:
        for entry in answered:
            self.admission.computed(entry.request.costs, entry.flow, entry.cost)
        _wake(ready)

    def _refuse(self, batch: Batch) -> None:
        hint_s = self.admission.hint_s(self._scheduler.max_age_s / 2)
        late = DeadlineExceeded("the deadline passed, or could not be met, while the request waited for the device")
        old = Overloaded(f"waited more than {self._scheduler.max_age_s:g} s for the device, which is the limit", hint_s)
        for entries, error in ((batch.too_late, late), (batch.too_old, old)):
            for entry in entries:
                self.fail(entry, error)

    def _made(self, entry: Entry, make: Callable[[], object]) -> bool:
        """Give `entry` its work; one whose work cannot be made fails alone."""
        entry.make = None
        if not entry.alive:
            return False
        try:
            entry.work = make()
        except ViQError as error:
            self.fail(entry, error.with_traceback(None))
        except BaseException:
            fields = {"request_id": entry.request.name}
            log.exception("an image could not be prepared", extra={"fields": fields})
            self.fail(entry, Internal())
        else:
            return True
        return False

    def _call(self, what: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)

    def _lose(self, reason: str) -> None:
        if self.lost_because is not None:
            return
        self.lost_because = reason
        with self._changed:
            self._scheduler.clear()
            entries = list(self._jobs)
            self._changed.notify_all()
        for entry in entries:
            self.fail(entry, NotReady(f"the device was lost: {reason}"))
        self._on_lost(reason)

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            for entry in job.entries:
                if self._jobs.pop(entry, None) is not None:
                    self._scheduler.withdraw(entry)
                    entry.work = entry.make = None

    async def _watch(self) -> None:
        """Notice a device that makes no progress, and a thread that ended without a word."""
        while self.lost_because is None:
            await asyncio.sleep(min(_WATCH_EVERY_S, self._limits.stall_timeout_s / 4))
            since = self.worker.busy_since
            if since is not None and monotonic() - since > self._limits.stall_timeout_s:
                self._lose(f"no progress for {self._limits.stall_timeout_s:g} s")
            elif not self.worker.alive() and not self._closing:
                self._lose("the device thread is gone")

    def _expected_s(self, flow: Flow, cost: float) -> float:
        with self._changed:
            return self._scheduler.expected_s(flow, cost)

    def _waiting(self) -> tuple[int, int, float]:
        """Entries and patches that wait, and for how many seconds the oldest has."""
        with self._changed:
            oldest = self._scheduler.oldest()
            return self._scheduler.entries, self._scheduler.patches, max(0.0, monotonic() - oldest)


async def _beside(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only beside an error

    def run() -> None:
        result, wrong = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the one who waits must hear of it
            wrong = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, wrong)

    threading.Thread(target=run, name="viq-loading", daemon=True).start()
    return await done


def _wake(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_result(None)
