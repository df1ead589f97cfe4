"""What a change of the code does to the service: two checkouts of the project serve the same pictures in turns.

    git worktree add /tmp/before <commit>
    python bench/versions.py /tmp/before . --mix thumbnails --door rest,grpc --rounds 10

Both servers are up all the time, on their default settings and `--flags`, and every other round begins with the other;
one is idle while the other is asked by `viq bench` of this checkout. Ratios are the second's figures over the first's,
geometric means of the rounds with their 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from full_size import machine
from serving import VIQ, Running, server

MODEL = "viq-encode"  # by the Open Inference Protocol


def load(running: Running, door: str, how: list[str]) -> dict[str, float]:
    """One load: images/s by the mean latency of callers who wait, and p99 in ms."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "load.json"
        where = ["--url", f"http://{running.http}", "--grpc", running.grpc, "--door", door]
        where += ["--model", MODEL] if door.startswith("oip") else []
        subprocess.run([str(VIQ), "bench", *where, *how, "-o", str(out)], check=True, stdout=subprocess.DEVNULL)
        (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    latency = run["latency_ms"]
    return {"images_per_s": 1000 * run["in_flight"] / latency["mean"], "p99_ms": latency["p99"]}


def compared(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Medians of both, and the second's figures over the first's."""
    found: dict[str, Any] = {}
    for name in ("images_per_s", "p99_ms"):
        logs = [math.log(after[name] / before[name]) for before, after in rounds]
        mean = statistics.mean(logs)
        error = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
        found[name] = {
            "before": statistics.median(before[name] for before, _ in rounds),
            "after": statistics.median(after[name] for _, after in rounds),
            "ratio": math.exp(mean),
            "interval": [math.exp(mean - error), math.exp(mean + error)],
        }
    return found


def main() -> None:
    """Measure, print and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of a checkout")
    parser.add_argument("after", type=Path, help="folder of another")
    parser.add_argument("--door", default="rest", help="of `viq bench`; several with commas")
    parser.add_argument("--mix", default="thumbnails")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--flags", default="", help="of both servers, as one word")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    how = ["--mix", args.mix, "--in-flight", str(args.callers), "--pictures", "24", "--warm-up", "1.5"]
    how += ["--duration", str(args.seconds)]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        flags = shlex.split(args.flags)
        both = [stack.enter_context(server(*flags, checkout=one.resolve())) for one in (args.before, args.after)]
        for door in args.door.split(","):
            rounds = []
            for one in both:
                load(one, door, how)
            for number in range(args.rounds):
                turns = both if number % 2 == 0 else both[::-1]
                seen = {one.pid: load(one, door, how) for one in turns}
                rounds.append((seen[both[0].pid], seen[both[1].pid]))
            found[door] = compared(rounds)
            for name, figures in found[door].items():
                low, high = figures["interval"]
                print(
                    f"{door}, {name}: {figures['before']:.3g} and {figures['after']:.3g}, "
                    f"ratio {figures['ratio']:.3f} ({low:.3f} to {high:.3f})",
                    flush=True,
                )
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
        args.out.write_text(
            json.dumps({"machine": machine(), "settings": settings, "doors": found}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
