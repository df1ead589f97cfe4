"""Lanes share the device: people before bulk, and neither starves. Plain data, the clock a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq_serving.engine.lanes import LANES, LaneRules
from viq_serving.engine.scheduler import Scheduler
from viq_serving.engine.work import Batch, Entry, Flow, Request
from viq_serving.types import Method, Priority

EMBED = Flow("embed", "nano")
BULK = EMBED._replace(lane="bulk")
NEVER = math.inf


def entry(patches: int, flow: Flow = EMBED, *, asked: float = 0.0, patient: bool = False) -> Entry:
    return Entry(flow, patches, Request(asked, patient=patient))


def scheduler(share: float = 0.2, max_wait_s: float = NEVER, budget: int = 100, max_age_s: float = NEVER) -> Scheduler:
    return Scheduler(budget, max_age_s, LaneRules(share, max_wait_s))


def put(scheduler: Scheduler, entries: Iterable[Entry], now: float = 0.0) -> None:
    for one in entries:
        scheduler.put(one, now)


def batch_of(scheduler: Scheduler, now: float = 0.0, *, ahead: bool = False) -> Batch:
    batch = scheduler.next_batch(now, ahead=ahead)
    assert batch is not None
    return batch


class Device:
    """Computes batches one after another on a clock of its own: a millisecond a patch."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.now, self.used_s = 0.0, dict[Priority, float]()
        self.waited_s: dict[Priority, float] = {"interactive": 0.0, "bulk": 0.0}
        self._scheduler = scheduler

    def step(self) -> Batch:
        batch = batch_of(self._scheduler, self.now)
        for one in batch.entries:
            self.waited_s[one.flow.lane] = max(self.waited_s[one.flow.lane], self.now - one.queued)
        seconds = batch.cost / 1000
        self.now += seconds
        for flow, part_s in batch.shares(seconds).items():
            self.used_s[flow.lane] = self.used_s.get(flow.lane, 0.0) + part_s
        self._scheduler.computed(batch, seconds, self.now)
        return batch


def saturate(scheduler: Scheduler, another: Callable[[Priority], Entry]) -> Device:
    """Run with twenty always waiting in each lane."""
    device = Device(scheduler)
    for _ in range(600):
        for lane in LANES:
            put(scheduler, (another(lane) for _ in range(20 - scheduler.waiting(lane))), device.now)
        device.step()
    return device


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("sizes", [(100, 100), (7, 100), (100, 7), (13, 17)])
def test_lanes_that_always_have_work_share_the_device_by_weight(share: float, sizes: tuple[int, int]) -> None:
    patches = dict(zip(("interactive", "bulk"), sizes, strict=True))
    device = saturate(scheduler(share), lambda lane: entry(patches[lane], EMBED._replace(lane=lane)))
    assert device.used_s["bulk"] / device.now == pytest.approx(share, abs=0.04)


def test_lanes_share_it_also_where_they_do_different_things() -> None:
    methods: dict[Priority, Method] = {"interactive": "encode", "bulk": "decode"}
    device = saturate(scheduler(0.2), lambda lane: entry(50, Flow(methods[lane], "nano", lane)))
    assert device.used_s["bulk"] / device.now == pytest.approx(0.2, abs=0.01)


def test_a_lane_gets_the_whole_device_while_the_other_has_nothing() -> None:
    one = scheduler()
    put(one, [entry(100, BULK) for _ in range(5)])
    device = Device(one)
    assert [len(device.step().entries) for _ in range(5)] == [1] * 5
    assert device.used_s == {"bulk": pytest.approx(0.5)}


def test_an_interactive_request_is_in_the_next_batch_whatever_bulk_waits() -> None:
    one = scheduler(max_wait_s=2.0)
    put(one, [entry(10, BULK) for _ in range(10_000)])
    device = Device(one)
    for _ in range(200):
        device.step()
        asked = entry(20)
        one.put(asked, device.now)
        batch = device.step()
        assert asked in batch.entries
        # Its batch takes at most twice as long for the company, unless it was the turn of bulk anyway.
        if batch.flow.lane == "interactive":
            assert batch.cost <= 40


def test_a_flood_of_interactive_requests_does_not_keep_bulk_waiting_longer_than_it_may() -> None:
    """With next to no share, ageing alone brings it on; large work, too, which no interactive batch leaves room for."""
    one = scheduler(share=1e-9, max_wait_s=2.0)
    device = saturate(one, lambda lane: entry(30 if lane == "interactive" else 90, EMBED._replace(lane=lane)))
    assert device.used_s["bulk"] > 0
    gaps = device.waited_s["bulk"] / 20  # twenty wait one behind another
    assert gaps <= 2.0 + 0.2


def test_a_flood_of_bulk_does_not_keep_interactive_work_waiting_longer_than_it_may() -> None:
    one = scheduler(share=1 - 1e-9, max_wait_s=2.0)
    lanes: dict[Priority, Flow] = {"interactive": Flow("encode", "nano"), "bulk": BULK}
    device = saturate(one, lambda lane: entry(90, lanes[lane]))
    assert device.used_s["interactive"] > 0
    assert device.waited_s["interactive"] / 20 <= 2.0 + 0.2


def test_small_bulk_beside_interactive_batches_does_not_starve_large_bulk() -> None:
    one = scheduler(max_wait_s=2.0)
    large = entry(99, BULK)
    one.put(large, 0.0)
    device = Device(one)
    while large.waits:
        put(one, [entry(20)], device.now)
        put(one, [entry(10, BULK) for _ in range(4)], device.now)
        device.step()
        assert device.now < 2.0 + 0.2
    assert not large.waits


def test_a_batch_that_takes_longer_than_the_wait_does_not_count_as_waiting() -> None:
    """Else bulk would be due again at the end of every long batch of its own."""
    one = scheduler(max_wait_s=2.0)
    put(one, [entry(100, BULK), entry(100, BULK)])
    long = batch_of(one, now=0.0)
    interactive = entry(100)
    one.put(interactive, 5.0)
    one.computed(long, 30.0, 30.0)
    assert batch_of(one, now=30.0).entries == [interactive]


def test_bulk_fills_an_interactive_batch_up_to_twice_its_cost() -> None:
    one = scheduler()
    people, bulk = [entry(10), entry(10)], [entry(8, BULK) for _ in range(9)]
    put(one, [*bulk, *people])
    batch = batch_of(one)
    assert batch.flow == EMBED
    assert batch.entries == [*people, *bulk[:2]]


def test_bulk_that_is_larger_than_the_interactive_work_does_not_ride_along() -> None:
    one = scheduler()
    people, large, small = entry(10), entry(11, BULK), entry(10, BULK)
    put(one, [people, large, small])
    assert batch_of(one).entries == [people, small]
    assert batch_of(one).entries == [large]


def test_bulk_of_another_operation_or_size_does_not_ride_along() -> None:
    one = scheduler()
    put(one, [entry(10), entry(1, Flow("embed", "16k", "bulk")), entry(1, Flow("encode", "nano", "bulk"))])
    assert len(batch_of(one).entries) == 1


def test_interactive_work_rides_along_in_a_batch_of_bulk_but_not_in_its_place() -> None:
    one = scheduler(max_wait_s=2.0)
    bulk, people = [entry(40, BULK), entry(30, BULK)], [entry(24) for _ in range(4)]
    put(one, [*bulk, *people])
    one.lanes.use(EMBED, 1000.0)  # interactive has had more than its share
    batch = batch_of(one)
    assert batch.flow == BULK
    assert batch.entries == [bulk[0], *people[:2]]  # 60 are left beside the oldest, four fifths of it for people
    assert batch_of(one).entries == [bulk[1], *people[2:]]


def test_what_little_bulk_leaves_of_its_batch_is_for_interactive_work() -> None:
    one = scheduler()
    put(one, [entry(10, BULK), *(entry(9) for _ in range(10))])
    one.lanes.use(EMBED, 1000.0)
    assert len(batch_of(one).entries) == 11


def test_bulk_that_another_device_computes_is_not_due_here_however_long_that_takes() -> None:
    one = scheduler(max_wait_s=2.0)
    put(one, [entry(100, BULK), entry(100, BULK)])
    batch_of(one, now=0.0)
    one.put(entry(100), 1.0)
    assert batch_of(one, now=5.0).flow == EMBED
    assert batch_of(one, now=5.0).flow == BULK


def test_a_batch_of_bulk_alone_behind_another_is_half_as_large() -> None:
    one = scheduler()
    put(one, [entry(10, BULK) for _ in range(30)])
    assert [batch_of(one, ahead=ahead).cost for ahead in (False, True, True)] == [100, 50, 50]
    put(one, [entry(10) for _ in range(10)])
    assert batch_of(one, ahead=True).cost == 100


def test_batches_of_bulk_are_half_as_large_while_people_ask_now_and_then() -> None:
    lanes = scheduler()
    put(lanes, (entry(10, BULK) for _ in range(50)))
    assert batch_of(lanes, 0.0).cost == 100
    put(lanes, [entry(10)], 5.0)
    assert batch_of(lanes, 5.0).flow.lane == "interactive"
    assert batch_of(lanes, 5.5).cost == 50
    assert batch_of(lanes, 9.0).cost == 100


def test_patient_work_is_never_too_old() -> None:
    one = scheduler(max_age_s=4.0)
    patient, other = entry(10, BULK, patient=True), entry(10, BULK)
    put(one, [patient, other])
    batch = batch_of(one, now=100.0)
    assert (batch.entries, batch.too_old) == ([patient], [other])


def test_what_one_lane_learned_of_the_pace_the_other_knows() -> None:
    one = scheduler()
    for _ in range(3):
        one.learn(BULK.kind, 100, 2.0)
    assert one.expected_s(EMBED, 100) == pytest.approx(2.0)


def test_more_devices_are_expected_to_need_less_time_but_a_batch_is_no_faster() -> None:
    one = scheduler()
    for _ in range(3):
        one.learn(EMBED.kind, 100, 2.0)
    one.devices = 4
    assert one.expected_s(EMBED, 100) == pytest.approx(2.0)
    assert one.expected_s(EMBED, 400) == pytest.approx(2.0)
    assert one.expected_s(EMBED, 4000) == pytest.approx(20.0)


def test_lanes_are_told_apart_where_it_is_asked_what_waits() -> None:
    one = scheduler()
    one.put(entry(1), 3.0)
    one.put(entry(1, BULK), 2.0)
    one.put(entry(1, BULK), 4.0)
    assert [one.waiting(lane) for lane in LANES] == [1, 2]
    assert [one.oldest(lane) for lane in LANES] == [3.0, 2.0]


works = st.lists(
    st.tuples(
        st.sampled_from([EMBED, BULK, Flow("encode", "nano"), Flow("encode", "nano", "bulk")]),
        st.integers(1, 300),
        st.sampled_from(["put", "put", "put", "batch", "withdraw"]),
    ),
    min_size=1,
    max_size=80,
)


@given(works, st.integers(2, 400), st.floats(0.01, 0.99), st.sampled_from([0.0, 2.0, NEVER]))
def test_all_work_comes_out_once_and_in_batches_that_are_no_larger_than_they_may_be(
    work: list[tuple[Flow, int, str]], budget: int, share: float, max_wait_s: float
) -> None:
    one = scheduler(share, max_wait_s, budget)
    device, waiting, seen = Device(one), list[Entry](), list[Entry]()

    def step() -> None:
        batch = device.step()
        assert batch.entries
        assert {entry.flow.kind for entry in batch.entries} == {batch.flow.kind}
        assert batch.flow in batch.costs
        assert batch.cost <= budget or len(batch.entries) == 1
        if batch.flow.lane == "interactive" and len(batch.costs) == 2:
            bulk = batch.flow._replace(lane="bulk")
            assert batch.costs[bulk] <= batch.costs[batch.flow]
        for entry in batch.entries:
            waiting.remove(entry)
            seen.append(entry)

    for flow, patches, what in work:
        if what == "put":
            waiting.append(entry(patches, flow))
            one.put(waiting[-1], device.now)
        elif what == "withdraw" and waiting:
            one.withdraw(waiting.pop(0))
        elif what == "batch" and waiting:
            step()
    while waiting:
        step()
    assert len(set(map(id, seen))) == len(seen)
    assert (one.entries, one.patches, one.next_batch(device.now)) == (0, 0, None)
