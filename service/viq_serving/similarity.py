"""How alike two pictures are: PSNR and SSIM of 8-bit pixels. Plain numpy, fit for a thread.

SSIM is that of Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity" (IEEE Transactions on Image Processing 13(4), 2004): a Gaussian window of 11x11 and standard deviation
1.5, K1 = 0.01, K2 = 0.03, over the places where the whole window lies inside the picture; the mean over the three
channels, each by itself.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

WINDOW = 11
"""Pixels of a side of the window of SSIM; a picture with a shorter side has none."""

_DEVIATION = 1.5
_PEAK = 255.0
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_BAND_PIXELS = 2**16  # computed at a time: what it takes stays in a processor's cache, however large the picture

_HALF = np.exp(-(np.arange(WINDOW // 2 + 1) ** 2) / (2 * _DEVIATION**2))
_WEIGHTS = tuple(float(weight) for weight in _HALF / (2 * _HALF.sum() - _HALF[0]))  # from the middle outwards

Pixels = npt.NDArray[np.uint8]
_Plane = npt.NDArray[np.float64]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of `(H, W, 3)` pixels, over all channels together; infinity if they are equal.

    Raises `ValueError` for pictures of different shapes.
    """
    _refuse_different(a, b)
    squares, rows = 0, max(1, _BAND_PIXELS // a.shape[1])
    for top in range(0, a.shape[0], rows):
        difference = a[top : top + rows].astype(np.int64) - b[top : top + rows]
        squares += int((difference * difference).sum())
    return math.inf if squares == 0 else 10 * math.log10(_PEAK**2 * a.size / squares)


def ssim(a: Pixels, b: Pixels) -> float:
    """Mean structural similarity of `(H, W, 3)` pixels, at most 1; NaN if a side is shorter than `WINDOW`.

    Raises `ValueError` for pictures of different shapes.
    """
    _refuse_different(a, b)
    height, width, channels = a.shape
    places = (height - WINDOW + 1, width - WINDOW + 1)
    if min(places) < 1:
        return math.nan
    rows, total = max(1, _BAND_PIXELS // width), 0.0
    for top in range(0, places[0], rows):
        band = slice(top, min(top + rows, places[0]) + WINDOW - 1)
        total += sum(_summed(a[band, :, channel], b[band, :, channel]) for channel in range(channels))
    return total / float(channels * places[0] * places[1])


def _summed(a: Pixels, b: Pixels) -> float:
    """The sum of SSIM over every place of the window in a band of one channel, equations (6) and (13) to (16)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    products, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance = _windowed(x * y) - products
    variances = _windowed(x * x + y * y) - squares
    index = (2 * products + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))
    return float(index.sum())


def _windowed(plane: _Plane) -> _Plane:
    """The weighted mean of `plane` under the window, at every place where it fits: 10 rows and columns fewer."""
    return _along_rows(_along_rows(plane).T).T


def _along_rows(plane: _Plane) -> _Plane:
    middle, length = WINDOW // 2, plane.shape[0] - WINDOW + 1
    mean = _WEIGHTS[0] * plane[middle : middle + length]
    for distance, weight in enumerate(_WEIGHTS[1:], 1):
        above, below = middle - distance, middle + distance
        mean += weight * (plane[above : above + length] + plane[below : below + length])
    return mean


def _refuse_different(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
