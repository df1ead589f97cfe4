"""How long work takes, learned from work done."""

from __future__ import annotations

import pytest

from viq_serving.engine.pace import Pace


def test_nothing_is_expected_while_nothing_is_known() -> None:
    assert Pace().seconds(1000) == 0.0


def test_price_of_a_batch_and_of_its_cost_are_told_apart() -> None:
    pace = Pace()
    for cost in (4, 64, 4, 64):
        pace.observe(cost, 0.010 + 0.001 * cost)
    assert pace.seconds(1000) == pytest.approx(1.010)
    assert pace.seconds(1000, per_batch=100) == pytest.approx(10 * 0.010 + 1.0)


def test_batches_of_one_cost_give_a_rate() -> None:
    pace = Pace()
    for _ in range(3):
        pace.observe(100, 2.0)
    assert pace.seconds(50) == pytest.approx(1.0)


def test_traffic_of_one_cost_does_not_unlearn_what_large_work_takes() -> None:
    pace = Pace()
    for cost in (4, 64, 4, 64):
        pace.observe(cost, 0.010 + 0.001 * cost)
    for number in range(600):
        pace.observe(17, 0.027 * (1.1 if number % 2 else 0.9))
    assert pace.seconds(1000) == pytest.approx(1.010, rel=0.2)


def test_one_hiccup_is_soon_forgotten() -> None:
    pace = Pace()
    for _ in range(30):
        pace.observe(17, 0.017)
    pace.observe(17, 8.0)
    assert pace.seconds(17) < 2 * 0.017


def test_noise_never_makes_an_expectation_negative() -> None:
    pace = Pace()
    for cost, seconds in ((10, 5.0), (1000, 0.1), (20, 4.0)):
        pace.observe(cost, seconds)
    assert all(pace.seconds(cost) > 0 for cost in (1, 10, 100, 10_000))


def test_what_was_long_ago_is_forgotten() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(100, 10.0)
    for _ in range(100):
        pace.observe(100, 1.0)
    assert pace.seconds(100) == pytest.approx(1.0, rel=0.1)


def test_the_price_of_a_batch_is_told_as_a_cost() -> None:
    pace = Pace()
    assert pace.price == 0
    pace.observe(100, 1.0)
    assert pace.price == 0  # costs of one kind tell nothing of it
    for cost in (10, 400) * 5:
        pace.observe(cost, 0.5 + cost / 100)
    assert pace.price == pytest.approx(50, rel=0.2)
