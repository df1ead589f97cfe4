"""Images a second that a `DataLoader` gives of extracted codes, by its number of workers.

    python bench/loaders.py --out bench/results/loaders.json

Shards are written here, of random codes of pictures of so many pixels a side; batches are of 64, packed. In random
order for tar shards, which is what they are for; in order for both forms. Each figure is of one pass after a first one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from full_size import machine
from torch.utils.data import DataLoader

from viq import Codes
from viq_serving.client.loaders import ShardDataset, packed
from viq_serving.extract.sinks import SUFFIX, Format, sink_of

_A_SHARD = 1000


def write(folder: Path, form: Format, images: int, side: int) -> None:
    """So many images of `side` x `side` pixels as `viq extract` leaves them."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for first in range(0, images, _A_SHARD):
        name = f"codes-{first // _A_SHARD:06d}.{SUFFIX[form]}"
        sink, count = sink_of(form, folder / name, None), min(_A_SHARD, images - first)
        for i in range(first, first + count):
            array = rng.integers(0, 64_000, (side // 16, side // 16, 4), dtype=np.uint16)
            sink.add(f"{i:09d}", Codes(array, (side, side), "nano", f"{'0' * 16}.{'0' * 8}"), {"txt": b"a caption"})
        sink.close()
        rows.append({"shard": name, "images": count})
    (folder / "manifest.json").write_text(json.dumps({"shard_list": rows}))


def rate(folder: Path, workers: int, shuffle: bool) -> float:
    """Images a second."""
    loader = DataLoader(
        ShardDataset(folder),
        64,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=packed,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
    )
    begun, count = 0.0, 0
    for _ in range(2):
        begun, count = perf_counter(), sum(len(batch["keys"]) for batch in loader)
    return count / (perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ways: list[tuple[Format, bool]] = [("webdataset", True), ("webdataset", False), ("parquet", False)]
    with tempfile.TemporaryDirectory() as name:
        for form in ("webdataset", "parquet"):
            write(Path(name, form), form, args.images, args.side)
        for form, shuffle in ways:
            for workers in args.workers:
                row = {"form": form, "order": "random" if shuffle else "as written", "workers": workers}
                row["images_per_s"] = round(rate(Path(name, form), workers, shuffle))
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.out:
        result = {"machine": machine(), "images": args.images, "side": args.side, "loaders": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
