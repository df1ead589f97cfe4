"""An amount that all share: refused at once, or waited for in order."""

from __future__ import annotations

import asyncio

import pytest

from viq_serving.allowance import Allowance
from viq_serving.errors import Overloaded


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_more_than_is_left_is_refused_with_a_hint_and_takes_nothing() -> None:
    room = Allowance(10, "spoons")
    with (
        room.held(7),
        pytest.raises(Overloaded, match="7 spoons are held and 4 more asked for, the limit is 10") as full,
    ):
        room.take(4)
    assert full.value.retry_after_s > 0
    assert room.held_now == 0


def test_who_waits_gets_it_in_order_when_it_is_given_back() -> None:
    async def live() -> None:
        room, order = Allowance(10, "spoons"), list[str]()

        async def wait(name: str, amount: int) -> None:
            await room.wait(amount)
            order.append(name)

        room.take(8)
        large, small = asyncio.create_task(wait("large", 9)), asyncio.create_task(wait("small", 1))
        await settled()
        assert order == []
        room.give(8)
        await asyncio.gather(large, small)
        assert (order, room.held_now) == (["large", "small"], 10)

    asyncio.run(live())


def test_more_than_the_limit_is_there_when_nothing_else_is_held() -> None:
    async def live() -> None:
        room = Allowance(10, "spoons")
        room.take(1)
        huge = asyncio.create_task(room.wait(1000))
        await settled()
        assert not huge.done()
        room.give(1)
        await huge
        assert room.held_now == 1000

    asyncio.run(live())


@pytest.mark.parametrize("after", ["before its turn", "at its turn"])
def test_who_is_cancelled_holds_nothing_and_the_next_one_has_its_turn(after: str) -> None:
    async def live() -> None:
        room = Allowance(10, "spoons")
        room.take(10)
        first, second = asyncio.create_task(room.wait(10)), asyncio.create_task(room.wait(5))
        await settled()
        if after == "at its turn":
            room.give(10)
            assert room.held_now == 10
            first.cancel()
        else:
            first.cancel()
            room.give(10)
        await asyncio.gather(second, first, return_exceptions=True)
        assert (first.cancelled(), room.held_now) == (True, 5)

    asyncio.run(live())


def test_a_new_limit_holds_at_once_and_lets_in_those_who_wait() -> None:
    async def live() -> None:
        room = Allowance(10, "spoons")
        room.take(10)
        waits = asyncio.create_task(room.wait(5))
        await settled()
        room.resize(5)
        assert room.held_now == 10
        with pytest.raises(Overloaded, match="the limit is 5"):
            room.take(1)
        room.resize(20)
        await waits
        assert room.held_now == 15

    asyncio.run(live())


def test_a_patient_holder_gives_back_also_when_it_fails() -> None:
    async def live() -> None:
        room = Allowance(10, "spoons")

        async def fail() -> None:
            async with room.patient(10):
                assert room.held_now == 10
                raise ValueError("wrong")

        with pytest.raises(ValueError, match="wrong"):
            await fail()
        assert room.held_now == 0

    asyncio.run(live())


def test_each_of_very_many_who_wait_is_let_in_without_looking_at_all_the_others() -> None:
    """As a flood of items does; if each looked at the rest, this would take minutes."""

    async def live() -> None:
        room, many = Allowance(100, "spoons"), 30_000

        async def take() -> None:
            async with room.patient(1):
                await asyncio.sleep(0)

        async with asyncio.timeout(60):
            await asyncio.gather(*(take() for _ in range(many)))
        assert room.held_now == 0

    asyncio.run(live())
