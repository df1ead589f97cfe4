"""One encode with memory as glibc handles it by default, and kept for the next forward as the service has it.

    python bench/heap.py --out bench/results/heap.json

Each way runs in a process of its own, in an order drawn anew each round: a thread beside the main one, as in the
service, encodes one picture on nano again and again. Milliseconds and page faults of one encode, and the most memory
the process had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from full_size import machine

ONE = """
import json, resource, sys, threading, time
import numpy as np
from viq_serving.heap import keep_freed_memory
keeps = sys.argv[1] == "kept" and keep_freed_memory()
from viq import ViQ
model, side, seconds = ViQ.from_pretrained(parts=("encoder",)), int(sys.argv[2]), float(sys.argv[3])
pixels, taken = [np.full((side, side, 3), 99, np.uint8)], []
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def encode():
    for _ in range(2):
        model.encode_pixels(pixels)
    before, end = faults(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        model.encode_pixels(pixels)
        taken.append(1000 * (time.perf_counter() - begun))
    taken.append((faults() - before) / len(taken))
thread = threading.Thread(target=encode)
thread.start()
thread.join()
*times, each = taken
print(json.dumps([keeps, times, each, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
WAYS = ("default", "kept")


def encode(way: str, side: int, seconds: float) -> dict[str, Any]:
    """What a process finds that encodes for `seconds` of time."""
    dropped = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    done = subprocess.run(
        [sys.executable, "-c", ONE, way, str(side), str(seconds)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    keeps, times, faults, peak = json.loads(done.stdout)
    if keeps != (way == "kept"):
        raise SystemExit("this C library cannot be told to keep memory: there is nothing to compare")
    return {"ms": statistics.median(times), "page_faults": faults, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for side in args.sides:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in random.sample(WAYS, len(WAYS)):
                found[way].append(encode(way, side, args.seconds))
        row: dict[str, Any] = {"side": side}
        for way in WAYS:
            row[way] = {name: round(statistics.median(one[name] for one in found[way]), 1) for name in found[way][0]}
        pairs = zip(found["kept"], found["default"], strict=True)
        row["kept_over_default_ms"] = round(statistics.median(a["ms"] / b["ms"] for a, b in pairs), 3)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "encode": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
