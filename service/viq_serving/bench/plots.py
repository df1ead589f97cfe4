"""What there is to draw of a result: latency against offered load, throughput against size or callers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from viq.errors import InvalidInput
from viq_serving.bench.chart import Chart, Curve, draw

Row = Mapping[str, Any]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of all charts that `result` has the runs for; raises `InvalidInput` if there are none."""
    charts = charts_of(result)
    if not charts:
        raise InvalidInput("nothing to draw: it takes two rates, two numbers of requests in flight, or --each-size")
    draw(charts, path)


def charts_of(result: Mapping[str, Any]) -> list[Chart]:
    """The charts; medians over rounds. Runs without any answer are no points, which is said below."""
    runs, name = [run for run in result["runs"] if run["answered"]], _named(result)
    note = _unanswered(result["runs"])
    rates = [run for run in runs if run["loop"] == "open" and run["size"] is None]
    callers = [run for run in runs if run["loop"] == "closed" and run["size"] is None]
    sizes = [run for run in runs if run["size"] is not None and run["loop"] == "closed"]
    charts = []
    if len({run["load"] for run in rates}) > 1:
        charts.append(_latency(f"Latency against offered load: {name}", "requests a second offered", rates, "rate"))
        curves = _curves(rates, "rate", {"": _rate})
        charts.append(
            Chart(f"Answered against offered: {name}", "requests a second offered", "images/s answered", curves)
        )
    if len({run["in_flight"] for run in callers}) > 1:
        charts.append(_latency(f"Latency against callers: {name}", "requests in flight", callers, "in_flight"))
        curves = _curves(callers, "in_flight", {"": _rate})
        charts.append(Chart(f"Throughput against callers: {name}", "requests in flight", "images/s", curves))
    if len({run["size"] for run in sizes}) > 1:
        charts += _by_size(sizes, name)
    return [replace(chart, note=note) for chart in charts]


def _unanswered(runs: Sequence[Row]) -> str:
    """Which loads or sizes nothing was answered under."""
    named = [f"{run['size'] or run['load']} by {run['door']}" for run in runs if not run["answered"]]
    return f"nothing answered: {', '.join(dict.fromkeys(named))}" if named else ""


def _by_size(runs: Sequence[Row], name: str) -> list[Chart]:
    placed = [{**run, "pixels": _pixels(run["size"])} for run in runs]
    images, patches = _curves(placed, "pixels", {"": _rate}), _curves(placed, "pixels", {"": _patch_rate})
    return [
        Chart(f"Throughput against size: {name}", "pixels of an image", "images/s", images, log_x=True, log_y=True),
        Chart(f"Patches against size: {name}", "pixels of an image", "patches/s", patches, log_x=True),
    ]


def _latency(title: str, x: str, runs: Sequence[Row], over: str) -> Chart:
    measures: dict[str, Callable[[Row], float | None]] = {
        "p50": lambda run: run["latency_ms"]["p50"],
        "p99": lambda run: run["latency_ms"]["p99"],
    }
    return Chart(title, x, "ms (p99 dashed)", _curves(runs, over, measures), log_y=True)


def _curves(runs: Sequence[Row], over: str, measures: Mapping[str, Callable[[Row], float | None]]) -> list[Curve]:
    """A curve for each door and measure; a point for each load or size, the medians of its rounds."""
    curves, doors = [], list(dict.fromkeys(run["door"] for run in runs))
    for colour, door in enumerate(doors):
        for number, (measure, value_of) in enumerate(measures.items()):
            groups: dict[str, list[tuple[float, float]]] = {}
            for run in runs:
                value = value_of(run)
                if run["door"] == door and value is not None:
                    groups.setdefault(f"{run['load']} {run['size']}", []).append((float(run[over]), value))
            points = [(_median(0, group), _median(1, group)) for group in groups.values()]
            curves.append(Curve(f"{door} {measure}".strip(), sorted(points), colour, dashed=number > 0))
    return curves


def _median(axis: int, points: Sequence[tuple[float, float]]) -> float:
    return statistics.median(point[axis] for point in points)


def _rate(run: Row) -> float:
    return float(run["achieved"]["images_per_s"])


def _patch_rate(run: Row) -> float:
    return float(run["achieved"]["patches_per_s"])


def _pixels(size: str) -> int:
    width, _, height = size.partition("x")
    return int(width) * int(height)


def _named(result: Mapping[str, Any]) -> str:
    mix, models = result.get("mix") or {}, result.get("target", {}).get("models") or [{}]
    what = mix.get("name", "") if not any(run["size"] for run in result["runs"]) else "each size by itself"
    return ", ".join(part for part in (result.get("name"), models[0].get("size"), what) if part)
