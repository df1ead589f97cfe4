"""The thread that owns a device: it takes the next batch, computes it and hands the results back.

Nothing else touches the device. Whatever happens to a batch, every one of its entries is answered.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from viq.launched import Launched
from viq_serving.engine.child import ChildModel, ProcessEnded
from viq_serving.engine.fresh_thread import FreshThread
from viq_serving.engine.memory import free_memory, out_of_memory
from viq_serving.engine.warmup import PROBE_SIDE, forwards
from viq_serving.engine.work import Batch, Entry
from viq_serving.errors import Internal, ViQError
from viq_serving.openmp import share_threads
from viq_serving.turns import wait_for_turns

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

T = TypeVar("T")

log = logging.getLogger("viq.engine")

_ONE_THREAD_COST = 256
"""Up to here one CPU thread computes: to wake the others for each small operation takes longer than they save."""


@dataclass(frozen=True)
class Answer:
    """What became of an entry: its result or error, where its time went in seconds, and which device computed it."""

    result: Any
    begun: float
    transfer_s: float
    compute_s: float
    device: str = ""


class Desk(Protocol):
    """Where workers get their batches and leave the answers; all of it may be called from a worker's thread."""

    def take(self, worker: Worker, *, wait: bool) -> Batch | None:
        """The next batch; None if there is none, or, having waited, if there will never be one."""

    def company(self) -> int:
        """How many workers compute, at the most that did at once lately."""

    def answer(self, answers: Sequence[tuple[Entry, Answer]]) -> None:
        """Entries that are done with."""

    def computed(self, worker: Worker, batch: Batch, seconds: float, *, learn: bool) -> None:
        """A batch is done with."""

    def lost(self, worker: Worker, reason: str) -> None:
        """The device is of no more use."""


@dataclass(frozen=True)
class _Done:
    """What the device made of some entries."""

    results: Sequence[Any]
    transfer_s: float


@dataclass
class _Flight:
    """A batch that has been handed to the device."""

    batch: Batch
    entries: list[Entry]
    begun: float
    launched: Launched[Any] | Exception | None


class Worker:
    """The thread of one device, and the models that are computed on it, by size."""

    def __init__(self, desk: Desk, models: Mapping[str, Model], threads: int) -> None:
        """`threads` are those of the processor for all workers on it."""
        self.models, self.device = models, next(iter(models.values())).device
        self.busy_since: float | None = None
        self._desk, self._threads = desk, threads
        self._thread: threading.Thread | None = None
        self._fresh = FreshThread()
        # On a CPU a launch returns when all is computed: a second one ahead would only keep the first one's answers.
        self._ahead = 2 if self.on_cuda else 1
        self._landed = 0.0  # when the last batch did: the next one had the device from then on

    @property
    def on_cuda(self) -> bool:
        """Whether its device is a GPU."""
        return self.device.startswith("cuda")

    def start(self) -> None:
        """Begin to take batches."""
        # A thread that hangs in a driver can never be joined; it must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, name="viq-device", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread to end, which it does when `Desk.take` gives no batch after waiting."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def let_go(self) -> None:
        """End the processes that compute for it, if any."""
        for model in self.models.values():
            if isinstance(model, ChildModel):
                model.close()

    def _live(self) -> None:
        flights: deque[_Flight] = deque()
        try:
            if self.on_cuda:
                torch.cuda.set_device(torch.device(self.device).index or 0)
            else:
                wait_for_turns()
            while True:
                batch = self._desk.take(self, wait=not flights)
                if batch is None and not flights:
                    return
                if batch is not None:
                    flights.append(self._launch(batch))
                if batch is None or len(flights) == self._ahead:
                    self._land(flights.popleft())
                self.busy_since = monotonic() if flights else None
        except BaseException as error:  # whatever ends this thread, its waiters must hear of it
            log.critical("the device thread ended", exc_info=error)
            self._desk.lost(self, f"the device thread ended: {type(error).__name__}")
        finally:
            self._fresh.close()

    def _launch(self, batch: Batch) -> _Flight:
        self.busy_since = self.busy_since or monotonic()
        wanted, begun = _wanted(batch.entries), monotonic()
        if not wanted:
            return _Flight(batch, [], begun, Launched(0.0, list))
        return _Flight(batch, list(wanted), begun, _tried(partial(self._forward, wanted)))

    def _land(self, flight: _Flight) -> None:
        """Wait for a batch and answer its entries; if it failed, find out which entry is to blame."""
        launched, flight.launched = flight.launched, None
        done = launched if isinstance(launched, Exception) else _tried(partial(_results, launched, len(flight.entries)))
        seconds, self._landed = monotonic() - max(flight.begun, self._landed), monotonic()
        if isinstance(done, Exception):
            launched = None  # what it holds of the device's memory is needed now
            self._recover(flight.entries, done)
            self._desk.computed(self, flight.batch, monotonic() - flight.begun, learn=False)
            return
        self._answer(flight.entries, done, flight.begun)
        self._desk.computed(self, flight.batch, seconds, learn=len(flight.entries) == len(flight.batch.entries))

    def _recover(self, entries: list[Entry], error: Exception) -> None:
        """Compute again what failed: halves if memory ran out, else one by one, so that one bad entry fails alone."""
        self.busy_since = monotonic()
        if isinstance(error, ProcessEnded):
            raise error  # no entry is to blame
        if len(entries) == 1:
            self._fail(entries[0], error)
            return
        if out_of_memory(error):
            log.warning("out of memory with %d images at once: trying halves", len(entries))
            free_memory()
            half = len(entries) // 2
            parts = [entries[:half], entries[half:]]
        else:
            log.error("a batch of %d images failed: trying them one by one", len(entries), exc_info=error)
            parts = [[entry] for entry in entries]
        for part in parts:
            self._again(part)

    def _again(self, part: list[Entry]) -> None:
        wanted = _wanted(part)
        if not wanted:
            return
        entries = list(wanted)
        begun = self.busy_since = monotonic()  # each try is progress
        done = _tried(lambda: _results(self._forward(wanted), len(wanted)))
        if isinstance(done, Exception):
            self._recover(entries, done)
        else:
            self._answer(entries, done, begun)

    def _answer(self, entries: Sequence[Entry], done: _Done, begun: float) -> None:
        compute_s = monotonic() - begun - done.transfer_s
        answers = (Answer(result, begun, done.transfer_s, compute_s, self.device) for result in done.results)
        self._desk.answer(list(zip(entries, answers, strict=True)))

    def _fail(self, entry: Entry, error: Exception) -> None:
        """Answer one entry that fails by itself; if the device can no longer compute anything, give up on it."""
        if isinstance(error, ViQError):
            self._desk.answer([(entry, _failed(error.bare(), monotonic()))])
            return
        fields = {"request_id": entry.request.name}
        line = "request %s: %s of an image of %d patches failed"
        log.error(line, entry.request.name, entry.flow.method, entry.patches, exc_info=error, extra={"fields": fields})
        self._desk.answer([(entry, _failed(Internal(), monotonic()))])
        if out_of_memory(error):
            free_memory()
        try:
            self._fresh.do(lambda: forwards(self.models[entry.flow.size], PROBE_SIDE))
        except Exception as broken:
            raise RuntimeError("the device fails also with a plain grey image") from broken

    def _forward(self, wanted: Mapping[Entry, object]) -> Launched[Any]:
        return self._fresh.do(lambda: self._launched(wanted))

    def _launched(self, wanted: Mapping[Entry, object]) -> Launched[Any]:
        method, size = next(iter(wanted)).flow.kind
        small = sum(entry.cost for entry in wanted) <= _ONE_THREAD_COST
        # Replicas on a CPU share its processors; one that has been alone for a second has them all.
        share_threads(1 if small else self._threads, self._desk.company())
        launch: Callable[[Sequence[Any]], Launched[Any]] = getattr(self.models[size], f"launch_{method}")
        return launch(list(wanted.values()))


def _wanted(entries: Iterable[Entry]) -> dict[Entry, object]:
    """The entries that somebody waits for, with their work, which each loses as soon as its request is withdrawn.

    That can be at any moment, so what was looked at is kept: one that went in between would fail the whole batch.
    """
    held = {entry: entry.work for entry in entries if entry.alive}
    return {entry: work for entry, work in held.items() if work is not None}


def _results(launched: Launched[Any] | None, count: int) -> _Done:
    if launched is None:
        raise RuntimeError("a batch landed twice")
    results = launched.results()
    if len(results) != count:
        raise RuntimeError(f"{len(results)} results for {count} images")
    return _Done(results, launched.transfer_s)


def _tried(work: Callable[[], T]) -> T | Exception:
    """What `work` gives, or the error it ends with, whose frames no longer hold what they computed."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is looked at by the one who asked
        failed = error
    link: BaseException | None = failed
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__
    return failed


def _failed(error: ViQError, begun: float) -> Answer:
    return Answer(error, begun, 0.0, 0.0)
