"""How good a network is on whole held-out pictures."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from nano.crops import batch_of
from nano.network import Network, proximal, quantised
from nano.photographs import at_most

Pixels = npt.NDArray[np.uint8]


def held_out(data: Path, names: Collection[str] | None = None, longest: int | None = None) -> dict[str, Pixels]:
    """Prepared held-out pictures by name: all, or `names`; shrunk to `longest` if that is given.

    Raises `FileNotFoundError` if there are none to choose from.
    """
    found = {}
    paths = sorted((data / "held-out").glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{data / 'held-out'}: no prepared pictures; run the data step first (make nano-data)")
    for path in paths:
        if names is None or path.stem in names:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
                found[path.stem] = np.asarray(at_most(rgb, longest) if longest else rgb)
    return found


@torch.no_grad()
def psnr_of(network: Network, pictures: dict[str, Pixels], quantise: bool) -> dict[str, float]:
    """PSNR in dB of each picture through the network, with the quantizer or with what stands in its place."""
    scores = {}
    for name, pixels in pictures.items():
        batch = batch_of([pixels])
        made = network(batch.patches, batch.packing, quantised if quantise else proximal)[0]
        whole = made[:, : pixels.shape[0], : pixels.shape[1]].clamp(-1, 1)
        error = float((whole - batch.targets[0]).square().mean()) / 4
        scores[name] = round(-10 * np.log10(max(error, 1e-10)), 3)
    return scores
