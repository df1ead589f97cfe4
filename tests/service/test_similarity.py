"""PSNR and SSIM against another implementation of the same definitions, and where they end."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from viq_serving.similarity import WINDOW, psnr, ssim

GOLDEN = Path(__file__).parent.parent / "golden" / "similarity.json"
PAIRS = json.loads(GOLDEN.read_text())["pairs"]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """The script that made the golden values, for its pictures."""
    spec = importlib.util.spec_from_file_location("golden_similarity", GOLDEN.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_scikit_image(pictures: ModuleType, name: str) -> None:
    first, second = pictures.pair(name)
    assert psnr(first, second) == pytest.approx(PAIRS[name]["psnr"], abs=1e-9)
    assert ssim(first, second) == pytest.approx(PAIRS[name]["ssim"], abs=1e-6)
    assert ssim(second, first) == pytest.approx(PAIRS[name]["ssim"], abs=1e-6)


def test_bands_of_any_height_give_the_same(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pictures.pair("noise")
    whole = psnr(first, second), ssim(first, second)
    for pixels in (1, 200, 5000):
        monkeypatch.setattr("viq_serving.similarity._BAND_PIXELS", pixels)
        assert (psnr(first, second), ssim(first, second)) == pytest.approx(whole, abs=1e-12)


def test_equal_pictures_lose_nothing() -> None:
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    assert psnr(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1.0, abs=1e-12)


def test_opposite_pictures_are_as_unlike_as_can_be() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr(black, white) == 0.0
    assert ssim(black, white) == pytest.approx(0.0001, abs=1e-6)  # C1 / (255² + C1), the two being flat


@pytest.mark.parametrize("shape", [(WINDOW - 1, 40, 3), (40, WINDOW - 1, 3), (1, 1, 3)])
def test_a_picture_smaller_than_the_window_has_psnr_only(shape: tuple[int, int, int]) -> None:
    first, second = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    assert math.isnan(ssim(first, second))
    assert psnr(first, second) == pytest.approx(20 * math.log10(255))


def test_pictures_of_different_shapes_are_not_compared() -> None:
    first: npt.NDArray[np.uint8] = np.zeros((20, 20, 3), np.uint8)
    for compare in (psnr, ssim):
        with pytest.raises(ValueError, match=r"\(20, 20, 3\) and \(20, 21, 3\)"):
            compare(first, np.zeros((20, 21, 3), np.uint8))
