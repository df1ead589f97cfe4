"""A few small pictures as the data step would leave them, and a network small enough for two steps a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nano.documents import document
from nano.drawing import Fonts


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `held-out`."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("train", "held-out"):
        (folder / part).mkdir()
    for seed in range(3):
        document(seed, Fonts([])).crop((0, 0, 260, 220)).save(folder / "train" / f"document-{seed:04}.png")
    wave = np.sin(np.arange(240)[:, None] / 9 + np.arange(300)[None] / 23)
    for name, tint in (("hill", (90, 60, 30)), ("sea", (20, 50, 100))):
        photograph = np.clip(128 + wave[..., None] * np.array(tint), 0, 255).astype(np.uint8)
        Image.fromarray(photograph).save(folder / "train" / f"{name}-0.png")
        Image.fromarray(photograph[::2, ::2]).save(folder / "train" / f"{name}-1.png")
    document(99, Fonts([])).crop((0, 0, 70, 50)).save(folder / "held-out" / "document-page.png")
    return folder
