"""One encode while another process wants a core: OpenMP threads that spin when idle, sleep, or spin briefly.

    python bench/spinning.py --out bench/results/spinning.json

Each way runs in a process of its own, in turns, once with nothing beside it and once beside a process that
computes all the time. Milliseconds of one encode on nano, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from full_size import machine
from serving import percentile

ONE = """
import json, sys, time
import numpy as np
from viq import ViQ
model, side = ViQ.from_pretrained(), int(sys.argv[1])
pixels, taken = [np.full((side, side, 3), 99, np.uint8)], []
for _ in range(33):
    begun = time.perf_counter()
    model.encode_pixels(pixels)
    taken.append(1000 * (time.perf_counter() - begun))
print(json.dumps(taken[3:]))
"""
WAYS = {"spin": {}, "sleep": {"OMP_WAIT_POLICY": "passive"}, "spin_briefly": {"GOMP_SPINCOUNT": "10000"}}


def encode(way: str, side: int) -> list[float]:
    """Milliseconds of each encode of a square picture in a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    } | WAYS[way]
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(side)], env=environment, capture_output=True, text=True, check=True
    )
    taken: list[float] = json.loads(done.stdout)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
        try:
            for side in args.sides:
                taken: dict[str, list[float]] = {way: [] for way in WAYS}
                for _ in range(args.rounds):
                    for way in WAYS:
                        taken[way] += encode(way, side)
                row = {
                    way: {"p50_ms": round(statistics.median(ms), 1), "p90_ms": round(percentile(ms, 0.9), 1)}
                    for way, ms in taken.items()
                }
                rows.append({"side": side, "busy_process_beside": beside, **row})
                print(json.dumps(rows[-1]), flush=True)
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "encode": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
