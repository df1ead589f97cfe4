"""A server whose threads take a processor at once from those that compute, and one whose threads wait for their turn.

    python bench/interrupting.py --out bench/results/interrupting.json

One server on its default settings, whose threads change their scheduling policy in turns: what Linux gives by
default, and `SCHED_BATCH` for all but the event loop's; `viq serve` gives it to those that compute on CPUs and those
that decode, which are nearly all. Pictures by REST from `viq bench`: callers who wait for their answers, then arrivals
at a rate. Medians of the rounds; context switches are the whole machine's, the client's start among them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from full_size import machine
from serving import VIQ, Running, server

WAYS = {"interrupt": os.SCHED_OTHER, "wait_for_turns": os.SCHED_BATCH}


def choose(running: Running, policy: int) -> None:
    """Give every thread of the server but its first, the event loop's, this policy."""
    for thread in Path(f"/proc/{running.pid}/task").iterdir():
        if thread.name != str(running.pid):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))


def switches() -> int:
    """Context switches of the machine so far."""
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("ctxt"))


def load(running: Running, mix: str, how: list[str], seconds: float) -> dict[str, float]:
    """One load: images/s, latency in ms, and context switches a second."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "load.json"
        asked = ["--url", f"http://{running.http}", "--door", "rest", "--mix", mix, "--pictures", "24"]
        before, begun = switches(), time.perf_counter()
        subprocess.run(
            [str(VIQ), "bench", *asked, *how, "--warm-up", "0.7", "--duration", str(seconds), "-o", str(out)],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        rate = (switches() - before) / (time.perf_counter() - begun)
        (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    latency = run["latency_ms"]
    return {
        "images_per_s": run["achieved"]["images_per_s"], "p50_ms": latency["p50"], "p99_ms": latency["p99"],
        "switches_per_s": rate,
    }  # fmt: skip


def compared(running: Running, mix: str, how: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Medians of each way's rounds, which take turns."""
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            choose(running, WAYS[way])
            measured[way].append(load(running, mix, how, seconds))
    return {
        way: {name: round(statistics.median(one[name] for one in rows), 1) for name in rows[0]}
        for way, rows in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", nargs="+", default=["thumbnails", "256x256"])
    parser.add_argument("--rates", type=float, nargs="+", default=[60.0, 20.0], help="arrivals a second, a mix each")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with server("--max-queue-age-s", "600") as running:
        load(running, "thumbnails", ["--in-flight", str(args.callers)], 1.0)  # threads that decode begin with that
        for mix, rate in zip(args.mixes, args.rates, strict=True):
            for how in (["--in-flight", str(args.callers)], ["--rate", str(rate)]):
                ways = compared(running, mix, how, args.rounds, args.seconds)
                rows.append({"mix": mix, "load": " ".join(how).removeprefix("--"), **ways})
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "loads": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
