"""The file of a result: no keys in it; held against another, with all that makes the ratios mean something else."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from viq.errors import InvalidInput
from viq_serving.bench.chart import Chart, Curve, draw
from viq_serving.bench.comparison import compared
from viq_serving.bench.plots import charts_of
from viq_serving.bench.result import load, masked
from viq_serving.cli.bench_report import line, table
from viq_serving.cli.main import main

RESULTS = Path(__file__).parents[2] / "loadtest" / "results"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["viq", "--api-keys", "s3cret,b"], "viq --api-keys '***'"),
        (["viq", "--api-keys=s3cret"], "viq '--api-keys=***'"),
        (["viq", "bench", "--serve", "--api-keys s3cret --size nano"], None),
        (["viq", "bench", "--serve", "--size nano --api-keys=s3cret"], None),
        (["viq", "bench", "--serve=--api-keys 's3cret'"], None),
        (["viq", "bench", "--serve", "--api-keys 's3cr"], None),
        (["viq", "bench", "--serve", "--api-keys a --api-keys s3cret"], None),
    ],
)
def test_keys_are_not_in_a_command_line(command: list[str], shown: str | None) -> None:
    found = masked(command)
    assert "s3cr" not in found
    assert "***" in found
    assert shown is None or found == shown


def test_what_holds_no_key_is_shown_as_it_is() -> None:
    assert masked(["viq", "serve", "--api-keys-file", "keys.txt"]) == "viq serve --api-keys-file keys.txt"


@pytest.fixture
def sweep() -> dict[str, Any]:
    return load(RESULTS / "sweep.json")


def test_a_result_held_against_itself_differs_in_nothing(sweep: dict[str, Any]) -> None:
    found = compared(sweep, copy.deepcopy(sweep))
    assert (found["differences"], found["only_in_one"]) == ([], [])
    assert all(row["images_per_s"][2] == 1.0 for row in found["rows"])
    assert not any("offered" in note for row in found["rows"] for note in row["notes"])


def test_another_machine_version_scenario_and_load_are_told(sweep: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(sweep)
    other["made"]["machine"] |= {"processor": "another", "cores": 99}
    other["made"]["versions"]["grpcio"] = "0.1"
    other["target"]["command"] = "viq serve --replicas 7"
    other["mix"] |= {"digest": "another", "scale": 3.0}
    for run in other["runs"]:
        run["warm_up_s"], run["seconds"] = 77.0, 10 * run["seconds"]
        run["generator"]["processes"] = 5
        run["rate"] = run["rate"] and 2 * run["rate"]
        run["errors"] = {"timeout": 3}
        if run.get("codes"):
            run["codes"]["digest"] = "another"
    found = compared(sweep, other)
    told = "\n".join(found["differences"])
    for what in ("processor", "cores", "version of grpcio", "server's command", "pictures", "scale"):
        assert f"{what}: " in told
    for row in found["rows"]:
        assert row["codes_equal"] is None  # of other pictures nothing follows
        notes = "\n".join(row["notes"])
        for what in ("seconds of warm-up: ", "generators: ", "seconds measured: ", "not answered: "):
            assert what in notes
        assert ("offered: " in notes) == (row["rates"][0] is not None)
        assert "p99.9 of" in notes or "p99 of" in notes
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(sweep))
    second.write_text(json.dumps(other))
    assert main(["bench", "compare", str(first), str(second)]) == 0


def _run(rate: float) -> dict[str, Any]:
    """A row of a closed loop in which one of a hundred callers waited long."""
    latency = {"p50": 10.0, "p90": 10.0, "p99": 40.0, "p99_9": 400.0}
    return {
        **{"door": "rest", "method": "encode", "load": "2 in flight", "size": None, "loop": "closed", "rate": None},
        **{"requests": 100, "answered": 100, "seconds": 1.0, "warm_up_s": 0.0, "errors": {}, "codes": {}},
        "achieved": {"images_per_s": rate, "patches_per_s": 1.0},
        "rejects": {"count": 0, "without_hint": 0},
        "generator": {"processes": 1, "lag_ms": {"p99": 0.1}, "limits": []},
        "latency_ms": latency,
        "corrected_ms": {**latency, "p90": 50.0, "p99": 390.0},
    }


def test_what_waiting_callers_left_out_is_told_and_compared(sweep: dict[str, Any]) -> None:
    run = _run(100.0)
    assert "left out: p90 50.0, p99 390.0 ms" in line(run)
    assert "measure with --rates" in line({**run, "corrected_ms": None})
    assert "left out" not in line({**run, "corrected_ms": run["latency_ms"]})
    less = {**run, "corrected_ms": {**run["corrected_ms"], "p99": 195.0}}
    found = compared({**sweep, "runs": [run]}, {**sweep, "runs": [less]})
    assert found["rows"][0]["corrected_p99_ms"] == [390.0, 195.0, 0.5]
    assert "corrected_p99_ms" in table(found)
    unknown = compared({**sweep, "runs": [run]}, {**sweep, "runs": [{**run, "corrected_ms": None}]})
    assert unknown["rows"][0]["corrected_p99_ms"] == [390.0, None, None]
    mixed = compared({**sweep, "runs": [run]}, {**sweep, "runs": [run, run, {**run, "corrected_ms": None}]})
    assert mixed["rows"][0]["corrected_p99_ms"] == [390.0, None, None]
    assert any("than can be corrected for: 0 and 1" in note for note in mixed["rows"][0]["notes"])
    opened = {**run, "loop": "open", "corrected_ms": None}
    del opened["corrected_ms"]
    assert "corrected" not in table(compared({**sweep, "runs": [opened]}, {**sweep, "runs": [opened]}))


@pytest.mark.parametrize(
    "changed",
    [
        {"mix": [1]},
        {"target": []},
        {"runs": [1]},
        {"runs": [{"answered": 1}]},
        {"runs": [_run(10**400)]},
        {"made": 5},
        {"runs": "none"},
    ],
)
@pytest.mark.parametrize("word", ["plot", "compare"])
def test_a_damaged_result_is_no_traceback(
    sweep: dict[str, Any], changed: dict[str, Any], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**sweep, **changed}))
    arguments = (
        ["plot", str(path), "-o", str(tmp_path / "x.png")] if word == "plot" else ["compare", str(path), str(path)]
    )
    assert main(["bench", *arguments]) in (0, 1, 2)


def test_a_result_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InvalidInput, match="no JSON"):
        load(path)


def test_what_nothing_was_answered_under_is_said_below_the_chart(sweep: dict[str, Any]) -> None:
    before = charts_of(sweep)
    assert not any(chart.note for chart in before)
    last = sweep["runs"][-1]
    last["answered"] = 0
    assert all(chart.note == f"nothing answered: {last['load']} by {last['door']}" for chart in charts_of(sweep))


@pytest.mark.parametrize("values", [[-1e300, 5.0], [1e-300, 1e300], [0.0, 0.0], [math.inf, 3.0], [2.0, 2.0]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(values: list[float], log: bool, tmp_path: Path) -> None:
    doors = [f"a door of some length {number}" for number in range(6)]
    curves = [Curve(f"{door} p50", [(1.0, values[0]), (2.0, values[1])], i) for i, door in enumerate(doors)]
    curves += [
        Curve(f"{door} p99", [(1.0, values[0]), (2.0, values[1])], i, dashed=True) for i, door in enumerate(doors)
    ]
    draw([Chart("title", "x", "y", curves, log_y=log, note="n" * 200)], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (720, 400)
