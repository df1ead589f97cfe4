"""Images that several ask for at the same time: computed once, and whose failures are whose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

import pytest
from tests.service.caching import BULK, INTERACTIVE, PATIENT, TOOK, A, B, C, Cached, begun, codes_of, live

from viq_serving.allowance import Allowance
from viq_serving.errors import DeadlineExceeded, Internal, InvalidInput, NotReady, Overloaded, ViQError
from viq_serving.types import Caller, ImageFile, Terms


def test_images_that_come_at_the_same_time_are_computed_once() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        requests = [cached.ask(A) for _ in range(20)]
        await begun(*requests)
        cached.free()
        assert [list((await request).items) for request in requests] == [[codes_of(A)]] * 20
        assert cached.asked == [[A]]
        assert (cached.count("miss"), cached.count("shared"), cached.count("hit")) == (1, 19, 0)
        assert [(await request).timings.compute for request in requests] == [TOOK.compute, *[0.0] * 19]

    live(story)


def test_who_waits_outlives_a_cancelled_leader_and_one_of_them_takes_over() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        leader, *others = [cached.ask(A) for _ in range(4)]
        await begun(leader, *others)
        leader.cancel()
        await begun(*others)
        assert cached.asked == [[A], [A]]
        cached.free()
        assert [list((await request).items) for request in others] == [[codes_of(A)]] * 3
        assert cached.asked == [[A], [A]]
        assert leader.cancelled()

    live(story)


@pytest.mark.parametrize("refusal", [Overloaded("full", 1.0), DeadlineExceeded("late"), NotReady("lost")])
def test_a_refusal_is_its_own_request_s_alone(refusal: ViQError) -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        cached.error = refusal
        leader = cached.ask(A)
        await begun(leader)
        cached.error = None
        waiting = cached.ask(A)
        await begun(leader, waiting)
        cached.free()
        with pytest.raises(type(refusal)):
            await leader
        assert list((await waiting).items) == [codes_of(A)]
        assert cached.asked == [[A], [A]]

    live(story)


def test_who_was_let_down_twice_waits_for_nobody_any_more() -> None:
    """Else the last of many would be refused only after all the others, one after another."""

    async def story(cached: Cached) -> None:
        cached.error = Overloaded("full", 1.0)
        cached.hold()
        requests = [cached.ask(A) for _ in range(6)]
        await begun(*requests)
        assert len(cached.asked) == 1
        cached.free()
        refused = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(one, Overloaded) for one in refused)
        assert len(cached.asked) == 6
        cached.error = None
        assert list((await cached.ask(A)).items) == [codes_of(A)]

    live(story)


@pytest.mark.parametrize("error", [InvalidInput("no image"), Internal()])
def test_an_image_s_own_error_answers_those_who_wait_and_is_not_kept(error: ViQError) -> None:
    async def story(cached: Cached) -> None:
        cached.wrong[A] = error
        cached.hold()
        requests = [cached.ask(A, B), cached.ask(A, B)]
        await begun(*requests)
        cached.free()
        assert [list((await request).items) for request in requests] == [[error, codes_of(B)]] * 2
        cached.wrong.clear()
        assert list((await cached.ask(A, B)).items) == [codes_of(A), codes_of(B)]
        assert cached.asked == [[A, B], [A]]

    live(story)


def test_a_deadline_is_each_request_s_own() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        leader = cached.ask(A)
        await begun(leader)
        with pytest.raises(DeadlineExceeded):
            await cached.ask(A, terms=Terms(deadline=monotonic() + 0.05))
        cached.free()
        assert list((await leader).items) == [codes_of(A)]
        with pytest.raises(DeadlineExceeded, match="already"):
            await cached.ask(A, terms=Terms(deadline=monotonic() - 1))
        assert cached.asked == [[A]]

    live(story)


def test_who_stops_waiting_disturbs_nobody() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        leader, leaving, staying = (cached.ask(A) for _ in range(3))
        await begun(leader, leaving, staying)
        leaving.cancel()
        await begun(leader, staying)
        cached.free()
        assert list((await leader).items) == list((await staying).items) == [codes_of(A)]
        assert cached.asked == [[A]]

    live(story)


@pytest.mark.parametrize(
    ("first", "then", "waits"),
    [
        (([A], BULK), ([A], INTERACTIVE), False),
        (([A], INTERACTIVE), ([A], BULK), True),
        (([A], BULK), ([A], BULK), True),
        (([A, B], INTERACTIVE), ([A], INTERACTIVE), False),
        (([A, B], INTERACTIVE), ([A, B], INTERACTIVE), True),
        (([A], INTERACTIVE), ([A, B], INTERACTIVE), True),
        (([A], PATIENT), ([A], BULK), False),
        (([A], BULK), ([A], PATIENT), True),
        (([A], PATIENT), ([A], PATIENT), True),
    ],
)
def test_nobody_waits_for_what_may_take_longer_than_to_compute_alone(
    first: tuple[Sequence[ImageFile], Terms], then: tuple[Sequence[ImageFile], Terms], waits: bool
) -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        requests = [cached.ask(*images, terms=terms) for images, terms in (first, then)]
        await begun(*requests)
        assert sum(A in files for files in cached.asked) == (1 if waits else 2)
        cached.free()
        assert [(await request).items[0] for request in requests] == [codes_of(A)] * 2

    live(story)


@pytest.mark.parametrize(
    ("patient", "limited", "waits"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_where_callers_share_nobody_waits_for_the_room_that_another_s_limit_leaves(
    patient: bool, limited: bool, waits: bool
) -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        narrow = Caller("narrow", patches=Allowance(1, "patches of this key") if limited else None)
        first, then = (replace(BULK, patient=patient, caller=caller) for caller in (narrow, Caller("wide")))
        requests = [cached.ask(A, terms=terms) for terms in (first, then, then, first)]
        await begun(*requests)
        assert cached.asked == [[A]] * (1 if waits else 2)
        cached.free()
        assert [list((await request).items) for request in requests] == [[codes_of(A)]] * 4

    live(story, shared=True)


def test_who_comes_later_waits_for_the_better_lane() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        requests = [cached.ask(A, terms=terms) for terms in (BULK, INTERACTIVE, BULK, INTERACTIVE)]
        await begun(*requests)
        requests[0].cancel()
        await begun(*requests[1:])
        assert cached.asked == [[A], [A]]
        cached.free()
        await asyncio.gather(*requests[1:])
        assert cached.asked == [[A], [A]]

    live(story)


def test_requests_that_wait_for_one_another_are_all_answered() -> None:
    async def story(cached: Cached) -> None:
        cached.hold()
        requests = [cached.ask(A), cached.ask(B), cached.ask(A, B, C), cached.ask(C, B, A)]
        await begun(*requests)
        cached.free()
        answers = [list((await request).items) for request in requests]
        assert answers[2:] == [[codes_of(one) for one in order] for order in ((A, B, C), (C, B, A))]
        assert cached.asked == [[A], [B], [C]]

    live(story)
