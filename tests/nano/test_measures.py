"""Measures and the codecs that are measured against."""

from __future__ import annotations

import numpy as np
import pytest

from nano.codecs import at_bytes
from nano.measures import codebook_use, psnr, ssim


def picture(seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    waves = np.sin(np.arange(96)[:, None] / 7 + seed) + np.cos(np.arange(128)[None] / 11)
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = 128 + 50 * waves[..., None] * np.array([1, 0.7, -0.6])
    return np.clip(values, 0, 255).astype(np.uint8)


def test_psnr_of_an_error_of_one_is_48_db() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(grey, grey + np.uint8(1)) == pytest.approx(48.13, abs=0.01)
    assert psnr(grey, grey) > 100


def test_ssim_is_one_for_the_same_picture_and_falls_with_noise() -> None:
    clean = picture()
    draw = np.random.default_rng(0)
    noisy = [np.clip(clean + draw.normal(0, s, clean.shape), 0, 255).astype(np.uint8) for s in (5, 25)]
    assert ssim(clean, clean) == pytest.approx(1)
    assert 1 > ssim(clean, noisy[0]) > ssim(clean, noisy[1]) > 0


def test_ssim_agrees_with_its_formula_where_windows_are_flat() -> None:
    a, b = np.full((20, 20, 3), 100, np.uint8), np.full((20, 20, 3), 120, np.uint8)
    constant = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 120 + constant) / (100**2 + 120**2 + constant), abs=1e-4)


def test_use_of_a_codebook_counts_codes_and_measures_evenness() -> None:
    share, entropy = codebook_use(np.array([0, 1, 2, 3] * 5), 16)
    assert share == 0.25
    assert entropy == pytest.approx(2)
    assert codebook_use(np.zeros(9, int), 10) == (0.1, 0)


@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
def test_a_codec_stays_within_the_bytes_and_does_better_with_more(codec: str) -> None:
    pixels = picture()
    small, large = at_bytes(pixels, 900, codec), at_bytes(pixels, 2500, codec)
    assert small is not None
    assert large is not None
    assert small.size <= 900
    assert large.size <= 2500
    assert small.pixels.shape == pixels.shape
    assert psnr(large.pixels, pixels) >= psnr(small.pixels, pixels)


def test_a_picture_that_no_quality_brings_down_to_the_bytes_is_none() -> None:
    assert at_bytes(picture(), 40, "JPEG") is None
