"""The autoscaling rule's reaction to a step in load, as it is drawn in deploy/sizing.md."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_CAPACITY = 4000.0  # patches a second of one pod
_TARGET = 0.7


@pytest.fixture(scope="module")
def rule(root: Path) -> ModuleType:
    """deploy/autoscaling/simulate.py, which is a script and no package."""
    folder = str(root / "deploy" / "autoscaling")
    sys.path.insert(0, folder)
    try:
        import simulate  # type: ignore[import-not-found]
    finally:
        sys.path.remove(folder)
    return simulate  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def steps(rule: ModuleType) -> list[Any]:
    """Every second of the simulation."""
    return list(rule.simulated(_CAPACITY, rule.step_load(_CAPACITY), rule.SECONDS))


def test_a_flood_brings_enough_pods_and_then_nothing_is_refused(steps: list[Any]) -> None:
    enough = next(step.t for step in steps if step.t > 120 and step.ready * _CAPACITY >= step.offered)
    settled = next(step.t for step in steps if step.t > enough and step.queue == 0)
    later = [step for step in steps if settled < step.t < 1020]
    assert later
    assert all(step.refused == 0 for step in later)
    assert max(step.refused for step in steps) > 0  # there was something to react to


def test_busy_pods_with_short_queues_are_kept(steps: list[Any]) -> None:
    during = [step for step in steps if 200 < step.t < 1020]
    assert min(step.ready * _CAPACITY * 0.999 for step in during if step.t > 300) >= 8 * _CAPACITY
    assert during[-1].pods == 12  # 8 pods' work at 0.7 each
    numbers = [step.pods for step in steps if step.t > 120]
    changes = [after - before for before, after in pairwise(numbers) if after != before]
    assert changes == sorted(changes, key=lambda change: change < 0)  # up, then down, and never to and fro


def test_what_is_no_longer_needed_goes_slowly(rule: ModuleType, steps: list[Any]) -> None:
    assert steps[-1].pods == rule.Autoscaler(rule.yaml.safe_load(rule.RULE.read_text())["spec"]).spec["minReplicas"]
    dropped = [before.pods - after.pods for before, after in pairwise(steps)]
    assert max(dropped) <= 5  # a quarter of the most there may be
    assert all(step.pods == 12 for step in steps if 1020 < step.t < 1300)


def test_a_simulated_pod_does_as_the_recorded_server_did(rule: ModuleType, root: Path) -> None:
    recorded = json.loads((root / "deploy/autoscaling/recorded.json").read_text())
    pairs = rule.replayed(recorded)
    most = max(real for _, real, _ in pairs)
    assert most > 10 * recorded["side"] ** 2 / 256  # the recorded flood really queued
    off = sum(abs(real - simulated) for _, real, simulated in pairs) / len(pairs)
    assert off < 0.25 * most


def test_the_picture_is_of_this_rule_and_this_recording(rule: ModuleType, root: Path, tmp_path: Path) -> None:
    drawn = (root / "deploy/autoscaling/step.svg").read_text()
    rule.write(tmp_path / "step.svg")
    assert (tmp_path / "step.svg").read_text() == drawn, "run make deploy-autoscaling"
