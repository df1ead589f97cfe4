"""What generators in processes of their own are given, and what they give back: files in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from viq.codes import Codes
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.load import Load
from viq_serving.bench.pictures import PictureFile
from viq_serving.bench.records import Records
from viq_serving.bench.seen import Seen


def write_payload(folder: Path, payload: Payload) -> None:
    """Leave a payload for `read_payload`."""
    rows = [(one.index, one.width, one.height, len(one.data)) for one in payload.files]
    (folder / "pictures.json").write_text(json.dumps([payload.file_format, rows]), encoding="utf-8")
    (folder / "pictures.bin").write_bytes(b"".join(one.data for one in payload.files))
    for index, codes in enumerate(payload.codes):
        codes.to_npz(folder / f"{index}.npz")


def read_payload(folder: Path) -> Payload:
    """What `write_payload` left."""
    file_format, rows = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    files = list[PictureFile]()
    with (folder / "pictures.bin").open("rb") as data:
        for index, width, height, size in rows:
            files.append(PictureFile(index, width, height, data.read(size)))
    stored = [folder / f"{index}.npz" for index in range(len(files))]
    codes = [Codes.from_npz(path) for path in stored] if stored and stored[0].exists() else []
    return Payload(files, file_format, codes)


def write_results(folder: Path, part: int, load: Load, seen: Seen) -> None:
    """Leave what came of a part for `read_results`."""
    load.records.save(folder / f"records{part}.npz")
    held = {
        "start": load.start,
        "end": load.end,
        "lag": load.lag,
        "cpu_s": load.cpu_s,
        "digests": seen.digests,
        "unstable": sorted(seen.unstable),
        "unreadable": seen.unreadable,
    }
    (folder / f"load{part}.json").write_text(json.dumps(held), encoding="utf-8")


def read_results(folder: Path, part: int, seen: Seen) -> Load:
    """The load that `write_results` left; its codes are added to `seen`."""
    held = json.loads((folder / f"load{part}.json").read_text(encoding="utf-8"))
    digests = {int(index): found for index, found in held["digests"].items()}
    seen.add(digests, set(held["unstable"]), held["unreadable"])
    of_part = Records.load(folder / f"records{part}.npz")
    return Load(of_part, held["start"], held["end"], held["lag"], held["cpu_s"])
