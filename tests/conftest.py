"""What holds for all tests."""

from __future__ import annotations

import os

import pytest

# Tests have servers, clients and models in the same few cores: torch's threads sleep as soon as they are idle. It is
# read when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Where several processes run tests, each computes with one thread, and so does what it starts: threads of one product
# would wait for cores that the others use. What is tested of several threads sets their number itself.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that take longest, first: the last one to begin would keep one process at work while the others have none left.
_LONG = ("viq/test_head.py", "loadtest/", "page/", "proxies/", "client/", "extract/", "service/", "doors/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests of `_LONG` before all others."""
    items.sort(key=lambda item: next((i for i, part in enumerate(_LONG) if part in item.path.as_posix()), len(_LONG)))
