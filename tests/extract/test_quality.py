"""Pictures that their codes give back badly are left out, and said so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viq import ViQ
from viq_serving.client import CodesFolder
from viq_serving.similarity import psnr

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four even ones, three of noise, and one that is none."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (30 + i, 20), (40 * i, 90, 120)).save(folder / f"even{i}.png")
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"noise{i}.png")
    (folder / "none.png").write_bytes(b"none")
    return folder


def test_pictures_below_are_listed_counted_and_left_out(viq: Run, pictures: Path, model: ViQ, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = viq("extract", pictures, "-o", out, "--shard-items", 3, "--min-psnr", 15)
    assert (code, "4 images in 3 shards" in said, "1 failed" in said) == (1, True, True)
    assert "3 images have less than 15 dB and were left out" in err
    with CodesFolder(out) as kept:
        assert [row.key for row in kept] == [f"even{i}.png" for i in range(4)]
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(one["position"], one["key"]) for one in rejected] == [(4 + i, f"noise{i}.png") for i in range(3)]
    for one in rejected:
        pixels = np.asarray(Image.open(pictures / one["key"]))
        (codes,) = model.encode([pixels])
        assert one["psnr"] == pytest.approx(psnr(pixels, model.decode([codes])[0]), abs=0.006)
        assert one["psnr"] < 15
    manifest = json.loads((out / "manifest.json").read_text())
    counts = {name: manifest[name] for name in ("items", "images", "failed", "rejected", "min_psnr")}
    assert counts == {"items": 8, "images": 4, "failed": 1, "rejected": 3, "min_psnr": 15.0}
    assert manifest["failures"] == {"invalid_input": 1}
    code, said, _ = viq("extract", "verify", out)
    assert (code, said) == (0, f"3 shards read, 4 images in them, 8 encoded again\n{out} is what it says\n")


def test_another_gate_is_another_output(viq: Run, pictures: Path, tmp_path: Path) -> None:
    assert viq("extract", pictures, "-o", tmp_path / "out", "--min-psnr", 15)[0] == 1
    before = (tmp_path / "out" / "rejected.jsonl").read_bytes()
    assert viq("extract", pictures, "-o", tmp_path / "out", "--min-psnr", 15)[0] == 1
    assert (tmp_path / "out" / "rejected.jsonl").read_bytes() == before
    for other in (["--min-psnr", 16], []):
        code, _, err = viq("extract", pictures, "-o", tmp_path / "out", *other)
        assert (code, "begun with min_psnr 15.0, now" in err) == (3, True)


def test_a_gate_that_makes_no_sense_is_refused(viq: Run, pictures: Path, tmp_path: Path) -> None:
    for wrong in ("-3", "0", "nan", "many", "1e9"):
        assert viq("extract", pictures, "-o", tmp_path / "out", "--min-psnr", wrong)[0] == 2


def test_one_command_encodes_only_what_is_worth_it(viq: Run, pictures: Path, tmp_path: Path) -> None:
    given = [pictures / name for name in ("even0.png", "noise0.png", "even1.png")]
    code, _, err = viq("encode", *given, "-o", tmp_path / "out", "--min-psnr", 15)
    assert (code, "noise0.png: what its codes give back has" in err) == (1, True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["even0.npz", "even1.npz"]
    assert viq("encode", *given, "-o", tmp_path / "out", "--min-psnr", "nan")[0] == 2
