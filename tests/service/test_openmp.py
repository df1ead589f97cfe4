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


def test_company_is_remembered_from_when_it_ended_however_long_it_took() -> None:
    company = Company()
    company.of(1, 0.0)
    assert company.of(2, 0.5) == 2
    company.note(2, 8.0)  # before one of them ends
    company.note(1, 8.01)
    assert company.of(1, 8.02) == 2
    assert company.of(2, 8.03) == 2


def test_after_a_second_alone_one_has_all_processors() -> None:
    company = Company()
    company.of(2, 0.0)
    assert company.of(1, 1.0) == 2
    assert company.of(1, 1.1) == 1


def test_of_several_numbers_each_is_forgotten_by_itself() -> None:
    company = Company()
    assert [company.of(4, 0.0), company.of(3, 0.9), company.of(1, 1.1), company.of(1, 2.0)] == [4, 4, 3, 1]
