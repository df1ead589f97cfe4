"""Rates and the end that is to be expected."""

from __future__ import annotations

from viq_serving.extract.extraction import Tally
from viq_serving.extract.meter import Meter


def test_rates_are_those_of_the_last_minute_and_the_end_follows_from_the_whole_run() -> None:
    meter = Meter(now=100.0)
    assert meter.line(Tally(), None, 100.0).startswith("0 images, 0.0 images/s")
    assert meter.line(Tally(images=50, patches=500, done=1100, begun_at=1000), 2000, 110.0) == (
        "50 images, 5.0 images/s, 50 patches/s, 55.0 %, 1 min left"
    )
    later = Tally(images=650, failed=2, patches=12500, done=1200, begun_at=1000)
    meter.line(later, 2000, 170.0)
    later.images += 120
    assert meter.line(later, 2000, 230.0) == "770 images, 2.0 images/s, 0 patches/s, 2 failed, 60.0 %, 8 min left"


def test_without_a_known_total_no_end_is_told() -> None:
    assert Meter(0.0).left_s(Tally(done=10), None, 5.0) is None
    assert Meter(0.0).left_s(Tally(done=10, begun_at=10), 20, 5.0) is None
