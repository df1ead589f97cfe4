"""Room in the queue that is waited for in line: in order, in turns, and without holes."""

from __future__ import annotations

import asyncio
import math

from tests.engine.room import (
    ENCODE,
    OF_BULK,
    PATIENT,
    PATIENT_BULK,
    Holder,
    admission,
    enter,
    holding,
    refused,
    run,
    settled,
)

from viq_serving.allowance import Allowance
from viq_serving.errors import Overloaded
from viq_serving.types import Caller, Terms


@run
async def test_patient_requests_get_room_in_the_order_they_came() -> None:
    room, order = admission(), list[Holder]()
    first = await holding(room, 700, PATIENT_BULK, order)
    large, small = await holding(room, 700, PATIENT_BULK, order), await holding(room, 10, PATIENT_BULK, order)
    assert order == [first]  # the small one fits, but it came later
    assert room.in_line("bulk") == 2
    await first.leave()
    await settled()
    assert order == [first, large, small]
    await large.leave()
    await small.leave()
    assert (room.patches, room.in_line("bulk")) == (0, 0)


@run
async def test_who_does_not_wait_takes_no_room_before_a_larger_one_that_does() -> None:
    room = admission()
    first = await holding(room, 700, PATIENT_BULK)
    large = await holding(room, 200, PATIENT_BULK)
    hint = await refused(enter(room, 10, {}, math.inf, OF_BULK), Overloaded, "700 patches are waiting and 10 more")
    assert hint.retry_after_s > 0
    async with room.admitted(10, {}, math.inf):  # the other lane has a limit of its own
        pass
    await first.leave()
    await settled()
    assert large.inside
    async with room.admitted(10, {}, math.inf, OF_BULK):
        pass
    await large.leave()


@run
async def test_where_nothing_is_to_be_computed_no_room_is_needed() -> None:
    room, own = admission(), Allowance(100, "patches of this key")
    own.take(100)
    full, bulk = await holding(room, 900, PATIENT), await holding(room, 200, PATIENT_BULK)
    own.resize(50)
    for patient in (True, False):
        async with room.admitted(0, {}, math.inf, Terms(patient=patient, caller=Caller("one", patches=own))):
            assert (room.patches, own.held_now) == (900, 100)
    for holder in (full, bulk):
        await holder.leave()


@run
async def test_callers_take_turns_so_that_none_waits_behind_all_that_another_sent() -> None:
    room, order = admission(), list[Holder]()
    first = await holding(room, 750, PATIENT_BULK, order)
    many = [await holding(room, 600, Terms(priority="bulk", patient=True, caller=Caller("many")), order) for _ in "abc"]
    few = await holding(room, 600, Terms(priority="bulk", patient=True, caller=Caller("few")), order)
    for holder in (first, many[0], few, many[1], many[2]):
        assert order[-1] is holder
        await holder.leave()
        await settled()
    assert room.patches == 0


@run
async def test_who_leaves_the_line_leaves_no_hole_and_who_leaves_when_it_is_its_turn_holds_nothing() -> None:
    room = admission()
    first, large, small = [await holding(room, patches, PATIENT_BULK) for patches in (700, 740, 50)]
    large.task.cancel()
    await settled()
    assert (small.inside, room.patches) == (True, 750)
    await small.leave()
    waits = await holding(room, 700, PATIENT_BULK)
    first._leave.set()
    while room.in_line("bulk"):  # noqa: ASYNC110  # until the very moment at which its turn came
        await asyncio.sleep(0)
    waits.task.cancel()
    await settled()
    assert (waits.inside, room.patches) == (False, 0)


@run
async def test_where_interactive_requests_fill_the_queue_bulk_gets_its_turn() -> None:
    room = admission()
    short, long = await holding(room, 300, PATIENT), await holding(room, 600, PATIENT)
    bulk = await holding(room, 200, PATIENT_BULK)
    assert not bulk.inside
    # What is free now, and what is given back, is kept until there is enough for the one that waits.
    await refused(enter(room, 100, {ENCODE: 1.0}, math.inf), Overloaded, "900 patches are waiting")
    await short.leave()
    await settled()
    assert bulk.inside
    for holder in (bulk, long):
        await holder.leave()
    assert room.patches == 0


@run
async def test_bulk_that_has_little_comes_before_large_interactive_requests_that_wait_too() -> None:
    room = admission()
    holds, large = await holding(room, 950, PATIENT), await holding(room, 900, PATIENT)
    bulk = await holding(room, 200, PATIENT_BULK)
    await holds.leave()
    await settled()
    assert (large.inside, bulk.inside) == (False, True)
    await bulk.leave()
    await settled()
    assert large.inside
    await large.leave()
    assert room.patches == 0


@run
async def test_bulk_that_has_its_quarter_waits_for_what_interactive_requests_leave() -> None:
    room = admission()
    has, waits = await holding(room, 250, PATIENT_BULK), await holding(room, 600, PATIENT_BULK)
    assert (has.inside, waits.inside) == (True, False)
    async with room.admitted(750, {ENCODE: 1.0}, math.inf):
        assert room.patches == 1000
    await settled()
    assert not waits.inside  # 850 would be over what bulk may hold
    await has.leave()
    await settled()
    assert waits.inside
    await waits.leave()
