"""Room in the queue: reserved whole, given back on every way out, refused with a hint."""

from __future__ import annotations

import math

import pytest

from viq_serving.engine.admission import Admission
from viq_serving.engine.scheduler import Flow
from viq_serving.errors import DeadlineExceeded, Overloaded, TooLarge

ENCODE: Flow = ("encode", "nano")


def slow(flow: Flow, cost: float) -> float:
    return cost / 100


def admission(max_patches: int = 1000, max_age_s: float = 10.0) -> Admission:
    return Admission(max_patches, max_age_s, slow, lambda: 100.0)


def test_room_is_given_back_on_every_way_out() -> None:
    room = admission()
    with room.admitted(600, {ENCODE: 600.0}, math.inf):
        assert (room.patches, room.wait_s(ENCODE)) == (600, 6.0)
    with pytest.raises(ValueError, match="wrong"), room.admitted(600, {ENCODE: 600.0}, math.inf):
        raise ValueError("wrong")
    with pytest.raises(Overloaded), room.admitted(600, {}, math.inf), room.admitted(600, {}, math.inf):
        pass
    assert (room.patches, room.wait_s(ENCODE)) == (0, 0.0)


def test_a_full_queue_refuses_with_the_time_until_there_is_room() -> None:
    room = admission()
    with room.admitted(800, {ENCODE: 800.0}, math.inf):
        with (
            pytest.raises(
                Overloaded, match="800 patches are waiting and 300 more asked for, the limit is 1000"
            ) as full,
            room.admitted(300, {ENCODE: 300.0}, math.inf),
        ):
            raise AssertionError("admitted")
        assert full.value.retry_after_s == pytest.approx(1.0)
        with room.admitted(200, {ENCODE: 200.0}, math.inf):
            assert room.patches == 1000


def test_a_request_that_could_never_fit_is_too_large_not_overloaded() -> None:
    message = "1001 patches in all, the queue holds at most 1000"
    with pytest.raises(TooLarge, match=message), admission().admitted(1001, {}, math.inf):
        raise AssertionError("admitted")


def test_a_wait_over_the_age_limit_is_refused_but_a_lone_long_request_is_not() -> None:
    room = admission(max_patches=10_000)
    long, short = room.admitted(2000, {ENCODE: 2000.0}, math.inf), room.admitted(1, {ENCODE: 1.0}, math.inf)
    with long, pytest.raises(Overloaded, match=r"21\.0 s") as full, short:
        raise AssertionError("admitted")
    assert full.value.retry_after_s == pytest.approx(20.0 - (0.9 * 10.0 - 1.0))


def test_work_that_cannot_meet_its_deadline_is_refused_before_it_waits() -> None:
    room = admission()
    with room.admitted(500, {ENCODE: 500.0}, math.inf):
        with pytest.raises(DeadlineExceeded, match=r"5\.400 s"), room.admitted(100, {ENCODE: 100.0}, 4.0):
            raise AssertionError("admitted")
        with room.admitted(100, {ENCODE: 100.0}, 6.5):
            assert room.patches == 600


def test_what_is_computed_is_waited_for_no_longer_but_its_patches_count_until_the_reply() -> None:
    room = admission()
    with room.admitted(600, {ENCODE: 600.0}, math.inf) as held:
        room.computed(held, ENCODE, 500.0)
        assert (room.patches, room.wait_s(ENCODE)) == (600, 1.0)
        room.computed(held, ENCODE, 500.0)
        assert (held, room.wait_s(ENCODE)) == ({ENCODE: 0.0}, 0.0)
    assert (room.patches, room.wait_s(ENCODE)) == (0, 0.0)


def test_a_flood_of_one_operation_does_not_shut_the_door_to_another() -> None:
    room = admission(max_patches=10_000)
    with room.admitted(900, {ENCODE: 900.0}, math.inf), room.admitted(10, {("embed", "nano"): 10.0}, math.inf):
        assert room.wait_s(ENCODE) == pytest.approx(9.1)
        assert room.wait_s(("embed", "nano")) == pytest.approx(0.1 + (0.1 + 1.0))


def test_an_idle_server_tries_what_it_expects_to_be_too_slow() -> None:
    room = admission()
    with room.admitted(100, {ENCODE: 100.0}, 0.01):
        assert room.patches == 100
    with pytest.raises(DeadlineExceeded), room.admitted(100, {ENCODE: 100.0}, 0.0):
        raise AssertionError("admitted")


@pytest.mark.parametrize(("surplus_s", "hint_s"), [(0.0, 0.05), (3.0, 3.0), (1e9, 60.0)])
def test_hints_stay_within_reason(surplus_s: float, hint_s: float) -> None:
    assert admission().hint_s(surplus_s) == hint_s
