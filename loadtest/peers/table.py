"""The table of `measure.py`'s results, as Markdown.

    python loadtest/peers/table.py loadtest/results/peers.json [-o loadtest/results/peers.md]

Medians over the rounds; every row that was measured is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
HEAD = (
    "| | workers × threads | images/s counted | by latency | of the bare model | p50, p99 ms, {callers} callers "
    "| p50, p99 ms at {rate:.3g}/s | not answered | codes equal | peak memory MB |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    text = table(json.loads(args.results.read_text()))
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


def table(results: Result) -> str:
    """All of it: a section a mix."""
    machine, load, versions = results["machine"], results["load"], results["versions"]
    measured = [one for of in results["rows"].values() for rounds in of.values() for one in rounds.values()]
    together = dict.fromkeys(name for one in measured for name in one.get("beside", []))
    named = sorted({f"{name} {version}" for of in versions.values() for name, version in of.items()})
    lines = [
        "# The same network behind other servers",
        "",
        f"{results['weights']} in float32 on {machine['cores']} cores ({machine['cpu']}); {', '.join(named)}. "
        f"{load['pictures']} pictures a mix from seed {load['seed']}; {load['callers']} callers who wait for their "
        f"answers, then Poisson arrivals at {load['share']:.0%} of what the per-image loop computes of "
        "that mix, the same for every row. Medians of the rounds. Memory is resident memory summed over all "
        "processes of a server. A loop has one caller, who waits for one image (or one batch). Answers counted in a "
        "few seconds depend on where whole batches fall in them; by latency, the callers divided by their mean "
        "latency (Little's law), they do not: that is compared with the bare model."
        + (
            f" Up at once, in turns for each mix: {'; '.join(together)}. Their memory is the largest so far, whichever "
            "mix it was for."
            if together
            else ""
        ),
        "",
    ]
    for mix, rate in results["rates"].items():
        rows = {name: of[mix] for name, of in results["rows"].items() if mix in of}
        bare = middle(rows["bare model"], by_latency)
        lines += [f"## {mix}", "", HEAD.format(callers=load["callers"], rate=rate), "|" + "---|" * 10]
        lines += [line(name, list(of.values()), bare, results["digests"][mix]) for name, of in rows.items()]
        failed = {name: of[mix] for name, of in results.get("failed", {}).items() if of.get(mix)}
        lines += [_failed(name, why, rows) for name, why in failed.items()]
        lines += ["", _speeds(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def line(name: str, rounds: Sequence[Result], bare: float, codes: Result) -> str:
    """One row of one mix."""
    first, opened = rounds[0], [one["open"] for one in rounds if "open" in one]
    counted, steady = (statistics.median(map(rate, rounds)) for rate in (images_per_s, by_latency))
    cells = [
        name,
        f"{first['workers']} × {first['threads']}" if first["workers"] else "its default",
        *(f"{rate:.2f}" if rate < 100 else f"{rate:.0f}" for rate in (counted, steady)),
        f"{steady / bare:.2f}",
        _latencies([one["closed"]["latency_ms"] for one in rounds]),
        _latencies([one["latency_ms"] for one in opened]) if opened else "–",
        f"{sum(map(unanswered, rounds))}" if opened else "–",
        "yes" if all(equal(one, codes) for one in rounds) else "**no**",
        f"{max(one['resident_bytes'] for one in rounds) / 2**20:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _failed(name: str, why: dict[str, str], rows: Container[str]) -> str:
    """A row without a result, or some of whose rounds failed, with the reason of the last."""
    told = " ".join(why[max(why, key=int)].replace("|", "/").split())
    rounds = f", {len(why)} round{'s' * (len(why) > 1)}" if name in rows else ""
    return f"| {name}{rounds} | failed: {told[:200]} |" + " – |" * 8


def images_per_s(result: Result) -> float:
    """Throughput of the closed loop, or of a loop without a server."""
    closed = result["closed"]
    return float(closed["images_per_s"] if "images_per_s" in closed else closed["achieved"]["images_per_s"])


def by_latency(result: Result) -> float:
    """Throughput of callers who ask again at once, by Little's law: their number divided by the mean latency.

    A server that answers eight at a time answers in steps, and those counted in a few seconds depend on where the
    steps fall in them: at 512² the sixteen callers' first two batches end just as the warm-up does. A loop without
    a server has one caller and says how many it computed; where some were not answered, the law does not hold of the
    others, and those answered are counted.
    """
    closed = result["closed"]
    if "in_flight" not in closed or unanswered({"closed": closed}):
        return images_per_s(result)
    return 1000 * float(closed["in_flight"] / closed["latency_ms"]["mean"])


def unanswered(result: Result) -> int:
    """Requests that failed or were refused, of both loads."""
    runs = [result[load] for load in ("closed", "open") if load in result]
    return sum(sum(run.get("errors", {}).values()) + run.get("rejects", {}).get("count", 0) for run in runs)


def equal(result: Result, codes: Result) -> bool:
    """Whether every picture was seen, its first answer had the bare model's codes, and no answer was unreadable."""
    seen = [result[load]["codes"] for load in ("closed", "open") if load in result]
    whole = [one for one in seen if one["pictures"] == codes["pictures"]]
    return bool(whole) and all(one["digest"] == codes["digest"] for one in whole) and not any(
        one.get("unstable") or one.get("unreadable") for one in seen
    )  # fmt: skip


def middle(rounds: dict[str, Result], value: Callable[[Result], float]) -> float:
    """The median over the rounds."""
    return statistics.median(map(value, rounds.values()))


def _latencies(runs: Sequence[Result]) -> str:
    return ", ".join(f"{statistics.median(run[name] for run in runs):.0f}" for name in ("p50", "p99"))


def _speeds(rows: dict[str, dict[str, Result]]) -> str:
    """How steady the machine was: the reference beside each measurement."""
    spoken = [ms for of in rows.values() for one in of.values() for ms in one["reference_ms"]]
    return (
        f"The machine meanwhile: a lone 512² encode by one thread, beside each of these, took {min(spoken):.0f} to "
        f"{max(spoken):.0f} ms (median {statistics.median(spoken):.0f})."
    )


if __name__ == "__main__":
    main()
