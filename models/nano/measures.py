"""What is measured of a picture against its original, uint8 `(H, W, 3)` both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_RADIUS, _SIGMA = 5, 1.5


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio over all channels, in dB."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity (Wang et al., IEEE Transactions on Image Processing 13(4), 2004), mean of the channels.

    Gaussian windows of 11 pixels and deviation 1.5, those that lie whole within the picture; K1 = 0.01, K2 = 0.03.
    """
    x, y = a.astype(np.float32), b.astype(np.float32)
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    upper = (2 * mean_x * mean_y + first) * (2 * covariance + second)
    return float(np.mean(upper / ((mean_x**2 + mean_y**2 + first) * (var_x + var_y + second))))


def codebook_use(codes: npt.NDArray[np.integer], size: int) -> tuple[float, float]:
    """Share of the codebook's `size` codes that occur, and the entropy of their frequencies in bits."""
    counts = np.bincount(codes.reshape(-1).astype(np.int64), minlength=size)
    shares = counts[counts > 0] / counts.sum()
    return float(np.count_nonzero(counts) / size), float(-(shares * np.log2(shares)).sum())


def _blurred(x: _Floats) -> _Floats:
    """`(H, W, 3)` to `(H-10, W-10, 3)`."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2)).astype(np.float32)
    kernel /= kernel.sum()
    length = len(kernel)
    height, width = x.shape[0] - length + 1, x.shape[1] - length + 1
    rows = np.zeros((height, x.shape[1], x.shape[2]), np.float32)
    for i, weight in enumerate(kernel):
        rows += weight * x[i : i + height]
    blurred = np.zeros((height, width, x.shape[2]), np.float32)
    for i, weight in enumerate(kernel):
        blurred += weight * rows[:, i : i + width]
    return blurred
