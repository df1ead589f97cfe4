"""How many threads are taken to compute beside one another."""

from __future__ import annotations

from viq_serving.openmp import Company


def test_one_alone_is_alone_at_once() -> None:
    company = Company()
    assert [company.of(1, now) for now in (0.0, 0.5, 3.0)] == [1, 1, 1]


def test_a_gap_between_two_batches_of_a_neighbour_is_no_reason_to_take_its_processors() -> None:
    company = Company()
    assert company.of(2, 10.0) == 2
    assert company.of(1, 10.2) == 2  # the other is between two batches
    assert company.of(2, 10.3) == 2


def test_company_is_remembered_from_when_it_was_last_seen() -> None:
    company = Company()
    for now in (0.0, 0.9, 1.8):
        assert company.of(2, now) == 2
    assert company.of(1, 2.7) == 2
    assert company.of(1, 2.9) == 1


def test_more_company_counts_at_once() -> None:
    company = Company()
    assert [company.of(n, 0.1 * n) for n in (1, 2, 3, 2)] == [1, 2, 3, 3]
