"""Write what scikit-image says of pairs of pictures: `pip install scikit-image && python tests/golden/similarity.py`.

The pictures follow from formulas, so that no generator's version matters.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

PAIRS = ("noise", "bright", "blurred", "flat", "smallest", "wide")


def pair(name: str) -> tuple[Pixels, Pixels]:
    """Two pictures `(H, W, 3)`."""
    height, width = {"smallest": (11, 11), "wide": (12, 7000)}.get(name, (61, 83))
    y, x, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    texture = (x * x * 7 + y * 13 * (channel + 1) + x * y * 3) % 251
    slope = (2 * x + y + 40 * channel) % 256
    first, second = {
        "noise": (texture, (texture * 5 + 17) % 256),
        "bright": (slope, np.minimum(slope + 12, 255)),
        "blurred": (texture, (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) // 3),
        "flat": (np.full_like(texture, 128), np.full_like(texture, 130)),
        "smallest": (slope, texture),
        "wide": (texture, (texture + slope) // 2),
    }[name]
    return first.astype(np.uint8), second.astype(np.uint8)


if __name__ == "__main__":
    import skimage  # type: ignore[import-not-found]  # installed for this script alone
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # type: ignore[import-not-found]

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    values = {
        name: {
            "psnr": float(peak_signal_noise_ratio(*pair(name), data_range=255)),
            "ssim": float(structural_similarity(*pair(name), channel_axis=-1, **options)),
        }
        for name in PAIRS
    }
    about = {"scikit-image": skimage.__version__, "pairs": values}
    Path(__file__).with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
