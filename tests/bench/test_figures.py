"""Percentiles, rates and the correction for coordinated omission, on numbers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from viq_serving.bench.doors.door import Answer
from viq_serving.bench.figures import corrected, figures_of, percentiles
from viq_serving.bench.load import Load
from viq_serving.bench.pictures import PictureFile
from viq_serving.bench.records import Records

FILES = [PictureFile(0, 32, 16, b"ab"), PictureFile(1, 64, 64, b"abcd")]


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentiles(np.arange(1.0, 1001.0)) == {
        "p50": 500.0,
        "p90": 900.0,
        "p99": 990.0,
        "p99_9": 999.0,
        "max": 1000.0,
        "mean": 500.5,
    }
    assert percentiles(np.array([]))["p99"] is None


def test_a_stall_counts_as_often_as_a_caller_at_a_steady_pace_would_have_met_it() -> None:
    steady = [10.0] * 99
    found = with_missing([*steady, 100.0])
    added = sorted(found)[99:]
    assert added == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]
    assert with_missing(steady) == steady
    assert with_missing([]) == []


def test_more_left_out_than_can_be_added_is_told_as_unknown() -> None:
    assert corrected(np.array([0.001] * 99 + [1e6])) is None
    load = Load(Records(), start=0.0, end=2e3)
    for due, ended in (*((0.01 * i, 0.01 * i + 1e-6) for i in range(9)), (1.0, 1900.0)):
        load.records.add(0, due, due, ended, 2, Answer("", 8))
    run = figures_of([load], FILES, closed=True, counted=False)
    assert run["corrected_ms"] is None
    assert run["latency_ms"]["p99"] > 1e6


def with_missing(latencies: list[float]) -> list[float]:
    found = corrected(np.array(latencies))
    assert found is not None
    return [float(value) for value in found]


def test_only_what_was_due_in_the_window_is_counted_and_only_what_came_in_it_is_a_rate() -> None:
    load, ok = Load(Records(), start=10.0, end=12.0, lag=[0.001], cpu_s=0.5), Answer("", 8)
    for due, ended, picture in ((9.5, 9.9, 0), (9.8, 10.5, 1), (10.5, 11.0, 0), (11.5, 12.5, 1), (12.5, 12.7, 0)):
        load.records.add(picture, due, due, ended, len(FILES[picture].data), ok)
    load.records.add(0, 11.0, 11.0, 11.004, 2, Answer("429 overloaded", reject=True, hint_s=0.25))
    load.records.add(0, 11.0, 11.0, 11.006, 2, Answer("RESOURCE_EXHAUSTED", reject=True))
    load.records.add(1, 11.0, 11.0, 11.1, 4, Answer("500 internal"))
    found = figures_of([load], FILES, closed=False, counted=False)
    assert (found["requests"], found["answered"], found["seconds"]) == (5, 2, 2.0)
    assert found["latency_ms"]["p50"] == pytest.approx(500.0)
    assert found["latency_ms"]["max"] == pytest.approx(1000.0)
    assert found["achieved"] == {
        "images_per_s": 1.0,
        "patches_per_s": 9.0,
        "pixels_per_s": 2304.0,
        "sent_bytes_per_s": 3.0,
        "received_bytes_per_s": 8.0,
    }
    assert found["errors"] == {"500 internal": 1}
    assert found["rejects"]["count"] == 2
    assert (found["rejects"]["with_hint"], found["rejects"]["without_hint"]) == (1, 1)
    assert found["rejects"]["hint_ms"]["p50"] == 250.0
    assert found["generator"]["cpu_share"] == 0.25


def test_nothing_answered_is_told_as_nothing() -> None:
    load = Load(Records(), start=1.0, end=2.0)
    load.records.add(0, 1.5, 1.5, 1.6, 2, Answer("timeout"))
    found = figures_of([load], FILES, closed=True, counted=False)
    assert found["latency_ms"]["p50"] is found["corrected_ms"]["p50"] is None
    assert found["achieved"]["images_per_s"] == 0.0


@pytest.mark.parametrize(
    ("lag", "cpu_s", "told"),
    [
        ([0.001] * 99, 0.5, []),
        ([0.001] * 90 + [0.3] * 10, 0.5, ["the generator was late by 300 ms (p99)"]),
        ([0.001] * 99, 1.9, ["a generator took 95% of a core"]),
    ],
)
def test_a_generator_that_is_itself_the_limit_says_so(lag: list[float], cpu_s: float, told: list[str]) -> None:
    load = Load(Records(), start=10.0, end=12.0, lag=lag, cpu_s=cpu_s)
    load.records.add(0, 10.5, 10.5, 10.6, 2, Answer("", 8))
    found = figures_of([load, Load(start=10.0, end=12.0)], FILES, closed=False, counted=False)
    limits = found["generator"]["limits"]
    assert len(limits) == len(told)
    assert all(one.startswith(start) for one, start in zip(limits, told, strict=True))


def test_requests_that_wait_for_a_connection_in_the_generator_are_told() -> None:
    load = Load(Records(), start=10.0, end=12.0)
    for begun, ended in ((10.0, 11.0), (10.5, 11.5), (10.9, 11.2), (11.5, 11.6)):
        load.records.add(0, begun, begun, ended, 2, Answer("", 8))
    for connections, told in ((None, 0), (3, 0), (2, 1)):
        generator = figures_of([load], FILES, closed=False, counted=False, connections=connections)["generator"]
        assert generator["under_way"] == 3
        assert len(generator["limits"]) == told
