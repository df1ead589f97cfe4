"""When requests are sent, and with which picture."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from viq_serving.bench.arrivals import Poisson, cycle


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    times = Poisson(50.0).times(200.0, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential distribution they are equal
    assert times == Poisson(50.0).times(200.0, seed=1) != Poisson(50.0).times(200.0, seed=2)


def test_so_many_arrivals_after_a_time_continue_the_same_order() -> None:
    few, longer = Poisson(50.0).times(2.0, seed=1), Poisson(50.0).times(20.0, seed=1)
    more = Poisson(50.0).times(2.0, seed=1, then=300)
    assert len(more) == len(few) + 300
    assert more == longer[: len(more)]
    assert Poisson(50.0).times(0.0, seed=1, then=3) == longer[:3]


def test_each_picture_is_sent_once_before_any_twice_also_by_several_generators() -> None:
    for parts in (1, 2, 3):
        order = [cycle(7, 3, part, parts) for part in range(parts)]
        sent = [next(order[turn % parts]) for turn in range(21)]
        assert [sorted(sent[begin : begin + 7]) for begin in (0, 7, 14)] == [list(range(7))] * 3
    assert list(islice(cycle(7, 3), 7)) != list(islice(cycle(7, 4), 7))
