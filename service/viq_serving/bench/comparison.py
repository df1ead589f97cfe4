"""Two results side by side: the second over the first."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

_MEASURES = ("images_per_s", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms")
_KEYS = ("door", "method", "load", "size")


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of all runs that both have, medians over rounds, and what else differs between the two."""
    ours, theirs = _grouped(first["runs"]), _grouped(second["runs"])
    if len(_doors(ours)) == len(_doors(theirs)) == 1:  # two servers, each asked in its own way
        ours, theirs = ({(None, *key[1:]): runs for key, runs in side.items()} for side in (ours, theirs))
    rows = [_row(key, ours[key], theirs[key]) for key in ours if key in theirs]
    alone = [_named(key) for key in [*ours, *theirs] if (key in ours) != (key in theirs)]
    return {"rows": rows, "only_in_one": alone, "differences": list(_differences(first, second))}


def _doors(grouped: Mapping[tuple[Any, ...], Sequence[Row]]) -> set[Any]:
    return {key[0] for key in grouped}


def _grouped(runs: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(name) for name in _KEYS), []).append(run)
    return groups


def _row(key: tuple[Any, ...], ours: Sequence[Row], theirs: Sequence[Row]) -> Row:
    row: Row = dict(zip(_KEYS, key, strict=True))
    for measure in _MEASURES:
        one, other = _median(ours, measure), _median(theirs, measure)
        row[measure] = [one, other, round(other / one, 3) if one and other is not None else None]
    row["rates"] = [ours[0].get("rate"), theirs[0].get("rate")]
    row["codes_equal"] = _codes_equal(ours, theirs)
    return row


def _median(runs: Sequence[Row], measure: str) -> float | None:
    if measure == "images_per_s":
        values = [run["achieved"][measure] for run in runs]
    else:
        values = [run["latency_ms"][measure.removesuffix("_ms")] for run in runs]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


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
        ("fingerprint", ("target", "models", 0, "fingerprint")),
    ):
        one, other = _at(first, path), _at(second, path)
        if one != other:
            yield f"{what}: {one} and {other}"


def _at(held: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        try:
            held = held[step]
        except (KeyError, IndexError, TypeError):
            return None
    return held
