"""The output folder: what was begun there, the shards that are done, and what all of them hold.

    extract.json            what this is: written first, and never changed
    codes-000000.tar        a shard; or .parquet
    codes-000000.json       its record, written after it: a shard without one is not done
    failures.jsonl          what failed, a line each; written at the end
    rejected.jsonl          with --min-psnr: what is not worth keeping, a line each with its PSNR; written at the end
    manifest.json           counts and checksums of all shards; written last

Each file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from viq_serving.extract.errors import OutputMismatch, PlaceError
from viq_serving.extract.places import Disk, drop, joined, place_of
from viq_serving.extract.sinks import SUFFIX, Format

VERSION = 1
_RECORD = re.compile(r"codes-(\d{6,})\.json")
RUN, MANIFEST, FAILURES, REJECTED = "extract.json", "manifest.json", "failures.jsonl", "rejected.jsonl"


@dataclass(frozen=True)
class Run:
    """What decides the contents of the output, beside the source's images."""

    fingerprint: str
    size: str
    format: Format
    shard_items: int
    exif: bool
    alpha: str
    fields: list[str] | None
    image_field: str | None
    key_field: str | None
    max_bytes: int
    max_pixels: int
    max_patches: int
    min_psnr: float | None = None
    version: int = VERSION
    sources: list[str] = field(default_factory=list, compare=False)
    """For people and for `verify`; that the images are the same is seen by their keys."""


@dataclass
class Failure:
    """An image that has no codes."""

    position: int
    key: str
    code: str
    reason: str


@dataclass
class Rejected:
    """An image whose codes give back too little of it; `psnr` in dB."""

    position: int
    key: str
    psnr: float


@dataclass
class Record:
    """One finished shard. `items` are all of the source that belong to it, `keys` a digest of theirs."""

    shard: str
    items: int = 0
    images: int = 0
    patches: int = 0
    bytes: int = 0
    sha256: str = ""
    keys: str = ""
    first_key: str = ""
    last_key: str = ""
    failures: list[Failure] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def without_codes(self) -> set[int]:
        """Positions of its items that are not in the shard."""
        return {one.position for one in self.failures} | {one.position for one in self.rejected}


class Output:
    """A folder of shards, on disk or anywhere fsspec reaches."""

    def __init__(self, address: str, run: Run | None = None) -> None:
        """`run` is what was begun there by somebody else, and what this is to go on with."""
        self.address = address
        self._place, self._path = place_of(address)
        self._spool = Path()
        self._run = run

    @contextmanager
    def opened(self, lock: str = "") -> Iterator[None]:
        """Hold the folder, made if missing, against other runs on this machine; raises `PlaceError` if one is there."""
        try:
            self._place.make_folder(self._path)
            with self._locked(lock):
                self._tidy(lock)
                with self.shared(lock):
                    yield
                self._tidy(lock)
        except OSError as error:
            raise PlaceError(f"{self.address}: {error.strerror or error}") from None

    @contextmanager
    def shared(self, lock: str = "") -> Iterator[None]:
        """Hold a place of one's own for unfinished files, beside the run that has `opened` the folder."""
        # On a disk beside the shards, so that to finish one is to rename it.
        local = self._path if isinstance(self._place, Disk) else None
        self._spool = Path(tempfile.mkdtemp(prefix=f".unfinished-{lock}-", dir=local))
        try:
            yield
        finally:
            drop(self._spool)

    def begin(self, run: Run) -> Run:
        """Say what is to be here, or find that the same was begun; raises `OutputMismatch` if it was something else."""
        if self.begun() is None:
            path = self.new(RUN)
            path.write_text(_written(asdict(run)), encoding="utf-8")
            self._place.put_first(path, joined(self._path, RUN))
        self._run = run
        self._hold()
        return run

    def _hold(self) -> None:
        """Raise `OutputMismatch` unless what was begun here is what this run makes.

        Also before each shard: where files appear without a word who was first, two runs may both believe to be it.
        """
        if self._run is None:
            return
        begun = self.begun()
        if begun is None:
            raise OutputMismatch(f"{self.address}/{RUN} is gone")
        different = [
            f"{name} {getattr(begun, name)!r}, now {value!r}"
            for name, value in asdict(self._run).items()
            if name != "sources" and getattr(begun, name) != value
        ]
        if different:
            raise OutputMismatch(f"{self.address} was begun with {'; with '.join(different)}: use another folder")

    def begun(self) -> Run | None:
        """What was begun here, if anything was."""
        found = self.json(RUN)
        if found is None:
            return None
        try:
            if found.get("version") != VERSION:
                raise OutputMismatch(f"{self.address}/{RUN} is of version {found.get('version')}, this reads {VERSION}")
            return Run(**found)
        except (TypeError, AttributeError):
            raise OutputMismatch(f"{self.address}/{RUN} is not what viq extract writes") from None

    def record(self, shard: str) -> Record | None:
        """The record of a shard, if that is done and the file is there as long as it should be."""
        found = self.json(f"{shard.partition('.')[0]}.json")
        if found is None:
            return None
        record = _record(found, f"{self.address}/{shard}")
        return record if self._place.size(joined(self._path, shard)) == record.bytes else None

    def recorded(self) -> int:
        """How many shards there are by the highest number that a record has; some may be missing."""
        try:
            found = [_RECORD.fullmatch(name) for name, _ in self._place.entries(self._path)]
        except OSError as error:
            raise PlaceError(f"{self.address}: {error.strerror or error}") from None
        return 1 + max((int(one[1]) for one in found if one is not None), default=-1)

    def beyond(self, run: Run, shards: int) -> Record | None:
        """The record of a finished shard that comes after so many, if there is one."""
        names = (shard_name(run.format, index) for index in range(shards, self.recorded()))
        return next((record for name in names if (record := self.record(name)) is not None), None)

    def new(self, shard: str) -> Path:
        """Where to write a shard that is not finished."""
        return self._spool / shard

    def finish(self, record: Record) -> None:
        """Make a written shard appear, then its record; raises `OutputMismatch` if another run was begun here."""
        self._hold()
        path = self.new(record.shard)
        with path.open("rb") as file:
            record.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        record.bytes = path.stat().st_size
        self._place.put(path, joined(self._path, record.shard))
        self._put_json(f"{record.shard.partition('.')[0]}.json", asdict(record))

    def conclude(self, run: Run, shards: int) -> dict[str, Any] | None:
        """Write failures and manifest from the records of so many shards; None if some are not done yet."""
        totals = dict.fromkeys(("shards", "items", "images", "failed", "rejected", "patches", "codes", "bytes"), 0)
        totals["shards"] = shards
        rows, reasons = [], dict[str, int]()
        failed, rejected = self.new(FAILURES), self.new(REJECTED)
        with failed.open("w", encoding="utf-8") as file, rejected.open("w", encoding="utf-8") as below:
            for index in range(shards):
                record = self.record(shard_name(run.format, index))
                if record is None:
                    return None
                for failure in record.failures:
                    reasons[failure.code] = reasons.get(failure.code, 0) + 1
                    file.write(json.dumps(asdict(failure)) + "\n")
                below.writelines(json.dumps(asdict(one)) + "\n" for one in record.rejected)
                row = asdict(record)
                row["failed"], row["rejected"] = len(row.pop("failures")), len(record.rejected)
                for name in ("items", "images", "failed", "rejected", "patches", "bytes"):
                    totals[name] += row[name]
                rows.append(row)
        totals["codes"] = 4 * totals["patches"]
        manifest = {**asdict(run), **totals, "failures": reasons, "shard_list": rows}
        self._place.put(failed, joined(self._path, FAILURES))
        if run.min_psnr is not None:
            self._place.put(rejected, joined(self._path, REJECTED))
        self._put_json(MANIFEST, manifest)
        return manifest

    def open(self, name: str) -> IO[bytes]:
        """A file of the folder."""
        return self._place.open(joined(self._path, name))

    def json(self, name: str) -> dict[str, Any] | None:
        """The object in a file of the folder, None if there is no such file; raises `OutputMismatch` for another."""
        try:
            with self.open(name) as file:
                found: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            raise OutputMismatch(f"{self.address}/{name} is no JSON") from None
        except OSError as error:
            raise PlaceError(f"{self.address}/{name}: {error.strerror or error}") from None
        return found

    def _put_json(self, name: str, value: Mapping[str, Any]) -> None:
        path = self.new(name)
        path.write_text(_written(value), encoding="utf-8")
        self._place.put(path, joined(self._path, name))

    def _tidy(self, lock: str) -> None:
        """Remove what runs under the same lock left unfinished when they were killed."""
        if not isinstance(self._place, Disk):
            return
        for name, _ in list(self._place.entries(self._path)):
            if name.startswith(f".unfinished-{lock}-"):
                drop(Path(self._path, name))

    @contextmanager
    def _locked(self, lock: str) -> Iterator[None]:
        """The system lets go of the lock when this process ends, however it ends."""
        if not isinstance(self._place, Disk):
            yield
            return
        import fcntl

        with Path(self._path, f".lock-{lock}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PlaceError(f"{self.address} is being written by another viq extract") from None
            os.set_inheritable(file.fileno(), False)
            yield


def _written(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def shard_name(format: Format, index: int) -> str:
    """The name of a shard."""
    return f"codes-{index:06d}.{SUFFIX[format]}"


def _record(found: Mapping[str, Any], what: str) -> Record:
    try:
        failures = [Failure(**one) for one in found["failures"]]
        rejected = [Rejected(**one) for one in found.get("rejected", [])]
        return Record(**{**found, "failures": failures, "rejected": rejected})
    except (TypeError, KeyError):
        raise OutputMismatch(f"the record of {what} is not what viq extract writes") from None
