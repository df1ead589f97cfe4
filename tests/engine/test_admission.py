"""Room in the queue: reserved whole, given back on every way out, or refused with a hint."""

from __future__ import annotations

import asyncio
import math

import pytest
from tests.engine.room import (
    BULK,
    EMBED,
    ENCODE,
    OF_BULK,
    PATIENT_BULK,
    admission,
    enter,
    holding,
    refused,
    run,
    settled,
)

from viq_serving.allowance import Allowance
from viq_serving.errors import DeadlineExceeded, Overloaded, TooLarge
from viq_serving.types import Caller, Terms


@run
async def test_room_is_given_back_on_every_way_out() -> None:
    room = admission()
    async with room.admitted(600, {ENCODE: 600.0}, math.inf):
        assert (room.patches, room.wait_s(ENCODE)) == (600, 6.0)
    with pytest.raises(ValueError, match="wrong"):
        async with room.admitted(600, {ENCODE: 600.0}, math.inf):
            raise ValueError("wrong")
    async with room.admitted(600, {}, math.inf):
        await refused(enter(room, 600, {}, math.inf), Overloaded, "600 patches are waiting")
    assert (room.patches, room.wait_s(ENCODE)) == (0, 0.0)


@run
async def test_a_full_queue_refuses_with_the_time_until_there_is_room() -> None:
    room = admission()
    async with room.admitted(800, {ENCODE: 800.0}, math.inf):
        words = "800 patches are waiting and 300 more asked for, the limit is 1000"
        full = await refused(enter(room, 300, {ENCODE: 300.0}, math.inf), Overloaded, words)
        assert full.retry_after_s == pytest.approx(1.0)
        async with room.admitted(200, {ENCODE: 200.0}, math.inf):
            assert room.patches == 1000


@pytest.mark.parametrize("patient", [False, True])
def test_a_request_that_could_never_fit_is_too_large_not_overloaded(patient: bool) -> None:
    question = enter(admission(), 1001, {}, math.inf, Terms(patient=patient))
    asyncio.run(refused(question, TooLarge, "1001 patches in all, the queue holds at most 1000"))


@run
async def test_a_wait_over_the_age_limit_is_refused_but_a_lone_long_request_is_not() -> None:
    room = admission(max_patches=10_000)
    async with room.admitted(2000, {ENCODE: 2000.0}, math.inf):
        full = await refused(enter(room, 1, {ENCODE: 1.0}, math.inf), Overloaded, r"21\.0 s")
    assert full.retry_after_s == pytest.approx(20.0 - (0.9 * 10.0 - 1.0))


@run
async def test_work_that_cannot_meet_its_deadline_is_refused_before_it_waits() -> None:
    room = admission()
    async with room.admitted(500, {ENCODE: 500.0}, math.inf):
        await refused(enter(room, 100, {ENCODE: 100.0}, 4.0), DeadlineExceeded, r"5\.400 s")
        async with room.admitted(100, {ENCODE: 100.0}, 6.5):
            assert room.patches == 600


@run
async def test_what_is_computed_is_waited_for_no_longer_but_its_patches_count_until_the_reply() -> None:
    room = admission()
    async with room.admitted(600, {ENCODE: 600.0}, math.inf) as held:
        room.computed(held, ENCODE, 500.0)
        assert (room.patches, room.wait_s(ENCODE)) == (600, 1.0)
        room.computed(held, ENCODE, 500.0)
        assert (held, room.wait_s(ENCODE)) == ({ENCODE: 0.0}, 0.0)
    assert (room.patches, room.wait_s(ENCODE)) == (0, 0.0)


@run
async def test_a_flood_of_one_operation_does_not_shut_the_door_to_another() -> None:
    room = admission(max_patches=10_000)
    async with room.admitted(900, {ENCODE: 900.0}, math.inf), room.admitted(10, {EMBED: 10.0}, math.inf):
        assert room.wait_s(ENCODE) == pytest.approx(9.1)
        assert room.wait_s(EMBED) == pytest.approx(0.1 + (0.1 + 1.0))


@run
async def test_an_idle_server_tries_what_it_expects_to_be_too_slow() -> None:
    room = admission()
    async with room.admitted(100, {ENCODE: 100.0}, 0.01):
        assert room.patches == 100
    await refused(enter(room, 100, {ENCODE: 100.0}, 0.0), DeadlineExceeded, "needs about")


@pytest.mark.parametrize(("surplus_s", "hint_s"), [(0.0, 0.05), (3.0, 3.0), (1e9, 60.0)])
def test_hints_stay_within_reason(surplus_s: float, hint_s: float) -> None:
    assert admission().hint_s(surplus_s) == hint_s


@run
async def test_a_flood_of_bulk_neither_fills_the_queue_nor_keeps_an_interactive_request_out() -> None:
    room = admission(max_patches=100_000)
    flood = await holding(room, 75_000, PATIENT_BULK)
    assert flood.inside
    await refused(enter(room, 1, {BULK: 1.0}, math.inf, OF_BULK), Overloaded, "the limit is 100000, 75000 of it for")
    # 750 s of bulk are ahead, and neither the age limit nor a deadline of two seconds is out of reach for that.
    async with room.admitted(100, {ENCODE: 100.0}, 2.0):
        assert room.wait_s(ENCODE) == pytest.approx(1.0 / 0.8)
    async with room.admitted(25_000, {ENCODE: 100.0}, math.inf):
        assert room.patches == 100_000
    await flood.leave()


@run
async def test_bulk_is_refused_for_the_time_that_it_would_wait_at_its_share() -> None:
    room = admission(max_patches=10_000)
    async with room.admitted(300, {BULK: 300.0}, math.inf, OF_BULK):
        assert room.wait_s(BULK) == pytest.approx(3.0)
        async with room.admitted(5000, {ENCODE: 5000.0}, math.inf):
            assert room.wait_s(BULK) == pytest.approx(3.0 / 0.2)
            await refused(enter(room, 1, {BULK: 1.0}, math.inf, OF_BULK), Overloaded, "expected to wait")
            waits = await holding(room, 1, PATIENT_BULK)
            assert waits.inside
            await waits.leave()


@run
async def test_what_is_larger_than_bulk_may_hold_is_too_large() -> None:
    for terms in (OF_BULK, PATIENT_BULK):
        await refused(
            enter(admission(), 751, {}, math.inf, terms), TooLarge, "751 patches in all, bulk may hold .* 750"
        )


@run
async def test_the_patches_of_a_key_are_held_beside_the_queue_and_given_back() -> None:
    room, own = admission(), Allowance(100, "patches of this key")
    caller = Caller("one", patches=own)
    held = await holding(room, 80, Terms(caller=caller))
    assert (own.held_now, room.patches) == (80, 80)
    words = "80 patches of this key are held and 30 more asked for, the limit is 100"
    full = await refused(enter(room, 30, {}, math.inf, Terms(caller=caller)), Overloaded, words)
    assert full.retry_after_s > 0
    await refused(enter(room, 101, {}, math.inf, Terms(caller=caller)), TooLarge, "101 .* the key may have 100")
    patient = await holding(room, 30, Terms(patient=True, caller=caller))
    async with room.admitted(900, {}, math.inf):  # the others find the room that a key may not use
        assert (patient.inside, room.patches) == (False, 980)
    await held.leave()
    await settled()
    assert patient.inside
    await patient.leave()
    assert (own.held_now, room.patches) == (0, 0)


@run
async def test_what_a_queue_refuses_does_not_count_against_the_key() -> None:
    room, own = admission(), Allowance(5000, "patches of this key")
    async with room.admitted(900, {}, math.inf):
        await refused(
            enter(room, 200, {}, math.inf, Terms(caller=Caller("one", patches=own))), Overloaded, "900 patches"
        )
    assert own.held_now == 0
