"""Who works, and how many beside one another."""

from __future__ import annotations

from viq_serving.engine.crew import Crew
from viq_serving.engine.scheduler import Scheduler
from viq_serving.engine.work import Batch, Entry, Flow, Request
from viq_serving.engine.worker import Worker


class _Model:
    device = "cpu"


def _worker() -> Worker:
    return Worker(None, {"nano": _Model()}, 2)  # type: ignore[arg-type, dict-item]  # never started


def _batch() -> Batch:
    scheduler = Scheduler(1024)
    scheduler.put(Entry(Flow("encode", "nano", "interactive"), 16, Request(0.0)), 0.0)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    return batch


def test_one_between_two_batches_still_counts_and_after_a_second_no_more() -> None:
    first, second = _worker(), _worker()
    crew, long, short, next_one = Crew([first, second]), _batch(), _batch(), _batch()
    crew.begin(first, long)
    assert crew.company(0.0) == 1
    crew.begin(second, short)
    assert crew.company(0.1) == 2
    assert crew.end(second, short, 5.0)
    assert crew.end(first, long, 5.01)
    crew.begin(first, next_one)
    assert crew.company(5.02) == 2
    assert crew.company(6.1) == 1


def test_who_is_lost_is_no_company_for_long() -> None:
    first, second = _worker(), _worker()
    crew, batch, other = Crew([first, second]), _batch(), _batch()
    crew.begin(first, batch)
    crew.begin(second, other)
    assert crew.company(0.0) == 2
    assert crew.lose(second) == [other]
    assert not crew.end(second, other, 0.1)
    assert crew.company(1.1) == 1
