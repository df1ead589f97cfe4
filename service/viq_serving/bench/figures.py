"""Figures of a run: percentiles, rates, counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from viq_serving.bench.load import Load
from viq_serving.bench.pictures import PictureFile
from viq_serving.bench.records import Records

Values = npt.NDArray[np.float64]

_SHARES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
_MOST_ADDED = 10_000_000
_LATE_SHARE, _LATE_MS, _BUSY = 0.1, 2.0, 0.9
"""When a generator is itself what is measured: late by more than this share of the median latency and this many
milliseconds, once in a hundred times; or so much of a core."""


def figures_of(
    loads: Sequence[Load], files: Sequence[PictureFile], *, closed: bool, counted: bool, connections: int | None = None
) -> dict[str, Any]:
    """What the generators of one run measured together.

    Requests that were due in the window are counted, with their latencies; rates are of answers that came in it. If
    requests were `counted` out, rates are of all of these alone, until the last answer. `connections` is how many
    requests all generators can have under way, if not any.
    """
    start, end = min(one.start for one in loads), max(one.end for one in loads)
    seconds = max(end - start, 1e-9)
    columns = Records.joined([one.records for one in loads]).columns()
    inside = (columns["due"] >= start) & (columns["due"] < end)
    done = columns["kind"] == ""
    latencies = 1000 * (columns["ended"] - columns["due"])[inside & done].astype(np.float64)
    until = float(columns["ended"][inside & done].max(initial=end)) if counted else end
    came = done & (columns["ended"] >= start) & (columns["ended"] <= until) & (inside if counted else True)
    usual = percentiles(latencies)
    told: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "requests": int(inside.sum()),
        "answered": int((inside & done).sum()),
        "offered_per_s": round(float(inside.sum()) / seconds, 3),
        "achieved": _achieved(columns, came, files, max(until - start, 1e-9)),
        "latency_ms": usual,
    }
    if closed:
        more = corrected(latencies)
        told["corrected_ms"] = None if more is None else percentiles(more)
    late = 1000 * np.array([late for one in loads for late in one.lag], np.float64)
    lag = percentiles(late, {"p50": 50.0, "p99": 99.0})
    spent = [one.cpu_s / max(one.end - one.start, 1e-9) for one in loads]
    return told | {
        "errors": _errors(columns, inside),
        "rejects": _rejects(columns, inside),
        "generator": {
            "processes": len(loads),
            "lag_ms": lag,
            "under_way": (most := _under_way(columns)),
            "limits": [*_limits(lag["p99"], usual["p50"], max(spent)), *_waits(most, connections)],
            "cpu_share": round(sum(spent), 3),
            "cpu_ms_per_request": round(1000 * sum(spent) * seconds / max(1, int(inside.sum())), 3),
        },
    }


def _limits(late_ms: float | None, usual_ms: float | None, core: float) -> list[str]:
    """Why these are figures of the generator, too, in words; none if they are not."""
    told = list[str]()
    if late_ms is not None and late_ms > max(_LATE_MS, _LATE_SHARE * (usual_ms or 0.0)):
        told.append(f"the generator was late by {late_ms:.3g} ms (p99), which latencies hold, too")
    if core > _BUSY:
        told.append(f"a generator took {core:.0%} of a core: give it --processes")
    return told


def _under_way(columns: dict[str, npt.NDArray[Any]]) -> int:
    """The most requests that were sent, or waited for a connection, and not answered, at one time."""
    moments = np.concatenate([columns["begun"], columns["ended"]]).astype(np.float64)
    steps = np.repeat([1, -1], len(moments) // 2)
    return int(np.cumsum(steps[np.lexsort((steps, moments))]).max(initial=0))


def _waits(most: int, connections: int | None) -> list[str]:
    if connections is None or most <= connections:
        return []
    return [f"{most} requests were under way with {connections} connections: the rest waited in the generator"]


def percentiles(values: Values, shares: dict[str, float] = _SHARES) -> dict[str, float | int | None]:
    """Percentiles, largest and mean of `values`; each percentile is one of the values, the least that so many are
    not above. Of no values, nulls."""
    if not len(values):
        return {**dict.fromkeys(shares), "max": None, "mean": None}
    ordered, count = np.sort(values), len(values)
    # Rounded first: 99.9 % of 1000 values are 999 of them, in floating point a little more.
    places = {name: max(0, math.ceil(round(share * count / 100, 9)) - 1) for name, share in shares.items()}
    rows = {name: round(float(ordered[place]), 3) for name, place in places.items()}
    return {**rows, "max": round(float(values.max()), 3), "mean": round(float(values.mean()), 3)}


def corrected(latencies: Values) -> Values | None:
    """Latencies with those added that callers who wait left out: coordinated omission. None if they are too many.

    While a caller waits longer than usual it does not send what it would have sent. As HdrHistogram's
    `recordValueWithExpectedInterval`: a latency of v stands also for requests due each expected interval i later,
    v-i, v-2i … down to i. The interval expected of a caller who sends at once is the median latency. Where pictures
    differ in size, large ones count as stalls too, so this is an upper bound.
    """
    if not len(latencies):
        return latencies
    interval = float(np.median(latencies))
    missing = np.floor(latencies / interval).astype(np.int64) - 1 if interval > 0 else np.zeros(0, np.int64)
    late = missing > 0
    if int(missing[late].sum()) > _MOST_ADDED:
        return None
    if not late.any():
        return latencies
    added = [
        value - interval * np.arange(1, count + 1) for value, count in zip(latencies[late], missing[late], strict=True)
    ]
    return np.concatenate([latencies, *added])


def _achieved(
    columns: dict[str, npt.NDArray[Any]], came: npt.NDArray[np.bool_], files: Sequence[PictureFile], seconds: float
) -> dict[str, float]:
    pictures = columns["picture"][came].astype(np.int64)
    patches, pixels = (np.array([getattr(one, what) for one in files], np.int64) for what in ("patches", "pixels"))
    amounts = {
        "images_per_s": float(len(pictures)),
        "patches_per_s": float(patches[pictures].sum()),
        "pixels_per_s": float(pixels[pictures].sum()),
        "sent_bytes_per_s": float(columns["sent"][came].sum()),
        "received_bytes_per_s": float(columns["received"][came].sum()),
    }
    return {name: _rounded(amount / seconds) for name, amount in amounts.items()}


def _errors(columns: dict[str, npt.NDArray[Any]], inside: npt.NDArray[np.bool_]) -> dict[str, int]:
    failed = inside & (columns["kind"] != "") & ~columns["reject"].astype(np.bool_)
    return dict(Counter(columns["kind"][failed].tolist()).most_common())


def _rejects(columns: dict[str, npt.NDArray[Any]], inside: npt.NDArray[np.bool_]) -> dict[str, Any]:
    refused = inside & columns["reject"].astype(np.bool_)
    hints = columns["hint_s"][refused].astype(np.float64)
    hints = 1000 * hints[~np.isnan(hints)]
    taken = 1000 * (columns["ended"] - columns["due"])[refused].astype(np.float64)
    return {
        "count": int(refused.sum()),
        "with_hint": len(hints),
        "without_hint": int(refused.sum()) - len(hints),
        "hint_ms": percentiles(hints, {"p50": 50.0, "p99": 99.0}),
        "latency_ms": percentiles(taken, {"p50": 50.0, "p99": 99.0}),
    }


def _rounded(value: float) -> float:
    """Four significant digits, whole from a thousand on."""
    return round(value, max(0, 3 - math.floor(math.log10(value)))) if value > 0 else 0.0
