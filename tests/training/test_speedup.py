"""The comparison of training with and without the encoder, at its smallest."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "loadtest" / "training_speedup"


def test_both_ways_train_on_the_same_and_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    speedup = importlib.import_module("speedup")
    out = tmp_path / "speedup.json"
    smallest = "--pairs 6 --side 32 --models 64x1 --lengths 16 32 --steps 2 --warm-up 1 --sequences 2 --device cpu"
    speedup.main([*smallest.split(), "--out", str(out)])
    rows = json.loads(out.read_text())["steps"]
    assert [(row["length"], row["image_tokens"], row["images_a_sequence"]) for row in rows] == [(16, 8, 2), (32, 16, 4)]
    for row in rows:
        assert row["losses_apart"] < 1e-4  # or it would have ended by itself
        assert min(row["step_ms_encoder"], row["step_ms_codes"]) > 0
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.width > 300
