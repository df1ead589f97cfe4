"""What `viq bench` prints: a line a run, a table of two results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LITTLE = 1.1
_COLUMNS = (
    ("door", 12), ("size", 10), ("load", 14), ("answered", 9), ("images/s", 9), ("patches/s", 10),
    ("p50 ms", 9), ("p90", 9), ("p99", 9), ("p99.9", 9), ("rejects", 8), ("errors", 7), ("late p99", 9),
)  # fmt: skip


def heading() -> str:
    """The names of what `line` tells; `late` is how late the generator itself was, in ms."""
    return _joined([name for name, _ in _COLUMNS])


def line(run: Mapping[str, Any]) -> str:
    """One run in a line."""
    achieved, latency = run["achieved"], run["latency_ms"]
    cells = [
        run["door"],
        run["size"] or "",
        run["load"] if run["rate"] is None else f"{run['rate']:g}/s",
        str(run["answered"]),
        f"{achieved['images_per_s']:g}",
        f"{achieved['patches_per_s']:.0f}",
        *(_ms(latency[name]) for name in ("p50", "p90", "p99", "p99_9")),
        str(run["rejects"]["count"]),
        str(sum(run["errors"].values())),
        _ms(run["generator"]["lag_ms"]["p99"]),
    ]
    kinds = ", ".join(f"{count} {kind}" for kind, count in run["errors"].items())
    hintless = run["rejects"]["without_hint"]
    notes = [
        kinds,
        f"{hintless} rejects without a hint" if hintless else "",
        run.get("codes", {}).get("unreadable", ""),
        _corrected(run),
        *run["generator"].get("limits", ()),
    ]
    return "\n".join([_joined(cells), *(f"  {note}" for note in notes if note)])


def _corrected(run: Mapping[str, Any]) -> str:
    """What a closed loop left out, in words; nothing where that is little."""
    told, latency = run.get("corrected_ms"), run["latency_ms"]
    if run.get("loop") == "closed" and "corrected_ms" in run and told is None and latency["p99"] is not None:
        return "callers who waited left out more requests than can be corrected for: measure with --rates"
    if told is None or latency["p99"] is None or told["p99"] is None:
        return ""
    if all(told[name] <= _LITTLE * latency[name] for name in ("p90", "p99")):
        return ""
    return f"corrected for requests that callers who waited left out: p90 {_ms(told['p90'])}, p99 {_ms(told['p99'])} ms"


def table(found: Mapping[str, Any]) -> str:
    """Two results as `compared` gives them: each figure of the first, of the second, and the second over the first."""
    lines = []
    for row in found["rows"]:
        named = [str(row[name]) for name in ("door", "method", "load", "size") if row[name] is not None]
        lines.append(", ".join(named))
        for measure in ("images_per_s", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "corrected_p99_ms"):
            first, second, ratio = row[measure]
            if measure.startswith("corrected") and first is second is None:  # an open loop has no such
                continue
            lines.append(
                f"  {measure:<16} {_ms(first):>10} {_ms(second):>10} {'-' if ratio is None else f'{ratio:.3f}×':>9}"
            )
        lines.append(f"  {'codes equal':<16} {_equal(row['codes_equal'])}")
        lines += [f"  {note}" for note in row["notes"]]
    lines += [f"only in one of them: {name}" for name in found["only_in_one"]]
    lines += [f"they differ in {difference}" for difference in found["differences"]]
    return "\n".join(lines) or "nothing in common"


def _equal(value: bool | None) -> str:
    return "not known" if value is None else "yes" if value else "NO"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _joined(cells: Sequence[str]) -> str:
    widths = [width for _, width in _COLUMNS]
    padded = [
        cell.ljust(width) if index < 3 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return " ".join(padded).rstrip()
