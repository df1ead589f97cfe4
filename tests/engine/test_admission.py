"""Room in the queue: reserved whole, given back on every way out, refused with a hint, or waited for in line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from viq_serving.allowance import Allowance
from viq_serving.engine.admission import Admission
from viq_serving.engine.lanes import LaneRules
from viq_serving.engine.work import Flow
from viq_serving.errors import DeadlineExceeded, Overloaded, TooLarge
from viq_serving.types import Caller, Terms

ENCODE, EMBED = Flow("encode", "nano"), Flow("embed", "nano")
BULK = ENCODE._replace(lane="bulk")
OF_BULK = Terms(priority="bulk")
PATIENT = Terms(patient=True)
PATIENT_BULK = Terms(priority="bulk", patient=True)


def slow(flow: Flow, cost: float) -> float:
    return cost / 100


def admission(max_patches: int = 1000, max_age_s: float = 10.0) -> Admission:
    return Admission(max_patches, max_age_s, slow, lambda: 100.0, LaneRules(0.2))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Have pytest call a coroutine function."""

    @wraps(test)
    def sync() -> None:
        asyncio.run(test())

    return sync


class Holder:
    """A request as a task: it asks for room, notes that it has it, and keeps it until it is told to leave."""

    def __init__(self, room: Admission, patches: int, terms: Terms, done: list[Holder] | None = None) -> None:
        self.inside, self._leave = False, asyncio.Event()
        self._done = done
        costs = {Flow("encode", "nano", terms.priority): float(patches)}
        self.task = asyncio.create_task(self._hold(room.admitted(patches, costs, math.inf, terms)))

    async def _hold(self, room: Any) -> None:
        async with room:
            self.inside = True
            if self._done is not None:
                self._done.append(self)
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def holding(*arguments: Any) -> Holder:
    """A `Holder` that has had every chance to be let in."""
    holder = Holder(*arguments)
    await settled()
    return holder


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(question: Coroutine[Any, Any, Any], kind: type[Exception], match: str) -> Any:
    with pytest.raises(kind, match=match) as error:
        await question
    return error.value


async def enter(room: Admission, patches: int, costs: dict[Flow, float], left_s: float, terms: Terms = Terms()) -> None:
    async with room.admitted(patches, costs, left_s, terms):
        pass


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
