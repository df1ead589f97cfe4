"""The recipe's commands where the step before has not been run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nano import evaluate, export, train


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (train.main, "train: no prepared pictures; run the data step first (make nano-data)"),
        (evaluate.main, "held-out: no prepared pictures; run the data step first (make nano-data)"),
        (export.main, "state.pt: no such run; train first (make nano-train)"),
    ],
)
def test_a_command_without_what_it_needs_says_which_step_comes_first(
    command: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nano"])
    assert callable(command)
    with pytest.raises(SystemExit) as ended:
        command()
    assert str(ended.value).endswith(said)
    assert not list(tmp_path.iterdir())
