"""One real server for the tests of the generator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from viq_serving.bench.own_server import Running, serving


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    """A service with nano."""
    with serving([]) as running:
        yield running
