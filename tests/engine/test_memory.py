"""How much memory new processes may take: what the machine has, or what a container's limit leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from viq_serving.engine.memory import available_bytes, out_of_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """8 GiB that can be had, of which 1 GiB is free."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: {16 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {8 * 2**20} kB\nHugePages_Total: 0\n"
    )
    return tmp_path


def limited(root: Path, **files: object) -> None:
    """Write the files of a control group; `__` stands for a dot."""
    for name, value in files.items():
        place = root / "sys/fs/cgroup" / name.replace("__", ".").replace("v1_", "memory/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{value}\n")


def test_caches_that_can_be_dropped_count_as_had(machine: Path) -> None:
    assert available_bytes(machine) == 8 * GIB


def test_a_container_has_what_its_limit_leaves_caches_not_counted(machine: Path) -> None:
    stat = f"anon {GIB}\ninactive_file {GIB}"
    limited(machine, memory__max=4 * GIB, memory__current=2 * GIB, memory__stat=stat)
    assert available_bytes(machine) == 3 * GIB


def test_a_container_without_a_limit_has_what_the_machine_has(machine: Path) -> None:
    limited(machine, memory__max="max", memory__current=2 * GIB)
    assert available_bytes(machine) == 8 * GIB


def test_limits_of_the_older_kind_hold_too(machine: Path) -> None:
    limited(machine, v1_memory__limit_in_bytes=2**63 - 4096, v1_memory__usage_in_bytes=GIB)
    assert available_bytes(machine) == 8 * GIB
    limited(machine, v1_memory__limit_in_bytes=2 * GIB, v1_memory__usage_in_bytes=3 * GIB)
    assert available_bytes(machine) == 0


def test_a_system_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) == is_memory
