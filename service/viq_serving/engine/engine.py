"""The engine's face to the event loop: queue, wait, cancel, drain.

Work goes in from any thread, one entry an image; the workers, one a device, take batches out and leave answers; the
loop is woken once a batch. The queue is shared by a lock that is never held while anything is computed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from viq_serving.engine.admission import Admission
from viq_serving.engine.beside import beside
from viq_serving.engine.crew import Crew
from viq_serving.engine.gauges import Gauges
from viq_serving.engine.jobs import Answers, Job, Jobs
from viq_serving.engine.lanes import RULES, LaneRules
from viq_serving.engine.replicas import Replica, loaded
from viq_serving.engine.scheduler import Scheduler
from viq_serving.engine.work import Batch, Entry, Flow
from viq_serving.engine.worker import Answer, Worker
from viq_serving.errors import DeadlineExceeded, Internal, NotReady, Overloaded, ViQError
from viq_serving.metrics import Metrics

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

log = logging.getLogger("viq.engine")

CPU_BATCH, CUDA_BATCH = 1024, 16_384
"""Patches of a batch unless set. On a CPU more gain nothing: activations leave the cache, and others wait."""

_WATCH_EVERY_S, _LOOK_EVERY_S = 1.0, 0.02


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may hold: patches admitted, seconds of waiting, patches a batch (None: by the device); lanes."""

    max_patches: int = 262_144
    max_age_s: float = 10.0
    batch_patches: int | None = None
    stall_timeout_s: float = 300.0
    lanes: LaneRules = RULES


class Engine:
    """One queue, and the devices that work on it, each on a thread of its own."""

    def __init__(self, metrics: Metrics, limits: EngineLimits) -> None:
        self._metrics, self._limits = metrics, limits
        self._scheduler = Scheduler(limits.batch_patches or CPU_BATCH, limits.max_age_s, limits.lanes)
        self.admission = Admission(
            limits.max_patches, limits.max_age_s, self._expected_s, lambda: self._scheduler.batch_cost, limits.lanes
        )
        self.lost_because: str | None = None
        self.on_answers: Callable[[Answers, int], None] | None = None
        self._crew = Crew([])
        self._changed = threading.Condition()
        self._jobs = Jobs()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None
        self._on_lost: Callable[[str], None] = lambda reason: None

    async def load(self, load: Callable[[], Sequence[Model]], on_lost: Callable[[str], None]) -> Sequence[Replica]:
        """Run `load` beside the event loop, warm what it gives, and begin to work: a thread for each replica.

        `on_lost` hears if the last of them dies. Raises `WeightsError` if replicas are not alike.
        """
        self._loop, self._on_lost = asyncio.get_running_loop(), on_lost
        made = await beside(partial(loaded, load))
        workers = [Worker(self, replica, made.threads) for replica in made.replicas]
        if self._limits.batch_patches is None and any(worker.on_cuda for worker in workers):
            self._scheduler.batch_cost = CUDA_BATCH
        self._scheduler.devices, self._crew = len(workers), Crew(workers)
        for kind, cost, seconds in made.learned:
            self._scheduler.learn(kind, cost, seconds)
        Gauges(self._scheduler, self.admission, self._changed).show(self._metrics, workers)
        for worker in workers:
            worker.start()
        self._watching = asyncio.create_task(self._watch())
        return made.replicas

    def job(self, entries: list[Entry]) -> Job:
        """Make `entries` known as one job; each is to be `queue`d or `fail`ed later. Raises `NotReady` once lost."""
        if self.lost_because is not None or self._closing:
            raise NotReady(self.lost_because or "the service is stopping")
        with self._changed:
            return self._jobs.add(entries)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._jobs

    @property
    def hung(self) -> bool:
        """Whether the thread of a lost device is left over, which nothing but the end of the process ends."""
        return self._crew.hung()

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
        """Let what waits be computed and the threads end, or be given up as lost; take nothing new."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Joining would stop the loop, which signals and the watch over the devices need.
        while any(worker.alive() for worker in self._crew.working()):  # noqa: ASYNC110  # a thread tells nobody
            await asyncio.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """Let what waits be computed and the threads end; what is not in the queue yet never will be, and hears so."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._watching is not None:
            self._watching.cancel()
        for worker in self._crew.working():
            worker.join()
            worker.let_go()
        for entry in self._jobs.waiting():
            self.fail(entry, NotReady("the service has stopped"))

    # What the workers call, from their own threads.

    def take(self, worker: Worker, *, wait: bool) -> Batch | None:
        """The next batch; None if there is none, or, having waited, if there will never be one."""
        with self._changed:
            while True:
                if not self._crew.works(worker):
                    return None
                # Who has nothing to do at all comes before one that would only have it wait for what it computes.
                if wait or not self._crew.idle:
                    # What a GPU left for others that compute it would take itself at once, ahead.
                    divide = bool(self._crew.idle) or not worker.on_cuda
                    batch = self._scheduler.next_batch(monotonic(), ahead=not wait, divide=divide)
                    if batch is not None:
                        break
                if not wait or self._closing:
                    return None
                self._crew.idle += 1
                self._changed.wait()
                self._crew.idle -= 1
            self._crew.begin(worker, batch)
        self._refuse(batch)
        for entry in batch.entries:
            make = entry.make
            if make is not None and self._made(entry, make):
                entry.queued = monotonic()  # what came before was preprocessing
        return batch

    def company(self) -> int:
        """How many workers compute, at the most that did at once lately."""
        with self._changed:
            return self._crew.company(monotonic())

    def answer(self, answers: Answers) -> None:
        """Entries that are done with."""
        with self._changed:
            ready = self._jobs.answer(answers)
        self._call(self._settle, ready, answers)

    def computed(self, worker: Worker, batch: Batch, seconds: float, *, learn: bool) -> None:
        """A batch is done with."""
        with self._changed:
            now = monotonic()
            if not self._crew.end(worker, batch, now):
                return
            self._scheduler.computed(batch, seconds, now, learn=learn)
        if batch.entries:
            self._metrics.batch(len(batch.entries), batch.patches, batch.cost / self._scheduler.batch_cost)
            for flow, part_s in batch.shares(seconds).items():
                self._metrics.lane_seconds.labels(flow.lane).inc(part_s)

    def lost(self, worker: Worker, reason: str) -> None:
        """A device is of no more use: whoever waits for it hears so."""
        self._call(self._lose, worker, reason)

    def _settle(self, ready: Sequence[Job], answers: Answers) -> None:
        if self.on_answers is not None:
            self.on_answers(answers, self._scheduler.batch_cost)
        for entry, _ in answers:
            self.admission.computed(entry.request.costs, entry.flow, entry.cost)
        for job in ready:
            if not job.done.done():
                job.done.set_result(None)

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
            self.fail(entry, error.bare())
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

    def _lose(self, worker: Worker, reason: str) -> None:
        """Give `worker` up. What it has begun fails; all else goes on to the others, or fails if there are none."""
        with self._changed:
            if not self._crew.works(worker):
                return
            begun, now = self._crew.lose(worker), monotonic()
            for batch in begun:
                self._scheduler.computed(batch, batch.expected_s, now, learn=False)
            left = len(self._crew.working())
            self._scheduler.devices = max(1, left)
            if not left:
                self.lost_because = reason
                self._scheduler.clear()
            lost = (entry for batch in begun for entry in batch.entries)
            entries = self._jobs.waiting(lost if left else None)
            self._changed.notify_all()
        worker.let_go()
        self._metrics.device_up.labels(worker.device, self._crew.workers.index(worker)).set(0)
        for entry in entries:
            self.fail(entry, NotReady(f"the device was lost: {reason}"))
        if left:
            log.critical("device %s is lost, %d go on without it: %s", worker.device, left, reason)
        else:
            self._on_lost(reason)

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            for entry in self._jobs.leave(job):
                self._scheduler.withdraw(entry)

    async def _watch(self) -> None:
        """Notice a device that makes no progress, and a thread that ended without a word."""
        while self.lost_because is None:
            await asyncio.sleep(min(_WATCH_EVERY_S, self._limits.stall_timeout_s / 4))
            for worker in self._crew.working():
                since = worker.busy_since
                if since is not None and monotonic() - since > self._limits.stall_timeout_s:
                    self._lose(worker, f"no progress for {self._limits.stall_timeout_s:g} s")
                elif not worker.alive() and not self._closing:
                    self._lose(worker, "the device thread is gone")

    def _expected_s(self, flow: Flow, cost: float) -> float:
        with self._changed:
            return self._scheduler.expected_s(flow, cost)
