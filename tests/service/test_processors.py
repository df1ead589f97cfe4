from __future__ import annotations

import os
from pathlib import Path

import pytest

from viq_serving import pool
from viq_serving.pool import Pool
from viq_serving.processors import processors


@pytest.fixture(autouse=True)
def _a_machine_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "250000 100000\n"}, 3),  # two and a half: a third thread has half a processor
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "garbage"}, 8),
        ({"cpu.max": "100000 0"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_container_has_its_share_of_the_machine(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert processors(tmp_path) == expected


def test_threads_that_decode_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "processors", lambda: 5)
    assert Pool()._threads == 5
    monkeypatch.setattr(pool, "processors", lambda: 1)
    assert Pool()._threads == 2  # or an image of the bulk lane would keep all others waiting
