"""One row over others, round by round, from results of servers that were asked in turns (`measure.py --together`).

    python loadtest/peers/paired.py "viq serve, REST" loadtest/results/peers_thumbnails*.json [--apart]

On a machine whose speed changes from minute to minute medians of few rounds say little; what two servers did within the
same minutes says more. Ratios of all rounds of all files: their geometric mean and its 95 % interval (Student's t of
the logarithms). Throughput by latency, and p99 at the same load of requests.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from table import Result, by_latency, unanswered

# Quantiles 0.975 of Student's t by degrees of freedom; with more, a little too wide is no harm.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
            2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06)  # fmt: skip

Pairs = dict[tuple[str, str], list[tuple[float, float]]]
"""Ratios of throughput and of p99, by mix and row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="the one that others are compared with")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--from-round", type=int, default=1, metavar="N", help="leave out those before; default: 1")
    parser.add_argument(
        "--apart", action="store_true", help="rounds in which they were up one after the other, each started anew"
    )
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    if not any(args.row in result["rows"] for result in results):
        parser.error(
            f"no row {args.row!r}; there are {', '.join(sorted({name for one in results for name in one['rows']}))}"
        )
    print(f"| mix | {args.row} over | rounds | images/s | p99 |\n|---|---|---|---|---|")
    for (mix, other), ratios in pairs(args.row, results, args.from_round, apart=args.apart).items():
        rates, waits = zip(*ratios, strict=True)
        print(f"| {mix} | {other} | {len(ratios)} | {interval(rates)} | {interval(waits)} |")


def pairs(row: str, results: Sequence[Result], first: int = 1, *, apart: bool = False) -> Pairs:
    """Ratios of `row` over each other server in rounds from `first` on that both have and in which both were up.

    With `apart` in those in which each was up alone. Loops without a server are left out, as are rounds not all
    answered.
    """
    found: Pairs = defaultdict(list)
    for result in results:
        ours = result["rows"].get(row, {})
        for other, mixes in result["rows"].items():
            if other == row:
                continue
            for mix, rounds in mixes.items():
                for number in sorted(rounds.keys() & ours.get(mix, {}).keys(), key=int):
                    one, two = ours[mix][number], rounds[number]
                    if "open" not in two or int(number) < first or unanswered(one) + unanswered(two):
                        continue
                    if _apart(one, two) if apart else row in two.get("beside", ()) and other in one.get("beside", ()):
                        waits = (each["open"]["latency_ms"]["p99"] for each in (one, two))
                        found[mix, other].append((by_latency(one) / by_latency(two), next(waits) / next(waits)))
    return dict(found)


def _apart(one: Result, two: Result) -> bool:
    return not one.get("beside") and not two.get("beside")


def interval(ratios: Sequence[float]) -> str:
    """Geometric mean and its 95 % interval; of one ratio there is none."""
    logs = [math.log(one) for one in ratios]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.2f}"
    half = _STUDENT[min(len(logs) - 1, len(_STUDENT)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"


if __name__ == "__main__":
    main()
