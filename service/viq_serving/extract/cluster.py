"""Extraction on a Ray cluster: one actor a device, each of which writes whole shards by itself.

The driver looks through the names of the source, hands out the numbers of shards that are not done, and writes the
manifest. No image crosses to it. A shard that was lost with its node is made again by another actor; as it appears in
one step and its bytes depend on nothing but the source, it does not matter how often, or by whom, it is made. Actors
come and go with the cluster's nodes (Ray Data's pool of actors).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from viq.errors import InvalidInput, ViQError, WeightsError
from viq_serving.extract.errors import DeviceLost, PlaceError
from viq_serving.extract.extraction import Extraction, Keys, Tally, changed
from viq_serving.extract.here import Here
from viq_serving.extract.output import Output, Run, shard_name
from viq_serving.extract.sources import Item, Reading, Source, source_of
from viq_serving.heap import keep_freed_memory
from viq_serving.images import ImageLimits
from viq_serving.openmp import spin_briefly, take_short_turns
from viq_serving.types import Alpha

_MOST_ACTORS = 4096


@dataclass(frozen=True)
class Job:
    """What every actor is told. Sources, weights and output must be where all nodes reach them."""

    sources: Sequence[str]
    reading: Reading
    output: str
    lock: str
    weights_root: str | None
    size: str | None
    device: str
    dtype: str
    exif: bool
    alpha: Alpha
    min_psnr: float | None
    limits: ImageLimits
    head: str = "eager"
    head_file: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """Of the model as the cluster loads it."""

    fingerprint: str
    size: str
    untrained: bool


class Walk:
    """A source walked through from front to back, for one span of positions after another."""

    def __init__(self, source: Source) -> None:
        self._source, self._span = source, range(0)
        self._items: Iterator[Item] = iter(())
        self._at: int | None = None

    def span(self, span: range) -> Iterator[Item]:
        """The items at the positions of `span`; what lies before is passed over, walked through anew if need be."""
        self._span = span
        if self._at is None or self._at > span.start:
            self._items, self._at = self._source.items(lambda position: position in self._span), 0
        while self._at < span.stop:
            item = next(self._items, None)
            if item is None:
                self._at = None
                return
            self._at = item.position + 1
            if item.position in span:
                yield item


class ShardActor:
    """One device of the cluster. Ray makes it, and calls it with the number of a shard."""

    def __init__(self, job: Job, run: Mapping[str, Any]) -> None:
        self._job, self._run, self._stack = job, Run(**run), ExitStack()
        model = _model(job)
        if model.fingerprint != self._run.fingerprint:
            raise DeviceLost(f"a node gives {model.fingerprint}, the extraction is of {self._run.fingerprint}")
        here = Here([model], job.limits, exif=job.exif, alpha=job.alpha, min_psnr=job.min_psnr)
        self._here = self._stack.enter_context(here)
        self._source = source_of(job.sources, job.reading)
        self._walk = Walk(self._source)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Make the shard, unless it is done; what is in it."""
        index, output = int(batch["shard"][0]), Output(self._job.output, self._run)
        name = shard_name(self._run.format, index)
        if output.record(name) is None:
            items = self._run.shard_items
            try:
                with output.shared(self._job.lock):
                    span = self._walk.span(range(index * items, (index + 1) * items))
                    Extraction(self._source, output, self._run).write(self._here.encoded(span))
            except OSError as error:
                raise PlaceError(f"{self._job.output}: {error.strerror or error}") from None
        record = output.record(name)
        if record is None:
            raise PlaceError(f"{self._job.output}/{name} was written and is not there: do all nodes see that place?")
        numbers = (index, record.images, len(record.failures), len(record.rejected), record.patches, record.items)
        return dict(
            zip(("shard", "images", "failed", "rejected", "patches", "items"), ([n] for n in numbers), strict=True)
        )

    def close(self) -> None:
        """Let go of the device; Ray ends the process instead."""
        self._stack.close()


class ClusterExtraction:
    """The driver's side of one run."""

    def __init__(self, source: Source, output: Output, run: Run) -> None:
        self._source, self._output, self._run = source, output, run
        self.tally = Tally()
        self.told: Callable[[Tally], None] = lambda tally: None
        self.total: float | None = None

    def run(self, job: Job) -> dict[str, Any] | None:
        """Do what is left on the cluster that is connected; the manifest.

        Raises `DeviceLost`, `PlaceError` or `OutputMismatch`; run again to go on.
        """
        shards = self._survey()
        pending = [i for i, keys in enumerate(shards) if not self._done(i, keys)]
        self.total = float(sum(keys.items for keys in shards))
        self.tally.passed = int(self.total) - sum(shards[i].items for i in pending)
        self.tally.begun_at = self.tally.done = float(self.tally.passed)
        for row in _made(job, self._run, pending):
            self.tally.images += int(row["images"])
            self.tally.failed += int(row["failed"])
            self.tally.rejected += int(row["rejected"])
            self.tally.patches += int(row["patches"])
            self.tally.done += float(row["items"])
            self.told(self.tally)
        for i in pending:
            self._done(i, shards[i])  # that the nodes saw the same source
        return self._output.conclude(self._run, len(shards))

    def _survey(self) -> list[Keys]:
        """The keys of every shard, by the names of the source."""
        shards: list[Keys] = []
        for item in self._source.items(lambda position: False):
            if item.position % self._run.shard_items == 0:
                shards.append(Keys())
            shards[-1].add(item.key)
        if not shards:
            raise InvalidInput("the source holds no image")
        beyond = self._output.beyond(self._run, len(shards))
        if beyond is not None:
            raise changed(self._output, beyond)
        return shards

    def _done(self, index: int, keys: Keys) -> bool:
        record = self._output.record(shard_name(self._run.format, index))
        if record is not None and (record.keys, record.items) != (keys.digest, keys.items):
            raise changed(self._output, record)
        return record is not None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster; raises `PlaceError` if there is none."""
    ray = _ray()
    try:
        ray.init(address=address, logging_level="WARNING", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PlaceError(f"--ray {address}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every plan and its end
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def facts(job: Job) -> Facts:
    """The model, loaded once on some device of the cluster; raises `WeightsError` if it cannot be."""
    ray = _ray()
    try:
        found: Facts = ray.get(ray.remote(**_resources(job))(_facts).remote(job))
    except Exception as error:  # noqa: BLE001  # Ray wraps what an actor raises in classes made as it goes
        raise _spoken(error) from None
    return found


def _facts(job: Job) -> Facts:
    model = _model(job)
    return Facts(model.fingerprint, model.size, model.untrained)


def _made(job: Job, run: Run, pending: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """What is in each shard, as they are done."""
    if not pending:
        return
    ray = _ray()
    rows = ray.data.from_items([{"shard": i} for i in pending], override_num_blocks=len(pending)).map_batches(
        ShardActor,
        batch_size=1,
        fn_constructor_args=(job, asdict(run)),
        # One shard waits behind the one that an actor makes: the pool grows by what waits, and none waits for long.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=min(len(pending), _MOST_ACTORS), max_tasks_in_flight_per_actor=2
        ),
        **_resources(job),
    )
    try:
        yield from rows.iter_rows()
    except Exception as error:  # noqa: BLE001  # Ray wraps what an actor raises in classes made as it goes
        raise _spoken(error) from None


def _model(job: Job) -> Any:
    spin_briefly()
    keep_freed_memory()
    take_short_turns()
    from viq.model import ViQ

    parts = ("encoder",) if job.min_psnr is None else ("encoder", "decoder")
    model = ViQ.from_pretrained(
        job.weights_root,
        job.size,
        device=job.device,
        dtype=job.dtype,
        parts=parts,
        head=job.head,
        head_file=job.head_file,
    )
    model.script_small_packs()
    return model


def _resources(job: Job) -> dict[str, float]:
    """What one actor takes: a GPU, or where there is none, or `cpu` is asked for, all cores of the smallest node."""
    nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
    if job.device != "cpu" and any(node.get("GPU") for node in nodes):
        return {"num_gpus": 1.0, "num_cpus": 1.0}
    return {"num_cpus": min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)}


def _spoken(error: BaseException) -> ViQError:
    """The error of ours that an actor raised, without the traces of two processes; else that the cluster failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ViQError):
            return type(cause)(str(cause)) if type(cause) in (DeviceLost, PlaceError, WeightsError) else cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return DeviceLost(f"the cluster: {str(error).strip().splitlines()[-1]}")


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise PlaceError("--ray needs Ray Data: pip install 'viq-serving[server,extract,ray]'") from None
    return ray
