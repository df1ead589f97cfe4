"""The GPU steps of the load test, run in small on a CPU: that they run, and what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loadtest.gpu import network

from viq.encoder import Encoder

ROOT = Path(__file__).parents[2]


def steps(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.gpu", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("results")
    done = steps(out, "--tiny", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem[0]: json.loads(path.read_text()) for path in sorted(out.glob("*-tiny/*.json"))}


def rows(results: dict[str, dict[str, object]], letter: str) -> list[dict[str, object]]:
    found = results[letter]["rows"]
    assert isinstance(found, list)
    return found


def test_every_step_runs_and_writes_what_it_ran_on(results: dict[str, dict[str, object]]) -> None:
    assert list(results) == list("ABCDEFGHI")
    for result in results.values():
        assert result["status"] == "done", result
        assert result["rows"]
        machine = result["machine"]
        assert isinstance(machine, dict)
        assert {"device", "torch", "cuda", "cudnn", "packages"} <= machine.keys()


def test_the_promise_holds_and_the_control_can_fail(results: dict[str, dict[str, object]]) -> None:
    found = {str(row["what"]): row for row in rows(results, "D")}
    assert found["values of an image, alone and in packs"]["different"] == 0
    assert found["the same image again"]["different"] == 0
    assert "control without the measures: images that differ" in found
    assert all(row["equal"] for row in rows(results, "B") if "bits" in row)
    assert all(row["equal"] for row in rows(results, "F"))


def test_predictions_stand_beside_what_was_measured(results: dict[str, dict[str, object]]) -> None:
    assert rows(results, "A")[3]["predicted_tflops"] == 790
    assert any(row.get("what") == "engine" and row["aim"] == 0.95 for row in rows(results, "H"))


def test_some_steps_can_be_asked_for_and_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    done = steps(tmp_path, "--tiny", "--device", "cpu", "--steps", "A", "--limit-s", "0.001")
    assert done.returncode == 1
    assert "ended after 0.001 s" in done.stdout
    assert steps(tmp_path, "--steps", "J").returncode == 2


def test_the_network_that_is_measured_has_the_released_size_and_the_work_that_predictions_are_of() -> None:
    with torch.device("meta"):
        encoder = Encoder(network.FULL)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(1.36e9, rel=0.01)
    tflop = {pack.name: network.flop(encoder, pack.packing(1)) / 1e12 for pack in network.PACKS}
    for name, expected in (("256²", 0.80), ("1024²", 17.1), ("2048²", 124), ("32 × 256²", 25.5)):
        assert tflop[name] == pytest.approx(expected, rel=0.01)
