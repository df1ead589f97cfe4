"""Timing of the packaged weights."""

from __future__ import annotations

from nano.timing import timed


def test_the_first_call_does_not_count_and_the_best_is_at_most_the_middle() -> None:
    calls: list[int] = []
    best, middle = timed(lambda: calls.append(1), 5)
    assert len(calls) == 6
    assert 0 <= best <= middle
