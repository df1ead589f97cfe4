"""Two results side by side: the second over the first."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

_MEASURES = ("images_per_s", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "corrected_p99_ms")
_KEYS = ("door", "method", "load", "size")
_LEAST = {"p99": 100, "p99.9": 1000}
"""Answers that a percentile takes to be another than the largest."""
_LONGER = 1.5


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of all runs that both have, medians over rounds, and what else differs between the two."""
    ours, theirs = _grouped(first["runs"]), _grouped(second["runs"])
    if len(_doors(ours)) == len(_doors(theirs)) == 1:  # two servers, each asked in its own way
        ours, theirs = ({(None, *key[1:]): runs for key, runs in side.items()} for side in (ours, theirs))
    same = _at(first, ("mix", "digest")) == _at(second, ("mix", "digest"))
    rows = [_row(key, ours[key], theirs[key], same) for key in ours if key in theirs]
    alone = [_named(key) for key in [*ours, *theirs] if (key in ours) != (key in theirs)]
    return {"rows": rows, "only_in_one": alone, "differences": list(_differences(first, second))}


def _doors(grouped: Mapping[tuple[Any, ...], Sequence[Row]]) -> set[Any]:
    return {key[0] for key in grouped}


def _grouped(runs: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(name) for name in _KEYS), []).append(run)
    return groups


def _row(key: tuple[Any, ...], ours: Sequence[Row], theirs: Sequence[Row], same_pictures: bool) -> Row:
    row: Row = dict(zip(_KEYS, key, strict=True))
    for measure in _MEASURES:
        one, other = _median(ours, measure), _median(theirs, measure)
        row[measure] = [one, other, round(other / one, 3) if one and other is not None else None]
    row["rates"] = [ours[0].get("rate"), theirs[0].get("rate")]
    equal = _codes_equal(ours, theirs)
    row["codes_equal"] = None if equal is False and not same_pictures else equal
    row["notes"] = list(_notes(ours, theirs))
    return row


def _notes(ours: Sequence[Row], theirs: Sequence[Row]) -> Iterator[str]:
    """What makes the ratios of a row no ratios of the servers: another load, another length, too few answers."""
    one, other = (_at(runs, (0, "rate")) for runs in (ours, theirs))
    if one != other:
        yield f"offered: {one} and {other} a second, as shares of what each achieved"
    for what, names in (("seconds of warm-up", ("warm_up_s",)), ("generators", ("generator", "processes"))):
        one, other = (sorted({_at(run, names) for run in runs}) for runs in (ours, theirs))
        if one != other:
            yield f"{what}: {_listed(one)} and {_listed(other)}"
    one, other = (statistics.median(run["seconds"] for run in runs) for runs in (ours, theirs))
    if max(one, other) > _LONGER * min(one, other):
        yield f"seconds measured: {one:g} and {other:g}"
    failed = [sum(sum(run["errors"].values()) + run["rejects"]["count"] for run in runs) for runs in (ours, theirs)]
    if any(failed):
        yield f"not answered: {failed[0]} and {failed[1]}, whose latencies do not count"
    beyond = [sum(map(_beyond_correction, runs)) for runs in (ours, theirs)]
    if any(beyond):
        yield f"runs in which callers who waited left out more than can be corrected for: {beyond[0]} and {beyond[1]}"
    one, other = (min(run["answered"] for run in runs) for runs in (ours, theirs))
    measure = next((name for name, least in _LEAST.items() if min(one, other) < least), None)
    if measure is not None:
        yield f"{measure} of {one} and {other} answers is the largest: another takes {_LEAST[measure]}"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _median(runs: Sequence[Row], measure: str) -> float | None:
    if measure == "images_per_s":
        values = [run["achieved"][measure] for run in runs]
    elif measure.startswith("corrected_"):  # of closed loops alone
        if any(map(_beyond_correction, runs)):
            return None
        values = [(run.get("corrected_ms") or {}).get(measure.removeprefix("corrected_")[:-3]) for run in runs]
    else:
        values = [run["latency_ms"][measure.removesuffix("_ms")] for run in runs]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _beyond_correction(run: Row) -> bool:
    """Whether callers who waited left out more than `bench.figures.corrected` adds."""
    return bool(run["answered"]) and "corrected_ms" in run and run["corrected_ms"] is None


def _codes_equal(ours: Sequence[Row], theirs: Sequence[Row]) -> bool | None:
    """Whether all runs of both gave the same codes; None if one of them does not know or saw fewer pictures."""
    told = [run.get("codes") or {} for run in (*ours, *theirs)]
    if any(one.get("digest") is None for one in told) or len({one["pictures"] for one in told}) > 1:
        return None
    return len({one["digest"] for one in told}) == 1 and not any(one["unstable"] for one in told)


def _named(key: tuple[Any, ...]) -> str:
    return ", ".join(str(part) for part in key if part is not None)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """What makes the ratios mean something else than a change of the server."""
    for what, path in (
        ("pictures", ("mix", "digest")),
        ("mix", ("mix", "name")),
        ("processor", ("made", "machine", "processor")),
        ("cores", ("made", "machine", "cores")),
        ("memory", ("made", "machine", "memory_bytes")),
        ("system", ("made", "machine", "system")),
        *((f"version of {name}", ("made", "versions", name)) for name in _packages(first, second)),
        ("scale", ("mix", "scale")),
        ("format of files", ("mix", "format")),
        ("server's command", ("target", "command")),
        ("dtype", ("target", "models", 0, "dtype")),
        ("device", ("target", "models", 0, "device")),
        ("fingerprint", ("target", "models", 0, "fingerprint")),
    ):
        one, other = _at(first, path), _at(second, path)
        if one != other:
            yield f"{what}: {one} and {other}"


def _packages(*results: Mapping[str, Any]) -> list[str]:
    return sorted({name for one in results for name in _at(one, ("made", "versions")) or {}})


def _at(held: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        try:
            held = held[step]
        except (KeyError, IndexError, TypeError):
            return None
    return held
