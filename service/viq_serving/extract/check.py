"""Proof that shards are what they say: checksums of all, and a sample of images encoded again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from viq.codes import Codes
from viq_serving.client.shards import Row, open_shard
from viq_serving.extract.errors import OutputMismatch
from viq_serving.extract.extraction import Encoding
from viq_serving.extract.output import MANIFEST, Output, Record, Run, shard_name
from viq_serving.extract.sources import Source

_LISTED = ("shard", "items", "images", "bytes", "sha256")


@dataclass
class Findings:
    """What was looked at and what was wrong."""

    shards: int = 0
    images: int = 0
    encoded: int = 0
    wrong: list[str] = field(default_factory=list)


def check(
    output: Output, run: Run, source: Source, encoding: Encoding, sample: int, seed: int, told: Callable[[int], None]
) -> Findings:
    """Read every finished shard, encode a `sample` of the images again, and compare.

    Raises `OutputMismatch` if nothing was extracted there.
    """
    found = Findings()
    records = _records(output, run, found)
    if not records:
        raise OutputMismatch(f"{output.address} holds no finished shard")
    absent = {position for record in records.values() for position in record.without_codes}
    kept = [
        index * run.shard_items + i
        for index, record in records.items()
        for i in random.Random(f"{seed} {index}").sample(range(record.items), min(record.items, sample))  # noqa: S311
    ]
    chosen = frozenset(random.Random(seed).sample(kept, min(len(kept), sample)))  # noqa: S311
    stored: dict[int, Codes] = {}
    for index, record in records.items():
        stored |= _read(output, run, index, record, chosen, absent, found)
        told(1)
    again = encoding.encoded(item for item in source.items(chosen.__contains__) if item.position in chosen)
    for result in again:
        position, key = result.item.position, result.item.key
        found.encoded += 1
        before = stored.get(position)
        if isinstance(result.codes, Codes) and before is None:
            found.wrong.append(f"{key}: has codes now, and none in the shard")
        elif not isinstance(result.codes, Codes) and before is not None:
            found.wrong.append(f"{key}: cannot be encoded now: {result.codes}")
        elif isinstance(result.codes, Codes) and before is not None and before != result.codes:
            found.wrong.append(f"{key}: {_difference(before, result.codes)}")
    if found.encoded < len(chosen):
        found.wrong.append(f"the source gave {found.encoded} of {len(chosen)} images looked for")
    return found


def _records(output: Output, run: Run, found: Findings) -> dict[int, Record]:
    """Records of the shards that are there; which are not, or are not what the manifest says, is added to `found`."""
    manifest = output.json(MANIFEST)
    if manifest is None:
        found.wrong.append(f"there is no {MANIFEST}: the extraction is not complete, run it again to go on")
    rows = [] if manifest is None else list(manifest.get("shard_list", []))
    records: dict[int, Record] = {}
    for index in range(max(len(rows), output.recorded())):
        name = shard_name(run.format, index)
        record = output.record(name)
        if record is None:
            found.wrong.append(f"{name}: is missing, or not as long as its record says; run the extraction again")
            continue
        records[index] = record
        listed = rows[index] if index < len(rows) else {}
        if manifest is not None and any(listed.get(key) != getattr(record, key) for key in _LISTED):
            found.wrong.append(f"{name}: {MANIFEST} lists it as {_few(listed)}, its record as {_few(asdict(record))}")
    return records


def _few(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {row.get(key)}" for key in _LISTED)


def _read(
    output: Output, run: Run, index: int, record: Record, chosen: frozenset[int], absent: set[int], found: Findings
) -> dict[int, Codes]:
    """The codes of the positions chosen in one shard; what is wrong with the shard is added to `found`."""
    with output.open(record.shard) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any file for bytes
    found.shards += 1
    if digest != record.sha256:
        found.wrong.append(f"{record.shard}: its checksum is {digest}, recorded is {record.sha256}")
        return {}
    first = index * run.shard_items
    positions = [first + i for i in range(record.items) if first + i not in absent]
    with output.open(record.shard) as file, open_shard(file, record.shard) as shard:
        found.images += len(shard)
        if len(shard) != record.images or len(positions) != record.images:
            found.wrong.append(f"{record.shard}: holds {len(shard)} images, its record says {record.images}")
            return {}
        rows: list[tuple[int, Row]] = [(at, shard[i]) for i, at in enumerate(positions) if at in chosen]
    return {position: row.codes for position, row in rows}


def _difference(before: Codes, now: Codes) -> str:
    if before.array.shape != now.array.shape or before.image_size != now.image_size:
        return f"is of {before.image_size} pixels in the shard, of {now.image_size} now"
    if before.fingerprint != now.fingerprint:
        what = f"was made by {before.fingerprint}, now by {now.fingerprint}"
        return f"{what}, {int((before.array != now.array).sum())} of {now.array.size} codes differ"
    return f"{int((before.array != now.array).sum())} of {now.array.size} codes differ"
