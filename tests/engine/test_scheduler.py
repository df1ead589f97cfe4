"""The scheduler as plain data: no device, no thread, the clock a number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq_serving.engine.scheduler import Scheduler
from viq_serving.engine.work import Batch, Entry, Flow, Request, cost_of

ENCODE = Flow("encode", "nano")
EMBED = Flow("embed", "nano")
DECODE = Flow("decode", "nano")


def entry(patches: int, flow: Flow = EMBED, *, asked: float = 0.0, deadline: float = math.inf) -> Entry:
    return Entry(flow, patches, Request(asked, deadline))


def put(scheduler: Scheduler, *entries: Entry, now: float = 0.0) -> None:
    for one in entries:
        scheduler.put(one, now)


def batch_of(scheduler: Scheduler, now: float = 0.0) -> Batch:
    batch = scheduler.next_batch(now)
    assert batch is not None
    return batch


def test_an_idle_scheduler_has_no_batch() -> None:
    scheduler = Scheduler(100)
    assert scheduler.next_batch(0.0) is None
    assert scheduler.oldest() == math.inf


def test_a_batch_is_what_waits_up_to_the_budget_oldest_first() -> None:
    scheduler, entries = Scheduler(100), [entry(40), entry(40), entry(40)]
    put(scheduler, *entries)
    assert batch_of(scheduler).entries == entries[:2]
    assert batch_of(scheduler).entries == entries[2:]
    assert scheduler.next_batch(0.0) is None


def test_small_work_fills_what_a_large_one_behind_the_oldest_leaves_free() -> None:
    scheduler = Scheduler(100)
    oldest, large, small = entry(60), entry(90), entry(30)
    put(scheduler, oldest, large, small)
    assert batch_of(scheduler).entries == [oldest, small]
    assert batch_of(scheduler).entries == [large]


def test_work_over_the_budget_runs_alone_and_does_not_block() -> None:
    scheduler = Scheduler(100)
    before, huge, after = entry(10), entry(1000), entry(10)
    put(scheduler, before, huge, after)
    assert [batch_of(scheduler).entries for _ in range(2)] == [[before, after], [huge]]


def test_large_work_is_passed_by_only_until_it_is_the_oldest() -> None:
    scheduler, large = Scheduler(100), entry(90)
    put(scheduler, entry(50), large)
    for _ in range(3):
        put(scheduler, entry(50))
    batch_of(scheduler)
    assert batch_of(scheduler).entries == [large]


def test_the_budget_counts_attention_not_only_patches() -> None:
    """Two images of 4,096 patches cost more than 32 of 256, as attention grows with the square."""
    budget = 2 * 4096
    large, small = Scheduler(budget), Scheduler(budget)
    put(large, *(entry(4096, ENCODE) for _ in range(2)))
    put(small, *(entry(256, ENCODE) for _ in range(32)))
    assert len(batch_of(large).entries) == 1
    assert len(batch_of(small).entries) == budget // cost_of("encode", 256)


def test_a_batch_is_of_one_operation_and_one_size() -> None:
    scheduler = Scheduler(100)
    flows: list[Flow] = [ENCODE, DECODE, Flow("encode", "16k"), EMBED]
    put(scheduler, *(entry(1, flow) for flow in flows))
    assert sorted(batch_of(scheduler).flow for _ in flows) == sorted(flows)


def run(scheduler: Scheduler, seconds: dict[Flow, float], rounds: int) -> dict[Flow, float]:
    """Device time that each flow got in so many batches of these lengths, each flow having endless work."""
    used = dict.fromkeys(seconds, 0.0)
    for flow in seconds:
        put(scheduler, *(entry(100, flow) for _ in range(rounds)))
    for _ in range(rounds):
        batch = batch_of(scheduler)
        used[batch.flow] += seconds[batch.flow]
        scheduler.computed(batch, seconds[batch.flow], 0.0)
    return used


def test_operations_share_the_device_by_time_not_by_turns() -> None:
    used = run(Scheduler(100), {ENCODE: 0.05, EMBED: 0.001, DECODE: 1.0}, 3000)
    assert max(used.values()) - min(used.values()) <= 1.0


def test_an_operation_that_was_idle_gets_no_arrears() -> None:
    scheduler = Scheduler(100)
    run(scheduler, {DECODE: 1.0}, 50)
    put(scheduler, *(entry(100, DECODE) for _ in range(10)), *(entry(100, ENCODE) for _ in range(10)))
    order = []
    for _ in range(8):
        batch = batch_of(scheduler)
        order.append(batch.flow)
        scheduler.computed(batch, 1.0, 0.0)
    assert order.count(ENCODE) == order.count(DECODE) == 4


def test_withdrawn_work_is_in_no_batch_and_no_count() -> None:
    scheduler, gone, kept = Scheduler(100), entry(10), entry(20)
    put(scheduler, gone, kept)
    scheduler.withdraw(gone)
    scheduler.withdraw(gone)
    assert (scheduler.entries, scheduler.patches) == (1, 20)
    assert batch_of(scheduler).entries == [kept]
    assert (scheduler.entries, scheduler.patches) == (0, 0)


def test_work_past_its_deadline_is_handed_back_and_its_neighbours_are_computed() -> None:
    scheduler, late, kept = Scheduler(100), entry(10, deadline=5.0), entry(20, deadline=7.0)
    put(scheduler, late, kept)
    batch = batch_of(scheduler, now=6.0)
    assert (batch.entries, batch.too_late) == ([kept], [late])


def test_work_that_cannot_finish_before_its_deadline_is_not_begun() -> None:
    scheduler = Scheduler(100)
    for _ in range(3):
        scheduler.learn(EMBED.kind, 10, 2.0)
    hopeless, feasible = entry(10, deadline=1.0), entry(10, deadline=3.0)
    put(scheduler, hopeless, feasible)
    batch = batch_of(scheduler)
    assert (batch.entries, batch.too_late) == ([feasible], [hopeless])


def test_alone_work_is_begun_even_if_it_is_expected_to_be_late() -> None:
    scheduler, alone = Scheduler(100), entry(10, deadline=1.0)
    for _ in range(3):
        scheduler.learn(EMBED.kind, 10, 2.0)
    put(scheduler, alone)
    assert batch_of(scheduler).entries == [alone]


def test_a_request_that_waited_too_long_is_handed_back_unless_it_has_begun() -> None:
    scheduler = Scheduler(10, max_age_s=4.0)
    begun = Request(0.0)
    first, second, old = Entry(EMBED, 10, begun), Entry(EMBED, 10, begun), entry(10, asked=0.0)
    put(scheduler, first, second, old)
    assert batch_of(scheduler, now=1.0).entries == [first]
    assert batch_of(scheduler, now=5.0).entries == [second]
    batch = batch_of(scheduler, now=5.0)
    assert (batch.entries, batch.too_old) == ([], [old])


def test_the_age_limit_leaves_time_for_the_batch_but_never_more_than_half() -> None:
    scheduler = Scheduler(10, max_age_s=4.0)
    for _ in range(3):
        scheduler.learn(EMBED.kind, 10, 1.0)
        scheduler.learn(DECODE.kind, 10, 60.0)
    for flow, limit_s in ((EMBED, 3.0), (DECODE, 2.0)):
        young, old = entry(1, flow, asked=10.0 - limit_s + 0.1), entry(1, flow, asked=10.0 - limit_s - 0.1)
        put(scheduler, young, old)
        batch = batch_of(scheduler, now=10.0)
        assert (batch.entries, batch.too_old) == ([young], [old])


def paced(devices: int, *learned: tuple[int, float], batch_cost: int = 1000) -> Scheduler:
    """A scheduler of so many devices that knows what such costs of features take, in seconds."""
    scheduler = Scheduler(batch_cost)
    scheduler.devices = devices
    for cost, seconds in learned:
        scheduler.learn(EMBED.kind, cost, seconds)
    return scheduler


def test_a_device_leaves_to_the_others_what_they_will_be_free_for_sooner() -> None:
    scheduler = paced(2, (100, 1.0))
    put(scheduler, *(entry(10) for _ in range(8)))
    first, second = batch_of(scheduler), batch_of(scheduler)
    assert [len(batch.entries) for batch in (first, second)] == [4, 4]
    put(scheduler, *(entry(10) for _ in range(12)))
    scheduler.computed(second, 0.4, 1.0)
    assert len(batch_of(scheduler).entries) == (12 + 4) // 2


def test_what_the_others_compute_longer_than_all_that_waits_takes_is_not_waited_for() -> None:
    scheduler = paced(2, (100, 1.0))
    scheduler.learn(DECODE.kind, 100, 50.0)
    put(scheduler, entry(100, DECODE))
    assert batch_of(scheduler).expected_s > 40
    put(scheduler, *(entry(10) for _ in range(8)))
    assert len(batch_of(scheduler).entries) == 8


@pytest.mark.parametrize("learn", [True, False])
def test_what_is_done_with_is_no_longer_counted_as_under_way(learn: bool) -> None:
    scheduler = paced(2, (100, 1.0))
    for _ in range(3):
        put(scheduler, *(entry(10) for _ in range(8)))
        batch = batch_of(scheduler)
        assert len(batch.entries) == 4
        scheduler.computed(batch, 9.0, 1.0, learn=learn)
        scheduler.clear()


@pytest.mark.parametrize(("waiting", "taken"), [(9, 9), (12, 12), (19, 19), (22, 11), (30, 15)])
def test_no_part_is_worth_less_than_a_batch_by_itself(waiting: int, taken: int) -> None:
    scheduler = paced(2, (10, 1.1), (100, 2.0), (10, 1.1), (100, 2.0))  # a second a batch, one for each hundred
    put(scheduler, *(entry(10) for _ in range(waiting)))
    assert len(batch_of(scheduler).entries) == taken


def test_nor_is_the_part_of_one_of_many() -> None:
    scheduler = paced(4, (10, 1.1), (100, 2.0), (10, 1.1), (100, 2.0))
    put(scheduler, *(entry(10) for _ in range(24)))
    assert len(batch_of(scheduler).entries) == 10


@pytest.mark.parametrize(("devices", "learned"), [(1, [(100, 1.0)]), (2, [])], ids=["one device", "nothing known"])
def test_nothing_is_divided_for_nobody_or_by_guesses(devices: int, learned: list[tuple[int, float]]) -> None:
    scheduler = paced(devices, *learned)
    put(scheduler, *(entry(10) for _ in range(8)))
    assert len(batch_of(scheduler).entries) == 8


@pytest.mark.parametrize("how", [{"ahead": True}, {"divide": False}], ids=["ahead", "others compute"])
def test_what_its_device_would_take_next_anyway_is_not_left(how: dict[str, bool]) -> None:
    scheduler = paced(2, (100, 1.0))
    put(scheduler, *(entry(10) for _ in range(8)))
    batch = scheduler.next_batch(0.0, **how)
    assert batch is not None
    assert len(batch.entries) == 8


def test_the_oldest_waiting_is_told() -> None:
    scheduler, first = Scheduler(100), entry(1)
    scheduler.put(first, 3.0)
    scheduler.put(entry(1, DECODE), 2.0)
    assert scheduler.oldest() == 2.0
    scheduler.withdraw(first)
    assert scheduler.oldest() == 2.0


def test_clearing_gives_back_all_that_waits() -> None:
    scheduler, entries = Scheduler(100), [entry(1), entry(2, DECODE)]
    put(scheduler, *entries)
    assert scheduler.clear() == entries
    assert (scheduler.entries, scheduler.patches, scheduler.next_batch(0.0)) == (0, 0, None)


works = st.lists(
    st.tuples(st.sampled_from([ENCODE, EMBED, DECODE]), st.integers(1, 300), st.booleans()), min_size=1, max_size=60
)


@given(works, st.integers(1, 400), st.integers(1, 4))
def test_all_work_comes_out_once_and_no_batch_is_over_budget_unless_alone(
    work: list[tuple[Flow, int, bool]], budget: int, devices: int
) -> None:
    scheduler = Scheduler(budget)
    scheduler.devices = devices
    entries = [entry(patches, flow) for flow, patches, _ in work]
    put(scheduler, *entries)
    kept = []
    for one, (_, _, withdrawn) in zip(entries, work, strict=True):
        if withdrawn:
            scheduler.withdraw(one)
        else:
            kept.append(one)
    seen, under_way = list[Entry](), list[Batch]()
    while (batch := scheduler.next_batch(0.0)) is not None:
        assert batch.entries
        assert batch.cost <= budget or len(batch.entries) == 1
        assert {one.flow for one in batch.entries} == {batch.flow}
        seen += batch.entries
        under_way.append(batch)
        if len(under_way) == devices:
            done = under_way.pop(0)
            scheduler.computed(done, 0.1 + 0.01 * done.cost, 0.0)
    assert sorted(map(id, seen)) == sorted(map(id, kept))
    assert (scheduler.entries, scheduler.patches) == (0, 0)


@pytest.mark.parametrize("flow", [ENCODE, DECODE, EMBED])
def test_cost_is_known_from_patches_alone(flow: Flow) -> None:
    assert entry(1000, flow).cost == (1000 if flow == EMBED else 1093)
