"""The weights that ship with the package, and a held-out picture through them (osprey.jpg: CC0, Budgie Desktop)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nano.evaluate import evaluate
from nano.export import LIMIT
from nano.measures import psnr, ssim
from viq import ViQ
from viq.fingerprint import family, sample_check
from viq.tensor_file import open_tensors
from viq.weights_root import PACKAGED

FOLDER = PACKAGED / "converted_nano"
RESULTS = Path(__file__).parents[2] / "models" / "nano" / "results"


@pytest.fixture(scope="module")
def nano() -> ViQ:
    return ViQ.from_pretrained(PACKAGED, "nano", device="cpu")


def osprey() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(Path(__file__).with_name("osprey.jpg")) as image:
        return np.asarray(image.convert("RGB"))


def test_the_packaged_files_are_at_most_16_mib_of_half_precision() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) <= LIMIT == 16 * 2**20
    for path in files:
        assert {tensor.dtype for tensor in open_tensors(path).values()} == {torch.float16}, path


def test_the_family_beside_the_weights_is_theirs(nano: ViQ) -> None:
    manifest = json.loads((FOLDER / "viq.json").read_text(encoding="utf-8"))
    encoder = open_tensors(FOLDER / "model_viq_fsq_nano.safetensors")
    assert manifest["family"] == family(encoder, "nano", manifest["num_heads"]) == nano.family
    assert manifest["family_check"] == sample_check(encoder, "nano", manifest["num_heads"])
    assert not nano.untrained


def test_a_picture_that_was_never_trained_on_comes_back_recognisable(nano: ViQ) -> None:
    pixels = osprey()
    [picture] = nano.decode(nano.encode([pixels]))
    assert psnr(picture, pixels) > 21.5  # measured: 22.9
    assert ssim(picture, pixels) > 0.6  # measured: 0.68


def test_codes_say_something_about_the_picture(nano: ViQ) -> None:
    pixels = osprey()
    codes, mirrored, dark = (c.array for c in nano.encode([pixels, pixels[:, ::-1], pixels // 4]))
    assert len(np.unique(codes)) > 100
    assert (codes != mirrored).mean() > 0.5
    assert (codes != dark).mean() > 0.5


def test_the_published_figures_are_of_these_weights(nano: ViQ) -> None:
    report = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))
    assert report["family"] == nano.family
    assert report["mean"]["all"]["pictures"] == len(report["pictures"]) == 23
    assert report["mean"]["all"]["psnr"] >= 20
    assert (RESULTS / "sheet.jpg").stat().st_size <= 400_000


def test_an_evaluation_writes_figures_table_and_sheet(nano: ViQ, data: Path, tmp_path: Path) -> None:
    report = evaluate(nano, data, tmp_path)
    assert json.loads((tmp_path / "quality.json").read_text(encoding="utf-8")) == report
    assert "| document-page | 70×50 |" in (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert report["codes"] == 5 * 4 * 4
