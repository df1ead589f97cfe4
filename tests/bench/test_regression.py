"""The check against committed figures, on operations of known time: that it fails when it should, and only then."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """`bench/regression.py`, which is a script beside others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        spec = importlib.util.spec_from_file_location("regression", BENCH / "regression.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


class Times:
    """An operation that takes these seconds, one after another, then always the last."""

    def __init__(self, *seconds: float) -> None:
        self.left = list(seconds)

    def __call__(self) -> float:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.fixture
def checked(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the program with operations in place of the real ones against committed figures; its code and the rest."""

    def run(committed: Mapping[str, float], now: Mapping[str, Times], product: float = 0.01) -> int:
        @contextmanager
        def measures() -> Iterator[Mapping[str, Times]]:
            yield now

        rows = {name: {"over_reference": over} for name, over in committed.items()}
        (tmp_path / "committed.json").write_text(json.dumps({"machine": program.machine(), "rows": rows}))
        monkeypatch.setattr(program, "measures", measures)
        monkeypatch.setattr(program, "reference", lambda: Times(product))
        monkeypatch.setattr(
            sys, "argv", ["regression.py", "--against", str(tmp_path / "committed.json"), "--rounds", "2"]
        )
        code: int = program.main()
        return code

    return run


def test_the_committed_figures_are_of_what_is_measured(program: ModuleType) -> None:
    committed = json.loads((BENCH / "results" / "regression.json").read_text())["rows"]
    assert set(committed) == {*(f"encode_{side}" for side in program.SIDES), "engine", "idle_grpc"}
    assert all(row["over_reference"] > 0 for row in committed.values())


def test_equal_figures_pass_also_on_a_machine_that_is_slower_at_everything(checked: Any) -> None:
    assert checked({"encode_64": 2.0, "engine": 5.0}, {"encode_64": Times(0.02), "engine": Times(0.05)}) == 0
    assert checked({"encode_64": 2.0}, {"encode_64": Times(0.2)}, product=0.1) == 0


@pytest.mark.parametrize(("name", "over"), [("encode_512", 1.21), ("engine", 1.26), ("idle_grpc", 1.41)])
def test_what_is_slower_than_its_tolerance_fails_and_is_named(
    checked: Any, name: str, over: float, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"encode_64": Times(0.02)}
    assert checked({name: 1.0, "encode_64": 2.0}, {name: Times(0.01 * over), **usual}) == 1
    assert f"worse than the committed figures: {name}\n" in capsys.readouterr().out
    assert checked({name: 1.0, "encode_64": 2.0}, {name: Times(0.01 * (over - 0.02)), **usual}) == 0


def test_a_row_that_is_worse_once_is_measured_again(checked: Any) -> None:
    slow_first = Times(0.05, 0.05, 0.05, 0.01)  # a round that does not count, two that do
    assert checked({"encode_512": 1.0}, {"encode_512": slow_first}) == 0
    assert len(slow_first.left) == 1


def test_a_figure_that_is_not_measured_any_more_fails(checked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked({"encode_64": 2.0, "engine": 5.0}, {"encode_64": Times(0.02)}) == 1
    assert "engine (not measured any more)" in capsys.readouterr().out


def test_what_has_no_committed_figure_is_told(checked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked({"encode_64": 2.0}, {"encode_64": Times(0.02), "engine": Times(9.0)}) == 0
    assert "engine: 900.0 products, no committed figure" in capsys.readouterr().out
