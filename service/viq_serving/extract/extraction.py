"""One run: from where the shards end to where the source ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from viq.codes import Codes
from viq.errors import InvalidInput
from viq_serving.extract.errors import DeviceLost, OutputMismatch
from viq_serving.extract.output import Failure, Output, Record, Rejected, Run, shard_name
from viq_serving.extract.quality import LowQuality
from viq_serving.extract.results import Result
from viq_serving.extract.sinks import Sink, sink_of
from viq_serving.extract.sources import Item, Source


class Encoding(Protocol):
    """What makes codes of items: here on a device, or at a server."""

    def encoded(self, items: Iterable[Item]) -> Iterator[Result]:
        """What becomes of each of `items`, in their order."""


@dataclass
class Tally:
    """How far a run is. `passed` counts items that an earlier run did, `done` is in units of the source's total."""

    images: int = 0
    failed: int = 0
    rejected: int = 0
    passed: int = 0
    patches: int = 0
    begun_at: float = 0.0
    done: float = 0.0


class Keys:
    """A digest of keys in order, by which a source is known again."""

    def __init__(self) -> None:
        self.items, self.first, self.last = 0, "", ""
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, key: str) -> None:
        """The next key."""
        self.items, self.first, self.last = self.items + 1, self.first or key, key
        self._digest.update(key.encode("utf-8", "surrogatepass") + b"\0")

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return self._digest.hexdigest()


class Extraction:
    """Takes what a source gives to shards. Shard N holds the items N*shard_items and on, whatever else happens."""

    def __init__(self, source: Source, output: Output, run: Run, *, part: int = 0, parts: int = 1) -> None:
        """`part` of `parts`: only every so many-th shard, for several machines at once."""
        self._source, self._output, self._run = source, output, run
        self._part, self._parts = part, parts
        self._columns = getattr(source, "columns", None)
        self._records: dict[int, Record] = {}
        self._passing: tuple[int, Keys] | None = None
        self._count = 0
        self.tally = Tally()
        self.told: Callable[[Tally], None] = lambda tally: None

    def run(self, encoding: Encoding) -> dict[str, Any] | None:
        """Do what is left; the manifest, or None if other parts are not done yet.

        Raises `OutputMismatch` if the source no longer gives what finished shards were made of.
        """
        self.write(encoding.encoded(self._left()))
        if not self._count:
            raise InvalidInput("the source holds no image")
        return self._output.conclude(self._run, -(-self._count // self._run.shard_items))

    def write(self, results: Iterable[Result]) -> None:
        """Write results, those of whole shards, in order."""
        sink: Sink | None = None
        record, keys, shard = Record(""), Keys(), -1
        try:
            for result in results:
                item = result.item
                if item.position // self._run.shard_items != shard:
                    self._finish(sink, record, keys)
                    shard = item.position // self._run.shard_items
                    record, keys = Record(shard_name(self._run.format, shard)), Keys()
                    sink = sink_of(self._run.format, self._output.new(record.shard), self._columns)
                keys.add(item.key)
                if sink is not None:  # as it is, from the first item on
                    self._add(result, record, sink)
            self._finish(sink, record, keys)
        except BaseException:
            if sink is not None:
                with suppress(Exception):  # a full disk, most likely, which is what the caller is to hear of
                    sink.close()
            raise

    def _left(self) -> Iterator[Item]:
        """The items that are not in finished shards. Those that are must be what they were."""
        for item in self._source.items(self._wanted):
            self._count = item.position + 1
            if self._wanted(item.position):
                self.tally.begun_at = self.tally.begun_at or item.done
                yield item
            else:
                self._pass(item)
        self._check()
        beyond = self._output.beyond(self._run, -(-self._count // self._run.shard_items))
        if beyond is not None:
            raise changed(self._output, beyond)

    def _wanted(self, position: int) -> bool:
        shard = position // self._run.shard_items
        return shard % self._parts == self._part and self._finished(shard) is None

    def _finished(self, shard: int) -> Record | None:
        if shard not in self._records:
            found = self._output.record(shard_name(self._run.format, shard))
            # Shards are few beside items, but what failed in them need not be remembered.
            self._records[shard] = found or Record("")
            self._records[shard].failures, self._records[shard].rejected = [], []
        record = self._records[shard]
        return record if record.shard else None

    def _pass(self, item: Item) -> None:
        shard = item.position // self._run.shard_items
        if self._passing is None or self._passing[0] != shard:
            self._check()
            self._passing = shard, Keys()
        self._passing[1].add(item.key)
        self.tally.passed += 1

    def _check(self) -> None:
        """Raise `OutputMismatch` unless the shard just passed over still is what its record says."""
        if self._passing is None:
            return
        shard, keys = self._passing
        self._passing, record = None, self._finished(shard)
        if record is not None and (record.keys, record.items) != (keys.digest, keys.items):
            raise changed(self._output, record)

    def _add(self, result: Result, record: Record, sink: Sink) -> None:
        item, codes = result.item, result.codes
        self.tally.done = item.done
        if isinstance(codes, Codes):
            if codes.fingerprint != self._run.fingerprint:
                raise DeviceLost(f"codes of {item.key} are of {codes.fingerprint}, begun with {self._run.fingerprint}")
            sink.add(item.key, codes, result.fields)
            record.images += 1
            record.patches += codes.grid[0] * codes.grid[1]
            self.tally.images += 1
            self.tally.patches += codes.grid[0] * codes.grid[1]
        elif isinstance(codes, LowQuality):
            record.rejected.append(Rejected(item.position, item.key, codes.psnr))
            self.tally.rejected += 1
        else:
            record.failures.append(Failure(item.position, item.key, codes.code, str(codes)))
            self.tally.failed += 1
        self.told(self.tally)

    def _finish(self, sink: Sink | None, record: Record, keys: Keys) -> None:
        if sink is None:
            return
        sink.close()
        record.items, record.keys, record.first_key, record.last_key = keys.items, keys.digest, keys.first, keys.last
        self._output.finish(record)


def changed(output: Output, record: Record) -> OutputMismatch:
    """What is wrong where the items of a finished shard are not those that the source gives."""
    return OutputMismatch(
        f"the source no longer gives what {output.address}/{record.shard} was made of ({record.items} items, "
        f"{record.first_key!r} to {record.last_key!r}): use another folder, or give the source as it was"
    )
